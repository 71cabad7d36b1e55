"""The noise of constant-step SGD is exact on quadratics: it exceeds the usual approximations and diverges at η*(M).

The stationary covariance solves one linear system in which all data are a batch with probability 1 − c_M, and a single
example with probability c_M. Scaling the step size with the batch size keeps the noise only as long as η is far below
the stability threshold η*(M), which rises with M to 2/λ_max at M = N.

Command    python -m experiments stationary_noise
Run time   about 20 seconds on two cores
Expected   simulated runs within 4.5 standard errors of the exact covariance, which is 9/17 at η = 1/4 for the three
           quadratics with M = 1, where additive noise gives 1/2 and the diffusion 3/8; η*(1) = 6/7 there; on the
           diabetes regression η* = 0.143 at M = 1 and 0.497 = 2/λ_max at M = 442

Above: excess loss of the stationary state, relative to that of the diffusion approximation; and that of the diabetes
regression along η/M = κ and ηc_M = κ, in units of κ tr C/4 with C the covariance of the gradients at the minimum.
Below: the stability threshold, and its distance from that of all data. Lines are exact, points are simulated runs.
"""

from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure

from experiments._claims import Claims, z_scores
from experiments._harness import Arrays, Seeded, progress
from experiments._panels import COLORS, DOTTED, LONG_DASHED, mark, note, page_of, panel, reference
from experiments._second_halves import exact_second_half, second_half
from jaxsgd import designs, dynamics, problems

SMALL = dynamics.Quadratics.from_minima([1, 2, 3], [3, 0, -1]).floats()
SIZE = "batch size $M$ (examples)"
REPLACEMENT: tuple[tuple[str, str, Any], ...] = (("without", COLORS[0], "-"), ("with", COLORS[1], LONG_DASHED))


class Config(Seeded):
    """Settings of the experiment."""

    num_runs: int = 150
    """Independent runs on the diabetes data, and a tenth of those on the three quadratics."""
    num_steps: int = 320
    """Steps of every run from the minimum; over the second half, every tenth is averaged."""
    batch_sizes: tuple[int, ...] = (1, 4, 16)
    """Batch sizes of the simulated runs on the diabetes data; the last one also with a smaller step size."""
    scaling: float = 0.02
    """The step size of a simulated run is this number times the batch size."""
    num_rates: int = 40
    """At how many step sizes the exact laws are calculated."""
    num_sizes: int = 60
    """At how many batch sizes thresholds and scaling are calculated."""


QUICK = Config(num_runs=100, num_steps=160, batch_sizes=(16,), num_sizes=24, num_rates=8)
SUMMARY = (
    "simulated covariances within {worst_z:.1f} standard errors of the exact ones, those of the diffusion off by "
    "{z_of_diffusion_diabetes:.0f} and more; η* rises from {threshold_of_one:.3f} at M = 1 to {threshold_of_all:.3f} "
    "at M = N; linear scaling is unstable beyond M = {last_stable_size}"
)


def compute(config: Config) -> Arrays:
    """Exact laws, approximations and simulated runs of both problems."""
    data = problems.diabetes_regression().data
    diabetes = dynamics.Quadratics.from_least_squares(np.asarray(data["x"]), np.asarray(data["y"]))
    small_key, key = jax.random.split(config.key())
    largest = config.batch_sizes[-1]
    small_pairs = [(1, eta) for eta in (1 / 8, 1 / 4, 3 / 8, 1 / 2, 5 / 8)]
    pairs = [(M, config.scaling * M) for M in config.batch_sizes] + [(largest, 0.6 * config.scaling * largest)]
    return {
        **curves("small", SMALL, 1, config),
        **curves("diabetes", diabetes, largest, config),
        "small/runs": runs(SMALL, small_pairs, 10 * config.num_runs, config.num_steps, small_key),
        "diabetes/runs": runs(diabetes, pairs, config.num_runs, config.num_steps, key),
        "small/threshold": dynamics.stability_threshold(SMALL, designs.WithoutReplacement(1)),
        **thresholds(diabetes, config),
        **scaling(diabetes, config),
    }


def curves(name: str, losses: dynamics.Quadratics, batch_size: int, config: Config) -> dict[str, Any]:
    """Excess losses up to 0.97 of the stability threshold: exact, with additive noise, of the diffusion."""
    design = designs.WithoutReplacement(batch_size)
    fractions = 0.97 * np.sin(np.linspace(0.02, np.pi / 2, config.num_rates))  # denser where the curves rise
    rates = fractions * dynamics.stability_threshold(losses, design)
    return {f"{name}/fraction": fractions, f"{name}/losses": [excess_losses(losses, design, eta) for eta in rates]}


