"""The PyTorch peers of kernel_speed: what is handed over, what is asked and answered, and what is made of it."""

import dataclasses
import json
import re
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsgd
from experiments import _harness, _models, _peers, _timing, kernel_speed

FAKE = Path(__file__).parents[1] / "support" / "fake_peers.py"
RUN = dataclasses.replace(kernel_speed.QUICK, rounds=1, vmap=False)
with_peers = pytest.mark.skipif(not _peers.PYTHON.exists(), reason="`make peers` was not run")


def command(behavior):
    return (sys.executable, str(FAKE), behavior)


@pytest.fixture
def fake(monkeypatch):
    return lambda behavior: monkeypatch.setattr(_peers, "COMMAND", command(behavior))


def small_cnn():
    """Every axis of another length and no bias of zero, so that a wrong transposition shows."""
    problem = _models._convolutional((12, 8, 2), ((5, 3), (3, 4)), (7, 6), 5)
    draw = _models.Draw()
    return problem._replace(params=jax.tree.map(lambda leaf: leaf + 0.1 * draw.normal(*leaf.shape), problem.params))


def loss_as_in_pytorch(weights, x, y):
    """The mean cross-entropy in PyTorch's layout: NCHW, OIHW, (out, in), flattened channels first."""
    for kernel, bias in zip(weights[::2], weights[1::2], strict=True):
        if kernel.ndim == 4:
            x = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NCHW", "OIHW", "NCHW"))
            x = jax.nn.relu(x + bias[None, :, None, None])
            x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 1, 2, 2), (1, 1, 2, 2), "VALID")
        else:
            x = x.reshape(len(x), -1) @ kernel.T + bias[None]
            x = x if kernel is weights[-2] else jax.nn.relu(x)
    return -jnp.take_along_axis(jax.nn.log_softmax(x), y[:, None], axis=1).mean()


@pytest.mark.parametrize(
    "problem", [pytest.param(small_cnn(), marks=pytest.mark.slow), _models.mlp((6, 8, 3), 5)], ids=["CNN", "MLP"]
)
def test_layout(problem):
    """Catches a transposed kernel, a flattening in another order, and a mapping back that is not the inverse."""
    loss_fn, *rest = problem
    params, data = jax.tree.map(lambda leaf: leaf.astype(float) if leaf.dtype == "float32" else leaf, rest)
    x = data["x"].transpose(0, 3, 1, 2) if data["x"].ndim == 4 else data["x"]
    weights = [jnp.asarray(leaf) for leaf in _peers.torch_weights(params, data["x"].shape)]
    with jax.numpy_rank_promotion("allow"):
        loss, gradient = jax.value_and_grad(loss_as_in_pytorch)(weights, x, data["y"])
        g = jaxsgd.per_example_gradients(loss_fn)(params, data)
    np.testing.assert_allclose(loss, g.losses().mean(), rtol=1e-12)
    ours = np.empty(g.num_params)
    ours[_peers.places(problem)] = _timing.flat(gradient)
    np.testing.assert_allclose(ours, _timing.flat(g.mean()), rtol=1e-10, atol=1e-14)


def test_shared_weights_are_not_offered(fake):
    fake("right")
    with _peers.started(True) as worker:
        assert worker.load(_models.gpt(4, 2, scanned=False, width=8), "cpu") == "not offered: tied weights"


def test_values_come_back_in_our_order(fake):
    fake("right")
    problem = _models.mlp((6, 8, 3), 5)
    g = jaxsgd.per_example_gradients(problem.loss_fn)(problem.params, problem.data)
    with _peers.started(True) as worker:
        assert worker.load(problem, "cpu") == ""
        assert worker.seconds("PyTorch: mean") == 1.0
        for name, parts in kernel_speed.STATISTICS.items():
            theirs = worker.values(f"BackPACK: {name}")
            assert theirs.keys() == set(parts)
            assert max(_timing.relative_error(getattr(g, part)(), theirs[part]) for part in parts) < 1e-6


@pytest.mark.parametrize(
    ("behavior", "message"),
    [
        ("dead", "hello was answered by ''; last error: no module named torch"),
        ("garbled", r"hello was answered by 'Loading ...\n'"),
        ("failing", "time PyTorch: mean: RuntimeError: out of memory"),
    ],
)
def test_a_failure_is_named(fake, behavior, message):
    fake(behavior)
    with pytest.raises(_peers.PeerError, match=re.escape(message)):
        kernel_speed.compute(RUN)


def test_peers_are_timed_and_compared(fake):
    """The fake takes a second for each call: a ratio of 1, and slower than anything here."""
    fake("right")
    findings = kernel_speed.check(kernel_speed.compute(RUN))
    row = findings["peers"][kernel_speed.QUICK_WORKLOAD]
    assert row["BackPACK: Gram matrix"] == {"ratio": 1.0, "milliseconds": 1000.0}
    assert findings["peer_versions"] == {"torch": "0.fake"}
    assert 0 < findings["largest_disagreement"] < 1e-6
    for entry in findings["slower_than_peers"]:  # a plain gradient of microseconds: the ratio may be anything
        assert entry["ours"]["ratio"] >= 1 > entry["ours"]["milliseconds"] / 1000


def test_disagreement_is_refused(fake):
    fake("off")
    with pytest.raises(
        _harness.UnconfirmedError, match=r"must equal the peers', got a relative difference of 1\.0e-04"
    ):
        kernel_speed.check(kernel_speed.compute(RUN))


