"""A run: one compiled loop, called on the host for some steps at a time."""

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PyTree

from jaxsgd import kernels, tracking
from jaxsgd._core import devices, validate, validate_losses, validate_training
from jaxsgd.designs import batches
from jaxsgd.training import _step
from jaxsgd.training._checkpoint import Checkpoint, digest, program_digest
from jaxsgd.training._kept import KeptParams
from jaxsgd.training._step import Carry, Plan

SECONDS_PER_CALL = 0.5  # after which the host has its say: progress, an interruption, a checkpoint


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class RunResult:
    """What a run ends with, and what was recorded along it; a registered pytree.

    Attributes:
        params: θ after the last step, a pytree like ``params``; with a leading axis of runs where ``num_runs`` was
            given, and before it one of learning rates where ``learning_rates`` were.
        steps: after how many steps metrics were recorded, shape (s,).
        metrics: name → array over the recorded steps, with the same leading axes, shape (..., s). ``"loss"`` is the
            mean loss over all the data.
        learning_rates: as given, or None.
        kept_params: θ at the steps ``keep_params_at``, a pytree like ``params`` of NumPy arrays, with an axis of these
            steps after the leading axes of ``params``; or None.
    """

    params: Any
    steps: Any
    metrics: Any
    learning_rates: Any = None
    kept_params: Any = None


