"""`python -m components.train_hrn`."""

import sys

from components.stage import STAGES, main

if __name__ == "__main__":
    sys.exit(main(STAGES["train_hrn"]))
