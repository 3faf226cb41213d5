"""`python -m o1core` is the command `o1core`."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
