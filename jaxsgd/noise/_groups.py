"""Noise scales of groups of parameters, such as layers, each as if the others were fixed.

Numerators and denominators add over groups, so that B of all parameters is the mean of those of the groups, weighted by
their shares of ‖ḡ‖².
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import jax

from jaxsgd._core.tables import decimal, table
from jaxsgd.noise._estimate import NoiseScale


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
