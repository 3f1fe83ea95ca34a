"""`python -m mms_operator`: the operator. `python -m mms_operator uninstall`: what is done before it goes."""

import sys

from mms_operator import uninstall
from mms_operator.main import main

if __name__ == "__main__":
    sys.exit(uninstall.main() if sys.argv[1:] == ["uninstall"] else main())
