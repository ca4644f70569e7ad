"""`python -m trenchcoat_trainer`, the same as the command `trenchcoat`."""

import sys

from trenchcoat_trainer.cli import main

sys.exit(main())
