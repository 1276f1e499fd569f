"""Command line and training loop."""
