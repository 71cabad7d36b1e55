"""What kind of batch loss is this: every kind on losses that people write, and every form against the other kinds."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxsgd import check_additivity
from jaxsgd.additivity import Additivity
from tests.support.registry import skewed

Loss = Callable[..., Any]


def params(dtype: Any = float) -> Any:
    return {"slope": jnp.asarray([0.3, -0.2, 0.5], dtype), "shift": jnp.asarray(0.1, dtype)}


def batch(n: int = 16, dtype: Any = float) -> Any:
    """Asymmetric inputs and targets, positive weights, two classes, three labels, lengths with a zero, sequences."""
    lengths = np.array([3, 1, 4, 1, 5, 2, 5, 3])[np.arange(n) % 8] - (np.arange(n) == 9)
    return {
        "x": jnp.asarray(skewed(n, 3), dtype),
        "y": jnp.asarray(skewed(n, seed=1), dtype),
        "weight": jnp.asarray(skewed(n, seed=2) + 0.6, dtype),
        "positive": jnp.asarray(np.arange(n) % 3 == 0),
        "label": jnp.asarray((7 * np.arange(n) + 1) % 5 % 3),
        "tokens": jnp.asarray(skewed(n, 5, seed=3), dtype),
        "mask": jnp.asarray(np.arange(5) < lengths[:, None], dtype),
        "key": jax.random.split(jax.random.key(4), n),
    }


def scores(theta: Any, b: Any) -> jax.Array:
    return jnp.tanh(b["x"] @ theta["slope"]) + theta["shift"]


def residuals(theta: Any, b: Any) -> jax.Array:
    return scores(theta, b) - b["y"]


def squares(theta: Any, b: Any) -> jax.Array:
    return residuals(theta, b) ** 2


def penalty(theta: Any) -> jax.Array:
    return 0.3 * jnp.sum(theta["slope"] ** 2)


def cross_entropy(theta: Any, b: Any) -> jax.Array:
    logits = b["x"] * theta["slope"][None] + theta["shift"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, b["label"])


def focal(theta: Any, b: Any) -> jax.Array:
    return optax.sigmoid_focal_loss(scores(theta, b), b["positive"].astype(b["y"].dtype), gamma=2.0)


def token_losses(theta: Any, b: Any) -> jax.Array:
    return b["mask"] * (b["tokens"] * theta["slope"][0] - b["y"][:, None]) ** 2


def pairwise(theta: Any, b: Any, of_pair: Callable[[jax.Array], jax.Array]) -> jax.Array:
    s = scores(theta, b)
    return of_pair(s[:, None] - s[None, :])


def auc(theta: Any, b: Any, hinge: Any = lambda d: (1 - d) ** 2) -> Any:
    """Over pairs of a positive and a negative; 0 if there are none."""
    counted = (b["positive"][:, None] & ~b["positive"][None, :]).astype(b["y"].dtype)
    return jnp.sum(counted * pairwise(theta, b, hinge)) / jnp.maximum(jnp.sum(counted), 1)


def batch_norm(theta: Any, b: Any, epsilon: float = 1e-5) -> Any:
    h = b["x"] @ theta["slope"]
    return jnp.mean(((h - jnp.mean(h)) / jnp.sqrt(jnp.var(h) + epsilon) * theta["shift"] - b["y"]) ** 2)


def info_nce(theta: Any, b: Any) -> Any:
    similarity = (b["x"] * theta["slope"][None]) @ b["tokens"][:, :3].T
    return -jnp.mean(jnp.diagonal(jax.nn.log_softmax(similarity)))


def cvar(theta: Any, b: Any) -> Any:
    """The mean of the larger half."""
    losses = jnp.sort(squares(theta, b))
    return jnp.mean(losses[len(losses) // 2 :])


def dice(theta: Any, b: Any) -> Any:
    p, y = jax.nn.sigmoid(scores(theta, b)), b["positive"].astype(b["y"].dtype)
    return 1 - (2 * jnp.sum(p * y) + 1) / (jnp.sum(p) + jnp.sum(y) + 1)


def ghost_norm(theta: Any, b: Any) -> Any:
    """BatchNorm of groups of two: additive over blocks of even size."""
    h = (b["x"] @ theta["slope"])[: len(b["y"]) // 2 * 2].reshape(-1, 2)
    normal = (h - h.mean(axis=1, keepdims=True)) / jnp.sqrt(h.var(axis=1, keepdims=True) + 0.1)
    return jnp.mean((normal - 2 * theta["shift"]) ** 3)


def mean_over_devices(theta: Any, b: Any) -> Any:
    """One example per device, pmean of the losses inside the differentiated function."""

    def on_device(one: Any) -> jax.Array:
        return jax.lax.pmean(squares(theta, jax.tree.map(lambda leaf: leaf[None], one))[0], "devices")

    return jax.vmap(on_device, axis_name="devices")(b)[0]


def token_mean_over_devices(theta: Any, b: Any) -> Any:
    """The same with sums of tokens: a mean of ratios would be a mean, a ratio of sums is not."""

    def on_device(one: Any) -> jax.Array:
        loss = jnp.sum(token_losses(theta, jax.tree.map(lambda leaf: leaf[None], one)))
        return jax.lax.psum(loss, "devices") / jax.lax.psum(jnp.sum(one["mask"]), "devices")

    return jax.vmap(on_device, axis_name="devices")(b)[0]


def dropout(theta: Any, b: Any, key: jax.Array, *, by_row: bool) -> Any:
    """One mask of features for the whole batch, or one per row."""
    shape = b["x"].shape if by_row else b["x"].shape[1:]
    kept = jax.random.bernoulli(key, 0.5, shape).astype(b["y"].dtype)
    return jnp.mean(squares(theta, b | {"x": b["x"] * jnp.broadcast_to(kept, b["x"].shape)}))


def own_keys(theta: Any, b: Any) -> Any:
    kept = jax.vmap(lambda key: jax.random.bernoulli(key, 0.5, (3,)))(b["key"]).astype(b["y"].dtype)
    return jnp.mean(squares(theta, b | {"x": b["x"] * kept}))


def pairs_mean(theta: Any, b: Any) -> Any:
    n = len(b["y"])
    return jnp.sum(pairwise(theta, b, lambda d: 1 - jnp.cos(d))) / (n * (n - 1))


LOSSES: dict[str, dict[str, Loss]] = {
    "mean": {
        "squares": lambda t, b: jnp.mean(squares(t, b)),
        "with_aux": lambda t, b: (jnp.mean(squares(t, b)), {"residuals": residuals(t, b)}),
        "with_penalty": lambda t, b: jnp.mean(squares(t, b)) + penalty(t),
        "cross_entropy": lambda t, b: jnp.mean(cross_entropy(t, b)),
        "focal": lambda t, b: jnp.mean(focal(t, b)),
        "mean_of_weighted": lambda t, b: jnp.mean(b["weight"] * squares(t, b)),
        "token_mean_of_each_sequence": lambda t, b: jnp.mean(
            jnp.sum(token_losses(t, b), axis=1) / jnp.maximum(jnp.sum(b["mask"], axis=1), 1)
        ),
        "token_sum_of_each_sequence": lambda t, b: jnp.mean(jnp.sum(token_losses(t, b), axis=1)),
        "log_of_product": lambda t, b: jnp.log(jnp.prod(squares(t, b) + 0.5)) / len(b["y"]),
        "pmean": mean_over_devices,
        "own_keys": own_keys,
        "constant": lambda t, b: 0.0 * t["shift"] + 3.0,
        "rockafellar": lambda t, b: t["shift"] + jnp.mean(jax.nn.relu(squares(t, b) - t["shift"])) / 0.5,
    },
    "sum": {
        "squares": lambda t, b: jnp.sum(squares(t, b)),
        "with_penalty": lambda t, b: jnp.sum(squares(t, b)) + penalty(t),
        "over_a_constant": lambda t, b: jnp.sum(squares(t, b)) / 1000,
        "tokens": lambda t, b: jnp.sum(token_losses(t, b)),
        "class_weights": lambda t, b: jnp.sum(jnp.asarray([1.0, 2.0, 5.0], b["y"].dtype)[b["label"]] * squares(t, b)),
    },
    "weighted_sum": {
        "weights_in_the_batch": lambda t, b: jnp.sum(b["weight"] * squares(t, b)) / 50,
        "weights_and_penalty": lambda t, b: jnp.sum(b["weight"] * squares(t, b)) + penalty(t),
        "over_square_root": lambda t, b: jnp.sum(squares(t, b)) / len(b["y"]) ** 0.5,
        "over_one_more": lambda t, b: jnp.sum(squares(t, b)) / (len(b["y"]) + 1),
    },
    "ratio": {
        "weighted_mean": lambda t, b: jnp.sum(b["weight"] * squares(t, b)) / jnp.sum(b["weight"]),
        "token_mean": lambda t, b: jnp.sum(token_losses(t, b)) / jnp.maximum(jnp.sum(b["mask"]), 1),
        "token_mean_with_penalty": lambda t, b: jnp.sum(token_losses(t, b)) / jnp.sum(b["mask"]) + penalty(t),
        "token_mean_over_devices": token_mean_over_devices,
        "class_weighted_mean": lambda t, b: (lambda w: jnp.sum(w * cross_entropy(t, b)) / jnp.sum(w))(
            jnp.asarray([1.0, 2.0, 5.0], b["y"].dtype)[b["label"]]
        ),
        "dice": dice,
        "self_normalized": lambda t, b: jnp.sum(jnp.exp(scores(t, b)) * b["y"]) / jnp.sum(jnp.exp(scores(t, b))),
    },
    "pairwise": {
        "mean_over_pairs": pairs_mean,
        "mean_plus_mean_over_pairs": lambda t, b: pairs_mean(t, b) + jnp.mean(squares(t, b)),
        "sum_over_pairs": lambda t, b: jnp.sum(pairwise(t, b, jnp.cos)),
        "squared_mean": lambda t, b: jnp.mean(residuals(t, b)) ** 2,
        "variance": lambda t, b: jnp.var(residuals(t, b)),
        "product_of_means": lambda t, b: jnp.mean(residuals(t, b)) * jnp.mean(scores(t, b)),
        "centred": lambda t, b: jnp.mean((scores(t, b) - jnp.mean(scores(t, b)) - b["y"]) ** 2),
        "auc": auc,
        "auc_hinge": lambda t, b: auc(t, b, lambda d: jax.nn.relu(1 - 3 * d)),
    },
    "coupled": {
        "batch_norm": batch_norm,
        "batch_norm_undefined_for_one": lambda t, b: batch_norm(t, b, 0.0),
        "info_nce": info_nce,
        "cvar": cvar,
        "max": lambda t, b: jnp.max(squares(t, b)),
        "log_mean_exp": lambda t, b: jax.nn.logsumexp(squares(t, b)) - jnp.log(float(len(b["y"]))).astype(b["y"].dtype),
        "product": lambda t, b: jnp.prod(squares(t, b) + 0.5),
        "cubed_mean": lambda t, b: jnp.mean(residuals(t, b)) ** 3,
        "ghost_norm": ghost_norm,
        "by_position": lambda t, b: jnp.sum(jnp.arange(1.0, len(b["y"]) + 1).astype(b["y"].dtype) * squares(t, b)),
        "next_row": lambda t, b: jnp.mean((scores(t, b) - jnp.roll(b["y"], 1)) ** 2),
        "mean_and_detached_max": lambda t, b: jnp.mean(squares(t, b)) + jax.lax.stop_gradient(jnp.max(squares(t, b))),
    },
}
CASES = [(kind, name) for kind, losses in LOSSES.items() for name in losses]
every_loss = pytest.mark.parametrize(("kind", "name"), CASES)
EXAMPLES = {
    *("squares", "with_penalty", "weights_and_penalty", "token_mean", "dice", "product_of_means", "batch_norm", "max"),
}


@functools.cache
def checked(kind: str, name: str) -> Additivity:
    return check_additivity(LOSSES[kind][name], params(), batch())


@pytest.mark.parametrize(
    ("kind", "name"), [pytest.param(*case, marks=[] if case[1] in EXAMPLES else pytest.mark.slow) for case in CASES]
)
def test_kind(kind: str, name: str) -> None:
    result = checked(kind, name)
    assert result.kind == kind, result


@pytest.mark.slow
@pytest.mark.parametrize(("n", "dtype"), [(4, jnp.float64), (7, jnp.float64), (33, jnp.float32)])
@every_loss
def test_kind_for_other_sizes_and_dtypes(kind: str, name: str, n: int, dtype: Any) -> None:
    """Catches a form that fits by its freedom in a small batch, units that do not divide the batch, and a threshold
    that is right for float64 only.
    """
    result = check_additivity(LOSSES[kind][name], params(dtype), batch(n, dtype))
    assert result.kind == kind, result


FORMS = {
    "mean": {"mean"},
    "sum": {"sum", "sum with offset"},
    "weighted_sum": {"sum", "sum with offset", "size factor"},
    "ratio": {"ratio", "ratio in θ"},
    "pairwise": {"pairs / m(m-1)", "pairs / m^2", "pairs / 1", "pairs / counted pairs"},
}
CONTROLS = {  # one loss of each kind that no other form contains
    "mean": "squares",
    "sum": "with_penalty",
    "ratio": "token_mean_with_penalty",
    "pairwise": "product_of_means",
    "coupled": "log_mean_exp",
}


@pytest.mark.parametrize("kind", CONTROLS)
def test_every_form_rejects_the_other_kinds(kind: str) -> None:
    """Each form misses by far more than rounding, but where it contains the true one: a sum is a sum over pairs."""
    result = checked(kind, CONTROLS[kind])
    contains = {
        "mean": {"size factor", "ratio", "ratio in θ", "pairs / m(m-1)", "pairs / m^2", "pairs / counted pairs"},
        "sum": {"ratio", "ratio in θ", "pairs / 1"},
        "ratio": {"ratio in θ", "pairs / counted pairs"},
    }.get(kind, set())
    own = FORMS.get(kind, set())
    assert kind == "coupled" or any(result.discrepancies[form].holds for form in own)
    for form, found in result.discrepancies.items():
        if form not in own | contains:
            assert not found.holds, f"{form} holds for a loss of kind {kind}"
            assert max(found.loss, found.gradient) > 1e-4, f"{form} is {found} for a loss of kind {kind}"


def test_offset_is_the_penalty() -> None:
    """Catches an offset counted once per example, and a mean's penalty, which is no offset, reported as one."""
    result = checked("sum", "with_penalty")
    slope = np.array([0.3, -0.2, 0.5])
    np.testing.assert_allclose(result.offset_loss, 0.3 * slope @ slope, rtol=1e-11)
    np.testing.assert_allclose(result.offset_gradient, 0.6 * np.linalg.norm(slope), rtol=1e-11)
    assert not result.unbiased, "times N/M, the penalty is scaled too"
    plain = checked("sum", "squares")
    assert (plain.offset_loss, plain.offset_gradient, plain.unbiased) == (0.0, 0.0, True)


