"""What a package offers says that it is offered there.

Classes and functions live in private modules; users see and pickle the name of the package that offers them.
"""

import inspect
import sys
from collections.abc import Sequence


def at_home(face: str, names: Sequence[str]) -> None:
    """Let classes and functions name the package that offers them as their home: in reprs, pickles and ``help()``."""
    for name in names:
        value = getattr(sys.modules[face], name)
        if (inspect.isclass(value) or inspect.isfunction(value)) and value.__module__.startswith(f"{face}."):
            value.__module__ = face
