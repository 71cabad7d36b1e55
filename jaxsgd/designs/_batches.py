"""The batches of a run of SGD, one after the other, for any sampling design.

A design with ``indices`` and ``draw_weights`` is gathered: only the M examples drawn are differentiated. Reshuffling
keeps the order of its epoch. Any other design has its weights on all N examples, which is slower, never wrong. What is
drawn at step t depends on the key and t alone.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from jaxsgd._core import validate
from jaxsgd._core.meshes import on_any_mesh
from jaxsgd.designs._base import SamplingDesign
from jaxsgd.designs._reshuffling import Reshuffling


class Draw(NamedTuple):
    """One batch: ĝ = Σ weights_j g_(indices_j).

    Attributes:
        indices: which examples, shape (m,), or None for all of them.
        weights: shape (m,).
        drawn: which of the m are in the batch, shape (m,), or None where all are.
    """

    indices: Any
    weights: Any
    drawn: Any

    @on_any_mesh
    def take(self, data: PyTree) -> PyTree:
        """The m examples that belong to the weights, of data with N along the first axis of each array."""
        return data if self.indices is None else jax.tree.map(lambda leaf: leaf[self.indices], data)


@runtime_checkable
class Batches(Protocol):
    """What :func:`batches` returns: the batches of a run, drawn from the run's key and the numbers of the steps."""

    def start(self) -> Any:
        """The state before step 0: arrays that a loop carries from step to step."""

    def __call__(self, state: Any, key: Array, step: Any) -> tuple[Any, Draw]:
        """The next state and the batch of a step, for the key of the run; steps come in order, from 0."""


@dataclass(frozen=True)
class Gathered:
    """The M examples that the design draws."""

    design: Any
    population_size: int

    def start(self) -> tuple[()]:
        """Nothing is carried."""
        return ()

    def __call__(self, state: Any, key: Array, step: Any) -> tuple[Any, Draw]:
        """M draws, each with its weight."""
        indices = self.design.indices(jax.random.fold_in(key, step), self.population_size)
        weights = self.design.draw_weights(self.population_size)
        if np.all(weights == weights[0]):
            return state, Draw(indices, jnp.full(indices.shape, weights[0]), None)
        return state, Draw(indices, jnp.asarray(weights)[indices], None)


@dataclass(frozen=True)
class Weighted:
    """All examples, with the weights that the design draws."""

    design: Any
    population_size: int

    def start(self) -> tuple[()]:
        """Nothing is carried."""
        return ()

    def __call__(self, state: Any, key: Array, step: Any) -> tuple[Any, Draw]:
        """N weights; an empty batch has none that is not 0."""
        weights = self.design.weights(jax.random.fold_in(key, step), self.population_size)
        return state, Draw(None, weights, weights != 0)


@dataclass(frozen=True)
class Epochs:
    """The batches of reshuffled epochs, one after the other: the joint law, not that of single batches.

    Epoch e has the order ``jax.random.permutation(fold_in(key, e), N)``, that of ``design.epoch_weights(fold_in(key,
    e), N)``. It is drawn at the first step of the epoch and carried.
    """

    design: Reshuffling
    population_size: int

    def start(self) -> Array:
        """An order, to be replaced at step 0."""
        return jnp.arange(self.population_size)

    def __call__(self, state: Array, key: Array, step: Any) -> tuple[Array, Draw]:
        """M consecutive examples of the order; fewer, padded with weight 0, in a short last batch."""
        N, M = self.population_size, self.design.batch_size
        sizes = np.asarray(self.design.batch_sizes(N))
        epoch, b = step // len(sizes), step % len(sizes)
        order = jax.lax.cond(  # the step is the same in all runs, so under vmap too only one branch is taken
            b == 0, lambda: jax.random.permutation(jax.random.fold_in(key, epoch), N), lambda: state
        )
        padded = jnp.pad(order, (0, max(len(sizes) * M - N, 0)))
        indices = jax.lax.dynamic_slice_in_dim(padded, b * M, M)
        weights = jnp.asarray(float(self.design.scale_factor(N)) / sizes)[b]
        if sizes[-1] == M:
            return order, Draw(indices, jnp.full(M, weights), None)
        drawn = jnp.arange(M) < jnp.asarray(sizes)[b]
        return order, Draw(indices, jnp.where(drawn, weights, 0.0), drawn)


def batches(design: Any, population_size: int) -> Batches:
    """The batches of a design for a training loop of one's own; :func:`jaxsgd.training.run_sgd` takes the same.

    ``batches.start()`` is the state before step 0, and ``batches(state, key, step)`` the next state and a
    :class:`Draw`, under ``jit`` and ``vmap`` too. ``Reshuffling`` runs through its epochs, one after the other.

    Args:
        design: a sampling design.
        population_size: N.

    Raises:
        TypeError, ValueError: if ``design`` has no method ``weights``, or is not one for this N.

    >>> import optax
    >>> from jaxsgd import designs, problems, training
    >>> (loss_fn, params, data), optimizer = problems.line_fit(0.0, 0.0), optax.sgd(0.1)
    >>> design, key = designs.Reshuffling(2), jax.random.key(0)
    >>> batches = designs.batches(design, population_size=4)
    >>> @jax.jit
    ... def step(params, optimizer_state, state, key, number):
    ...     state, draw = batches(state, key, number)
    ...     loss = lambda p: jnp.sum(draw.weights * jax.vmap(loss_fn, (None, 0))(p, draw.take(data)))
    ...     updates, optimizer_state = optimizer.update(jax.grad(loss)(params), optimizer_state)
    ...     return optax.apply_updates(params, updates), optimizer_state, state
    >>> carry = params, optimizer.init(params), batches.start()
    >>> for number in range(50):
    ...     carry = step(*carry, jax.random.fold_in(key, 0), number)  # the key of run 0
    >>> result = training.run_sgd(loss_fn, params, data, optimizer, design, 50, key, gradient="plain")
    >>> jax.tree.map(lambda a, b: bool(a == b), carry[0], result.params)
    {'b': True, 'm': True}
    """
    validate.positive_integer(population_size=population_size)
    validate.has_method("weights(key, population_size)", design=design)
    if isinstance(design, SamplingDesign):
        design._check(population_size)
    if isinstance(design, Reshuffling):
        return Epochs(design, population_size)
    if hasattr(design, "indices") and hasattr(design, "draw_weights"):
        return Gathered(design, population_size)
    return Weighted(design, population_size)
