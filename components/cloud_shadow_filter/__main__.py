"""`python -m components.cloud_shadow_filter`."""

import sys

from components.stage import STAGES, main

if __name__ == "__main__":
    sys.exit(main(STAGES["cloud_shadow_filter"]))
