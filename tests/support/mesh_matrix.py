"""Every public function of arrays on every mesh; ``test_sharding`` runs this file where the CPU plays eight devices.

Axes explicit or automatic; the mesh only that of the arrays, or set; with ``jax.jit`` and without; parameters whole,
divided along the axis of the data (FSDP), or along the last axis (tensor parallelism). One device has the truth.
"""

import contextlib
import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxsgd import designs, variance_reduction
from tests.support.mesh_functions import DATA, FUNCTIONS, KEY, PARAMS, gradients, loss_fn

SPECS: dict[str, Callable[[Any], P]] = {
    "whole": lambda leaf: P(),
    "fsdp": lambda leaf: P("data"),
    "tensor": lambda leaf: P(*[None] * (leaf.ndim - 1), "model"),
}


class Setting(NamedTuple):
    """How a function is called."""

    axes: AxisType
    mesh_is_set: bool
    jitted: bool
    params: str

    def __str__(self) -> str:
        words = [self.axes.name.lower(), "set" if self.mesh_is_set else "", "jit" if self.jitted else "", self.params]
        return "-".join(word for word in words if word)


SETTINGS = [
    Setting(*choice)
    for choice in itertools.product((AxisType.Explicit, AxisType.Auto), (True, False), (True, False), SPECS)
]


CHOSEN = {
    "recomputed": "explicit-set-jit-fsdp",
    "check_accumulation": "explicit-set-fsdp",
    "observed_monitors": "explicit-jit-fsdp",
    "keys_and_aux": "auto-jit-tensor",
}


def combinations() -> Iterator[Any]:
    """All of them. Not slow are ``CHOSEN``, and the kernels' own functions in the settings that come first, in turn."""
    kernels_own = list(FUNCTIONS).index("centered_gram")
    for i, name in enumerate(FUNCTIONS):
        for j, setting in enumerate(SETTINGS):
            chosen = CHOSEN[name] == str(setting) if name in CHOSEN else i < kernels_own and j == i % 6
            marks = [] if chosen else [pytest.mark.slow]
            yield pytest.param(name, setting, id=f"{name}-{setting}", marks=marks)


_truths: dict[tuple[str, bool], Any] = {}


def truth(name: str, *, jitted: bool) -> Any:
    """What one device says, or the error that it raises: not every function can be traced."""
    if (name, jitted) not in _truths:
        if len(_truths) % 10 == 9:  # all programs together are more pieces of memory than Linux lets a process map
            jax.clear_caches()
        function = jax.jit(FUNCTIONS[name]) if jitted else FUNCTIONS[name]
        try:
            _truths[name, jitted] = numbers(function(PARAMS, DATA))
        except jax.errors.JAXTypeError as error:
            _truths[name, jitted] = type(error)
    return _truths[name, jitted]


def numbers(tree: Any) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def call(name: str, setting: Setting, *, shape: tuple[int, int] = (4, 2)) -> Any:
    mesh = jax.make_mesh(shape, ("data", "model"), axis_types=(setting.axes,) * 2)
    spec = SPECS[setting.params]
    with jax.set_mesh(mesh) if setting.mesh_is_set else contextlib.nullcontext():
        params = jax.tree.map(lambda leaf: jax.device_put(leaf, NamedSharding(mesh, spec(leaf))), PARAMS)
        data = jax.device_put(DATA, NamedSharding(mesh, P("data")))
        return (jax.jit(FUNCTIONS[name]) if setting.jitted else FUNCTIONS[name])(params, data)


def test_there_are_eight_devices() -> None:
    assert jax.device_count() == 8


@pytest.mark.parametrize(("name", "setting"), list(combinations()))
def test_the_mesh_changes_nothing(name: str, setting: Setting) -> None:
    expected = truth(name, jitted=setting.jitted)
    if isinstance(expected, type):
        with pytest.raises(expected):
            call(name, setting)
        return
    found = numbers(call(name, setting))
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9 * np.nanmax(np.abs(b), initial=1e-16))


@pytest.mark.parametrize("manual", [{"data", "model"}, pytest.param({"data"}, marks=pytest.mark.slow)])
@pytest.mark.parametrize("axes", [AxisType.Explicit, pytest.param(AxisType.Auto, marks=pytest.mark.slow)])
def test_inside_shard_map_each_device_has_its_own_examples(axes: AxisType, manual: set[str]) -> None:
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(axes,) * 2)

    def of_part(params: Any, data: Any) -> Any:
        g = gradients(params, data)
        return g.squared_norms(), jax.tree.map(lambda leaf: jax.lax.pmean(leaf, "data"), g.mean())

    mapped = jax.shard_map(of_part, mesh=mesh, in_specs=(P(), P("data")), out_specs=(P("data"), P()), axis_names=manual)
    data = jax.device_put(DATA, NamedSharding(mesh, P("data")))
    found = numbers(jax.jit(mapped)(jax.device_put(PARAMS, NamedSharding(mesh, P())), data))
    g = gradients(PARAMS, DATA)
    for a, b in zip(found, numbers((g.squared_norms(), g.mean())), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("jitted", [False, True])
def test_a_number_of_examples_that_the_devices_do_not_divide(jitted: bool) -> None:
    """Such a batch cannot be split, as JAX says; whole on every device it is as good as any."""
    mesh = jax.make_mesh((4, 2), ("data", "model"))
    odd = jax.tree.map(lambda leaf: np.asarray(leaf)[:23], DATA)
    with pytest.raises(ValueError, match="does not evenly divide the dimension size 23"):
        jax.device_put(odd, NamedSharding(mesh, P("data")))
    params = jax.device_put(PARAMS, NamedSharding(mesh, P()))

    def deviations(params: Any, data: Any) -> Any:
        return gradients(params, data).squared_deviations()

    found = (jax.jit(deviations) if jitted else deviations)(params, jax.tree.map(jnp.asarray, odd))
    np.testing.assert_allclose(found, deviations(PARAMS, odd), rtol=1e-9)


def test_new_parameters_lie_as_the_old_ones() -> None:
    """So that a loop over steps can carry them; and what has examples along its first axis stays divided."""
    mesh = jax.make_mesh((4, 2), ("data", "model"))
    params = jax.tree.map(lambda leaf: jax.device_put(leaf, NamedSharding(mesh, SPECS["tensor"](leaf))), PARAMS)
    data = jax.device_put(DATA, NamedSharding(mesh, P("data")))
    estimator = variance_reduction.SVRG(loss_fn, designs.WithReplacement(4), refresh_every=2)

    def advance(carry: Any, _: Any) -> Any:
        params, state = carry
        gradient, state = estimator.estimate(params, state, data)
        return (jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient), state), None

    @jax.jit
    def run(params: Any) -> Any:
        (params, _), _ = jax.lax.scan(advance, (params, estimator.init(KEY, params, data)), None, length=3)
        return params, gradients(params, data).squared_norms()

    found, norms = run(params)
    assert jax.tree.map(lambda leaf: leaf.sharding, found) == jax.tree.map(lambda leaf: leaf.sharding, params)
    assert norms.sharding.spec == P("data")
