"""A run of SGD is the loop one would write, for every design and optimizer, however it is cut or watched."""

import functools
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxsgd import designs, monitors, problems, tracking, training
from jaxsgd.kernels import is_cheaply_factored
from jaxsgd.training import _run
from tests.support.own_designs import Bernoulli as OwnBernoulli
from tests.support.registry import LAWS, PROBLEMS, classifier, network, quick
from tests.support.runs import ALL_MONITORS, KEY, assert_close, assert_same_bits, run, with_optax


def test_ten_lines_of_numpy() -> None:
    """Least squares on the diabetes data: the batches are those of the design's key, everything else is NumPy."""
    problem = problems.diabetes_regression()
    x, y = (np.asarray(problem.data[name], np.float64) for name in "xy")
    design, theta, losses = designs.WithReplacement(16), np.zeros(10), []
    for t in range(40):
        if t % 10 == 0:
            losses.append(np.mean((x @ theta - y) ** 2) / 2)
        batch = np.asarray(design.indices(jax.random.fold_in(jax.random.fold_in(KEY, 0), t), len(y)))
        theta = theta - 0.05 * x[batch].T @ (x[batch] @ theta - y[batch]) / 16
    losses.append(np.mean((x @ theta - y) ** 2) / 2)
    result = run(problem, optax.sgd(0.05), design, 40, record_every=10)
    np.testing.assert_allclose(result.params, theta, rtol=1e-12)
    np.testing.assert_array_equal(result.steps, [0, 10, 20, 30, 40])
    np.testing.assert_allclose(result.metrics["loss"], losses, rtol=1e-12)


def by_weights(problem, design, optimizer, num_steps, key=KEY):
    """The same run from ``design.weights`` and the gradients of all examples, one step after the other."""
    loss_fn, params, data = problem
    N, state = len(jax.tree.leaves(data)[0]), optimizer.init(params)
    key = jax.random.fold_in(key, 0)

    @jax.jit
    def gradient(params, w):
        return jax.grad(lambda p: jnp.sum(w.astype(float) * jax.vmap(loss_fn, in_axes=(None, 0))(p, data)))(params)

    for t in range(num_steps):
        if isinstance(design, designs.Reshuffling):
            epoch, b = divmod(t, len(design.batch_sizes(N)))
            w = design.epoch_weights(jax.random.fold_in(key, epoch), N)[b]
        else:
            w = design.weights(jax.random.fold_in(key, t), N)
        updates, state = optimizer.update(gradient(params, w), state, params)
        params = optax.apply_updates(params, updates)
    return params


OF_EACH_KIND = {"importance", "reshuffling_short_batch", "stratified"}


@pytest.mark.parametrize("name", quick(LAWS, OF_EACH_KIND))
def test_every_design_is_its_weights(name) -> None:
    """Gathered, reshuffled and weighted draws, empty batches, sums and totals. Catches a wrong weight or example."""
    problem, design = network(), LAWS[name](7)
    optimizer = optax.sgd(0.02, momentum=0.9)
    result = run(problem, optimizer, design, 9)
    assert_close(result.params, by_weights(problem, design, optimizer, 9))
    assert not np.allclose(jax.tree.leaves(result.params)[1], jax.tree.leaves(problem.params)[1])


def test_own_designs_are_run_by_their_weights() -> None:
    assert_close(
        run(design=OwnBernoulli(Fraction(1, 2))).params,
        by_weights(network(), OwnBernoulli(Fraction(1, 2)), optax.sgd(0.1), 5),
    )


def test_an_epoch_uses_every_example_once() -> None:
    """Catches independent batches in the place of an epoch: one epoch of gradients at a frozen θ is N/M times ḡ."""
    loss_fn, params, data = problems.line_fit()
    design = designs.Reshuffling(1)
    frozen = optax.GradientTransformation(
        lambda p: jax.tree.map(jnp.zeros_like, p),
        lambda g, total, _: (jax.tree.map(jnp.zeros_like, g), jax.tree.map(jnp.add, total, g)),
    )
    summed = optax.chain(frozen, optax.scale(1.0))
    read_off = optax.GradientTransformation(summed.init, lambda g, s, p=None: (jax.tree.map(lambda a: 1e-6 * a, g), s))
    result = training.run_sgd(loss_fn, params, data, read_off, design, 8, KEY)
    moved = jax.tree.map(lambda a, b: float(a - b) / 1e-6, result.params, params)
    assert_close(moved, {"b": 8 * -0.5, "m": 8 * -1.0}, rtol=1e-3)