@pytest.mark.parametrize(("kind", "name"), [("mean", "mean_of_weighted"), ("weighted_sum", "weights_and_penalty")])
def test_weights_are_named(kind: str, name: str) -> None:
    assert checked(kind, name).weights == "batch['weight']"


def test_targets_are_not_weights() -> None:
    assert checked("sum", "squares").weights is None


def microbatch_error(loss: Loss, parts: int) -> float:
    """The error of averaging gradients of slices, by hand."""
    whole = batch()
    slices = [jax.tree.map(lambda a, i=i: a[i * 16 // parts : (i + 1) * 16 // parts], whole) for i in range(parts)]
    flat = [jax.flatten_util.ravel_pytree(jax.grad(loss)(params(), each))[0] for each in (whole, *slices)]
    return float(jnp.linalg.norm(sum(flat[1:]) / parts - flat[0]) / jnp.linalg.norm(flat[0]))


@pytest.mark.parametrize("parts", [2, 4, 8])
@pytest.mark.parametrize(
    ("kind", "name"), [("ratio", "token_mean"), ("coupled", "batch_norm"), ("sum", "squares"), ("pairwise", "variance")]
)
def test_microbatch_errors(kind: str, name: str, parts: int) -> None:
    """Catches blocks that are no slices, an error relative to the wrong gradient, and sums in place of averages."""
    result = checked(kind, name)
    np.testing.assert_allclose(result.microbatch_errors[parts], microbatch_error(LOSSES[kind][name], parts), rtol=1e-9)
    if kind == "sum":
        np.testing.assert_allclose(result.microbatch_errors[parts], 1 - 1 / parts, rtol=1e-9)


def test_microbatches_of_a_mean_have_no_error() -> None:
    errors = checked("mean", "squares").microbatch_errors
    assert sorted(errors) == [2, 4, 8]
    assert max(errors.values()) < 1e-14


@pytest.mark.parametrize(
    ("name", "normalizer", "unbiased"),
    [
        ("mean_over_pairs", "m(m-1)", True),
        ("squared_mean", "m^2", False),
        ("centred", "m^2", False),
        ("sum_over_pairs", "1", False),
        ("auc_hinge", "counted pairs", False),
    ],
)
def test_normalizer_of_pairs(name: str, normalizer: str, unbiased: bool) -> None:
    result = checked("pairwise", name)
    assert (result.normalizer, result.unbiased) == (normalizer, unbiased)


def test_normalizer_in_the_parameters() -> None:
    """Dice divides by its predictions: its gradient is no ratio with fixed normalizers, the token mean's is."""
    assert checked("ratio", "dice").normalizer == "in θ"
    assert checked("ratio", "token_mean").normalizer == "constant in θ"


def test_discrepancy_is_located() -> None:
    """BatchNorm on one parameter, a mean on the other: only the first is to blame."""

    def loss(theta: Any, b: Any) -> Any:
        return batch_norm(theta | {"shift": jnp.asarray(0.1)}, b) + jnp.mean((theta["shift"] - b["y"]) ** 2)

    found = check_additivity(loss, params(), batch()).discrepancies["mean"]
    assert found.by_parameter["params['slope']"] > 0.1
    assert found.by_parameter["params['shift']"] < 1e-14
    np.testing.assert_allclose(np.linalg.norm(list(found.by_parameter.values())), found.gradient, rtol=1e-12)


@pytest.mark.slow
def test_randomness_by_row_is_coupled_and_one_mask_is_not() -> None:
    """Catches keys that differ between subsets."""
    key = jax.random.key(1)
    shared = check_additivity(lambda t, b, k: dropout(t, b, k, by_row=False), params(), batch(), key=key)
    assert (shared.kind, shared.order_matters) == ("mean", False)
    by_row = check_additivity(lambda t, b, k: dropout(t, b, k, by_row=True), params(), batch(), key=key)
    assert (by_row.kind, by_row.order_matters) == ("coupled", True)
    assert any("one key per example" in note for note in by_row.notes)


def test_order_that_does_not_matter() -> None:
    assert not checked("coupled", "max").order_matters


def test_one_example_without_batch_statistics() -> None:
    """BatchNorm without an ε is not a number for one example: the answer comes from larger subsets, and says so."""
    result = checked("coupled", "batch_norm_undefined_for_one")
    assert any("not finite" in note and "of 1 examples" in note for note in result.notes), result
    assert np.isfinite(result.discrepancies["mean"].gradient)


def test_a_mean_that_fails_for_one_example() -> None:
    """Catches a verdict that needs single examples: a loss that squeezes its batch, and one that takes pairs only."""

    def of_pairs(theta: Any, b: Any) -> Any:
        return jnp.mean(squares(theta, b).reshape(-1, 2))

    result = check_additivity(of_pairs, params(), batch())
    assert result.kind == "mean"
    assert any("not evaluated on 1 examples, where it fails: TypeError" in note for note in result.notes), result


def test_gradient_of_a_mean_with_a_loss_of_another_form() -> None:
    result = checked("coupled", "mean_and_detached_max")
    assert result.discrepancies["mean"].gradient < 1e-14
    assert result.notes == ("the gradient alone has the form: mean",)


def test_near_an_exact_fit() -> None:
    """Where the residuals nearly vanish, rounding errors are large relative to the loss: a mean must stay one."""
    near = batch() | {"y": scores(params(), batch()) + 1e-9 * batch()["y"]}
    result = check_additivity(LOSSES["mean"]["squares"], params(), near)
    assert result.kind == "mean", result
    assert result.loss_rounding > 1e-9, "a bound from the dtype alone would be too small here"
    assert check_additivity(LOSSES["pairwise"]["variance"], params(), near).kind == "pairwise"


def test_repeated_examples() -> None:
    """Four different examples among sixteen still tell a maximum from a mean, wherever they are."""
    few = jax.tree.map(lambda leaf: leaf[np.array([3, 5, 6, 2] + [5] * 12)], batch())
    assert check_additivity(LOSSES["mean"]["squares"], params(), few).kind == "mean"
    assert check_additivity(LOSSES["coupled"]["max"], params(), few).kind == "coupled"


def test_one_compilation_for_every_size() -> None:
    """Sizes 1, 2, 3, 6 of the core and 2, 4, 6, 8, 16 of the blocks, each traced twice: for its shape and for use."""
    traced = []

    def loss(theta: Any, b: Any) -> Any:
        traced.append(len(b["y"]))
        return jnp.mean(squares(theta, b))

    check_additivity(loss, params(), batch())
    assert set(traced) == {1, 2, 3, 4, 6, 8, 16}
    assert len(traced) <= 2 * 7 + 4, traced


def test_report_shows_the_evidence() -> None:
    result = checked("ratio", "token_mean")
    report = str(result)
    assert report.startswith("kind: ratio\n")
    for shown in (result.advice, result.bias, *result.discrepancies, "rounding errors", "constant in θ"):
        assert shown in report
    assert f"{result.microbatch_errors[8]:.2g} for 8" in report
    assert f"{result.discrepancies['mean'].gradient:.1e}" in report
