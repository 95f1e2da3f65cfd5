"""``python -m svi.cli``: the same as the command ``svi``."""

import sys

from svi.cli import main

sys.exit(main())