def excess_losses(losses: dynamics.Quadratics, design: designs.Design, rate: float) -> list[float]:
    """½ tr(H̄V), exact, with additive noise, and of the diffusion."""
    laws = (
        dynamics.step_law(losses, design, rate).stationary().covariance,
        dynamics.additive_noise(losses, design, rate),
        dynamics.ornstein_uhlenbeck(losses, design, rate),
    )
    return [float(losses.excess_loss(V)) for V in laws]


def runs(
    losses: dynamics.Quadratics, pairs: list[tuple[int, float]], num_runs: int, num_steps: int, key: jax.Array
) -> np.ndarray:
    """For each batch size and step size: simulated and exact excess loss, and variances along principal axes.

    A run's average over its second half is one sample, whose expectation is that of the exact laws after as many steps.
    """
    rows, axes = [], np.linalg.eigh(losses.mean_hessian)[1]
    for place, (batch_size, rate) in enumerate(progress(pairs, "runs")):
        design, key_here = designs.WithoutReplacement(batch_size), jax.random.fold_in(key, place)
        squares = second_half(losses, design, rate, num_runs, num_steps, key_here)
        expected = exact_second_half(losses, design, rate, num_steps)
        loss = 0.5 * (squares * losses.mean_hessian).sum(axis=(1, 2))
        of_loss = [loss.mean(), loss.std(ddof=1) / np.sqrt(num_runs), losses.excess_loss(expected)]
        worst = np.abs(z_scores(*(np.einsum("...pq,pk,qk->...k", S, axes, axes) for S in (squares, expected)))).max()
        fraction = rate / dynamics.stability_threshold(losses, design)
        rows.append([batch_size, fraction, *of_loss, *excess_losses(losses, design, rate), worst])
    return np.array(rows, dtype=float)


def thresholds(losses: dynamics.Quadratics, config: Config) -> dict[str, Any]:
    """η*(M) without and with replacement, and the spectral radius there."""
    sizes = sizes_up_to(losses.population_size, config)
    without = [dynamics.stability_threshold(losses, designs.WithoutReplacement(M)) for M in sizes]
    pairs = zip(sizes, without, strict=True)
    laws = [dynamics.step_law(losses, designs.WithoutReplacement(M), eta) for M, eta in pairs]
    return {
        "threshold/size": sizes,
        "threshold/without": without,
        "threshold/with": [dynamics.stability_threshold(losses, designs.WithReplacement(M)) for M in sizes],
        "threshold/radius": [law.spectral_radius() for law in laws],
        "threshold/descent": 2 / np.linalg.eigvalsh(losses.mean_hessian)[-1:],
    }


def sizes_up_to(largest: int, config: Config) -> list[int]:
    """Batch sizes from 1 on, equally far apart but for rounding on a logarithmic axis."""
    return np.unique(np.round(np.geomspace(1, largest, config.num_sizes)).astype(int)).tolist()


def scaling(losses: dynamics.Quadratics, config: Config) -> dict[str, Any]:
    """Excess loss over that of the diffusion with replacement, η/M · tr C/4, along η = κM and η = κ/c_M."""
    N, kappas = losses.population_size, np.array([config.scaling / 100, config.scaling])
    sizes = sizes_up_to(N - 1, config)
    trace = np.mean(np.sum(losses.gradients(losses.minimum()) ** 2, axis=1))
    factors = [float(designs.WithoutReplacement(M).variance_factor(N)) for M in sizes]
    found = {"scaling/sizes": sizes, "scaling/kappa": kappas, "scaling/population": N}
    for rule, rates in (("size", np.outer(kappas, sizes)), ("factor", kappas[:, None] / factors)):
        noise = [[stationary_loss(losses, M, eta) for M, eta in zip(sizes, row, strict=True)] for row in rates]
        found[f"scaling/{rule}"] = np.array(noise) * 4 / (kappas[:, None] * trace)
    return found | {"scaling/unit": kappas[-1:] * trace / 4}


