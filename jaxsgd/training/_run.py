"""A run: one compiled loop, called on the host for some steps at a time."""

import contextlib
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

from jaxsgd import kernels, shell, tracking
from jaxsgd._core import arrays, devices, loss_functions, validate
from jaxsgd._core.fingerprints import digest, program_digest
from jaxsgd._core.meshes import on_any_mesh
from jaxsgd.designs import batches
from jaxsgd.training import _step, _validate
from jaxsgd.training._checkpoint import Checkpoint
from jaxsgd.training._kept_params import KeptParams
from jaxsgd.training._step import Carry, Plan

SECONDS_PER_CALL = 0.5  # after which the host has its say: progress, an interruption, a checkpoint


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class RunResult:
    """What a run ends with, and what was recorded along it; a registered pytree.

    Leading axes are those of learning rates, where ``learning_rates`` were given, and then of runs, where ``num_runs``
    was.

    Attributes:
        params: θ after the last step, a pytree like ``params`` with the leading axes.
        steps: after how many steps metrics were recorded, shape (s,).
        metrics: name → array over the recorded steps, shape (..., s) with the leading axes. ``"loss"`` is the mean loss
            over all the data.
        learning_rates: as given, or None.
        kept_params: θ at the k steps ``keep_params_at``, a pytree like ``params`` of NumPy arrays, with the leading
            axes, and after them one of k; None where none were to be kept.
        opt_state: of the optimizer after the last step, with the leading axes.

    >>> from jaxsgd import designs, problems
    >>> problem, design = problems.line_fit(0.0, 0.0), designs.WithoutReplacement(batch_size=4)
    >>> arguments = (*problem, optax.sgd(0.1), design, 200, jax.random.key(0))
    >>> result = run_sgd(*arguments, record_every=100, keep_params_at=[0, 5, 200])
    >>> result.steps.tolist(), [round(float(loss), 3) for loss in result.metrics["loss"]]
    ([0, 100, 200], [9.75, 0.675, 0.675])
    >>> [round(float(m), 3) for m in result.kept_params["m"]], round(float(result.params["m"]), 3)
    ([0.0, 1.265, 1.1], 1.1)
    """

    params: Any
    steps: Any
    metrics: Any
    learning_rates: Any = None
    kept_params: Any = None
    opt_state: Any = None


