"""``python -m jaxsgd``, as ``jaxsgd``; see :mod:`jaxsgd.report`."""

from typing import NoReturn

from jaxsgd import shell
from jaxsgd.report import main


def run() -> NoReturn:
    """The command ``jaxsgd``."""
    shell.leave(main())


if __name__ == "__main__":
    run()
