"""`python -m components.plan_shards`."""

import sys

from components.plan_shards.main import main

if __name__ == "__main__":
    sys.exit(main())
