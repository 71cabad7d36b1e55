"""Every way to be refused by the package, with the message: the argument, its value and the rule."""

import operator
import re
import sys
import zipfile
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from own_designs import Bernoulli, Unequal
from registry import gradients_given, linear_loss, measured

import jaxsgd
from jaxsgd import (
    _sharding,
    _store,
    _tradeoff,
    batch_size,
    designs,
    dynamics,
    estimators,
    model_agnostic,
    moments,
    monitors,
    problems,
    report,
    sources,
    surfaces,
    sweeps,
    tails,
    tracking,
    training,
    variance_reduction,
)
from jaxsgd.noise_scale import noise_scale_law

KEY = jax.random.key(0)
ONE = jnp.asarray(1.0)
G = measured(problems.line_fit())
PAIR = measured(gradients_given([[1.0, 2.0], [3.0, 4.0]]))
TWO_BY_TWO = jnp.ones((2, 2))
NOT_FINITE = measured(gradients_given([1.0, np.nan]))
LARGE = gradients_given([1.5e19, -1.5e19] * 2, jnp.float32)


class Broken(Bernoulli):
    """A design whose support is the list ``p``, of (probability, weights)."""

    def support_size(self, population_size: int) -> int:
        return len(self.p)

    def support(self, population_size: int) -> Iterator[Any]:
        yield from self.p

    def __repr__(self) -> str:
        return "Broken"


class OddCovariance(designs.WithReplacement):
    """A design whose covariance is of a kind that nobody knows."""

    def weight_covariance(self, population_size: int) -> Any:
        return type("Odd", (), {})()


def gradients(loss_fn: Any = linear_loss, params: Any = ONE, batch: Any = (1.0, 2.0)) -> Any:
    batch = jnp.asarray(batch) if isinstance(batch, tuple) else batch
    return jaxsgd.per_example_gradients(loss_fn)(params, batch)


def checkpoint(path: Path, arrays: dict[str, Any]) -> Any:
    np.savez(path / "a.npz", **{name: np.asarray(array) for name, array in arrays.items()})
    return report.load_checkpoint(path / "a.npz", {"hidden": ONE})


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def pickled(path: Path) -> Path:
    np.save(path, np.array([{}], object), allow_pickle=True)
    return path


