"""A miniature of Musubi Tuner for Z-Image: its command line, caches, output and files, with a small model in numpy."""

import os

# The matrices are too small to gain from threads, which on a busy machine make a step ten times slower; and one thread
# adds up in the same order on every machine.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
