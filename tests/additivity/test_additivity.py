"""What kind of batch loss is this: every kind on losses that people write, and every form against the other kinds."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsgd import check_additivity
from jaxsgd.additivity import Additivity
from tests.support.batch_losses import LOSSES, Loss, batch, batch_norm, dropout, params, scores, squares

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
