"""`python -m medmoe`: the same command line as `medmoe`."""

from __future__ import annotations

import sys

from medmoe.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