def stationary_loss(losses: dynamics.Quadratics, batch_size: int, rate: float) -> float:
    """The stationary excess loss, or NaN where SGD is unstable."""
    law = dynamics.step_law(losses, designs.WithoutReplacement(batch_size), rate)
    return float(losses.excess_loss(law.stationary().covariance)) if law.spectral_radius() < 1 else np.nan


def check(results: Arrays) -> Claims:
    """Confirm exact laws by simulated runs, and that approximations and scaling rules fail where they must."""
    claims = Claims()
    message = "at η = 1/4 got {}, not 9/17, 1/2, 3/8"
    claims.equal(results["small/runs"][1, 5:8], [9 / 17, 1 / 2, 3 / 8], message, rtol=1e-12, atol=0)
    check_runs(claims, "small", results["small/runs"])
    check_runs(claims, "diabetes", results["diabetes/runs"])
    claims["worst_z"] = max(claims["worst_z_small"], claims["worst_z_diabetes"])
    check_thresholds(claims, results)
    check_scaling(claims, results)
    return claims


def check_runs(claims: Claims, name: str, found: np.ndarray) -> None:
    """Simulated covariances are the exact ones; those of additive noise and of the diffusion are rejected."""
    _, fraction, loss, error, expected, stationary, additive, diffusion, axes = found.T
    z = (loss - expected) / error
    claims.agree(z, f"{name}: the excess loss is")
    claims.agree(axes, f"{name}: a variance is")
    claims[f"worst_z_{name}"] = max(np.abs(z).max(), axes.max())
    claims.below(np.abs(expected / stationary - 1), 0.03, f"{name}: runs must be stationary to 3%, got {{:.1%}}")
    claims.require(
        fraction.max() > 0.5, f"{name}: step sizes must come near the threshold, got {fraction.max():.2f} η*"
    )
    z = np.abs(np.array([diffusion, additive]) - loss) / error
    claims.reject(z[0, fraction > 0.2], f"{name}: the diffusion approximation", enter=f"z_of_diffusion_{name}")
    claims.reject(z[1, fraction > 0.5], f"{name}: additive noise", enter=f"z_of_additive_noise_{name}")


def check_thresholds(claims: Claims, results: Arrays) -> None:
    """η*(M) is where the spectral radius is 1, rises with M, and is 2/λ_max for all data only."""
    without, replaced, (descent,) = (results[f"threshold/{name}"] for name in ("without", "with", "descent"))
    claims.equal(results["small/threshold"], 6 / 7, "the threshold of the three quadratics must be 6/7, got {}")
    off = np.abs(results["threshold/radius"] - 1)
    claims.below(off, 1e-9, "at the threshold the spectral radius must be 1, off by {:.1e}")
    claims.require(np.all(np.diff(without) > 0), "the threshold must rise with the batch size")
    claims |= {"threshold_of_one": without[0], "threshold_of_all": without[-1]}
    claims.equal(without[-1], descent, f"at M = N it must be 2/λ_max = {descent}, got {{}}", rtol=1e-9, atol=0)
    claims.require(without[0] < descent / 2, "2/λ_max must be rejected as the threshold of single examples")
    claims.require(np.all(replaced[1:] < without[1:]), "with replacement the threshold must be lower")


def check_scaling(claims: Claims, results: Arrays) -> None:
    """Far below the threshold ηc_M is what counts, not η/M; near it neither."""
    sizes, N = results["scaling/sizes"], results["scaling/population"]
    slow, fast = results["scaling/size"]
    off = np.abs(slow / ((N - sizes) / (N - 1)) - 1)
    claims.below(off, 0.15, "for small steps the noise along η/M must be that of ηc_M, off by {:.0%}")
    claims.below(slow[sizes > N / 2], 0.75, "that η/M fixes the noise must be rejected above M = N/2, got {:.2f} of it")
    stable = np.flatnonzero(~np.isnan(fast))
    claims.require(len(stable) < len(fast), "linear scaling must lead into instability")
    claims["last_stable_size"] = sizes[stable[-1]]
    message, growth = (
        "noise must grow towards the threshold along η/M, got a factor of {:.2f}",
        fast[stable[-1]] / fast[0],
    )
    claims.above(growth, 2, message, enter="growth_along_linear_scaling")


def draw(results: Arrays) -> Figure:
    """Noise against step size and along scaling rules; the threshold, and how far it is from that of all data."""
    panels = _draw_noise, _draw_scaling, _draw_thresholds, _draw_gaps
    return page_of(results, *panels, nrows=2, ratio=0.58)


