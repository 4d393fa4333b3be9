"""`python -m components.download`."""

import sys

from components.stage import STAGES, main

if __name__ == "__main__":
    sys.exit(main(STAGES["download"]))
