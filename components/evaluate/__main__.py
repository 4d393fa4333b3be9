import sys

from components.evaluate.main import STAGE
from components.stage import main

sys.exit(main(STAGE))
