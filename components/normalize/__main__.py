import sys

from components.normalize.main import STAGE
from components.stage import main

if __name__ == "__main__":
    sys.exit(main(STAGE))
