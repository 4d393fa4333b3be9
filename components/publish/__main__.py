"""`python -m components.publish`."""

import sys

from components.stage import STAGES, main

if __name__ == "__main__":
    sys.exit(main(STAGES["publish"]))
