"""What the tests are made with: a server, zips of photos, a stand-in for Musubi Tuner, both libraries to run."""
