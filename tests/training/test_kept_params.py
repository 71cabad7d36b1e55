"""θ that a run keeps at chosen steps is that of the run, and keeping it changes nothing else, however it is killed."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxsgd import designs
from jaxsgd.training import _run
from jaxsgd.training._checkpoint import Checkpoint
from tests.support.registry import network
from tests.support.runs import assert_same_bits, run

STEPS = [0, 1, 4, 9, 12]


def at(result, place):
    """θ at one of the kept steps, of the first learning rate where there are some, and of all runs."""
    return jax.tree.map(lambda leaf: np.take(leaf, place, axis=0), result.kept_params)


def test_kept_params_are_those_of_shorter_runs() -> None:
    """Bit for bit. Catches θ a step too early or too late, and steps in another order."""
    options = {"design": designs.Reshuffling(3, drop_last=False), "optimizer": optax.sgd(0.1, momentum=0.9)}
    kept = run(num_steps=12, keep_params_at=STEPS, **options)
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(kept.kept_params))
    assert_same_bits(at(kept, 0), network().params)
    for place, step in enumerate(STEPS[1:], start=1):
        shorter = run(num_steps=step, **options)
        assert shorter.kept_params is None
        assert_same_bits(at(kept, place), shorter.params)
    other = run(num_steps=5, **options).params
    assert not np.allclose(at(kept, 2)["output"]["b"], other["output"]["b"]), "the control: a step off"


def test_axes_are_learning_rates_runs_and_steps() -> None:
    together = run(optimizer=optax.sgd, num_steps=4, num_runs=3, learning_rates=[0.1, 0.01], keep_params_at=(0, 3, 4))
    assert together.kept_params["hidden"]["w"].shape == (2, 3, 3, 3, 4)
    assert_same_bits(jax.tree.map(lambda leaf: leaf[:, :, -1], together.kept_params), together.params)
    assert np.ptp(together.kept_params["output"]["b"][:, :, 1], axis=1).min() > 0, "runs must differ"
    for rate, single in enumerate([0.1, 0.01]):
        alone = run(optimizer=optax.sgd(single), num_steps=4, num_runs=3, keep_params_at=(0, 3, 4))
        assert alone.kept_params["hidden"]["w"].shape == (3, 3, 3, 4)
        for a, b in zip(*map(jax.tree.leaves, (together.kept_params, alone.kept_params)), strict=True):
            np.testing.assert_allclose(a[rate], b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("chunk_size", [1, pytest.param(5, marks=pytest.mark.slow), None])
def test_keeping_changes_no_bit_and_compiles_nothing(chunk_size) -> None:
    """Of the parameters, the records and what is kept, for any kept steps, and sequences of any kind."""
    settings = {"optimizer": optax.sgd(0.1), "design": designs.WithReplacement(2)}  # one of each: compiled once
    options = {"num_steps": 12, "record_every": 5, "num_runs": 2} | settings
    alone = run(**options)
    sizes = _run._advance._cache_size(), _run._measure._cache_size()
    every = run(**options, keep_params_at=range(13), chunk_size=chunk_size)
    some = run(**options, keep_params_at=np.array([3, 11], np.uint8), chunk_size=chunk_size)
    assert (_run._advance._cache_size(), _run._measure._cache_size()) == sizes
    for found in (every, some):
        assert_same_bits((alone.params, alone.metrics, alone.steps), (found.params, found.metrics, found.steps))
    assert_same_bits(jax.tree.map(lambda leaf: leaf[:, [3, 11]], every.kept_params), some.kept_params)


def interrupted_at(step, path, options):
    """The checkpoint of a run that is stopped after so many steps, or at the first call after."""

    def stop(number, _):
        if number >= step:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(**options, checkpoint=path, progress=stop)


OPTIONS = {"num_steps": 12, "record_every": 6, "chunk_size": 2, "num_runs": 2, "keep_params_at": STEPS}


@pytest.mark.parametrize("step", [1, 4, 5, 8, 12])
def test_an_interruption_loses_nothing_that_was_kept(step, tmp_path) -> None:
    """Before, at and after kept and recorded steps. Catches θ that is kept twice, or not at all."""
    expected = run(**OPTIONS)
    interrupted_at(step, tmp_path / "run.npz", OPTIONS)
    assert_same_bits(expected, run(**OPTIONS, checkpoint=tmp_path / "run.npz"))
    assert_same_bits(expected, run(**OPTIONS, checkpoint=tmp_path / "run.npz"))  # nothing is left to do


def test_a_checkpoint_that_forgets_is_found_out(tmp_path, monkeypatch) -> None:
    """The control of the last."""
    save = Checkpoint.save
    monkeypatch.setattr(Checkpoint, "save", lambda *arguments: save(*arguments[:-1], []))
    interrupted_at(8, tmp_path / "run.npz", OPTIONS)
    found = run(**OPTIONS, checkpoint=tmp_path / "run.npz")
    with pytest.raises(AssertionError):
        assert_same_bits(run(**OPTIONS), found)


def test_checkpoints_keep_params_of_other_dtypes(tmp_path) -> None:
    """bfloat16, which NumPy stores as bytes, and float32 under float64."""
    loss_fn, params, data = network()
    mixed = {
        "hidden": jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params["hidden"]),
        "output": jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params["output"]),
    }
    problem = lambda p, e: loss_fn(jax.tree.map(lambda a: a.astype(float), p), e), mixed, data
    options = {"problem": problem, "optimizer": optax.sgd(0.01)} | OPTIONS
    interrupted_at(8, tmp_path / "run.npz", options)
    found = run(**options, checkpoint=tmp_path / "run.npz")
    assert_same_bits(run(**options), found)
    assert found.kept_params["hidden"]["w"].dtype == jnp.bfloat16


def test_runs_of_other_kept_steps_do_not_share_a_checkpoint(tmp_path) -> None:
    path = tmp_path / "run.npz"
    run(checkpoint=path, keep_params_at=[1, 2])
    assert_same_bits(run(checkpoint=path, keep_params_at=np.array([1, 2])), run(keep_params_at=[1, 2]))
    for steps, what in ([1], r"\[1\]"), ([1, 3], r"\[1, 3\]"), (None, "None"):
        with pytest.raises(ValueError, match=rf"another run: keep_params_at is \[1, 2\] there, and {what} here"):
            run(checkpoint=path, keep_params_at=steps)


def test_many_short_calls_do_not_make_a_long_one() -> None:
    """Catches a number of steps at a time that doubles with every call, until the host looks no more."""
    seen = [0]
    run(num_steps=200, keep_params_at=range(1, 60), progress=lambda step, _: seen.append(step))
    lengths = np.diff(seen)
    assert lengths[:59].tolist() == [1] * 59
    assert lengths[59] <= 2


ON_EIGHT_DEVICES = """
import json, sys
import jax, numpy as np, optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from jaxsgd import designs, problems, training
mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
x = np.sin(np.arange(48.0 * 6)).reshape(48, 6)
loss_fn, params, data = problems.mlp(x, x[:, :2] ** 2, key=jax.random.key(0), hidden=4)
place = lambda tree, *spec: jax.tree.map(lambda a: jax.device_put(a, NamedSharding(mesh, P(*spec))), tree)
split = {name: {"w": place(of["w"], None, "model"), "b": place(of["b"], "model")} for name, of in params.items()}
run = lambda params, data, n, **options: training.run_sgd(
    loss_fn, params, data, optax.sgd(0.1), designs.Reshuffling(16), n, jax.random.key(1), gradient="plain", **options
)
found = run(split, place(data, "data"), 6, keep_params_at=[0, 2, 6])
truth = run(params, data, 6, keep_params_at=[0, 2, 6])
leaves = jax.tree.leaves
same = lambda a, b: all(np.array_equal(x, y) for x, y in zip(leaves(a), leaves(b), strict=True))
print(json.dumps({
    "devices": jax.device_count(),
    "split": len(found.params["hidden"]["w"].sharding.device_set),
    "last": same(jax.tree.map(lambda a: a[-1], found.kept_params), found.params),
    "first": same(jax.tree.map(lambda a: a[0], found.kept_params), params),
    "off": max(float(abs(a - b).max()) for a, b in zip(leaves(found.kept_params), leaves(truth.kept_params))),
    "between": same(jax.tree.map(lambda a: a[1], found.kept_params), run(split, place(data, "data"), 2).params),
}))
"""


def test_parameters_that_lie_on_several_devices_are_kept_whole() -> None:
    """Catches a part of θ in the place of θ."""
    flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    environment = {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    program = f"import os; os.environ |= {environment!r}\n{ON_EIGHT_DEVICES}"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found.pop("off") < 1e-5
    assert found == {"devices": 8, "split": 8, "last": True, "first": True, "between": True}
