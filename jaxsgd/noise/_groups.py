"""Noise scales of groups of parameters, such as layers, each as if the others were fixed.

Numerators and denominators add over groups, so that B of all parameters is the mean of those of the groups, weighted by
their shares of ‖ḡ‖².
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax

from jaxsgd._core import validate
from jaxsgd._core.tables import decimal, table
from jaxsgd.noise._estimate import NoiseScale

By = int | Sequence[str] | Callable[[str], str | None]
REST = "the rest"


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class NoiseScales(Mapping[str, NoiseScale]):
    """Noise scales of groups of parameters, a mapping from their names; ``print`` it for a table.

    Attributes:
        groups: the noise scale of each group, in the order of the parameters.
        total: that of all parameters.
    """

    groups: dict[str, NoiseScale]
    total: NoiseScale

    def __getitem__(self, name: str) -> NoiseScale:
        return self.groups[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.groups)

    def __len__(self) -> int:
        return len(self.groups)

    def __str__(self) -> str:
        whole = float(self.total.trace_covariance)
        rows = [("parameters", "noise scale", "from", "to", "share of tr Σ")]
        for name, each in [*self.groups.items(), ("all", self.total)]:
            share = f"{float(each.trace_covariance) / whole:.1%}" if whole else "–"
            value, low, high = (decimal(float(number)) for number in (each.value, each.low, each.high))
            rows.append((name, value, low, high, share))
        return table(rows, left=1)


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
