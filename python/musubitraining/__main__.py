"""The command line: `python -m musubitraining`."""

import sys

from musubitraining.cli import main

if __name__ == "__main__":
    sys.exit(main())