@with_optax
@pytest.mark.slow
def test_full_batches_are_gradient_descent() -> None:
    problem = network()
    expected = by_weights(problem, designs.WithoutReplacement(7), optax.adam(0.1), 20)
    for design in (
        designs.WithoutReplacement(7),
        designs.Reshuffling(7),
        designs.Blocks(7),
        designs.Bernoulli(Fraction(1)),
    ):
        assert_close(run(problem, optax.adam(0.1), design, 20).params, expected, rtol=1e-8)


OPTIMIZERS = {
    "momentum": optax.sgd(0.1, momentum=0.9, nesterov=True),
    "adamw": optax.adamw(0.01, weight_decay=0.1),
    "clipped": optax.chain(optax.clip_by_global_norm(0.1), optax.sgd(0.1)),
    "schedule": optax.sgd(optax.cosine_decay_schedule(0.1, 5)),
    "accumulated": optax.MultiSteps(optax.sgd(0.1), 2),
    "noisy": optax.noisy_sgd(0.1, key=jax.random.key(5)),
    "lion": optax.lion(0.01),
    "injected": optax.inject_hyperparams(optax.rmsprop)(0.01),
}


@with_optax
@pytest.mark.parametrize("name", quick(OPTIMIZERS, {"accumulated"}))
def test_any_optimizer(name) -> None:
    optimizer = OPTIMIZERS[name]
    optimizer = optimizer.gradient_transformation() if name == "accumulated" else optimizer
    expected = by_weights(network(), designs.WithReplacement(2), optimizer, 5)
    assert_close(run(optimizer=optimizer, design=designs.WithReplacement(2)).params, expected)


@pytest.mark.slow
@with_optax
def test_optimizers_that_look_at_the_loss() -> None:
    """Polyak's step is (loss)/‖ĝ‖² of the batch, the line search evaluates the batch loss. Catches a wrong one."""
    problem = problems.line_fit(0.0, 0.0)
    loss_fn, params, data = problem
    mean = lambda p: jax.vmap(loss_fn, in_axes=(None, 0))(p, data).mean()  # noqa: E731
    value, gradient = jax.value_and_grad(mean)(params)
    step = value / sum(g**2 for g in gradient.values())
    expected = {name: params[name] - step * gradient[name] for name in params}
    assert_close(run(problem, optax.polyak_sgd(), designs.WithoutReplacement(4), 1).params, expected)
    searched = run(problem, optax.lbfgs(), designs.WithoutReplacement(4), 12)
    assert_close(searched.params, {"b": 1.1, "m": 1.1}, rtol=1e-5)


@pytest.mark.parametrize("name", quick(PROBLEMS, {"odd_leaves", "one_example"}))
def test_both_forms_of_the_gradient_agree(name) -> None:
    """On every problem, of odd shapes and dtypes too."""
    problem = PROBLEMS[name]()
    design = designs.WithReplacement(3)
    first, second = (run(problem, optax.sgd(1e-3), design, 4, gradient=form).params for form in ("factored", "plain"))
    assert_close(first, second)
    assert_close(first, by_weights(problem, design, optax.sgd(1e-3), 4))


def test_what_is_cheaply_factored() -> None:
    """A layer is; a large parameter without a rule is not, and is differentiated the plain way."""
    loss_fn, params, data = network()
    assert is_cheaply_factored(loss_fn, params, data)
    assert not is_cheaply_factored(lambda p, x: jnp.sum(jnp.sin(p * x)), jnp.ones(5000), jnp.ones((3, 5000)))