def _draw_noise(axes: Any, results: Arrays) -> None:
    """Excess loss over that of the diffusion."""
    largest = int(results["diabetes/runs"][:, 0].max())
    shown = (("small", "three quadratics, $M=1$", 1), ("diabetes", f"diabetes, $M={largest}$", largest))
    for place, (name, label, size) in enumerate(shown):
        fraction, losses, rows = (results[f"{name}/{what}"] for what in ("fraction", "losses", "runs"))
        axes.plot(fraction, losses[:, 0] / losses[:, 2], color=COLORS[place])
        axes.plot(fraction, losses[:, 1] / losses[:, 2], color=COLORS[place], linestyle=LONG_DASHED)
        _, x, loss, error, *_, diffusion, _ = rows[rows[:, 0] == size].T
        axes.errorbar(x, loss / diffusion, 2 * error / diffusion, **mark(place, line="none"), label=label)
    reference(axes, y=1, color="black", linewidth=0.8, linestyle=DOTTED)
    axes.plot([], [], color="black", label="exact")
    axes.plot([], [], color="black", linestyle=LONG_DASHED, label="additive noise")
    axes.plot([], [], color="black", linewidth=0.8, linestyle=DOTTED, label="diffusion")
    legend, ratio = {"loc": "upper left", "labelspacing": 0.3}, r"excess loss $\div$ diffusion's"
    panel(
        axes,
        "two problems",
        x=r"step size $\eta\,/\,\eta^*(M)$",
        y=ratio,
        log="y",
        ylim=(0.8, 20),
        xlim=(0, 1),
        legend=legend,
    )
    axes.set_yticks([1, 2, 5, 10, 20], ["1", "2", "5", "10", "20"])
    axes.minorticks_off()


def _draw_scaling(axes: Any, results: Arrays) -> None:
    """Excess loss in units of the diffusion with replacement, along η ∝ M and η ∝ 1/c_M."""
    sizes, kappas, unit = (results[f"scaling/{name}"] for name in ("sizes", "kappa", "unit"))
    for rule, line, label in (("size", (0, ()), r"$\eta=\kappa M$"), ("factor", LONG_DASHED, r"$\eta=\kappa/c_M$")):
        axes.plot([], [], color="black", linestyle=line, label=label)
        for row in (1, 0):
            axes.plot(sizes, results[f"scaling/{rule}"][row], color=COLORS[row], linestyle=line)
    for row, height in ((1, 1.35), (0, 0.68)):
        note(axes, 1, height, rf"$\kappa={kappas[row]:g}$", color=COLORS[row])
    rows = results["diabetes/runs"]
    _, first = np.unique(rows[:, 0], return_index=True)
    M, _, loss, error = rows[first, :4].T
    axes.errorbar(M, loss / unit, 2 * error / unit, **mark(1, line="none"))
    ratio = r"excess loss $\div$ diffusion's $\kappa\,\mathrm{tr}\,C/4$"
    panel(axes, "diabetes, scaled step sizes", x=SIZE, y=ratio, log="x", ylim=(0, 5), legend="upper right")


def _draw_thresholds(axes: Any, results: Arrays) -> None:
    """The stability threshold against the batch size."""
    sizes, descent = results["threshold/size"], results["threshold/descent"][0]
    for name, color, line in REPLACEMENT:
        axes.plot(sizes, results[f"threshold/{name}"], color=color, linestyle=line, label=f"{name} replacement")
    reference(axes, y=descent, color="black", linewidth=0.8, linestyle=DOTTED)
    note(axes, 1, descent + 0.005, r"$2/\lambda_{\max}$", va="bottom")
    height = r"stability threshold $\eta^*(M)$"
    panel(axes, "diabetes", x=SIZE, y=height, log="x", ylim=(0, 0.56), legend="lower right")


def _draw_gaps(axes: Any, results: Arrays) -> None:
    """How far the threshold is below that of all data."""
    sizes, descent = results["threshold/size"], results["threshold/descent"][0]
    for name, color, line in REPLACEMENT:
        gap = 1 - results[f"threshold/{name}"] / descent
        axes.plot(sizes[gap > 1e-9], gap[gap > 1e-9], color=color, linestyle=line, label=f"{name} replacement")
    height = r"$1-\eta^*(M)\,\lambda_{\max}/2$"
    panel(axes, "diabetes", x=SIZE, y=height, log="xy", ylim=(1e-4, 1), legend="lower left")
