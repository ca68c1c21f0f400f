"""python -m sparsight.cli: as python -m sparsight."""

import sys

from sparsight.cli.desk import main

sys.exit(main())
