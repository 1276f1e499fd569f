"""Stands in for accelerate where that is not installed, for the demonstration alone."""