def without_pyarrow(path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    return sources.load(written(path / "a.parquet", b"PAR1"))


def damaged_parquet(path: Path, _: Any) -> Any:
    return sources.load(written(path / "a.parquet", b"PAR1 damaged"))


def words_in_parquet(path: Path, _: Any) -> Any:
    import pyarrow as pa
    from pyarrow import parquet

    parquet.write_table(pa.table({"s": ["a", "b"]}), path / "words.parquet")
    return next(sources.batches(sources.load(path / "words.parquet")))


class Ragged:
    """A source whose examples differ in length."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> np.ndarray:
        return np.ones(2 + operator.index(index))


def two_leaves(params: Any, example: Any) -> Any:
    return params["a"] * example["x"] + params["b"] * jnp.log(example["x"])


def bad_data(**options: Any) -> Any:
    """log(0) in example 5, for the parameter b."""
    x = jnp.arange(5.0, -1.0, -1.0)
    data = iter([{"x": x[:4]}, {"x": x[4:]}]) if options.pop("iterate", False) else {"x": x}
    return jaxsgd.gradient_moments(two_leaves, {"a": ONE, "b": ONE}, data, **options)


def curve(batch_sizes: Any, **options: Any) -> Any:
    return estimators.variance_curve(G, batch_sizes, **options)


def noisy_quadratic(curvatures: Any = (1.0, 0.5), noise: Any = (1.0, 1.0), start: Any = (1.0, 1.0)) -> Any:
    return dynamics.NoisyQuadratic(curvatures, noise, start)


def tradeoff(batch_sizes: Any = (1, 2, 4), steps: Any = (8.0, 5.0, 3.5), **options: Any) -> Any:
    return _tradeoff.fit_tradeoff(batch_sizes, steps, **options)


def network(x: Any = ((1.0, 2.0), (3.0, 4.0)), y: Any = (0, 1), **options: Any) -> Any:
    return problems.mlp(np.asarray(x), np.asarray(y), key=KEY, **options)


def merged(first: bool, second: bool) -> Any:
    a, b = (jaxsgd.gradient_moments(*problems.line_fit(), per_coordinate=each) for each in (first, second))
    return moments.merge(a, b)


def stored(folder: Path, write: Callable[[Path], Any]) -> Any:
    write(folder / "a.npz")
    return _store.read_arrays(folder / "a.npz")


def write_pickle(path: Path) -> None:
    np.savez(path, a=np.array([{}], dtype=object))


def write_one_array(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.ones(2))


def without_sklearn(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    return problems.diabetes_regression()


X = {"x": jnp.asarray([1.0, 2.0, 4.0, 7.0])}


def check(
    loss_fn: Any = lambda t, b: jnp.mean((t - b["x"]) ** 2), params: Any = ONE, batch: Any = None, **key: Any
) -> Any:
    return jaxsgd.check_additivity(loss_fn, params, X if batch is None else batch, **key)


def over(design: Any = None, loss_fn: Any = lambda t, x: t * jnp.max(x), data: Any = None, **options: Any) -> Any:
    design = designs.WithoutReplacement(2) if design is None else design
    data = jnp.asarray([1.0, 2.0, 4.0]) if data is None else data
    return estimators.batch_loss_gradient(loss_fn, ONE, data, design, **options)


def thirds(population_size: int) -> Any:
    return ((1.0, (Fraction(1, 3),) + (Fraction(0),) * (population_size - 1)),)


LOSSES = dynamics.Quadratics.from_minima([1, 2, 3], [3, 0, -1])
FLAT = dynamics.Quadratics([[[1, 0], [0, 0]]] * 2, [[1, 0], [0, 0]])


def simulated(**changed: Any) -> Any:
    """Two runs of three steps."""
    options = {"key": KEY, "num_runs": 2, "num_steps": 3} | changed
    return dynamics.simulate_steps(LOSSES, designs.WithReplacement(1), options.pop("learning_rate", 0.1), **options)


class Two(Broken):
    """Claims two draws."""

    batch_size = 2


def changing(counter: list[float]) -> Any:
    """A loss that reads a number of Python's, which a trace would hide."""

    def loss(theta: Any, batch: Any) -> Any:
        counter[0] += 1
        return theta * jnp.mean(batch["x"]) * counter[0]

    return loss


# (exception, its message with " … " for what is left out, the call given tmp_path and monkeypatch)
Case = tuple[type[Exception], str, Callable[[Any, Any], Any]]


def trained_apart(path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A run of several processes that do not read the same checkpoint."""
    monkeypatch.setattr(_sharding, "agree", lambda mesh, number: False)
    return trained(checkpoint=path / "run.npz")


def on_explicit_axes() -> Any:
    mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Explicit,))
    batch = jax.device_put(jnp.ones(4), NamedSharding(mesh, PartitionSpec("data")))
    return jax.jit(lambda batch: gradients(batch=batch).squared_norms())(batch)


def trained(design: Any = None, optimizer: Any = None, **options: Any) -> Any:
    loss_fn, params, data = problems.line_fit()
    optimizer, design = optimizer or optax.sgd(0.1), design or designs.WithReplacement(2)
    arguments = {"num_steps": 2, "key": KEY} | options
    return training.run_sgd(loss_fn, params, data, optimizer, design, **arguments)


def swept(grid: Any, run: Any = lambda key, **_: {"value": 1.0}, folder: Any = "unused") -> Any:
    return sweeps.sweep(run, grid, folder, KEY)


def monitored(monitor: Any, g: Any = G, **extra: Any) -> Any:
    return monitor.update(g.mean(), monitor.init(g.mean()), **extra)


def streamed() -> Any:
    return jaxsgd.per_example_gradients(linear_loss, memory_limit=100)(jnp.ones(3), jnp.ones((20, 3)))


def damaged(folder: Path) -> Any:
    (folder / "a.npz").write_bytes(_store.pack_record({"a": np.ones(3)}, {})[:-1])
    return _store.read_record(folder / "a.npz")


def of_another_run(folder: Path) -> Any:
    (folder / "a.npz").write_bytes(_store.pack_record({"a": np.ones(3)}, {"num_steps": 3}))
    return _store.read_record(folder / "a.npz", {"num_steps": 4})


def without(module: str, call: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setitem(sys.modules, module, None)
    return call()


class Unhashable(designs.WithReplacement):
    """A design that no compilation can be kept for."""

    __hash__ = None  # type: ignore[assignment]


def twice(monitor: Any) -> Any:
    return monitors.readings((monitor.init(ONE), monitor.init(ONE)))


TRAINING: list[Case] = [
    (ValueError, "checkpoint must be in a folder that all processes of the run share, got … run.npz", trained_apart),
    (
        ValueError,
        "arrays under jax.jit must lie on a mesh with automatic axes, as of jax.make_mesh(shape, names, "
        "axis_types=(AxisType.Auto,) * 1), got (Explicit,)",
        lambda *_: on_explicit_axes(),
    ),
    (ValueError, "num_steps must be at least 1, got 0", lambda *_: trained(num_steps=0)),
    (ValueError, "record_every must be at least 1, got 0", lambda *_: trained(record_every=0)),
    (TypeError, "key must be a key such as jax.random.key(0), got 0", lambda *_: trained(key=0)),
    (TypeError, "design must have a method weights(key, population_size), got 3", lambda *_: trained(3)),
    (
        ValueError,
        "batch_size must be at most the population size 4, got 5",
        lambda *_: trained(designs.WithoutReplacement(5)),
    ),
    (ValueError, "gradient must be one of factored, plain, got 'exact'", lambda *_: trained(gradient="exact")),
    (TypeError, "optimizer must be an Optax transformation, or a function that", lambda *_: trained(optimizer=0.1)),
    (
        ValueError,
        "optimizer must be an Optax transformation, such as optax.sgd(0.1); a function … needs learning_rates",
        lambda *_: trained(optimizer=optax.sgd),
    ),
    (
        TypeError,
        "optimizer must make an Optax transformation from a learning rate, got ",
        lambda *_: trained(optimizer=lambda rate: rate, learning_rates=[0.1]),
    ),
    (
        ValueError,
        "optimizer must be a function of the learning rate, or have the hyperparameter learning_rate in its state",
        lambda *_: trained(learning_rates=[0.1]),
    ),
    (
        ValueError,
        "learning_rates must be a non-empty vector of finite numbers, got 0.1",
        lambda *_: trained(optimizer=optax.sgd, learning_rates=0.1),
    ),
    (TypeError, "design must be hashable, as frozen dataclasses", lambda *_: trained(Unhashable(2))),
    (
        ValueError,
        "eval_fn must name its metrics by strings other than those of the run, got 'loss'",
        lambda *_: trained(eval_fn=lambda p: {"loss": p["m"]}),
    ),
    (
        ValueError,
        "eval_fn must return one number or a dict of numbers, got … for eval",
        lambda *_: trained(eval_fn=lambda p: jnp.ones(2)),
    ),
    (ValueError, "every must be at least 1, got 0", lambda *_: monitors.noise_scale(every=0)),
    (ValueError, "decay must be at least 0 and below 1, got 1.0", lambda *_: monitors.noise_scale(decay=1.0)),
    (ValueError, "num_groups must be at least 2, got 1", lambda *_: monitors.two_batch_noise_scale(num_groups=1)),
    (ValueError, "terms must be given to _NoiseScale", lambda *_: monitored(monitors.noise_scale())),
    (
        ValueError,
        "where must accept at least one parameter, got none",
        lambda *_: monitored(monitors.noise_scale(where=lambda path: False), per_example_gradients=G),
    ),
    (
        ValueError,
        "where must be None where gradients are computed anew, with a memory_limit",
        lambda *_: monitored(
            monitors.noise_scale(where=lambda path: True), streamed(), per_example_gradients=streamed()
        ),
    ),
    (
        ValueError,
        "num_groups must divide a fixed batch size, got 3 for a batch size that is 4",
        lambda *_: monitored(monitors.two_batch_noise_scale(num_groups=3), per_example_gradients=G),
    ),
    (
        ValueError,
        "group_size must be given to two_batch_noise_scale with group_gradients",
        lambda *_: monitored(monitors.two_batch_noise_scale(), group_gradients=G.materialize()),
    ),
    (
        ValueError,
        "full_gradient must be given to full_gradient_cosine",
        lambda *_: monitored(monitors.full_gradient_cosine()),
    ),
    (ValueError, "name must tell monitors apart, got 'noise_scale' twice", lambda *_: twice(monitors.noise_scale())),
    (ValueError, "a.npz is damaged: its … bytes do not have the checksum", lambda folder, _: damaged(folder)),
    (
        ValueError,
        "a.npz is of another run: num_steps is 3 there, and 4 here",
        lambda folder, _: of_another_run(folder),
    ),
    (FileNotFoundError, "there is no file", lambda folder, _: _store.read_record(folder / "none.npz")),
    (ValueError, "grid must map at least one name to its values, got {}", lambda *_: swept({})),
    (ValueError, "grid must not have the name 'key'", lambda *_: swept({"key": [1]})),
    (ValueError, "grid must have a non-empty list of values for a, got []", lambda *_: swept({"a": []})),
    (TypeError, "grid must hold numbers, strings and booleans, got None for a", lambda *_: swept({"a": [None]})),
    (ValueError, "grid must hold different values, got [1, 1] for a", lambda *_: swept({"a": [1, 1]})),
    (
        TypeError,
        "run must return a RunResult or a non-empty dict of arrays, got 3",
        lambda folder, _: swept({"a": [1]}, lambda key, a: 3, folder / "3"),
    ),
    (
        ValueError,
        "run must name the 1 dimensions of value, got ('x', 'y')",
        lambda folder, _: swept({"a": [1]}, lambda key, a: {"value": (("x", "y"), [1.0])}, folder / "xy"),
    ),
    (
        ValueError,
        "run must return arrays of one shape in all cells, got value of shapes",
        lambda folder, _: swept({"a": [1, 2]}, lambda key, a: {"value": np.ones(a)}, folder / "shapes"),
    ),
    (
        ValueError,
        "run must not return dimensions with names of the grid, got a",
        lambda folder, _: swept({"a": [1]}, lambda key, a: {"value": (("a",), [1.0])}, folder / "names"),
    ),
    (
        ValueError,
        "run must return the same coordinates x in all cells",
        lambda folder, _: swept({"a": [1, 2]}, lambda key, a: {"x": (("x",), [a])}, folder / "coordinates"),
    ),
    (
        ImportError,
        "sweep needs xarray: pip install 'jaxsgd[experiments]'",
        lambda _, monkeypatch: without("xarray", lambda: swept({"a": [1]}), monkeypatch),
    ),
    (
        ImportError,
        "TensorBoardWriter needs tensorboardX: pip install 'jaxsgd[tracking]'",
        lambda folder, monkeypatch: without("tensorboardX", lambda: tracking.TensorBoardWriter(folder), monkeypatch),
    ),
]


VARIANCE_REDUCTION: list[Case] = [
    (
        ValueError,
        "other must hold gradients of the same parameters and of as many examples",
        lambda *_: G.minus(PAIR),
    ),
    (
        ValueError,
        "other must hold gradients of the same parameters and of as many examples",
        lambda *_: variance_reduction.exact(designs.WithoutReplacement(1), G, G.take(slice(2))),
    ),
    (
        ValueError,
        "other must be gradients that are kept, as these must be: without a memory_limit",
        lambda *_: streamed().minus(streamed()),
    ),
    (
        ValueError,
        "the variance of control under WithoutReplacement(batch_size=4) must be positive, got 0.0",
        lambda *_: variance_reduction.optimal_coefficient(designs.WithoutReplacement(4), G, G),
    ),
    (
        ValueError,
        "population_size must be at most 4096 for the covariance of Inclusion( … got 4098: use estimators.monte_carlo",
        lambda *_: variance_reduction.Inclusion(designs.Systematic(2)).weight_covariance(4098),
    ),
    (
        ValueError,
        "refresh_every must be at least 1, got 0",
        lambda *_: variance_reduction.SVRG(linear_loss, designs.WithoutReplacement(1), 0).init(KEY, ONE, jnp.ones(3)),
    ),
    (
        TypeError,
        "key must be a key such as jax.random.key(0), got 0 of type int",
        lambda *_: variance_reduction.SAGA(linear_loss, designs.WithoutReplacement(1)).init(0, ONE, jnp.ones(3)),
    ),
    (
        ValueError,
        "batch_size must be at most the population size 3, got 4",
        lambda *_: variance_reduction.SAG(linear_loss, designs.WithoutReplacement(4)).init(KEY, ONE, jnp.ones(3)),
    ),
    (
        TypeError,
        "design must have a method weights(key, population_size), got 4",
        lambda *_: variance_reduction.SAG(linear_loss, 4).init(KEY, ONE, jnp.ones(3)),
    ),
]


REPORTS: list[Case] = [
    (ValueError, "path must end in .npz, got best.zip", lambda *_: report.save_checkpoint("best.zip", ONE)),
    (
        ValueError,
        "checkpoint … a.npz has an array 'hiden', which params lack; did you mean hidden?",
        lambda path, _: checkpoint(path, {"hiden": ONE}),
    ),
    (ValueError, "checkpoint … a.npz lacks 'hidden' of params", lambda path, _: checkpoint(path, {})),
    (
        ValueError,
        "checkpoint … a.npz must have the shape () for 'hidden', got (2,)",
        lambda path, _: checkpoint(path, {"hidden": jnp.ones(2)}),
    ),
    (
        ValueError,
        "checkpoint … a.npz must have the dtype float64 for 'hidden', got float32",
        lambda path, _: checkpoint(path, {"hidden": jnp.ones((), jnp.float32)}),
    ),
    (
        FileNotFoundError,
        "there is no file … no.npz",
        lambda path, _: report.load_checkpoint(path / "no.npz", ONE),
    ),
    (
        TypeError,
        "problem must be a Problem(loss_fn, params, data), got 3 of type int",
        lambda *_: report.report(3),
    ),
    (
        TypeError,
        "batch_loss_fn must be a function, got 3 of type int",
        lambda *_: report.report((*problems.line_fit(), 3)),
    ),
    (
        ValueError,
        "batches of data must hold examples of shapes [()], got [(2,)]",
        lambda *_: report.report((lambda p, x: p * x.sum(), ONE, iter([jnp.ones(2), jnp.ones((2, 2))]))),
    ),
    (
        TypeError,
        "key must be a key such as jax.random.key(0), got 0 of type int",
        lambda *_: report.report(problems.line_fit(), key=0),
    ),
]


def in_use(folder: Path) -> Any:
    with _store.locked(folder / ".busy.npz.lock"):
        return trained(checkpoint=folder / "busy.npz")


def damaged_checkpoint(folder: Path) -> Any:
    (folder / "run.npz").write_bytes(b"PK")
    return trained(checkpoint=folder / "run.npz")


def one_hidden(folder: Path, _: Any) -> Any:
    """The directory at the end says that the comment of its first entry, which has none, is as long as the second."""
    content = bytearray(_store.pack_arrays({"a": np.ones(1), "b": np.ones(1)}))
    first, second = (at.start() for at in re.finditer(b"PK\1\2", content))
    content[first + 32] = content.find(b"PK\5\6") - second
    return _store.read_arrays(written(folder / "a.npz", bytes(content)))


def one_byte_more(folder: Path, _: Any) -> Any:
    np.save(folder / "a.npy", np.ones(3))
    return sources.load(written(folder / "a.npy", (folder / "a.npy").read_bytes() + b"0"))


def damaged_line(content: bytes, folder: Path, _: Any) -> Any:
    return list(tracking.read_json_lines(written(folder / "run.jsonl", content + b"\n")))


def no_array_inside(folder: Path) -> Any:
    with zipfile.ZipFile(folder / "a.npz", "w") as archive:
        archive.writestr("notes.txt", "not an array")
    return _store.read_arrays(folder / "a.npz")


def random_loss() -> Any:
    generator = np.random.default_rng(0)
    return lambda p, x: jnp.sum(p * x) * generator.random()


def remembering() -> Any:
    """A loss that adds up what it returned before."""
    seen: list[Any] = []

    def loss(p: Any, x: Any) -> Any:
        seen.append(jnp.sum(p * x) + sum(seen))
        return seen[-1]

    return loss


def equinox_module(folder: Path, _: Any) -> Any:
    import equinox as eqx

    return gradients(lambda net, x: net(x)[0], eqx.nn.MLP(2, 1, 3, 1, key=KEY), TWO_BY_TWO)


def undefined() -> Any:
    """A batch loss that is not finite on some subsets, nor on the whole."""
    return check(lambda t, b: jnp.mean(jnp.log(b["x"]) * t), batch={"x": jnp.asarray([-1.0, 1.0, 2.0, 3.0, 4.0])})


UNSOUND: list[Case] = [
    # Gradients, data and starts that are not finite.
    *(
        (ValueError, "gradients must be finite, got nan for example 1 in params", call)
        for call in (
            lambda *_: estimators.with_replacement_variance(NOT_FINITE),
            lambda *_: estimators.without_replacement_variance(NOT_FINITE, population_size=9),
            lambda *_: estimators.horvitz_thompson_variance(NOT_FINITE, jnp.ones(2), TWO_BY_TWO, population_size=3),
            lambda *_: estimators.without_replacement_central_moments(NOT_FINITE, batch_size=1),
            lambda *_: estimators.monte_carlo(designs.WithoutReplacement(1), NOT_FINITE, key=KEY, num_draws=2),
            lambda *_: estimators.enumerate_batches(designs.WithoutReplacement(1), NOT_FINITE),
            lambda *_: estimators.variance_curve(NOT_FINITE),
            lambda *_: estimators.optimal_probabilities(NOT_FINITE),
            lambda *_: jaxsgd.noise_scale(NOT_FINITE),
            lambda *_: moments.of(NOT_FINITE),
            lambda *_: jaxsgd.check_per_example(linear_loss, ONE, jnp.asarray([1.0, np.nan])),
            lambda *_: model_agnostic.random_sign_moments(
                linear_loss, ONE, jnp.asarray([1.0, np.nan]), key=KEY, num_draws=2
            ),
        )
    ),
    (
        ValueError,
        "gradients must be finite, got inf for example 0 in params",
        lambda *_: jaxsgd.gradient_moments(linear_loss, ONE, jnp.asarray([np.inf, 1.0])),
    ),
    (
        ValueError,
        "squared gradient norms overflow float32: scale the loss down, or use float64 parameters",
        lambda *_: model_agnostic.random_sign_moments(*LARGE, key=KEY, num_draws=2),
    ),
    (
        ValueError,
        "the loss of all data must be finite at the start, got nan, and that of example 1 is not",
        lambda *_: training.run_sgd(
            *(linear_loss, ONE, jnp.asarray([1.0, np.nan]), optax.sgd(0.1), designs.WithReplacement(1), 2, KEY)
        ),
    ),
    (
        ValueError,
        "batch_loss_fn must be finite, … on the whole batch, and batch['x'] itself is not, in example 2",
        lambda *_: check(batch={"x": X["x"].at[2].set(jnp.inf)}),
    ),
    (
        ValueError,
        "batch_loss_fn must be finite, with a finite gradient, on the whole batch, got nan",
        lambda *_: undefined(),
    ),
    (
        ValueError,
        "samples must be finite, got nan at (1,) in samples",
        lambda *_: tails.hill_index(jnp.asarray([1.0, np.nan]), num_largest=1),
    ),
    (
        ValueError,
        "samples must be finite, got inf at (0,) in samples",
        lambda *_: tails.stable_index(jnp.asarray([np.inf, 1.0]), block_size=2),
    ),
    (
        ValueError,
        "big_gradient must be finite, got nan at (1,) in big_gradient['a']",
        lambda *_: jaxsgd.two_batch_noise_scale(
            {"a": jnp.ones(2)}, {"a": jnp.asarray([1.0, np.nan])}, small_size=1, big_size=2
        ),
    ),
    # Losses that are no functions of their arguments.
    (
        ValueError,
        "loss_fn must give the same loss for the same arguments, got … and then … must come from a key",
        lambda *_: jaxsgd.gradient_moments(random_loss(), ONE, jnp.ones(3)),
    ),
    (
        ValueError,
        "loss_fn must give the same loss for the same arguments, got … and then … must come from a key",
        lambda *_: jaxsgd.check_per_example(random_loss(), ONE, jnp.ones(3)),
    ),
    (
        ValueError,
        "loss_fn must be a function of its arguments alone: it uses a value that an earlier call of it left behind",
        lambda *_: jaxsgd.gradient_moments(remembering(), ONE, jnp.ones(3)),
    ),
    # Data and parameters of other kinds.
    (TypeError, "params must be a pytree of arrays, but params.activation is … eqx.partition(", equinox_module),
    (
        TypeError,
        "params must be real floating-point arrays, but params['n'] has dtype int64",
        lambda *_: gradients(params={"n": jnp.arange(2)}),
    ),
    (
        TypeError,
        "data must be numbers, but data has dtype object",
        lambda *_: jaxsgd.gradient_moments(linear_loss, ONE, np.array([[1], [2]], object)),
    ),
    (
        TypeError,
        "data must be numbers, but data has dtype datetime64[s]",
        lambda *_: jaxsgd.gradient_moments(linear_loss, ONE, np.array([1, 2], "datetime64[s]")),
    ),
    (
        TypeError,
        "data must be numbers, but data has dtype [('a', '<f4')]",
        lambda *_: jaxsgd.gradient_moments(linear_loss, ONE, np.zeros(3, [("a", "f4")])),
    ),
    (
        TypeError,
        "data must be a pytree of arrays, but data[0] is 1.0 of type float",
        lambda *_: jaxsgd.gradient_moments(linear_loss, ONE, [1.0, 2.0]),
    ),
    (
        ValueError,
        "data must have at least one array, got None",
        lambda *_: jaxsgd.gradient_moments(linear_loss, ONE, None),
    ),
    (
        ValueError,
        "data must have equally many examples in every array, but data['x'] has 3, data['y'] has 2",
        lambda *_: jaxsgd.gradient_moments(linear_loss, ONE, {"x": np.ones(3), "y": np.ones(2)}),
    ),
    (
        ValueError,
        "loss_fn failed on one example (example['x']: (2,)): KeyError: 'z' … loss_fn takes ONE example",
        lambda *_: gradients(lambda p, e: p * e["z"], batch={"x": TWO_BY_TWO}),
    ),
    (
        ValueError,
        "loss_fn failed on one example (example: (2,)): TypeError: mul got incompatible shapes",
        lambda *_: gradients(params=jnp.ones(3), batch=TWO_BY_TWO),
    ),
    (
        TypeError,
        "loss_fn must return one scalar, got PyTreeDef(None) for one example",
        lambda *_: gradients(lambda p, x: None),
    ),
    (
        TypeError,
        "g must be per-example gradients or their moments, got None of type NoneType",
        lambda *_: estimators.exact(designs.WithReplacement(1), None),
    ),
    (
        TypeError,
        "g must be what per_example_gradients returns, got an array of shape (2, 2)",
        lambda *_: estimators.monte_carlo(designs.WithReplacement(1), TWO_BY_TWO, key=KEY, num_draws=2),
    ),
    (
        ValueError,
        "batch_size must be at most 2147483647, got 1000000000000000000000000000000",
        lambda *_: designs.WithReplacement(10**30).weights(KEY, 4),
    ),
    (TypeError, "num_steps must be an integer, got 3.0", lambda *_: trained(num_steps=3.0)),
    (ValueError, "batch_size must be at least 1, got -1", lambda *_: designs.Reshuffling(-1)),
    (
        TypeError,
        "key must be a key such as jax.random.key(0), got an array of shape (2,) and dtype uint32",
        lambda *_: trained(key=jax.random.PRNGKey(0)),
    ),
    (TypeError, "key must be a key such as jax.random.key(0), got 'a' of type str", lambda *_: trained(key="a")),
    # Files.
    (ValueError, "checkpoint must not be in use by another run, got … busy.npz", lambda folder, _: in_use(folder)),
    (
        ValueError,
        "run.npz is damaged: its 2 bytes … nothing is overwritten: to start anew, remove it",
        lambda folder, _: damaged_checkpoint(folder),
    ),
    (ValueError, "its member notes.txt is not an array", lambda folder, _: no_array_inside(folder)),
    (ValueError, "a.npz is not a readable .npz file: it has 1 members, and says that it has 2", one_hidden),
    (ValueError, "a.npy is not a readable .npy file: its 153 bytes are not the (3,) numbers that", one_byte_more),
    *(
        (ValueError, "run.jsonl is damaged in line 1: ", partial(damaged_line, content))
        for content in (
            b'{"step": 1.5}',
            b'{"step": true}',
            b'{"step": 1, "loss": true}',
            b'{"step": 1, "loss": "1_0"}',
        )
    ),
    (
        ValueError,
        "run.jsonl is damaged in line 2: b'{'",
        lambda folder, _: list(tracking.read_json_lines(written(folder / "run.jsonl", b'{"step": 1}\n{\n'))),
    ),
    (FileNotFoundError, "none.jsonl", lambda folder, _: list(tracking.read_json_lines(folder / "none.jsonl"))),
]


CASES: list[Case] = [
    (ValueError, "batch_size must be at least 1, got 0", lambda *_: designs.WithReplacement(0)),
    (ValueError, "batch_size must be at least 1, got -3", lambda *_: designs.WithoutReplacement(-3)),
    (ValueError, "population_size must be at least 1, got 0", lambda *_: designs.WithReplacement(1).support_size(0)),
    (ValueError, "hidden must be at least 1, got 0", lambda *_: network(hidden=0)),
    (TypeError, "batch_size must be an integer, got 2.5", lambda *_: designs.WithReplacement(2.5)),
    (TypeError, "batch_size must be an integer, got True", lambda *_: designs.WithReplacement(True)),
    (TypeError, "batch_size must be an integer, got array([2])", lambda *_: designs.WithReplacement(np.array([2]))),
    (TypeError, "batch_size must be an integer, got array(2.)", lambda *_: designs.WithReplacement(np.array(2.0))),
    (TypeError, "chunk_size must be an integer, got '3'", lambda *_: bad_data(chunk_size="3")),
    (
        ValueError,
        "num_draws must be at least 2, got 1",
        lambda *_: estimators.monte_carlo(designs.WithReplacement(1), G, key=KEY, num_draws=1),
    ),
    (
        ValueError,
        "num_draws must be at least 2, got 1",
        lambda *_: estimators.monte_carlo_curve(G, key=KEY, num_draws=1),
    ),
    (
        ValueError,
        "the number of examples must be at least 2, got 1",
        lambda *_: gradients(batch=(1.0,)).variance(ddof=1),
    ),
    (
        ValueError,
        "memory_limit must be at least 16 bytes, which one example needs, got 15",
        lambda *_: jaxsgd.per_example_gradients(linear_loss, memory_limit=15)(ONE, jnp.ones(3)),
    ),
    (
        ValueError,
        "num_draws must be at least 2, got 1",
        lambda *_: model_agnostic.random_sign_moments(*problems.line_fit(), key=KEY, num_draws=1),
    ),
    (
        ValueError,
        "num_examples must be at least 1, got 0",
        lambda *_: jaxsgd.check_per_example(*problems.line_fit(), num_examples=0),
    ),
    (
        ValueError,
        "memory_limit must be at least 1, got 0",
        lambda *_: jaxsgd.per_example_gradients(linear_loss, memory_limit=0),
    ),
    (
        ValueError,
        "the number of examples must be at least 2, got 1",
        lambda *_: moments.of(gradients(batch=(1.0,))).trace_covariance(ddof=1),
    ),
    (
        ValueError,
        "batch_size must be at most the population size 4, got 5",
        lambda *_: estimators.exact(designs.WithoutReplacement(5), G),
    ),
    (
        ValueError,
        "batch_size must be at most the population size 4, got 5",
        lambda *_: estimators.monte_carlo(designs.WithoutReplacement(5), G, key=KEY, num_draws=2),
    ),
    (
        ValueError,
        "design must be one of with_replacement, without_replacement, got 'poisson'",
        lambda *_: curve(None, design="poisson"),
    ),
    (ValueError, "activation must be one of sigmoid, tanh, relu, got 'gelu'", lambda *_: network(activation="gelu")),
    (ValueError, "batch_sizes must be a non-empty vector, got shape (0,)", lambda *_: curve([])),
    (ValueError, "batch_sizes must be a non-empty vector, got shape ()", lambda *_: curve(3)),
    (TypeError, "batch_sizes must be integers, got dtype float64", lambda *_: curve([1.5])),
    (ValueError, "batch_sizes must lie between 1 and the population size 4, got 5", lambda *_: curve([1, 5])),
    (ValueError, "batch_sizes must lie between 1 and the population size 4, got 0", lambda *_: curve([0, 1])),
    (
        TypeError,
        "key must be a key such as jax.random.key(0), got 0 of type int",
        lambda *_: designs.WithReplacement(1).weights(0, 4),
    ),
    (
        TypeError,
        "key must be a key such as jax.random.key(0), got an array of shape (2,) and dtype uint32",
        lambda *_: estimators.monte_carlo_curve(G, key=jax.random.PRNGKey(0), num_draws=2),
    ),
    (
        TypeError,
        "key must be a key such as jax.random.key(0), got an array of shape (3,) and dtype key<fry>",
        lambda *_: problems.digits_mlp(key=jax.random.split(KEY, 3)),
    ),
    (
        ValueError,
        "the support of Broken must be a non-empty vector, got shape (0,)",
        lambda *_: estimators.enumerate_batches(Broken(()), G),
    ),
    (
        ValueError,
        "the support of Broken must be non-negative, got -0.5",
        lambda *_: estimators.enumerate_batches(Broken(((1.5, (1, 0)), (-0.5, (0, 1)))), PAIR),
    ),
    (
        ValueError,
        "the support of Broken must sum to one, got a sum of 0.75",
        lambda *_: estimators.enumerate_batches(Broken(((0.5, (1, 0)), (0.25, (0, 1)))), PAIR),
    ),
    (
        ValueError,
        "max_batches must be at least 6 to enumerate WithoutReplacement(batch_size=2), got 5",
        lambda *_: estimators.enumerate_batches(designs.WithoutReplacement(2), G, max_batches=5),
    ),
    # A mean scaled by the first weight alone would be wrong in silence, as would an example that is never seen.
    (
        TypeError,
        "g must be per-example gradients for Unequal(p=Fraction(1, 1)), which does not treat all examples alike",
        lambda *_: estimators.exact(Unequal(Fraction(1)), moments.of(measured(gradients_given([1.0, 2.0, 7.0])))),
    ),
    (
        TypeError,
        "g must be per-example gradients for Blocks(batch_size=2)",
        lambda *_: estimators.exact(designs.Blocks(2), moments.of(G)),
    ),
    (
        TypeError,
        "weight_covariance must be one of the covariances of jaxsgd.designs, got Odd",
        lambda *_: estimators.exact(OddCovariance(2), PAIR),
    ),
    (
        ValueError,
        "probabilities must be positive for examples whose gradients are not zero, got 0 for example 1",
        lambda *_: estimators.exact(designs.Poisson([0.5, 0.0]), PAIR),
    ),
    (
        ValueError,
        "probabilities must be positive for examples whose gradients are not zero, got 0 for example 0",
        lambda *_: estimators.exact(designs.Importance([0.0, 1.0], 1), PAIR),
    ),
    (
        ValueError,
        "the variance under Poisson(probabilities=(1e-30, 1.0)) overflows float32",
        lambda *_: estimators.exact(designs.Poisson([1e-30, 1.0]), measured(gradients_given([1e10, 1.0], jnp.float32))),
    ),
    (
        ValueError,
        "gradients must be finite, got nan for example 1 in params",
        lambda *_: estimators.exact(designs.Poisson([1.0, 1.0]), measured(gradients_given([1.0, np.nan]))),
    ),
    (ValueError, "scale must be one of mean, sum, total, got 'max'", lambda *_: designs.Blocks(2, scale="max")),
    (
        ValueError,
        "normalize must be one of expected, realized, got 'm'",
        lambda *_: designs.Bernoulli(0.5, normalize="m"),
    ),
    (ValueError, "empty must be one of zero, skip, error, got 'nan'", lambda *_: designs.Hajek([0.5], empty="nan")),
    (ValueError, "probability must be positive, got 0", lambda *_: designs.Bernoulli(0)),
    (ValueError, "probability must lie between 0 and 1, got 1.5", lambda *_: designs.Bernoulli(1.5)),
    (ValueError, "probability must be positive, got nan", lambda *_: designs.Bernoulli(np.nan)),
    (ValueError, "probabilities must lie between 0 and 1, got -0.5", lambda *_: designs.Poisson([0.5, -0.5])),
    (ValueError, "probabilities must be finite, got nan", lambda *_: designs.Poisson([0.5, np.nan])),
    (
        ValueError,
        "probabilities must be a non-empty vector, got shape (1, 2)",
        lambda *_: designs.Hajek(np.ones((1, 2))),
    ),
    (ValueError, "the largest of probabilities must be positive, got 0.0", lambda *_: designs.Poisson([0.0, 0.0])),
    (ValueError, "probabilities must sum to one, got a sum of 0.75", lambda *_: designs.Importance([0.5, 0.25], 2)),
    (
        ValueError,
        "probabilities must have one entry for each of the 4 examples, got 2",
        lambda *_: estimators.exact(designs.Poisson([0.5, 0.5]), G),
    ),
    (
        ValueError,
        "empty must be 'zero' or 'skip' where a batch may be empty, got 'error' for Bernoulli(probability=0.5, "
        "empty='error'), whose batches of 3 examples are empty with probability 0.125",
        lambda *_: designs.Bernoulli(0.5, empty="error").weights(KEY, 3),
    ),
    (
        ValueError,
        "empty must be 'zero' or 'skip' where a batch may be empty, got 'error' for Hajek",
        lambda *_: estimators.exact(designs.Hajek([0.5, 0.5], "error"), PAIR),
    ),
    (
        ValueError,
        "population_size must be at most 4096 for the covariance of Hajek(probabilities=(0.5, ..., 0.5)), "
        "which has no structure, got 5000: use estimators.monte_carlo",
        lambda *_: designs.Hajek([0.5] * 5000).weight_covariance(5000),
    ),
    (
        ValueError,
        "population_size must be at most 4096 for the covariance of ConditionalPoisson",
        lambda *_: designs.ConditionalPoisson([1.0] * 5000, 2).weight_covariance(5000),
    ),
    (ValueError, "odds must be positive, got 0", lambda *_: designs.ConditionalPoisson([1, 0], 1)),
    (
        ValueError,
        "batch_size must be at most the population size 2, got 3",
        lambda *_: designs.ConditionalPoisson([1, 1], 3).support_size(2),
    ),
    (
        ValueError,
        "batch_size must divide the population size 4, got 3",
        lambda *_: estimators.exact(designs.Systematic(3), G),
    ),
    (ValueError, "strata must be a non-empty vector of labels, got shape (0,)", lambda *_: designs.Stratified([], [])),
    (TypeError, "strata must be integers, got dtype float64", lambda *_: designs.Stratified([0.0, 1.0], [1, 1])),
    (ValueError, "assignment must be labels 0, 1, 2, ..., got -1", lambda *_: designs.Groups([0, -1])),
    (
        ValueError,
        "assignment must use every label from 0 to its largest, but none is 1",
        lambda *_: designs.Groups([0, 2]),
    ),
    (
        ValueError,
        "strata must have one entry for each of the 4 examples, got 3",
        lambda *_: estimators.exact(designs.Stratified([0, 1, 1], [1, 1]), G),
    ),
    (
        ValueError,
        "batch_sizes must have one entry for each of the 2 strata, got 1",
        lambda *_: designs.Stratified([0, 1], [1]),
    ),
    (ValueError, "batch_sizes must be at least 1, got 0", lambda *_: designs.Stratified([0, 1], [1, 0])),
    (
        ValueError,
        "batch_sizes must be at most 2, the size of stratum 1, got 3",
        lambda *_: designs.Stratified([0, 1, 1], [1, 3]),
    ),
    (
        ValueError,
        "batch_size must be at least 2, got 1",
        lambda *_: designs.Stratified.proportional([0, 1, 1], batch_size=1),
    ),
    (
        ValueError,
        "deviations must be non-negative, got -1.0",
        lambda *_: designs.Stratified.neyman([0, 1], [1.0, -1.0], 2),
    ),
    (
        ValueError,
        "the number of batches of an epoch must be at least 2, got 1",
        lambda *_: designs.Reshuffling(3).cross_covariance(5),
    ),
    (
        ValueError,
        "by must be one of batch, example, got 'epoch'",
        lambda *_: designs.Reshuffling(3).epoch_mean_covariance(5, by="epoch"),
    ),
    (
        ValueError,
        "the largest norm of a gradient must be positive, got 0.0",
        lambda *_: estimators.optimal_probabilities(measured(gradients_given([0.0, 0.0]))),
    ),
    (
        ValueError,
        "relative_to must be one of with_replacement, without_replacement, got 'srs'",
        lambda *_: estimators.design_effect(designs.Blocks(2), G, relative_to="srs"),
    ),
    (
        ValueError,
        "first_draw must be at least 0, got -1",
        lambda *_: estimators.monte_carlo(designs.Blocks(2), G, key=KEY, num_draws=2, first_draw=-1),
    ),
    (
        ValueError,
        "second must be an estimate from monte_carlo, got one without draws",
        lambda *_: estimators.merge(
            estimators.monte_carlo(designs.Blocks(2), G, key=KEY, num_draws=2), estimators.exact(designs.Blocks(2), G)
        ),
    ),
    (ValueError, "ddof must be at least 0, got -1", lambda *_: G.variance(ddof=-1)),
    (TypeError, "ddof must be an integer, got 0.5", lambda *_: moments.of(G).trace_covariance(ddof=0.5)),
    (TypeError, "y must be integers or real numbers, got dtype bool", lambda *_: network(y=(True, False))),
    (
        ValueError,
        "batches of data must have the structure of the first",
        lambda *_: jaxsgd.gradient_moments(linear_loss, ONE, iter([jnp.ones(2), {"x": jnp.ones(2)}])),
    ),
    (ValueError, "x must be finite, got nan in example 1", lambda *_: network(((1.0, 2.0), (3.0, np.nan)))),
    (ValueError, "y must be finite, got inf in example 0", lambda *_: network(y=(np.inf, 1.0))),
    (ValueError, "y must be a vector of labels, got shape (2, 1)", lambda *_: network(y=((0,), (1,)))),
    (ValueError, "y must be labels 0, 1, 2, ..., got -1", lambda *_: network(y=(0, -1))),
    (
        ImportError,
        "this problem's data comes with scikit-learn: pip install 'jaxsgd[experiments]'",
        lambda _, monkeypatch: without_sklearn(monkeypatch),
    ),
    (ValueError, "params must have at least one array, got {}", lambda *_: gradients(params={})),
    (
        TypeError,
        "params must be a pytree of arrays, but params['f'] is <built-in function sum> of type "
        "builtin_function_or_method; … as in `arrays, static = eqx.partition(model, eqx.is_inexact_array)`",
        lambda *_: gradients(params={"f": sum}),
    ),
    (
        TypeError,
        "params must be a pytree of arrays, but params is 1.0 of type float",
        lambda *_: jaxsgd.gradient_moments(linear_loss, 1.0, TWO_BY_TWO),
    ),
    (
        TypeError,
        "params must be real floating-point arrays, but params[0] has dtype int64",
        lambda *_: gradients(params=[jnp.asarray(1)]),
    ),
    (
        TypeError,
        "params must be real floating-point arrays, but params has dtype complex128",
        lambda *_: gradients(params=jnp.asarray(1j)),
    ),
    (ValueError, "batch must have at least one array, got {}", lambda *_: gradients(batch={})),
    (
        TypeError,
        "batch must be a pytree of arrays, but batch['n'] is 3 of type int",
        lambda *_: gradients(batch={"x": TWO_BY_TWO, "n": 3}),
    ),
    (TypeError, "batch must be numbers, but batch has dtype <U1", lambda *_: gradients(batch=np.array(["a"]))),
    (
        ValueError,
        "data must have examples along the first axis of every array, but data is a scalar",
        lambda *_: jaxsgd.gradient_moments(linear_loss, ONE, ONE),
    ),
    (
        ValueError,
        "batch must have equally many examples in every array, but batch['x'] has 2, batch['y'] has 3",
        lambda *_: gradients(batch={"x": TWO_BY_TWO, "y": jnp.ones(3)}),
    ),
    (
        ValueError,
        "data must have at least one example, got 0",
        lambda *_: jaxsgd.gradient_moments(linear_loss, ONE, jnp.ones((0, 2))),
    ),
    (TypeError, "loss_fn must be a function, got 3 of type int", lambda *_: gradients(3)),
    (
        ValueError,
        "loss_fn failed on one example (example: (2,)): ValueError: axis 1 is out of bounds … "
        "loss_fn takes ONE example, without the batch axis; was it written for a batch?",
        lambda *_: gradients(lambda p, x: jnp.sum(p * x, axis=1)[0], batch=TWO_BY_TWO),
    ),
    (
        TypeError,
        "loss_fn must return one scalar, got PyTreeDef((*, *)) for one example (example: ())",
        lambda *_: gradients(lambda p, x: (p * x, x)),
    ),
    (
        ValueError,
        "loss_fn must return a scalar for one example (example: (2,)), got shape (2,); "
        "it is given ONE example, without the batch axis",
        lambda *_: gradients(lambda p, x: p * x, batch=TWO_BY_TWO),
    ),
    (
        TypeError,
        "loss_fn must return a real floating-point number, got dtype int64",
        lambda *_: jaxsgd.gradient_moments(lambda *_: jnp.asarray(1), ONE, TWO_BY_TWO),
    ),
    (
        ValueError,
        "direction must have the structure of params, PyTreeDef({'b': *, 'm': *}), got PyTreeDef({'m': *})",
        lambda *_: G.inner_products({"m": ONE}),
    ),
    (
        ValueError,
        "direction must have the shapes of params, but direction['m'] has shape (2,), not ()",
        lambda *_: G.inner_products({"m": jnp.ones(2), "b": ONE}),
    ),
    (ValueError, "weights must have shape (4,), got (3,)", lambda *_: G.weighted_sum(jnp.ones(3))),
    (ValueError, "other must hold gradients of the same parameters", lambda *_: G.gram(PAIR)),
    (ValueError, "gradients must be finite, got -inf for example 5 in params['b']", lambda *_: bad_data()),
    (ValueError, "gradients must be finite, got -inf for example 5 in params['b']", lambda *_: bad_data(chunk_size=4)),
    (ValueError, "gradients must be finite, got -inf for example 5 in params['b']", lambda *_: bad_data(iterate=True)),
    (
        ValueError,
        "squared gradient norms overflow float32: scale the loss down, or use float64 parameters",
        lambda *_: moments.of(measured(gradients_given([1e30], jnp.float32))),
    ),
    # Every gradient is finite, and its squared norm, but the sum is not: an infinite variance must not pass.
    (ValueError, "overflow", lambda *_: moments.of(measured(LARGE))),
    (ValueError, "overflow", lambda *_: jaxsgd.gradient_moments(*LARGE)),
    (ValueError, "overflow", lambda *_: jaxsgd.gradient_moments(*LARGE[:2], iter([LARGE.data, LARGE.data]))),
    (
        ValueError,
        "chunk_size must be None for an iterator of batches, got 2",
        lambda *_: bad_data(iterate=True, chunk_size=2),
    ),
    (
        ValueError,
        "data must have at least one batch, got an empty iterator",
        lambda *_: jaxsgd.gradient_moments(linear_loss, ONE, iter([])),
    ),
    (
        ValueError,
        "design must draw batches of one total weight, got Bernoulli",
        lambda *_: dynamics.langevin_variance(designs.Bernoulli(0.5), [0, 1], 0.1),
    ),
    (
        ValueError,
        "with ε the step_size and W the total weight, must be positive, got 0",
        lambda *_: dynamics.langevin_variance(designs.WithoutReplacement(1, scale="total"), [0, 1], 2),
    ),
    (FileNotFoundError, "there is no file or folder ", lambda path, _: sources.load(path / "none.npz")),
    (ValueError, "must hold .npy files, got none", lambda path, _: sources.load(path)),
    (
        ValueError,
        "data must be an .npz, .npy or .parquet file or a folder of .npy files, got … a.csv",
        lambda path, _: sources.load(written(path / "a.csv", b"1,2")),
    ),
    (
        ValueError,
        "a.npy is not a readable .npy file: ",
        lambda path, _: sources.load(written(path / "a.npy", b"1,2")),
    ),
    (
        ValueError,
        "a.npy is not a readable .npy file: ",
        lambda path, _: sources.load(pickled(path / "a.npy")),
    ),
    (ImportError, "needs pyarrow: pip install 'jaxsgd[parquet]'", without_pyarrow),
    (ValueError, "a.parquet is not a readable .parquet file: ", damaged_parquet),
    (ValueError, "column s must hold numbers, or equally many in every row, got string", words_in_parquet),
    (
        ValueError,
        "examples of data must have the structure and the shapes of example 0, (2,), got (3,) in example 1",
        lambda *_: next(sources.batches(Ragged())),
    ),
    (
        ValueError,
        "variance must be asked for: gradient_moments(..., per_coordinate=True)",
        lambda *_: moments.of(G).variance(),
    ),
    (
        ValueError,
        "second must have per-coordinate sums if and only if first does",
        lambda *_: merged(True, False),
    ),
    (FileNotFoundError, "there is no file … nowhere.npz", lambda folder, _: _store.read_arrays(folder / "nowhere.npz")),
    (ValueError, "a.npz is not a readable .npz file: Object arrays", lambda folder, _: stored(folder, write_pickle)),
    (ValueError, "a.npz is not a readable .npz file: it holds one array", lambda f, _: stored(f, write_one_array)),
    (
        ValueError,
        "the number of examples in batch must be at least 4, got 3",
        lambda *_: check(batch={"x": X["x"][:3]}),
    ),
    (TypeError, "key must be a key such as jax.random.key(0), got 3 of type int", lambda *_: check(key=3)),
    (TypeError, "batch_loss_fn must be a function, got 3 of type int", lambda *_: check(3)),
    (
        ValueError,
        "batch_loss_fn(params, batch, key) failed on a batch of 4 examples: TypeError: … positional arguments",
        lambda *_: check(key=KEY),
    ),
    (
        ValueError,
        "batch_loss_fn(params, batch) failed on a batch of 3 examples: TypeError: ",
        lambda *_: over(loss_fn=lambda t, x: x.reshape(2, 2)),
    ),
    (
        ValueError,
        "batch_loss_fn must return one scalar, or (scalar, aux), got an array of shape (4,) and dtype … for 4 examples",
        lambda *_: check(lambda t, b: t * b["x"]),
    ),
    (
        TypeError,
        "batch_loss_fn must return a real floating-point number, got dtype int64",
        lambda *_: check(lambda t, b: jnp.asarray(3)),
    ),
    (
        ValueError,
        "batch must hold different examples, got 4 equal ones, where all forms agree",
        lambda *_: check(batch={"x": jnp.ones(4)}),
    ),
    (
        ValueError,
        "batch_loss_fn must be finite on some subsets of the batch, got none: loss … is not finite on 30 of 30",
        lambda *_: check(lambda t, b: jnp.log(-t) * jnp.mean(b["x"])),
    ),
    (
        ValueError,
        "batch_loss_fn must give the same loss for the same arguments, got … its randomness must come from a key",
        lambda *_: check(changing([0.0])),
    ),
    (
        ValueError,
        "of the loss of batch_loss_fn, and must be at most 0.05 to tell its form",
        lambda *_: check(lambda t, b: jnp.mean(jnp.sin(1e15 * t * b["x"]))),
    ),
    (ValueError, "key must be None unless batches are drawn: give num_draws as well", lambda *_: over(key=KEY)),
    (TypeError, "key must be a key such as jax.random.key(0), got None", lambda *_: over(num_draws=5)),
    (ValueError, "num_draws must be at least 2, got 1", lambda *_: over(key=KEY, num_draws=1)),
    (
        TypeError,
        "design must have a method indices(key, population_size), got Bernoulli",
        lambda *_: over(Bernoulli(Fraction(1, 2)), key=KEY, num_draws=3),
    ),
    (
        ValueError,
        "max_batches must be at least 3 to enumerate WithoutReplacement(batch_size=2), got 2",
        lambda *_: over(max_batches=2),
    ),
    (
        ValueError,
        "design must have no empty batch, on which a batch loss has no value, got Bernoulli",
        lambda *_: over(Bernoulli(Fraction(1, 2))),
    ),
    (
        ValueError,
        "design must have weights n/2 that tell how often an example was drawn, got Broken",
        lambda *_: over(Two(thirds(3))),
    ),
    (
        ValueError,
        "the support of Broken must sum to one, got a sum of 0.5",
        lambda *_: over(Broken(((Fraction(1, 2), (1, 0, 0)),))),
    ),
    (
        ValueError,
        "batch_loss_fn must be finite, with a finite gradient, on every batch and on all data",
        lambda *_: over(loss_fn=lambda t, x: jnp.log(t * jnp.var(x)), design=designs.WithReplacement(2)),
    ),
    (
        ValueError,
        "batch_size must be at most the population size 3, got 5",
        lambda *_: over(designs.WithoutReplacement(5)),
    ),
    (
        ValueError,
        "the number of examples must be at least 2, got 1",
        lambda *_: estimators.with_replacement_variance(gradients(batch=(1.0,))),
    ),
    (
        ValueError,
        "the number of examples must be at least 2, got 1",
        lambda *_: estimators.without_replacement_variance(gradients(batch=(1.0,)), population_size=3),
    ),
    (
        ValueError,
        "batch_size must be at most the population size 3, got 4",
        lambda *_: estimators.without_replacement_variance(G, population_size=3),
    ),
    (
        ValueError,
        "joint_inclusion_probabilities must have shape (2, 2), got (2, 3)",
        lambda *_: estimators.horvitz_thompson_variance(PAIR, jnp.ones(2), jnp.ones((2, 3)), population_size=3),
    ),
    (
        ValueError,
        "inclusion_probabilities must have shape (2,), got (3,)",
        lambda *_: estimators.sen_yates_grundy_variance(PAIR, jnp.ones(3), TWO_BY_TWO, population_size=3),
    ),
    (
        ValueError,
        "joint_inclusion_probabilities must be above 0 and at most 1, … estimate exists, got 0.0 at (0, 1)",
        lambda *_: estimators.sen_yates_grundy_variance(PAIR, jnp.ones(2), jnp.eye(2), population_size=3),
    ),
    (
        ValueError,
        "inclusion_probabilities must be above 0 and at most 1, or no unbiased estimate exists, got 1.5 at (1,)",
        lambda *_: estimators.horvitz_thompson_variance(PAIR, jnp.asarray([1.0, 1.5]), TWO_BY_TWO, population_size=3),
    ),
    (
        ValueError,
        "the number of examples must be at least 4, got 2",
        lambda *_: estimators.without_replacement_central_moments(PAIR, batch_size=1),
    ),
    (
        ValueError,
        "batch_size must be at most the population size 4, got 5",
        lambda *_: estimators.without_replacement_central_moments(G, batch_size=5),
    ),
    (
        ValueError,
        "hessians must be one square matrix for each example, shape (N, d, d), got shape (2, 3)",
        lambda *_: dynamics.Quadratics(np.ones((2, 3)), np.ones(2)),
    ),
    (
        ValueError,
        "linear must be one vector for each of the hessians, shape (2, 3), got (2,)",
        lambda *_: dynamics.Quadratics(np.ones((2, 3, 3)), np.ones(2)),
    ),
    (
        ValueError,
        "hessians must be symmetric, got [[1.0, 2.0], [0.0, 1.0]] in example 1",
        lambda *_: dynamics.Quadratics([[[1, 0], [0, 1]], [[1, 2], [0, 1]]], np.ones((2, 2))),
    ),
    (
        ValueError,
        "linear must be finite, got nan in example 1",
        lambda *_: dynamics.Quadratics([1.0, 2.0], [0.0, np.nan]),
    ),
    (
        ValueError,
        "minima must have shape (2,), got (3,)",
        lambda *_: dynamics.Quadratics.from_minima([1, 2], [1, 2, 3]),
    ),
    (
        ValueError,
        "x must be one vector for each example, shape (N, d), got shape (3,)",
        lambda *_: dynamics.Quadratics.from_least_squares(np.ones(3), np.ones(3)),
    ),
    (
        ValueError,
        "y must be one number for each row of x, shape (3,), got (2,)",
        lambda *_: dynamics.Quadratics.from_least_squares(np.ones((3, 2)), np.ones(2)),
    ),
    (ValueError, "the mean Hessian must be positive definite, got a smallest … of 0", lambda *_: FLAT.minimum()),
    (
        ValueError,
        "the mean Hessian of a batch must be positive definite, got a smallest eigenvalue of 0",
        lambda *_: dynamics.stability_threshold(FLAT, designs.WithReplacement(1)),
    ),
    (
        ValueError,
        "learning_rate must be below the stability threshold … a spectral radius of 1 for E[A ⊗ A]",
        lambda *_: dynamics.step_law(LOSSES, designs.WithoutReplacement(1), Fraction(6, 7)).stationary(),
    ),
    (
        ValueError,
        "learning_rate must be positive, got 0",
        lambda *_: dynamics.step_law(LOSSES, designs.WithReplacement(1), 0),
    ),
    (
        ValueError,
        "learning_rate must be positive, got -1",
        lambda *_: dynamics.reshuffled_law(LOSSES, designs.Reshuffling(1), -1),
    ),
    (
        ValueError,
        "order must hold examples from 0 to 2, got 3",
        lambda *_: dynamics.fixed_order_law(LOSSES, [0, 3], 0.1),
    ),
    (
        ValueError,
        "order must hold examples from 0 to 2, got none",
        lambda *_: dynamics.fixed_order_law(LOSSES, [], 0.1),
    ),
    (
        ValueError,
        "max_batches must be at least 12 to enumerate Reshuffling(batch_size=1), got 11",
        lambda *_: dynamics.reshuffled_law(LOSSES, designs.Reshuffling(1), 0.1, max_batches=11),
    ),
    (ValueError, "learning_rate must be positive, got 0.0", lambda *_: simulated(learning_rate=0.0)),
    (ValueError, "num_steps must be at least 0, got -1", lambda *_: simulated(num_steps=-1)),
    (ValueError, "num_runs must be at least 1, got 0", lambda *_: simulated(num_runs=0)),
    (ValueError, "start must have shape (2, 1), got (3, 1)", lambda *_: simulated(start=np.zeros((3, 1)))),
    (
        TypeError,
        "key must be a key such as jax.random.key(0), got 0 of type int",
        lambda *_: simulated(key=0),
    ),
    # The noise scale, batch sizes, tails.
    (
        ValueError,
        "interval must be one of score, fieller, jackknife, got 'normal'",
        lambda *_: jaxsgd.noise_scale(G, interval="normal"),
    ),
    (
        ValueError,
        "confidence_level must be between 0 and 1, got 95",
        lambda *_: jaxsgd.noise_scale(G, confidence_level=95),
    ),
    (
        ValueError,
        "the number of examples must be at most 3, got 4",
        lambda *_: jaxsgd.noise_scale(G, population_size=3),
    ),
    (
        ValueError,
        "the number of examples must be at least 2, got 1",
        lambda *_: jaxsgd.noise_scale(G.take(slice(0, 1))),
    ),
    (
        TypeError,
        "population_size must be an integer, got 2.5",
        lambda *_: jaxsgd.noise_scale(moments.of(G), population_size=2.5),
    ),
    (
        ValueError,
        "big_size must be at least 3, got 2",
        lambda *_: jaxsgd.two_batch_noise_scale(ONE, ONE, small_size=2, big_size=2),
    ),
    (
        ValueError,
        "batch_size must be at most the population size 4, got 5",
        lambda *_: noise_scale_law(G, 5),
    ),
    (
        TypeError,
        "key must be a key such as jax.random.key(0), got None of type NoneType",
        lambda *_: jaxsgd.hessian_noise_scale(*problems.line_fit(), num_probes=4),
    ),
    (
        ValueError,
        "relative_noise must be positive, got 0",
        lambda *_: batch_size.critical_batch_size(3.0, relative_noise=0),
    ),
    (
        ValueError,
        "noise_scale must be at least 0, got -5.25",
        lambda *_: batch_size.critical_batch_size(np.array([1.0, -5.25])),
    ),
    (
        ValueError,
        "the number of samples must be a multiple of 3, got 4",
        lambda *_: tails.stable_index(jnp.ones(4), block_size=3),
    ),
    (
        ValueError,
        "num_largest must be at most 3, got 4",
        lambda *_: tails.hill_index(jnp.ones(4), num_largest=4),
    ),
    # Data sets that are samples, descent, surfaces.
    (
        ValueError,
        "max_batches must be at least 486 to enumerate WithoutReplacement(batch_size=2), got 485",
        lambda *_: estimators.enumerate_data_sets(designs.WithoutReplacement(2), [0, 1, 5], 4, max_batches=485),
    ),
    (
        ValueError,
        "probabilities must have shape (2,), got (1,)",
        lambda *_: estimators.enumerate_data_sets(designs.WithReplacement(1), [0, 1], 2, probabilities=[Fraction(1)]),
    ),
    (
        ValueError,
        "max_batches must be at least 6 to enumerate WithoutReplacement(batch_size=2), got 5",
        lambda *_: estimators.descent_probability(designs.WithoutReplacement(2), G, max_batches=5),
    ),
    (
        ValueError,
        "count must be at most 2, the rank of the gradients' covariance, got 3",
        lambda *_: surfaces.principal_directions(G, count=3),
    ),
    (
        ValueError,
        "steps must be a matrix with 2 columns, got shape (3, 1)",
        lambda *_: surfaces.losses_along(linear_loss, jnp.ones(2), jnp.ones((4, 2)), jnp.eye(2), jnp.ones((3, 1))),
    ),
    (
        ValueError,
        "directions must have the shapes of params, but directions has shape (3, 2), not (3, 3)",
        lambda *_: surfaces.losses_along(
            linear_loss, jnp.ones(3), jnp.ones((4, 3)), jnp.ones((3, 2)), jnp.ones((1, 3))
        ),
    ),
    # The noisy quadratic.
    (ValueError, "curvatures must be a non-empty vector, got shape (0,)", lambda *_: noisy_quadratic((), (), ())),
    (ValueError, "noise must have shape (2,), got (1,)", lambda *_: noisy_quadratic(noise=(1.0,))),
    (ValueError, "noise must be positive, got 0.0", lambda *_: noisy_quadratic(noise=(1.0, 0.0))),
    (ValueError, "second_moments must be finite, got inf", lambda *_: noisy_quadratic(start=(1.0, np.inf))),
    (ValueError, "dimension must be at least 1, got 0", lambda *_: dynamics.NoisyQuadratic.of_dimension(0)),
    (
        ValueError,
        "learning_rate must be positive and below 2, got 2.0",
        lambda *_: noisy_quadratic().steps_to(0.1, 1, [0.5, 2.0]),
    ),
    (ValueError, "batch_size must be positive, got 0", lambda *_: noisy_quadratic().steps_to(0.1, 0, 1.0)),
    (ValueError, "target must be positive, got -1", lambda *_: noisy_quadratic().fewest_steps(-1, 2)),
    # Steps against examples.
    (ValueError, "steps must be a non-empty vector, got shape (0,)", lambda *_: tradeoff((), ())),
    (ValueError, "steps must be finite, got nan", lambda *_: tradeoff(steps=(8.0, np.nan, 3.5))),
    (ValueError, "batch_sizes must have shape (3,), got (2,)", lambda *_: tradeoff((1, 2))),
    (ValueError, "batch_sizes must be positive, got 0.0", lambda *_: tradeoff((0, 1, 2))),
    (ValueError, "steps must be positive, got -1.0", lambda *_: tradeoff(steps=(8.0, 5.0, -1.0))),
    (
        ValueError,
        "batch_sizes must hold at least two different numbers, got [2.0, 2.0, 2.0]",
        lambda *_: tradeoff((2, 2, 2)),
    ),
    (ValueError, "relative_errors must have shape (3,), got (1,)", lambda *_: tradeoff(relative_errors=[0.1])),
    (ValueError, "relative_errors must be positive, got 0.0", lambda *_: tradeoff(relative_errors=[0.1, 0.0, 0.1])),
    (ValueError, "confidence_level must be between 0 and 1, got 1.0", lambda *_: tradeoff(confidence_level=1.0)),
    (
        ValueError,
        "the number of batch_sizes without relative_errors must be at least 3, got 2",
        lambda *_: tradeoff((1, 2), (8.0, 5.0)),
    ),
    (
        ValueError,
        "steps must be near a + b/B for batch sizes B, and positive, got [100.0, 1.0, 1.0]",
        lambda *_: tradeoff(steps=(100.0, 1.0, 1.0), relative_errors=(1e-3, 1e-3, 1e3)),
    ),
    (ValueError, "target must be positive, got 0", lambda *_: _tradeoff.steps_to_target([0, 1], [2.0, 1.0], 0)),
    (
        ValueError,
        "steps must have shape (2,), got (3,)",
        lambda *_: _tradeoff.steps_to_target([0, 1, 2], [2.0, 1.0], 1.5),
    ),
    (
        ValueError,
        "steps must increase, got [0.0, 0.0]",
        lambda *_: _tradeoff.steps_to_target([0, 0], [2.0, 1.0], 1.5),
    ),
    (
        ValueError,
        "losses must be positive, got -1.0",
        lambda *_: _tradeoff.steps_to_target([0, 1], [2.0, -1.0], 1.5),
    ),
    *VARIANCE_REDUCTION,
    *TRAINING,
    *REPORTS,
    *UNSOUND,
]