@on_any_mesh
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
    keep_params_at: Any = None,
    monitors: Sequence[optax.GradientTransformationExtraArgs] = (),
    writer: tracking.MetricWriter | None = None,
    progress: Callable[[int, int], Any] | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_every_seconds: float = 60.0,
    chunk_size: int | None = None,
    gradient: Literal["factored", "plain"] | None = None,
    opt_state: PyTree = None,
    eval_data: PyTree = None,
    stop_when: Callable[[int, dict[str, np.ndarray]], bool] | None = None,
) -> RunResult:
    """Run stochastic gradient descent: at each step, ĝ = Σ w_i g_i of a fresh batch goes to the optimizer.

    More is said in :mod:`jaxsgd.training`. Runs that diverge have losses that are infinite or NaN.

    Args:
        loss_fn: the loss of ONE example, ``loss_fn(params, example) -> scalar``.
        params: θ at the start, a pytree of floating-point arrays.
        data: a pytree of arrays with N examples along the first axis of each, on one device or on several.
        optimizer: an Optax transformation, or with ``learning_rates`` a function of one of them, as ``optax.adam`` is.
        design: a sampling design.
        num_steps: how many steps.
        key: a JAX random key.
        num_runs: how many runs with keys of their own, side by side.
        learning_rates: a vector of learning rates, each of which is tried in each run.
        eval_fn: ``eval_fn(params)``, one number (named ``"eval"``) or a dict of numbers, recorded with the loss.
        record_every: after how many steps to record again; by default only at the first step and the last.
        keep_params_at: increasing step numbers, 0 to ``num_steps``, at which θ is kept, in the memory of the host.
        monitors: transformations of :mod:`jaxsgd.monitors`, in front of the optimizer; their readings are recorded.
        writer: where metrics are written as they are recorded; of several runs, under ``name/0``, ``name/1``, ….
        progress: called as ``progress(step, num_steps)`` every now and then.
        checkpoint: a file that the state is written to along the run, and that an interrupted run goes on from.
        checkpoint_every_seconds: how often it is written, beside at records; ``math.inf`` for at records only.
        chunk_size: at most how many steps are made between two looks at the host; by default half a second's worth.
        gradient: "factored" or "plain", ``jax.grad``; by default the first, unless a large parameter has no factors.
        opt_state: of the optimizer at the start, such as that of an earlier run; by default a fresh one.
        eval_data: examples over which the recorded loss is the mean, such as held-out ones; by default all of ``data``.
        stop_when: ``stop_when(step, metrics)`` of a record: if it is true, the run ends there.

    Raises:
        TypeError, ValueError, OSError: naming what is wrong with an argument, a loss at the start or the checkpoint.
    """
    validate.positive_integer(num_steps=num_steps)
    validate.random_key(key=key)
    for name, value in {"num_runs": num_runs, "record_every": record_every, "chunk_size": chunk_size}.items():
        if value is not None:
            validate.positive_integer(**{name: value})
    validate.positive(checkpoint_every_seconds=checkpoint_every_seconds)
    validate.floating_leaves(params=params)
    data = arrays.readable(data=data)
    population_size = validate.leading_axis(data=data)
    loss_functions.require_scalar(loss_fn, params, data)
    if eval_data is not None:
        eval_data = arrays.readable(eval_data=eval_data)
        validate.leading_axis(eval_data=eval_data)
        _validate.like_data(data, eval_data)
        loss_functions.require_scalar(loss_fn, params, eval_data)
    loss_functions.require_deterministic(loss_fn, params, data)
    validate.has_method("weights(key, population_size)", design=design)
    if gradient is not None:
        validate.one_of(("factored", "plain"), gradient=gradient)
    if learning_rates is not None:
        _validate.rates(learning_rates=learning_rates)
    _validate.optimizer(optimizer, tuned=learning_rates is not None)
    _validate.hashable(loss_fn=loss_fn, design=design, optimizer=optimizer, eval_fn=eval_fn)
    jax.eval_shape(lambda k: design.weights(k, population_size), key)  # the design's own checks
    kept = KeptParams(keep_params_at, num_steps)

    params, data, eval_data = (jax.tree.map(jnp.asarray, tree) for tree in (params, data, eval_data))
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
    run.eval_data = data if eval_data is None else eval_data
    run.stop_when = stop_when or run.stop_when
    with contextlib.nullcontext() if devices.is_shared(run.mesh) else shell.interruptible():
        return run.finish(params, opt_state, checkpoint, design, checkpoint_every_seconds)


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
        self.eval_data = data
        self.stop_when: Callable[[int, dict[str, np.ndarray]], bool] = lambda _step, _metrics: False
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

    def finish(
        self, params: PyTree, opt_state: PyTree, path: str | Path | None, design: Any, every_seconds: float
    ) -> RunResult:
        """Make all steps, from where the checkpoint is."""
        self.params = params
        carry = _strong(_start(self.plan, (params, opt_state), self.keys, self.rates))
        carry, self.keys, self.rates = devices.beside(self.data, (carry, self.keys, self.rates))
        if path is None:
            carry = self._continue(0, carry)
        else:
            self.checkpoint = Checkpoint(
                path, self._settings(carry, params, opt_state, design), every_seconds, self.mesh
            )
            with self.checkpoint.held():
                stored = self.checkpoint.load(carry)
                number, carry, self.records, self.kept.found = (0, carry, [], []) if stored is None else stored
                carry = self._continue(number, carry)
        steps = np.array([step for step, _ in self.records])
        names = self.records[0][1]
        stacked = {name: np.stack([found[name] for _, found in self.records], axis=-1) for name in names}
        with jax.debug_nans(False):
            steps, metrics = jax.device_put((steps, stacked))  # no program for each number of records
        kept = self.kept.stacked(params, axis=self.plan.has_rates + self.plan.has_runs)
        return RunResult(carry.params, steps, metrics, self.rates, kept, carry.optimizer)

    def _continue(self, number: int, carry: Carry) -> Carry:
        """The state after the last step, from that after ``number`` steps."""
        state = number, carry  # in one piece, whenever an interruption comes
        try:
            while not self._is_finished(number):
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
                    if self.checkpoint is not None and self.checkpoint.is_due():
                        self._save(*state)
                shell.stop_if_asked()
        except KeyboardInterrupt:
            if not devices.is_shared(self.mesh):  # all of whose processes would have to save the same state
                self._save(*state)
            raise
        finally:
            self.writer.flush()
        return state[1]

    def _is_finished(self, number: int) -> bool:
        """Whether all steps are made, or the last record, made at this step, says so."""
        if not self.records or self.records[-1][0] != number:
            return False
        return number == self.num_steps or bool(self.stop_when(*self.records[-1]))

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
        if self.chunk_size is None:
            self.size = _next_size(self.size, stop - number, time.perf_counter() - started)
        return carry

    def _record(self, number: int, carry: Carry) -> None:
        """Measure, write and keep the metrics of one step."""
        with jax.debug_nans(False):  # what a monitor has not measured yet is NaN, and no mistake
            measured = _measure(self.plan, carry, self.eval_data, self.keys, self.rates)
        found = {name: devices.on_host(value) for name, value in measured.items()}
        scalars = {
            "/".join([name, *map(str, place)]): value[place]
            for name, value in found.items()
            for place in itertools.product(*map(range, value.shape))
        }
        if number == 0:
            name = "data" if self.eval_data is self.data else "eval_data"
            _validate.finite_at_start(found["loss"], self.plan.loss_fn, self.params, self.eval_data, name)
        self.writer.write_scalars(number, scalars)
        self.records.append((number, found))  # in one piece, whenever an interruption comes

    def _save(self, number: int, carry: Carry) -> None:
        if self.checkpoint is not None and self.records:  # there are none if the first is interrupted
            self.writer.flush()
            self.checkpoint.save(number, carry, self.records, self.kept.found)

    def _settings(self, carry: Carry, params: PyTree, opt_state: PyTree, design: Any) -> dict[str, Any]:
        """What makes this run, and no other."""
        shapes = jax.eval_shape(lambda *arrays: arrays, carry, self.data, self.keys, self.rates)  # on whatever devices
        evaluated = jax.eval_shape(lambda data: data, self.eval_data)
        return {
            "data": digest(self.data),
            "eval_data": None if self.eval_data is self.data else digest(self.eval_data),
            "design": repr(design),
            "keep_params_at": self.kept.steps or None,
            "key": digest(self.keys),
            "learning_rates": None if self.rates is None else devices.on_host(self.rates).tolist(),
            "num_runs": self.keys.size if self.plan.has_runs else None,
            "num_steps": self.num_steps,
            "opt_state": None if opt_state is None else digest(opt_state),
            "params": digest(params),
            "evaluation": program_digest(_measure.trace(self.plan, shapes[0], evaluated, *shapes[2:]).jaxpr),
            "program": program_digest(_advance.trace(self.plan, *shapes, 0, 1).jaxpr),
            "record_every": self.record_every,
        }


@partial(jax.jit, static_argnums=0)
def _start(plan: Plan, given: tuple[PyTree, PyTree], keys: Array, rates: Any) -> Carry:
    carry: Carry = plan.over_runs(partial(_step.start, plan), None)(given, keys, rates)
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


def _next_size(size: int, made: int, seconds: float) -> int:
    """Twice or half as many steps, toward :data:`SECONDS_PER_CALL`; twice only if so many were made, not fewer."""
    if seconds <= 0:  # a clock that was set back tells nothing
        return size
    if seconds < SECONDS_PER_CALL / 2:
        return 2 * size if made == size else size
    return max(made // 2, 1) if seconds > 2 * SECONDS_PER_CALL else size