@with_optax
def test_runs_and_learning_rates_are_those_alone() -> None:
    """Run r, rate k of a joint run is the run with that key and rate, and shapes are (rates, runs, ..., steps)."""
    together = run(optimizer=optax.adam, num_runs=3, learning_rates=[0.1, 0.01], record_every=2)
    assert together.params["hidden"]["w"].shape == (2, 3, 3, 4)
    assert together.metrics["loss"].shape == (2, 3, 4)
    for k, rate in enumerate([0.1, 0.01]):
        assert_close(jax.tree.map(lambda a, k=k: a[k, 0], together.params), run(optimizer=optax.adam(rate)).params)
        runs = run(optimizer=optax.adam(rate), num_runs=5, record_every=2)
        assert_close(jax.tree.map(lambda a, k=k: a[k], together.params), jax.tree.map(lambda a: a[:3], runs.params))
        assert_close(together.metrics["loss"][k], runs.metrics["loss"][:3])
    assert np.ptp(together.metrics["loss"][0, :, -1]) > 1e-3, "runs must differ"


def test_injected_learning_rates() -> None:
    design = designs.Reshuffling(2)
    injected = optax.chain(optax.clip(1.0), optax.inject_hyperparams(optax.sgd)(learning_rate=5.0))
    found = run(optimizer=injected, design=design, learning_rates=[0.1, 0.2])
    for k, rate in enumerate([0.1, 0.2]):
        expected = run(optimizer=optax.chain(optax.clip(1.0), optax.sgd(rate)), design=design)
        assert_close(jax.tree.map(lambda a, k=k: a[k], found.params), expected.params)


@with_optax
@pytest.mark.parametrize(
    ("form", "design"),
    [
        pytest.param("factored", designs.WithoutReplacement(3), marks=pytest.mark.slow),
        pytest.param("plain", designs.WithoutReplacement(3), marks=pytest.mark.slow),
        ("factored", designs.Importance([Fraction(1, 7)] * 7, 3)),
        pytest.param("plain", designs.Importance([Fraction(1, 7)] * 7, 3), marks=pytest.mark.slow),
    ],
    ids=["factored", "plain", "factored, weighted", "plain, weighted"],
)
def test_watching_changes_no_bit(form, design, tmp_path) -> None:
    """Monitors, records, a writer, an evaluation and checkpoints. Catches a fusion that rounds differently."""
    options = {"optimizer": optax.adam(0.01), "design": design, "num_steps": 12, "gradient": form, "num_runs": 2}
    alone = run(**options)
    with tracking.JSONLinesWriter(tmp_path / "run.jsonl") as writer:
        watched = run(
            **options,
            monitors=ALL_MONITORS,
            record_every=1,
            writer=writer,
            eval_fn=lambda p: jnp.sum(p["hidden"]["w"]),
            checkpoint=tmp_path / "run.npz",
        )
    assert_same_bits(alone.params, watched.params)
    lines = list(tracking.read_json_lines(tmp_path / "run.jsonl"))
    assert [step for step, _ in lines] == list(range(13))
    np.testing.assert_array_equal([line["loss/1"] for _, line in lines], watched.metrics["loss"][1])
    np.testing.assert_array_equal(alone.metrics["loss"], watched.metrics["loss"][:, [0, -1]])


@pytest.mark.slow
def test_watching_changes_no_bit_of_float32_runs_on_real_data() -> None:
    with jax.enable_x64(False):
        problem = problems.digits_mlp(key=KEY)
        options = {"design": designs.WithReplacement(32), "num_steps": 30, "num_runs": 2}
        alone = run(problem, **options).params
        for every in (1, 4):
            assert_same_bits(alone, run(problem, **options, monitors=[monitors.noise_scale(every=every)]).params)


@pytest.mark.slow
def test_scheduled_monitors_measure_at_their_steps_however_a_run_is_cut() -> None:
    """Catches a step that is skipped or made twice between the loops, and a measurement at another step."""
    some = [monitors.noise_scale(every=4, decay=0.5), monitors.noise_scale(every=6, decay=0.5, name="six")]
    options = {"num_steps": 19, "record_every": 19, "design": designs.WithReplacement(3)}
    every_step = run(**options, monitors=[*some, monitors.gradient_tests()])
    for chunk_size in (1, 3, 4, 100):
        found = run(**options, monitors=some, chunk_size=chunk_size)
        assert_same_bits(found.params, every_step.params)
        for name, value in found.metrics.items():
            np.testing.assert_allclose(value, every_step.metrics[name], rtol=1e-12)