@pytest.mark.parametrize("behavior", ["right", "elsewhere"])
def test_without_peers(fake, monkeypatch, behavior):
    fake(behavior)
    if behavior == "right":
        monkeypatch.setattr(_peers, "COMMAND", ("/nowhere/python",))
    results = kernel_speed.compute(RUN)
    findings = kernel_speed.check(results)
    if behavior == "right":
        assert findings["peers"] == "not run: `make peers` sets them up"
    else:
        assert findings["peers"] == {kernel_speed.QUICK_WORKLOAD: "PyTorch has no gpu here"}
    assert kernel_speed.draw(results).axes[0].get_title() == "mean + squared norms"


def test_faster_peers_are_listed(fake):
    """By either measure: a smaller multiple, or fewer milliseconds."""
    fake("right")
    results = kernel_speed.compute(RUN)
    column = results["peers"].tolist().index("BackPACK: Gram matrix")
    ours = results["names"].tolist().index("Gram matrix")
    base = results | {"ratio": results["ratio"] * 0 + 1.0, "milliseconds": results["milliseconds"] * 0 + 1.0}
    for ratio, milliseconds, listed in [(2.0, 2.0, 0), (0.5, 2.0, 1), (2.0, 0.5, 1), (1.0, 2.0, 1)]:
        theirs = {"peer_ratio": np.full((1, 4), 3.0), "peer_milliseconds": np.full((1, 4), 3.0)}
        theirs["peer_ratio"][0, column], theirs["peer_milliseconds"][0, column] = ratio, milliseconds
        slower = _peers.findings(base | theirs)["slower_than_peers"]
        assert [entry["peer"] for entry in slower] == ["BackPACK: Gram matrix"] * listed
    assert results["ratio"].shape[1] > ours


@with_peers
def test_the_real_peers_agree():
    with jax.enable_x64(False), jax.numpy_rank_promotion("allow"), _peers.Worker() as worker:
        problem = small_cnn()
        assert worker.load(problem, "cpu") == ""
        assert {name.split(":")[0] for name in worker.offered} == {
            "PyTorch",
            *(name for name, *_ in kernel_speed.PEERS),
        }
        g = jaxsgd.per_example_gradients(problem.loss_fn)(problem.params, problem.data)
        for name in worker.offered:
            assert worker.seconds(name) > 0
            for part, value in worker.values(name).items():
                assert _timing.relative_error(getattr(g, part)(), value) < kernel_speed.MAX_DISAGREEMENT, (name, part)
        with pytest.raises(_peers.PeerError, match="KeyError"):
            worker.seconds("BackPACK: median")


def test_pins_are_exact_and_sorted():
    lines = (_harness.FOLDER / "peers.txt").read_text(encoding="utf-8").splitlines()[1:]
    assert all(re.fullmatch(r"[a-z0-9-]+==[0-9.]+", line) for line in lines)
    names = [line.split("==")[0] for line in lines]
    assert names == sorted(names)
    assert {"torch", "backpack-for-pytorch", "opacus"} <= set(names)


def test_slow_timers_are_left_out_after_a_few_rounds():
    calls = {"slow": 0, "fast": 0, "first slow": 0}

    def timer(name):
        def call():
            calls[name] += 1
            return 2.0 if name == "slow" or calls[name] == 1 < len(name) - 4 else 0.5

        return call

    times = _timing.in_turn({name: timer(name) for name in calls}, 8)
    assert calls == {"slow": 5 + 5, "fast": 8 + 3, "first slow": 8}, "whoever is first in a round is called once more"
    assert np.isnan(times["slow"]).tolist() == [False] * 5 + [True] * 3
    assert _timing.summary(times["slow"], times["fast"]) == {"ratio": 4.0, "milliseconds": 2000.0}


@pytest.mark.parametrize("field", ["device", "workloads"])
def test_what_is_not_there_is_refused_before_work(monkeypatch, field):
    def work(*_):
        raise AssertionError("work was begun")

    monkeypatch.setattr(kernel_speed, "measure", work)
    if field == "device" and jax.default_backend() != "cpu":
        pytest.skip("there is an accelerator")
    bad = {"device": "gpu", "workloads": ("MLP",)}[field]
    with pytest.raises(ValueError, match=rf"{field} must be .*, got '?{'gpu' if field == 'device' else 'MLP'}"):
        kernel_speed.compute(dataclasses.replace(RUN, **{field: bad}))


def test_a_device_can_be_named():
    results = kernel_speed.compute(dataclasses.replace(RUN, device="cpu", peers=False))
    assert results["device"] == "cpu (cpu)"


def test_the_largest_gradients_are_not_materialized(fake, monkeypatch):
    """By no framework: empty in the figure and in the findings, which stay valid JSON."""
    fake("right")
    monkeypatch.setattr(kernel_speed, "GRADIENT_BYTES", 1)
    results = kernel_speed.compute(dataclasses.replace(RUN, vmap=True))
    assert np.isnan(results["ratio"][0, -1])
    findings = kernel_speed.check(results)
    assert kernel_speed.VMAP not in findings["ratios"][kernel_speed.QUICK_WORKLOAD]
    row = findings["peers"][kernel_speed.QUICK_WORKLOAD]
    assert {name for name, cell in row.items() if cell is None} == {"BackPACK: Gram matrix"}
    json.dumps(findings, allow_nan=False)
    _harness.summary(kernel_speed, findings)
    kernel_speed.draw(results)
