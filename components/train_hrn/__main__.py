import sys

from components.stage import main
from components.train_hrn.main import STAGE

sys.exit(main(STAGE))
