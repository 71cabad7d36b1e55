"""A batch loss evaluated on the subsets of a batch that ``additivity`` needs, with a bound on rounding errors.

Subsets: single examples, pairs, triples and all of six examples (of up to seven, if the batch has no more), different
ones if possible; and of eight contiguous blocks of the batch (four blocks below eight examples), single ones, pairs,
triples, halves and all. Examples that do not fill the blocks are left out of the second part. Sizes at which the loss
fails or is not finite, such as BatchNorm of one example, are left out, with a note. All subsets get the same key.

Rounding: a form holds if the distance is at most √k · max(ε, s), the probabilistic bound on k operations (Higham and
Mary, SIAM J. Sci. Comput. 41, 2019), where ε is the unit of the coarsest dtype among loss and parameters, k is the
number of operations in the loss and gradient of the batch as counted by XLA, plus one per number in params and batch,
and s is the relative change of F when every number in params and batch is changed by ε: where a loss cancels, rounding
errors grow. Lower-precision arithmetic inside the loss is not seen, and reads as "coupled".
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from jaxsgd import batch_losses
from jaxsgd._core import devices
from jaxsgd.additivity._set_functions import Family, root_mean_square, subsets

CORE = 6  # examples of which single ones, pairs and triples are evaluated
BLOCKS = 8

Values = tuple[np.ndarray, np.ndarray]  # losses, shape (r,), and gradients, shape (r, P)
Units = list[np.ndarray]  # the examples in every unit


@dataclass(frozen=True)
class Trial:
    """One loss at one θ on one batch; everything is computed when first asked for."""

    loss: batch_losses.BatchLoss
    params: PyTree
    batch: PyTree
    key: Array | None

    @cached_property
    def count(self) -> int:
        """n, the examples in the batch."""
        return int(jax.tree.leaves(self.batch)[0].shape[0])

    @cached_property
    def units(self) -> tuple[Units, Units]:
        """Single examples, different ones if possible; and contiguous blocks of the batch."""
        rows = example_rows(self.batch)
        different = np.unique(rows, axis=0, return_index=True)[1]
        size = self.count if self.count < BLOCKS else CORE
        picked = np.random.default_rng(0).permutation(different)[:size]  # a fixed stride could meet one class only
        core = [*picked, *np.setdiff1d(np.arange(self.count), picked)][:size]
        blocks = BLOCKS if self.count >= BLOCKS else BLOCKS // 2
        filled = np.arange(self.count - self.count % blocks)
        return [np.array([i]) for i in sorted(core)], np.split(filled, blocks)

    @cached_property
    def sizes(self) -> dict[int, str]:
        """Every size of batch that is needed, with the error of the loss at that size, or ""."""
        needed = {m for units in self.units for m in subsets(len(units)).sum(axis=1) * len(units[0])}
        return {int(m): self._failure(int(m)) for m in sorted(needed)}

    def _failure(self, size: int) -> str:
        part = jax.tree.map(lambda leaf: leaf[:size], self.batch)
        try:
            jax.eval_shape(self.loss, self.params, part, self.key)
        except Exception as error:
            return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        return ""

    def evaluate(self, rows: list[np.ndarray], params: PyTree = None, batch: PyTree = None) -> Values:
        """Losses and gradients on lists of examples, one compilation for every length."""
        params, batch = (self.params if params is None else params), (self.batch if batch is None else batch)
        losses = np.zeros(len(rows))
        gradients = np.zeros((len(rows), sum(leaf.size for leaf in jax.tree.leaves(params))))
        for i, row in enumerate(rows):
            loss, tree = batch_losses.on_sub_batch(self.loss, params, batch, jnp.asarray(row), self.key)
            losses[i] = np.asarray(loss, np.float64)
            gradients[i] = np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(tree)])
        return losses, gradients

    @cached_property
    def evaluated(self) -> list[tuple[Family, list[np.ndarray]]]:
        """Every family of subsets where the loss is finite, with the examples of each subset."""
        found = []
        for units in self.units:
            members = subsets(len(units))
            members = members[[not self.sizes[int(m)] for m in members.sum(axis=1) * len(units[0])]]
            rows = [np.concatenate([units[u] for u in np.flatnonzero(row)]) for row in members]
            losses, gradients = self.evaluate(rows)
            family = Family(members, len(units[0]), losses, gradients, self.unit)
            finite = np.isfinite(losses) & np.isfinite(gradients).all(axis=1)
            if finite.any():
                found.append((family.only(finite), [row for row, kept in zip(rows, finite, strict=True) if kept]))
        return found

    @property
    def families(self) -> list[Family]:
        """The values of every family of subsets, without the examples."""
        return [family for family, _ in self.evaluated]

    @property
    def notes(self) -> list[str]:
        """Which sizes were left out, and why."""
        failed = {m: reason for m, reason in self.sizes.items() if reason}
        tried = [subsets(len(units)).sum(axis=1) * len(units[0]) for units in self.units]
        total = sum(np.isin(sizes, list(failed), invert=True).sum() for sizes in tried)
        kept = sum(len(family.loss) for family in self.families)
        notes = [f"not evaluated on {m} examples, where it fails: {reason}" for m, reason in failed.items()]
        if kept < total:
            present = {int(m) for family in self.families for m in family.sizes}
            lost = ", ".join(str(m) for m, reason in self.sizes.items() if not reason and m not in present)
            notes.append(
                f"loss or gradient is not finite on {total - kept} of {total} subsets, which are left out"
                + (f": all those of {lost} examples" if lost else "")
            )
        return notes

    @cached_property
    def rounding(self) -> tuple[float, float]:
        """What rounding errors may be of the loss and of its gradient, relative to their root mean squares."""
        epsilon = self._epsilon()
        relative = [(epsilon, epsilon)]
        params, batch = (nudged(tree, epsilon) for tree in (self.params, self.batch))
        for family, rows in self.evaluated:
            few = [i for i, m in enumerate(family.sizes) if m in {1, family.unit_size, family.sizes.max()}]
            losses, gradients = self.evaluate([rows[i] for i in few], params, batch)
            changes = losses - family.loss[few], gradients - family.gradient[few]
            relative.append(relative_size(changes, family))
        loss, gradient = np.nanmax(relative, axis=0) * self.unit / epsilon
        return float(loss), float(gradient)

    @property
    def unit(self) -> float:
        """√k ε, for k operations: the rounding error of a loss that does not cancel, relative to it."""
        return self._epsilon() * self._operations**0.5

    def _epsilon(self) -> float:
        loss = jax.eval_shape(self.loss, self.params, self.batch, self.key)
        return max(float(jnp.finfo(leaf.dtype).eps) for leaf in [loss, *jax.tree.leaves(self.params)])  # type: ignore[no-untyped-call]

    @cached_property
    def _operations(self) -> float:
        step = jax.jit(jax.value_and_grad(self.loss)).lower(self.params, self.batch, self.key)
        numbers = sum(leaf.size for leaf in jax.tree.leaves((self.params, self.batch)))
        counted = (step.cost_analysis() or {}).get("flops", 0.0)  # a backend may not count; then one per number
        return float(max(counted, 0.0) + numbers)

    def repeated(self) -> tuple[float, float]:
        """The loss of one subset, traced anew each time: a trace fixes what Python or NumPy draws."""
        rows = self.evaluated[0][1][0]
        part = jax.tree.map(lambda leaf: leaf[rows], self.batch)
        first, second = (
            jax.jit(lambda *arguments: self.loss(*arguments))(self.params, part, self.key) for _ in range(2)
        )
        return float(first), float(second)

    def order_matters(self) -> bool:
        """Whether the same examples in the reverse order have another loss or gradient, beyond rounding."""
        for family, rows in self.evaluated:
            few = [i for i, m in enumerate(family.sizes) if family.unit_size == 1 or m == family.sizes.max()]
            losses, gradients = self.evaluate([rows[i][::-1] for i in few])
            loss, gradient = relative_size((losses - family.loss[few], gradients - family.gradient[few]), family)
            if not (loss <= 2 * self.rounding[0] and gradient <= 2 * self.rounding[1]):
                return True
        return False

    def microbatch_errors(self) -> dict[int, float]:
        """‖average of the gradients of k microbatches − gradient‖ / ‖gradient‖ for k = 2, 4, 8, if evaluated."""
        blocks = self.units[1]
        values = {
            tuple(rows): gradient
            for family, subsets_ in self.evaluated
            for rows, gradient in zip(subsets_, family.gradient, strict=True)
        }
        errors: dict[int, float] = {}
        whole = values.get(tuple(np.concatenate(blocks)))
        for parts in (2, 4, 8):
            if whole is None or parts > len(blocks):
                continue
            pieces = [values.get(tuple(rows)) for rows in np.split(np.concatenate(blocks), parts)]
            present = [piece for piece in pieces if piece is not None]
            if len(present) == parts:
                smallest = self.rounding[1] * root_mean_square(np.array(present))
                scale = max(float(np.linalg.norm(whole)), smallest, 1e-300)
                errors[parts] = float(np.linalg.norm(np.mean(present, axis=0) - whole) / scale)
        return errors

    def weight_leaf(self, offset: tuple[float, np.ndarray]) -> str | None:
        """The path of a float leaf of one number per example, in which the single values minus R are proportional."""
        family, rows = self.evaluated[0]
        few = [i for i, row in enumerate(rows) if len(row) == 1]
        if family.unit_size > 1 or not few:
            return None
        single = family.loss[few] - offset[0], family.gradient[few] - offset[1]
        if relative_size(single, family)[1] <= self.rounding[1]:
            return None
        for path, leaf in jax.tree_util.tree_leaves_with_path(self.batch):
            if leaf.size == self.count and jnp.issubdtype(leaf.dtype, jnp.floating):
                losses, gradients = self.evaluate([rows[i] for i in few], batch=_doubled(self.batch, path))
                changes = losses - offset[0] - 2 * single[0], gradients - offset[1] - 2 * single[1]
                loss, gradient = relative_size(changes, family)
                if loss <= 4 * self.rounding[0] and gradient <= 4 * self.rounding[1]:
                    return f"batch{jax.tree_util.keystr(path)}"
        return None

    def parameters(self) -> dict[str, slice]:
        """The columns of the gradients that belong to each parameter, by path."""
        leaves = jax.tree_util.tree_leaves_with_path(self.params)
        ends = np.cumsum([leaf.size for _, leaf in leaves])
        return {
            f"params{jax.tree_util.keystr(path)}": slice(int(end) - leaf.size, int(end))
            for (path, leaf), end in zip(leaves, ends, strict=True)
        }


def relative_size(changes: Values, family: Family) -> tuple[float, float]:
    """Root mean squares of changes in loss and gradient, relative to those of the family; 0 where both vanish."""
    sizes = root_mean_square(changes[0][:, None]), root_mean_square(changes[1])
    loss, gradient = (
        size / scale if scale > 0 else (0.0 if size == 0 else np.inf)
        for size, scale in zip(sizes, family.scales(), strict=True)
    )
    return loss, gradient


def example_rows(batch: PyTree) -> np.ndarray:
    """The bytes of every example, shape (n, bytes)."""
    leaves = [
        jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
        for leaf in jax.tree.leaves(batch)
    ]
    arrays = [np.ascontiguousarray(devices.on_host(leaf)).reshape(len(leaf), -1) for leaf in leaves]
    return np.concatenate([array.view(np.uint8).reshape(len(array), -1) for array in arrays], axis=1)


def nudged(tree: PyTree, epsilon: float) -> PyTree:
    """Every real number changed by ±ε, relatively, with signs drawn once and for all."""
    generator = np.random.default_rng(0)

    def nudge(leaf: Any) -> Any:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf
        signs = jnp.asarray(generator.choice([-1.0, 1.0], leaf.shape), leaf.dtype)
        return leaf * (1 + jnp.asarray(epsilon, leaf.dtype) * signs)

    return jax.tree.map(nudge, tree)


def _doubled(tree: PyTree, path: Any) -> PyTree:
    return jax.tree_util.tree_map_with_path(lambda at, leaf: leaf * 2 if at == path else leaf, tree)
