"""`python -m components.report`."""

import sys

from components.report.main import STAGE
from components.stage import main

sys.exit(main(STAGE))
