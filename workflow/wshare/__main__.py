"""Entry point of `python -m wshare`."""

import sys

from wshare.cli import main

if __name__ == "__main__":
    sys.exit(main())