def run_sgd(
    loss_fn: kernels.Loss,
    params: PyTree,
    data: PyTree,
    optimizer: Any,
    design: Any,
    num_steps: int,
    key: Array,
    *,
    num_runs: int | None = None,
    learning_rates: Any = None,
    eval_fn: Callable[[PyTree], Any] | None = None,
    record_every: int | None = None,
    keep_params_at: Sequence[int] | None = None,
    monitors: Sequence[optax.GradientTransformationExtraArgs] = (),
    writer: tracking.MetricWriter | None = None,
    progress: Callable[[int, int], Any] | None = None,
    checkpoint: str | Path | None = None,
    chunk_size: int | None = None,
    gradient: Literal["factored", "plain"] | None = None,
) -> RunResult:
    """Run stochastic gradient descent: at each step, ĝ = Σ w_i g_i of a fresh batch goes to the optimizer.

    Run r has the key ``fold_in(key, r)`` (without ``num_runs``, that of run 0), and step t of it the key ``fold_in`` of
    that and t, so more runs, more steps or more learning rates change none that were there. All learning rates see the
    same batches. ``designs.Reshuffling`` runs through its epochs one after the other; any other design draws
    independent batches. An empty batch makes a step with ĝ = 0, if that is the design's law.

    Args:
        loss_fn: the loss of ONE example, ``loss_fn(params, example) -> scalar``.
        params: θ at the start, a pytree of floating-point arrays.
        data: a pytree of arrays with N examples along the first axis of each. They may be split over the devices of a
            mesh, those of other processes included, each of which then makes this same call.
        optimizer: an Optax transformation. With ``learning_rates``, a function that makes one from a learning rate,
            such as ``optax.adam``, or a transformation with the hyperparameter ``learning_rate`` in its state
            (``optax.inject_hyperparams``).
        design: a sampling design. With ``indices`` and ``draw_weights``, only the examples drawn are differentiated;
            otherwise all N are, and weighted.
        num_steps: how many steps.
        key: a JAX random key.
        num_runs: how many runs with keys of their own, side by side.
        learning_rates: a vector of learning rates, each of which is tried in each run.
        eval_fn: ``eval_fn(params)``, one number (named ``"eval"``) or a dict of numbers, recorded with the loss.
        record_every: record at steps 0, ``record_every``, 2 ``record_every``, …, and at the last; only at the first and
            the last by default.
        keep_params_at: increasing step numbers, from 0 (before the first step) to ``num_steps``, at which θ is kept in
            the host's memory and in the checkpoint: as often the size of ``params``, times that of its leading axes.
        monitors: transformations of :mod:`jaxsgd.monitors`, in front of the optimizer; their readings are recorded.
        writer: where metrics are written as they are recorded; of several runs, under ``name/0``, ``name/1``, … in the
            order of the axes of :class:`RunResult`.
        progress: called as ``progress(step, num_steps)`` every now and then.
        checkpoint: a file that the state is written to at every record and when interrupted, and read from at the
            start; beside it stays an empty file whose name begins with a dot, a lock. Of several processes the first
            writes it, and all read it.
        chunk_size: at most how many steps are made between two looks at the host; by default about half a second's
            worth, and with several processes ``record_every``.
        gradient: "factored", the sum of per-example gradients in factored form, whose statistics are at hand; "plain",
            ``jax.grad``; by default the first, unless a large parameter has no factored form. They agree up to
            rounding.

    Returns:
        :class:`RunResult`. Runs that diverge have losses that are infinite or NaN.

    Raises:
        TypeError, ValueError: if an argument is of the wrong kind or shape; if ``checkpoint`` is damaged, of a run with
            other arguments, which are named, or in use by another run: nothing is overwritten; if the loss differs
            between two calls; if it is not finite at the start, naming the example.
        OSError: naming the file, if ``checkpoint`` cannot be written; what it was before is still there.

    Guarantees:
        - the same for every ``chunk_size`` and after every restart from a checkpoint, bit for bit, on one machine.
        - monitors, writers and records change no parameter, bit for bit.
        - one compilation for a loss, optimizer, design and shapes, whatever the number of steps.

    >>> from jaxsgd import designs, problems
    >>> loss_fn, params, data = problems.line_fit(0.0, 0.0)
    >>> design = designs.WithoutReplacement(batch_size=4)
    >>> result = run_sgd(loss_fn, params, data, optax.sgd(0.1), design, 200, jax.random.key(0), record_every=100)
    >>> result.steps.tolist(), [round(float(loss), 3) for loss in result.metrics["loss"]]
    ([0, 100, 200], [9.75, 0.675, 0.675])
    >>> round(float(result.params["m"]), 3), round(float(result.params["b"]), 3)
    (1.1, 1.1)
    """
    validate.positive_integer(num_steps=num_steps)
    validate.random_key(key=key)
    for name, value in {"num_runs": num_runs, "record_every": record_every, "chunk_size": chunk_size}.items():
        if value is not None:
            validate.positive_integer(**{name: value})
    validate.floating_leaves(params=params)
    population_size = validate.leading_axis(data=data)
    params, data = devices.automatic((params, data))
    validate.scalar_loss(loss_fn, params, data)
    validate_losses.deterministic(loss_fn, params, data)
    validate.has_method("weights", design=design)
    if gradient is not None:
        validate.one_of(("factored", "plain"), gradient=gradient)
    if learning_rates is not None:
        validate_training.rates(learning_rates=learning_rates)
    validate_training.optimizer(optimizer, tuned=learning_rates is not None)
    validate_training.hashable(loss_fn=loss_fn, design=design, optimizer=optimizer, eval_fn=eval_fn)
    jax.eval_shape(lambda k: design.weights(k, population_size), key)  # the design's own checks
    kept = KeptParams(keep_params_at, num_steps)

    params, data = (jax.tree.map(jnp.asarray, tree) for tree in (params, data))
    if gradient is None:
        gradient = "factored" if kernels.is_cheaply_factored(loss_fn, params, data) else "plain"
    plan = Plan(
        loss_fn=loss_fn,
        optimizer=optimizer,
        batches=batches(design, population_size),
        monitors=tuple(monitors),
        eval_fn=eval_fn,
        factored=gradient == "factored",
        has_rates=learning_rates is not None,
        has_runs=num_runs is not None,
    )
    rates = None
    if learning_rates is not None:
        rates = jnp.asarray(np.asarray(learning_rates), jnp.result_type(*jax.tree.leaves(params)))
    keys = jax.random.fold_in(key, 0) if num_runs is None else _run_keys(key, num_runs)
    run = _Run(plan, data, keys, rates, num_steps, record_every or num_steps, chunk_size, writer, progress, kept)
    return run.finish(params, None if checkpoint is None else Path(checkpoint), design)


