"""A miniature Musubi Tuner, and a demonstration that runs this library on it: `python -m musubitraining.demo`."""
