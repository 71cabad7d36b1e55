"""The gradient of a batch loss that does not add up over examples is in general biased, and exact at M = N.

In general, as what adds up over pairs is unbiased from M = 2 on, and as a bias may pass through 0: here that of the
Wasserstein distance, at M = 4 and 5, where no batch has a larger share of positives than the model.

Command    python -m experiments nonadditive_losses
Run time   about 25 seconds on two cores
Expected   thirteen losses with a biased gradient at M = 2, by enumeration of all batches of six examples; twelve at
           every M below 6; nine forms beside them with no bias, to rounding

One panel for each loss: its bias relative to the gradient of the full batch, and that of its unbiased form. Four have
none ("biased only"): their value for six examples is no average of functions of fewer.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from experiments._claims import Claims
from experiments._harness import Arrays, Settings, progress, table
from experiments._panels import BLUE, ORANGE, note, page, reference
from jaxsgd import batch_losses, designs, estimators

N = 6
Loss = Callable[[Any, Any], Any]


class Config(Settings):
    """Settings of the experiment."""

    batch_sizes: tuple[int, ...] = (1, 2, 3, 4, 5, 6)
    """The batch sizes; the largest is the number of examples, 6."""


QUICK = Config(batch_sizes=(2, 4, 6))
SUMMARY = (
    "{losses} losses have a biased gradient, at M = 2 by {least_bias:.0%} to {largest_bias:.0%} ({most_biased}); their "
    "unbiased forms by at most {largest_bias_of_unbiased_forms:.0e}"
)

FORMS = {
    "biased": {"color": BLUE, "marker": "o"},
    "unbiased": {"color": ORANGE, "marker": "s", "markerfacecolor": "white", "linestyle": "--"},
}
DATA = {
    "x": np.array([0.3, -1.1, 2.0, 0.7, -0.4, 1.2]),
    "y": np.array([0.5, -0.6, 1.4, 1.0, -0.2, 0.1]),
    "z": np.array([1.0, -0.5, 1.6, 0.2, 0.4, 0.9]),
    "positive": np.array([0.0, 0.0, 1.0, 0.0, 0.0, 0.0]),
    "tokens": np.array([1.0, 3.0, 8.0, 2.0, 5.0, 4.0]),
}
THETA = 0.8


def losses(theta: Any, b: Any) -> Any:
    """A loss of every example."""
    return (theta * b["x"] - b["y"]) ** 2 + 0.2


def biased() -> dict[str, Loss]:
    """The losses of batches."""
    return {
        "product of means": lambda t, b: batch_losses.product_of_means(losses(t, b), t * b["z"]),
        "product of losses": lambda t, b: batch_losses.product_of_losses(losses(t, b)),
        "log-mean-exp": lambda t, b: batch_losses.log_mean_exp(losses(t, b)),
        "maximum": lambda t, b: jnp.max(losses(t, b)),
        "CVaR, α = ½": lambda t, b: batch_losses.cvar(losses(t, b), 0.5),
        "centering": lambda t, b: batch_losses.centered_squared_error(t, b["x"], b["y"]),
        "batch normalization": lambda t, b: batch_losses.normalized_squared_error(t, b["x"] + t * b["z"] ** 2, b["y"]),
        "InfoNCE": lambda t, b: batch_losses.info_nce(t * b["x"][:, None] * b["z"][None, :]),
        "AUC": lambda t, b: batch_losses.auc_loss(t * b["x"], b["positive"]),
        "Dice": lambda t, b: batch_losses.soft_dice(jax.nn.sigmoid(t * b["x"]), b["positive"]),
        "token mean": lambda t, b: batch_losses.token_mean(losses(t, b), b["tokens"]),
        "all pairs": lambda t, b: batch_losses.all_pairs(t * b["x"], spread),
        "Wasserstein": lambda t, b: batch_losses.wasserstein_to_bernoulli(0.4 * t, b["positive"]),
    }


def unbiased(M: int) -> dict[str, Loss]:
    """The same losses in a form whose gradient is unbiased, where there is one at this batch size."""
    data = {name: jnp.asarray(values) for name, values in DATA.items()}
    level = batch_losses.log_mean_exp(losses(THETA, data))
    quantile = jnp.sort(losses(THETA, data))[N // 2]
    forms: dict[str, Loss] = {
        "log-mean-exp": lambda t, b: batch_losses.log_mean_exp_bound(losses(t, b), level),
        "CVaR, α = ½": lambda t, b: batch_losses.cvar_bound(losses(t, b), quantile, 0.5),
        "token mean": lambda t, b: jnp.mean(losses(t, b)) / data["tokens"].mean(),
        "Wasserstein": lambda t, b: (0.4 * t - b["positive"].mean()) ** 2,
        "product of losses": lambda t, b: jnp.log(batch_losses.product_of_losses(losses(t, b))) / len(b["x"]),
    }
    if M == 1:
        return forms
    shrinkage = N * (M - 1) / (M * (N - 1))
    num_pairs = 5 * M * (M - 1) / (N * (N - 1))
    return forms | {
        "product of means": lambda t, b: batch_losses.product_of_means_unbiased(losses(t, b), t * b["z"], N),
        "centering": lambda t, b: batch_losses.centered_squared_error(t, b["x"], b["y"]) / shrinkage,
        "AUC": lambda t, b: batch_losses.auc_loss(t * b["x"], b["positive"], num_pairs=num_pairs),
        "all pairs": lambda t, b: batch_losses.different_pairs(t * b["x"], spread),
    }


def spread(a: Any, b: Any) -> Any:
    """Half the squared distance, whose mean over different pairs is the variance with divisor N − 1."""
    return 0.5 * (a - b) ** 2


def compute(config: Config) -> Arrays:
    """Relative biases of both forms at every batch size."""
    rows = []
    for M in progress(config.batch_sizes, "batch size"):
        for form, at_all, at_size in (("biased", biased(), biased()), ("unbiased", unbiased(N), unbiased(M))):
            biases = relative_biases(at_size, M, at_all).items()
            rows += [{"form": form, "loss": name, "batch_size": M, "bias": bias} for name, bias in biases]
    return table(rows)


def relative_biases(losses: dict[str, Loss], M: int, full: dict[str, Loss]) -> dict[str, float]:
    """E ∇L(B)/∇L(all) − 1 over all batches, of every loss; NaN where a batch of one has no loss."""
    data = {name: jnp.asarray(values) for name, values in DATA.items()}
    whole = gradients(full, data)
    first = gradients(losses, {name: values[:1] for name, values in data.items()}) if M == 1 else whole
    defined = {name: loss for name, loss in losses.items() if np.isfinite(first[name])}
    found = estimators.batch_loss_gradient(total(defined), thetas(defined), data, designs.WithoutReplacement(M))
    return {name: float(found.mean[name]) / whole[name] - 1 if name in defined else float("nan") for name in losses}


def total(losses: dict[str, Loss]) -> Loss:
    """The sum of losses, each of a θ of its own: its gradient is that of every one of them, compiled together."""
    return lambda thetas, batch: sum(loss(thetas[name], batch) for name, loss in losses.items())


def thetas(losses: dict[str, Loss]) -> dict[str, Any]:
    """The same θ for every loss."""
    return {name: jnp.asarray(THETA) for name in losses}


def gradients(losses: dict[str, Loss], batch: Any) -> dict[str, float]:
    """dL/dθ of every loss."""
    return {name: float(value) for name, value in jax.jit(jax.grad(total(losses)))(thetas(losses), batch).items()}


def check(results: Arrays) -> Claims:
    """Confirm bias below the full batch, none at it, and none anywhere in the unbiased forms."""
    claims, is_biased, size = Claims(), results["form"] == "biased", np.abs(results["bias"])
    rest, full = size[~is_biased], size[is_biased & (results["batch_size"] == N)]
    message = "the unbiased forms must have no bias, got {:.1e}"
    claims.below(rest, 1e-12, message, enter="largest_bias_of_unbiased_forms")
    claims.below(full, 1e-12, "the full batch must have no bias, got {:.1e}")
    at_two = is_biased & (results["batch_size"] == 2)
    biases = dict(zip(results["loss"][at_two].tolist(), results["bias"][at_two].tolist(), strict=True))
    least, *_, most = sorted(biases, key=lambda name: abs(biases[name]))
    claims.above(abs(biases[least]), 1e-2, f"{least} must be biased at M = 2, got {{:.1e}}", enter="least_bias")
    at_zero = is_biased & (size < 1e-12) & (results["batch_size"] < N)
    exact = sorted(set(results["loss"][at_zero].tolist()))
    message = f"below the full batch only the Wasserstein distance may be unbiased, got {', '.join(exact)}"
    claims.require(set(exact) <= {"Wasserstein"}, message)
    claims["unbiased_below_the_full_batch"] = {name: results["batch_size"][at_zero].tolist() for name in exact}
    shrinkage = biases["centering"] - (N / (2 * (N - 1)) - 1)
    claims.below(abs(shrinkage), 1e-12, "centering must shrink the gradient by N(M−1)/(M(N−1)), not {:+.1e} more")
    largest = {"largest_bias": abs(biases[most]), "most_biased": most}
    return claims | largest | {"losses": len(biases), "relative_bias_at_2": biases}


def draw(results: Arrays) -> Figure:
    """A panel for each loss."""
    figure = page(nrows=3, ncols=5, height_to_width_ratio=0.8)
    panels = figure.subplots(3, 5, sharex=True).ravel()
    for axes, name in zip(panels, biased(), strict=False):
        for form, style in FORMS.items():
            rows = (results["form"] == form) & (results["loss"] == name)
            axes.plot(results["batch_size"][rows], results["bias"][rows], **style, label=f"{form} form")
        if not rows.any():
            above = np.nanmean(results["bias"][results["loss"] == name]) > 0
            place = {"y": 0.95, "va": "top"} if above else {"y": 0.08, "va": "bottom"}
            note(axes, 0.97, text="biased only", transform=axes.transAxes, ha="right", **place)
        reference(axes, y=0, color="0.7", linestyle="-", linewidth=0.6, zorder=0)
        axes.set_title(name, fontsize="small")
        axes.tick_params(labelbottom=True)
        axes.set_xticks(range(1, N + 1))
    for axes in panels[len(biased()) :]:
        axes.set_axis_off()
    figure.supxlabel("batch size $M$ (examples)", fontsize="medium")
    figure.supylabel("bias relative to the full gradient", fontsize="medium")
    panels[-1].legend(*panels[0].get_legend_handles_labels(), loc="center right")
    return figure
