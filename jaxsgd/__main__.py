"""``python -m jaxsgd``; see :mod:`jaxsgd.report`."""

import sys

from jaxsgd._command_line import main

if __name__ == "__main__":
    sys.exit(main())
