import sys

from components.stage import main
from components.super_resolve.main import STAGE

sys.exit(main(STAGE))