class _Run:
    """The host's side of a run: when to stop and look."""

    def __init__(
        self,
        plan: Plan,
        data: PyTree,
        keys: Array,
        rates: Any,
        num_steps: int,
        record_every: int,
        chunk_size: int | None,
        writer: tracking.MetricWriter | None,
        progress: Callable[[int, int], Any] | None,
        kept: KeptParams,
    ) -> None:
        self.plan, self.data, self.keys, self.rates = plan, data, keys, rates
        self.num_steps, self.record_every = num_steps, record_every
        self.mesh = devices.mesh_of(data)
        if chunk_size is None and devices.is_shared(self.mesh):
            chunk_size = record_every  # the clocks of processes differ, and all must make the same steps
        self.chunk_size, self.size = chunk_size, chunk_size or 1
        self.writer = tracking.NullWriter() if writer is None or not devices.is_first(self.mesh) else writer
        self.progress = progress or (lambda _step, _num_steps: None)
        self.checkpoint: Checkpoint | None = None
        self.records: list[tuple[int, dict[str, np.ndarray]]] = []
        self.kept = kept

    def finish(self, params: PyTree, path: Path | None, design: Any) -> RunResult:
        """Make all steps, from where the checkpoint is."""
        self.params = params
        carry = _strong(_start(self.plan, params, self.keys, self.rates))
        carry, self.keys, self.rates = devices.beside(self.data, (carry, self.keys, self.rates))
        if path is None:
            carry = self._continue(0, carry)
        else:
            self.checkpoint = Checkpoint(path, self._settings(carry, params, design), self.mesh)
            with self.checkpoint.held():
                stored = self.checkpoint.load(carry)
                number, carry, self.records, self.kept.found = (0, carry, [], []) if stored is None else stored
                carry = self._continue(number, carry)
        steps = jnp.asarray([step for step, _ in self.records])
        metrics = {name: jnp.stack([found[name] for _, found in self.records], axis=-1) for name in self.records[0][1]}
        kept = self.kept.stacked(params, axis=self.plan.has_rates + self.plan.has_runs)
        return RunResult(carry.params, steps, metrics, self.rates, kept)

    def _continue(self, number: int, carry: Carry) -> Carry:
        """The state after the last step, from that after ``number`` steps."""
        state = number, carry  # in one piece, whenever an interruption comes
        try:
            while not self._is_recorded(self.num_steps):
                number, carry = state
                if number in self.kept.next_step():  # before it is recorded, so that a checkpoint has it
                    self.kept.keep(carry.params)
                elif number == self._next_record():
                    self._record(number, carry)
                    self._save(number, carry)
                else:
                    stop = min(number + self.size, self._next_record(), *self.kept.next_step())
                    state = stop, self._advance(number, stop, carry)
                    self.progress(stop, self.num_steps)
        except KeyboardInterrupt:
            self._save(*state)
            raise
        finally:
            self.writer.flush()
        return state[1]

    def _is_recorded(self, number: int) -> bool:
        return bool(self.records) and self.records[-1][0] == number

    def _next_record(self) -> int:
        """The next step at which to record; that is known from the last, wherever an interruption came."""
        last = self.records[-1][0] if self.records else -self.record_every
        return min(last + self.record_every, self.num_steps)

    def _advance(self, number: int, stop: int, carry: Carry) -> Carry:
        """The state after the steps up to ``stop``; adapts how many are made at a time to how long they take."""
        started = time.perf_counter()
        carry = jax.block_until_ready(  # type: ignore[no-untyped-call]
            _advance(self.plan, carry, self.data, self.keys, self.rates, number, stop)
        )
        if self.chunk_size is None and stop - number == self.size:  # fewer, up to a record, tell less of so many
            self.size = _next_size(self.size, time.perf_counter() - started)
        return carry

    def _record(self, number: int, carry: Carry) -> None:
        """Measure, write and keep the metrics of one step."""
        measured = _measure(self.plan, carry, self.data, self.keys, self.rates)
        found = {name: devices.on_host(value) for name, value in measured.items()}
        scalars = {
            "/".join([name, *map(str, place)]): value[place]
            for name, value in found.items()
            for place in itertools.product(*map(range, value.shape))
        }
        if number == 0:
            validate_losses.finite_at_start(found["loss"], self.plan.loss_fn, self.params, self.data)
        self.writer.write_scalars(number, scalars)
        self.records.append((number, found))  # in one piece, whenever an interruption comes

    def _save(self, number: int, carry: Carry) -> None:
        if self.checkpoint is not None and self.records:  # there are none if the first is interrupted
            self.writer.flush()
            self.checkpoint.save(number, carry, self.records, self.kept.found)

    def _settings(self, carry: Carry, params: PyTree, design: Any) -> dict[str, Any]:
        """What makes this run, and no other."""
        shapes = jax.eval_shape(lambda *arrays: arrays, carry, self.data, self.keys, self.rates)  # on whatever devices
        return {
            "data": digest(self.data),
            "design": repr(design),
            "keep_params_at": self.kept.steps or None,
            "key": digest(self.keys),
            "learning_rates": None if self.rates is None else devices.on_host(self.rates).tolist(),
            "num_runs": self.keys.size if self.plan.has_runs else None,
            "num_steps": self.num_steps,
            "params": digest(params),
            "evaluation": program_digest(_measure.trace(self.plan, *shapes).jaxpr),
            "program": program_digest(_advance.trace(self.plan, *shapes, 0, 1).jaxpr),
            "record_every": self.record_every,
        }


