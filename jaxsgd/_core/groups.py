"""Groups of parameters by their names, the paths of the pytree that they are in."""

from collections.abc import Callable, Sequence
from typing import Any

import jax

from jaxsgd._core import validate

By = int | Sequence[str] | Callable[[str], str | None]
REST = "the rest"


def named(by: By, structure: Any) -> dict[str, list[str]]:
    """The groups of the parameters of a structure: the paths of each, as ``jax.tree_util.keystr`` has them.

    Raises:
        TypeError, ValueError: if ``by`` is no depth of at least 1, prefixes or function; if a prefix fits nothing.
    """
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(structure.unflatten(range(structure.num_leaves)))]
    label = _labeller(by, [_name(path) for path in paths])
    groups: dict[str, list[str]] = {}
    for path in paths:
        name = label(path)
        if name is not None:
            groups.setdefault(str(name), []).append(jax.tree_util.keystr(path))
    for prefix in by if isinstance(by, list | tuple) else ():
        if prefix not in groups:
            raise ValueError(f"by must name longer prefixes first, got {prefix!r} after one that it begins with")
    if not groups:
        raise ValueError("by must give at least one parameter a group, got none")
    return groups


def _labeller(by: By, names: list[str]) -> Callable[[Any], str | None]:
    if callable(by):
        return lambda path: by(_name(path))
    if isinstance(by, list | tuple) and by and all(isinstance(prefix, str) for prefix in by):
        for prefix in by:
            if not any(_begins(name, prefix) for name in names):
                raise ValueError(f"by must be prefixes of names of parameters, such as {names[0]!r}, got {prefix!r}")
        return lambda path: next((prefix for prefix in by if _begins(_name(path), prefix)), REST)
    if isinstance(by, list | tuple | str):
        raise TypeError(f"by must be a depth, a list of prefixes or a function of a name, got {by!r}")
    validate.positive_integer(by=by)
    return lambda path: _name(path[:by])


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _begins(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(f"{prefix}/")
