"""What holds of data split over eight devices; ``test_sharding`` runs this file where the CPU plays eight of them."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxsgd
from jaxsgd import designs, estimators, moments, monitors, training
from jaxsgd._core import devices
from jaxsgd.training import _run
from tests.support.registry import quick, skewed

N = 48
KEY = jax.random.key(0)
PARAMS = {"w": jnp.asarray(skewed(8, 16)), "b": jnp.asarray(skewed(16, seed=1))}
DATA = {"x": jnp.asarray(skewed(N, 8, seed=3)), "y": jnp.asarray(skewed(N, seed=4))}


def loss_fn(params: Any, example: Any) -> jax.Array:
    return (jnp.tanh(example["x"] @ params["w"] + params["b"]).sum() - example["y"]) ** 2


def mesh(*shape: int, axis_type: AxisType = AxisType.Auto) -> Mesh:
    names = ("data", "model")[: len(shape)]
    return jax.make_mesh(shape, names, axis_types=(axis_type,) * len(shape))


def placed(tree: Any, mesh: Mesh, spec: Callable[[Any], P]) -> Any:
    return jax.tree.map(lambda leaf: jax.device_put(leaf, NamedSharding(mesh, spec(leaf))), tree)


def whole(leaf: Any) -> P:
    return P()


def last_axis(axis: str) -> Callable[[Any], P]:
    return lambda leaf: P(*[None] * (leaf.ndim - 1), axis)


def first_axis(*axes: str) -> Callable[[Any], P]:
    return lambda leaf: P(axes)


LAYOUTS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "parameters_anywhere": lambda: (PARAMS, placed(DATA, mesh(8), first_axis("data"))),
    "parameters_everywhere": lambda: (placed(PARAMS, mesh(4, 2), whole), placed(DATA, mesh(4, 2), first_axis("data"))),
    "two_axes": lambda: (placed(PARAMS, mesh(4, 2), whole), placed(DATA, mesh(4, 2), first_axis("data", "model"))),
    "parameters_split": lambda: (
        placed(PARAMS, mesh(4, 2), last_axis("model")),
        placed(DATA, mesh(4, 2), first_axis("data")),
    ),
    "parameters_split_as_data": lambda: (
        placed(PARAMS, mesh(8), last_axis("data")),
        placed(DATA, mesh(8), first_axis("data")),
    ),
    "explicit_axes": lambda: (
        placed(PARAMS, mesh(8, axis_type=AxisType.Explicit), whole),
        placed(DATA, mesh(8, axis_type=AxisType.Explicit), first_axis("data")),
    ),
}


def assert_close(found: Any, truth: Any, tolerance: float = 1e-12) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(truth)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(truth), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=tolerance, atol=tolerance * np.abs(b).max())


def statistics(g: jaxsgd.PerExampleGradients) -> Any:
    return g.mean(), g.squared_norms(), g.gram(), g.total_deviation(), g.variance()


def test_there_are_eight_devices() -> None:
    assert jax.device_count() == 8


@pytest.mark.parametrize(
    "layout",
    quick(["parameters_anywhere", "two_axes", "parameters_split", "explicit_axes"], {"parameters_split"}),
)
def test_statistics_are_those_of_one_device(layout: str) -> None:
    params, data = LAYOUTS[layout]()
    g = jaxsgd.per_example_gradients(loss_fn)(params, data)
    assert len(g.example_losses.sharding.device_set) == 8
    assert_close(statistics(g), statistics(jaxsgd.per_example_gradients(loss_fn)(PARAMS, DATA)))


@pytest.mark.parametrize("layout", quick(LAYOUTS, {"two_axes"}))
def test_moments_are_those_of_one_device(layout: str) -> None:
    """Chunks that divide what a device has, 6 or 12, and that do not."""
    params, data = LAYOUTS[layout]()
    truth = jaxsgd.gradient_moments(loss_fn, PARAMS, DATA, per_coordinate=True)
    for chunk_size in (4,) if layout == "parameters_anywhere" else (3,):
        m = jaxsgd.gradient_moments(loss_fn, params, data, chunk_size=chunk_size, per_coordinate=True)
        assert_close(m, truth)
    assert all(leaf.is_fully_replicated for leaf in jax.tree.leaves(m)) or layout == "parameters_split"


def collectives(compiled: Any) -> list[int]:
    """How many numbers each collective of a compiled program hands over."""
    text = re.sub(r"/\*index=\d+\*/", "", compiled.as_text())
    kinds = "all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute|collective-broadcast"
    results = re.findall(rf"= ([^=]*?) (?:{kinds})(?:-start)?\(", text)
    shapes = [re.findall(r"\[([\d,]*)\]", result) for result in results]
    return [sum(int(np.prod([int(d) for d in shape.split(",") if d])) for shape in found) for found in shapes]


@pytest.mark.parametrize("layout", ["parameters_everywhere", "parameters_split_as_data"])
@pytest.mark.parametrize("per_coordinate", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_pass_communicates_once(layout: str, per_coordinate: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """No chunk does; at the end P numbers are summed, twice with the sums of every coordinate, and five more."""
    found: dict[str, list[list[int]]] = {}

    def counted(name: str) -> None:
        function = getattr(moments, name)

        def spy(*arguments: Any) -> Any:
            found.setdefault(name, []).append(collectives(function.lower(*arguments).compile()))
            return function(*arguments)

        monkeypatch.setattr(moments, name, spy)

    counted("_add_chunk")
    counted("_united")
    params, data = LAYOUTS[layout]()
    jaxsgd.gradient_moments(loss_fn, params, data, chunk_size=2, per_coordinate=per_coordinate)
    num_params = sum(leaf.size for leaf in jax.tree.leaves(PARAMS))
    assert len(found["_add_chunk"]) == N // devices.shards(data).count // 2
    assert not any(found["_add_chunk"])
    (at_the_end,) = found["_united"]
    assert num_params * (1 + per_coordinate) <= sum(at_the_end) <= num_params * (1 + per_coordinate) + 5


def test_chunks_across_devices_would_communicate() -> None:
    """The control of the last: consecutive examples lie on few devices, and the others have to be sent them."""
    params, data = LAYOUTS["parameters_everywhere"]()
    running = moments._empty(params, data, loss_fn, False, None)
    lowered = moments._add_chunk.lower(loss_fn, 8, None, params, data, np.int32(0), running)
    assert sum(collectives(lowered.compile())) > 0


def test_arrays_of_one_data_set_may_lie_in_different_ways() -> None:
    truth = jaxsgd.gradient_moments(loss_fn, PARAMS, DATA)
    x = placed(DATA["x"], mesh(4, 2), lambda leaf: P("data", "model"))
    for y in (np.asarray(DATA["y"]), placed(DATA["y"], mesh(4, 2), whole)):
        assert_close(jaxsgd.gradient_moments(loss_fn, PARAMS, {"x": x, "y": y}), truth)


def test_batches_of_a_stream_may_lie_in_different_ways() -> None:
    """A last batch that eight devices cannot share."""
    edges = [(0, 24), (24, 48), (48, 51)]
    data = jax.tree.map(lambda leaf: jnp.concatenate([leaf, leaf[:3]]), DATA)

    def batches() -> Any:
        for start, stop in edges:
            batch = jax.tree.map(lambda leaf, i=start, j=stop: leaf[i:j], data)
            yield batch if stop == 51 else placed(batch, mesh(8), first_axis("data"))

    assert_close(jaxsgd.gradient_moments(loss_fn, PARAMS, batches()), jaxsgd.gradient_moments(loss_fn, PARAMS, data))


def test_the_example_that_is_not_finite_is_named() -> None:
    data = placed(DATA | {"y": DATA["y"].at[37].set(jnp.nan)}, mesh(8), first_axis("data"))
    with pytest.raises(ValueError, match=r"got nan for example 37 in params\['b'\]"):
        jaxsgd.gradient_moments(loss_fn, PARAMS, data, chunk_size=2)
    with pytest.raises(ValueError, match=r"got nan for example 37 in params\['b'\]"):
        jaxsgd.gradient_moments(loss_fn, PARAMS, iter([data]))


def test_estimates_are_those_of_one_device() -> None:
    params, data = LAYOUTS["two_axes"]()

    def estimates(params: Any, data: Any) -> Any:
        g = jaxsgd.per_example_gradients(loss_fn)(params, data)
        stratified = designs.Stratified([0, 1, 1] * (N // 3), [2, 3])
        return (
            estimators.exact(designs.WithoutReplacement(5), g),
            estimators.exact(stratified, g),
            estimators.monte_carlo(stratified, g, key=KEY, num_draws=20),
            estimators.variance_curve(g).variance,
            estimators.optimal_probabilities(g),
        )

    assert_close(estimates(params, data), estimates(PARAMS, DATA))


def run(params: Any, data: Any, **options: Any) -> training.RunResult:
    return training.run_sgd(
        loss_fn, params, data, OPTIMIZER, designs.Reshuffling(16), 40, KEY, record_every=8, gradient="plain", **options
    )


OPTIMIZER = optax.sgd(1e-3, momentum=0.9)


@pytest.mark.parametrize("layout", quick(["parameters_anywhere", "parameters_split"], {"parameters_split"}))
def test_runs_are_those_of_one_device(layout: str) -> None:
    """To rounding, which 40 steps make more of. Compiled once; again where the optimizer's state comes to be split."""
    params, data = LAYOUTS[layout]()
    before = _run._advance._cache_size()
    found = run(params, data)
    assert _run._advance._cache_size() == before + 1 + (layout == "parameters_split")
    assert_close(found, run(PARAMS, DATA), 1e-9)


