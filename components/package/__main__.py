import sys

from components.package.main import STAGE
from components.stage import main

sys.exit(main(STAGE))