@partial(jax.jit, static_argnums=0)
def _start(plan: Plan, params: PyTree, keys: Array, rates: Any) -> Carry:
    carry: Carry = plan.over_runs(partial(_step.start, plan), None)(params, keys, rates)
    return carry


@partial(jax.jit, static_argnums=0)
def _advance(plan: Plan, carry: Carry, data: PyTree, keys: Array, rates: Any, start: Any, stop: Any) -> Carry:
    """The state after steps ``start``, …, ``stop`` − 1.

    Steps at which no monitor measures are made in a loop of their own, without what would choose between measuring and
    not at each of them.
    """
    period = _step.period(carry.monitors)

    def body(number: Any, carry: Carry, *, quiet: bool = False) -> Carry:
        stepped: Carry = plan.over_runs(partial(_step.step, plan, data, number, quiet))(carry, keys, rates)
        return stepped

    def block(state: tuple[Any, Carry]) -> tuple[Any, Carry]:
        number, carry = state
        due = jnp.minimum(-(-number // period) * period, stop)
        carry = jax.lax.fori_loop(number, due, partial(body, quiet=True), carry)
        return due + 1, jax.lax.cond(due < stop, body, lambda _, carry: carry, due, carry)

    if period > 1:
        carry = jax.lax.while_loop(lambda state: state[0] < stop, block, (start, carry))[1]
    else:
        carry = jax.lax.fori_loop(start, stop, body, carry)
    return carry


@partial(jax.jit, static_argnums=0)
def _measure(plan: Plan, carry: Carry, data: PyTree, keys: Array, rates: Any) -> dict[str, Array]:
    found: dict[str, Array] = plan.over_runs(partial(_step.measure, plan, data))(carry, keys, rates)
    return found


@partial(jax.jit, static_argnums=1)
def _run_keys(key: Array, num_runs: int) -> Array:
    keys: Array = jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(num_runs))
    return keys


def _strong(tree: Any) -> Any:
    """The same arrays without weak types, which the first step would lose, and a second compilation with them."""

    def strong(leaf: Array) -> Array:
        return jax.lax.convert_element_type(leaf, leaf.dtype) if getattr(leaf, "weak_type", False) else leaf

    return jax.tree.map(strong, tree)


def _next_size(size: int, seconds: float) -> int:
    """Twice or half as many steps, toward :data:`SECONDS_PER_CALL`."""
    if seconds <= 0:  # a clock that was set back tells nothing
        return size
    if seconds < SECONDS_PER_CALL / 2:
        return 2 * size
    return max(size // 2, 1) if seconds > 2 * SECONDS_PER_CALL else size
