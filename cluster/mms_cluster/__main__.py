"""`python -m mms_cluster`."""

import sys

from mms_cluster.cli import main

sys.exit(main())
