"""python -m sparsight: the command line, where its script is not on the path."""

import sys

from sparsight.cli import main

sys.exit(main())
