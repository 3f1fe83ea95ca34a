"""`python -m mms_operator`."""

import sys

from mms_operator.main import main

if __name__ == "__main__":
    sys.exit(main())