def test_evaluations_and_records() -> None:
    def evaluate(params):
        return {"first": params["hidden"]["b"][0], "norm": optax.tree_utils.tree_norm(params)}

    result = run(num_steps=7, record_every=3, eval_fn=evaluate)
    np.testing.assert_array_equal(result.steps, [0, 3, 6, 7])
    assert result.metrics.keys() == {"loss", "first", "norm"}
    assert_close(result.metrics["norm"][-1], optax.tree_utils.tree_norm(result.params))
    np.testing.assert_array_equal(run(num_steps=7).steps, [0, 7])


@pytest.mark.parametrize(
    "design",
    [pytest.param(designs.WithoutReplacement(3), marks=pytest.mark.slow), designs.Reshuffling(3, drop_last=False)],
    ids=str,
)
def test_cutting_changes_no_bit(design) -> None:
    """Catches a second compilation for another number of steps, which may round differently."""
    whole = run(design=design, num_steps=23, chunk_size=23)
    for chunk_size, record_every in [(1, None), (4, None), (None, None), (100, 7)]:
        cut = run(design=design, num_steps=23, chunk_size=chunk_size, record_every=record_every)
        assert_same_bits(whole.params, cut.params)


@pytest.mark.slow
def test_more_steps_and_runs_change_none_that_were_there() -> None:
    long, short = run(num_steps=9, record_every=3, num_runs=3), run(num_steps=6, record_every=3, num_runs=3)
    np.testing.assert_array_equal(long.metrics["loss"][:, :3], short.metrics["loss"])


def test_one_compilation_for_any_number_of_steps_and_any_values() -> None:
    design, (loss_fn, params, data) = designs.WithReplacement(2), classifier()
    training.run_sgd(loss_fn, params, data, optax.sgd, design, 3, KEY, learning_rates=[0.1])
    before = _run._advance._cache_size(), _run._measure._cache_size()
    doubled = jax.tree.map(lambda a: 2 * a, params)
    training.run_sgd(
        loss_fn, doubled, data, optax.sgd, designs.WithReplacement(2), 8, jax.random.key(1), learning_rates=[0.3]
    )
    watched = {"learning_rates": [0.3], "record_every": 2, "chunk_size": 3}
    training.run_sgd(loss_fn, params, data, optax.sgd, design, 11, KEY, **watched)
    assert (_run._advance._cache_size(), _run._measure._cache_size()) == before
    training.run_sgd(loss_fn, params, data, optax.sgd, designs.WithReplacement(3), 3, KEY, learning_rates=[0.1])
    assert _run._advance._cache_size() == before[0] + 1, "the control: another batch size is another shape"


def test_another_number_of_records_compiles_nothing(caplog) -> None:
    """Catches records that are put together on the device, one program for each number of them."""
    loss_fn, params, data = classifier()
    new = functools.partial(loss_fn)  # that no other test has compiled
    arguments = (new, params, data, optax.sgd, designs.WithReplacement(2), 12, KEY)
    with jax.log_compiles():
        training.run_sgd(*arguments, learning_rates=[0.1], record_every=6)
        assert any("Compiling" in entry for entry in caplog.messages), "the control: the first time it compiles"
        caplog.clear()
        training.run_sgd(*arguments, learning_rates=[0.1], record_every=1)
    assert not [entry for entry in caplog.messages if "Compiling" in entry]


def test_divergence_is_reported_as_it_is() -> None:
    losses = run(problems.line_fit(), optax.sgd(10.0), designs.WithoutReplacement(4), 400).metrics["loss"]
    assert not np.isfinite(losses[-1])


def test_progress_ends_at_the_last_step() -> None:
    seen = []
    run(num_steps=10, chunk_size=4, progress=lambda step, total: seen.append((step, total)))
    assert seen == [(4, 10), (8, 10), (10, 10)]
