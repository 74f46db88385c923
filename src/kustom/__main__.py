"""`python -m kustom`: the command line, where the script `kustom` is not on the path."""

from __future__ import annotations

import sys

from kustom.commands import main

if __name__ == "__main__":
    sys.exit(main())
