"""The libraries that this package stands on, imported before all else: a file that hides one of them is named.

A script, and ``python -m``, look for libraries in their own folder first, so a ``json.py`` there is what JAX gets for
Python's ``json``. The command ``jaxsgd`` does not look there before anywhere else.
"""

import os
import sys

_NEEDED = {"jax", "jaxlib", "jaxtyping", "numpy", "optax", "scipy"}


def hiding(folder: str) -> list[str]:
    """The files of a folder that are called as a library is, one of Python's own or one that is needed."""
    names = os.listdir(folder or ".") if os.path.isdir(folder or ".") else []
    hidden = _NEEDED | sys.stdlib_module_names
    return sorted(name for name in names if name.endswith(".py") and name[:-3] in hidden)


def _is_taken(name: str) -> bool:
    """Whether a library, which wanted another, has imported a file of this name."""
    file = getattr(sys.modules.get(name[:-3]), "__file__", None)
    return file is not None and os.path.abspath(file) == os.path.abspath(os.path.join(sys.path[0], name))


def _refused(names: list[str]) -> ImportError:
    return ImportError(
        f"{', '.join(names)} in {os.path.abspath(sys.path[0])} must not hide the libraries of these names, which are "
        "needed: rename the files, or run `jaxsgd` in place of `python -m jaxsgd`, which looks there first"
    )


_before = set(sys.modules)
try:
    import jax  # noqa: F401
    import jaxtyping  # noqa: F401
    import numpy  # noqa: F401
    import optax  # noqa: F401
    import scipy.linalg
    import scipy.optimize
    import scipy.special  # noqa: F401
except (Exception, SystemExit) as error:
    found = hiding(sys.path[0])
    if not found:
        raise
    raise _refused(found) from error
taken = [name for name in hiding(sys.path[0]) if name[:-3] not in _before and _is_taken(name)]
if taken:
    raise _refused(taken)
