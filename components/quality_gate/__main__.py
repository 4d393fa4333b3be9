import sys

from components.quality_gate.main import STAGE
from components.stage import main

if __name__ == "__main__":
    sys.exit(main(STAGE))
