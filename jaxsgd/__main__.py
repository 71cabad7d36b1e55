"""``python -m jaxsgd``, as ``jaxsgd``; see :mod:`jaxsgd.report`."""

import sys

from jaxsgd.report import main

if __name__ == "__main__":
    sys.exit(main())
