"""`python -m experiments` lists the experiments; `python -m experiments STEM` runs one."""

import sys

from experiments._harness import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
