import sys

from components.delineate.main import STAGE
from components.stage import main

sys.exit(main(STAGE))
