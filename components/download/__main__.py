import sys

from components.download.main import STAGE
from components.stage import main

if __name__ == "__main__":
    sys.exit(main(STAGE))
