"""`python -m experiments` lists the experiments; `python -m experiments STEM` runs one."""

import sys

from experiments._harness import main
from jaxsgd import shell

if __name__ == "__main__":
    shell.leave(main(sys.argv[1:]))