def test_a_run_is_taken_up_again_on_any_devices(tmp_path: Path) -> None:
    params, data = LAYOUTS["parameters_anywhere"]()
    path = tmp_path / "run.npz"

    def interrupt(step: int, num_steps: int) -> None:
        if step == 24:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(params, data, checkpoint=path, chunk_size=8, progress=interrupt)
    state = path.read_bytes()
    uninterrupted = run(params, data)
    for a, b in zip(*map(jax.tree.leaves, (run(params, data, checkpoint=path), uninterrupted)), strict=True):
        np.testing.assert_array_equal(a, b)
    path.write_bytes(state)
    assert_close(run(PARAMS, DATA, checkpoint=path), uninterrupted, 1e-9)


def squared_norms(params: Any, data: Any) -> jax.Array:
    return jaxsgd.per_example_gradients(loss_fn)(params, data).squared_norms()


def squared_norms_by_grad(params: Any, data: Any) -> jax.Array:
    def one(example: Any) -> jax.Array:
        return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(jax.grad(loss_fn)(params, example)))

    return jax.vmap(one)(data)


@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.parametrize("cast", [pytest.param(False, marks=pytest.mark.slow), True])
def test_inside_shard_map_gradients_are_those_of_one_example(check_vma: bool, cast: bool) -> None:
    """Where ``jax.grad`` with respect to parameters that do not vary is a sum over the devices."""

    def varying(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda params, data: function(
            jax.tree.map(lambda leaf: jax.lax.pcast(leaf, "data", to="varying"), params) if cast else params, data
        )

    def mapped(function: Callable[..., Any]) -> jax.Array:
        specs = {"in_specs": (P(), P("data")), "out_specs": P("data"), "check_vma": check_vma}
        return jax.jit(jax.shard_map(varying(function), mesh=mesh(8), **specs))(PARAMS, DATA)

    truth = squared_norms(PARAMS, DATA)
    assert_close(mapped(squared_norms), truth)
    trapped = check_vma and not cast
    assert trapped == (float(jnp.abs(mapped(squared_norms_by_grad) - truth).max()) > 1.0)


def test_inside_shard_map_every_statistic_may_vary() -> None:
    """Catches a loop that carries zeros that do not vary, which ``check_vma`` refuses."""

    def local(params: Any, data: Any) -> Any:
        m = jaxsgd.gradient_moments(loss_fn, params, data, chunk_size=4, per_coordinate=True)
        g = jaxsgd.per_example_gradients(loss_fn, memory_limit=4000)(params, data)
        return jax.tree.map(lambda leaf: leaf[None], (m.trace_covariance(), g.total_deviation() / g.count))

    a, b = jax.jit(jax.shard_map(local, mesh=mesh(8), in_specs=(P(), P("data")), out_specs=P("data")))(PARAMS, DATA)
    assert_close(a, b)
    first = jax.tree.map(lambda leaf: leaf[: N // 8], DATA)
    assert_close(a[0], jaxsgd.gradient_moments(loss_fn, PARAMS, first).trace_covariance())


def penalized(params: Any, example: Any) -> jax.Array:
    return loss_fn(params, example) + 0.1 * jnp.sum(params["w"] ** 2)


def test_gradients_that_shard_map_returns() -> None:
    """Outside of it they are those of the whole batch. Catches a sum over examples that is one of each device."""

    def of_part(loss: Any) -> Any:
        part = jaxsgd.per_example_gradients(loss)
        return jax.shard_map(part, mesh=mesh(8), in_specs=(P(), P("data")), out_specs=P("data"))(PARAMS, DATA)

    g, expected = of_part(loss_fn), jaxsgd.per_example_gradients(loss_fn)(PARAMS, DATA)
    for name in ("mean", "squared_norms", "gram", "second_moment", "variance"):
        found = getattr(g, name)()
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9), found, getattr(expected, name)())
    with pytest.raises(
        ValueError, match=r"must be computed inside jax\.shard_map, which returned that part once for each"
    ):
        of_part(penalized).mean()


def test_keys_inside_shard_map_are_those_of_the_whole_batch() -> None:
    """Catches examples of different devices that share their keys, since each counts its own from 0."""

    def noisy(params: Any, example: Any, key: Any) -> jax.Array:
        return loss_fn(params, example) * jax.random.uniform(key)

    norms = lambda params, data, key: jaxsgd.per_example_gradients(noisy)(params, data, key=key).squared_norms()  # noqa: E731
    specs = (P(), P("data"), P())
    found = jax.shard_map(norms, mesh=mesh(8), in_specs=specs, out_specs=P("data"))(PARAMS, DATA, KEY)
    np.testing.assert_allclose(found, norms(PARAMS, DATA, KEY), rtol=1e-10)
    split = placed(DATA, mesh(8), first_axis("data"))
    np.testing.assert_allclose(norms(PARAMS, split, KEY), found, rtol=1e-10)
    m = jaxsgd.gradient_moments(noisy, PARAMS, split, key=KEY, chunk_size=2)
    np.testing.assert_allclose(m.squared_norms_mean, found.mean(), rtol=1e-10)


def test_a_monitor_in_a_loop_under_a_mesh() -> None:
    optimizer = optax.chain(monitors.noise_scale(decay=0.5), optax.sgd(0.01))

    @jax.jit
    def step(params: Any, state: Any, batch: Any) -> Any:
        g = jaxsgd.per_example_gradients(loss_fn)(params, batch)
        updates, state = optimizer.update(g.mean(), state, params, per_example_gradients=g)
        return optax.apply_updates(params, updates), state

    def readings(data: Any) -> Any:
        carry = PARAMS, optimizer.init(PARAMS)
        for start in range(0, N, 16):
            carry = step(*carry, jax.tree.map(lambda leaf, start=start: leaf[start : start + 16], data))
        return monitors.readings(carry[1])

    with jax.set_mesh(mesh(8)):
        found = readings(placed(DATA, mesh(8), first_axis("data")))
    for name, value in readings(DATA).items():
        np.testing.assert_allclose(found[name], value, rtol=1e-10, err_msg=name)
