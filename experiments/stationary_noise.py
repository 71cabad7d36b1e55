"""The noise of constant-step SGD is exact on quadratics: it exceeds the usual approximations and diverges at η*(M).

The stationary covariance solves one linear system in which all data are a batch with probability 1 − c_M, and a single
example with probability c_M. Scaling the step size with the batch size keeps the noise only as long as η is far below
the stability threshold η*(M), which rises with M to 2/λ_max at M = N.

Command    python -m experiments stationary_noise
Run time   about 20 seconds on two cores
Expected   simulated runs within 4.5 standard errors of the exact covariance, which is 9/17 at η = 1/4 for the three
           quadratics with M = 1, where additive noise gives 1/2 and the diffusion 3/8; η*(1) = 6/7 there; on the
           diabetes regression η* = 0.143 at M = 1 and 0.497 = 2/λ_max at M = 442

Left: excess loss of the stationary state, relative to that of the diffusion approximation. Middle: the diabetes
regression along η/M = κ and ηc_M = κ, in units of κ tr C/4 with C the covariance of the gradients at the minimum.
Right: the stability threshold. Lines are exact, points are simulated runs.
"""

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure

from experiments._claims import require, z_scores
from experiments._harness import progress
from experiments._panels import COLORS, MARKERS, page
from jaxsgd import designs, dynamics, problems

SMALL = dynamics.Quadratics.from_minima([1, 2, 3], [3, 0, -1]).floats()
MAX_Z = 4.5
EVERY = 10


@dataclass(frozen=True)
class Config:
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
    seed: int = 0
    """Seed of everything random."""


QUICK = Config(num_runs=100, num_steps=160, batch_sizes=(16,), num_sizes=24, num_rates=8)


def compute(config: Config) -> dict[str, np.ndarray]:
    """Exact laws, approximations and simulated runs of both problems."""
    data = problems.diabetes_regression().data
    diabetes = dynamics.Quadratics.from_least_squares(np.asarray(data["x"]), np.asarray(data["y"]))
    small_key, key = jax.random.split(jax.random.key(config.seed))
    rates = [1 / 8, 1 / 4, 3 / 8, 1 / 2, 5 / 8]
    largest = config.batch_sizes[-1]
    results = curves("small", SMALL, 1, config) | curves("diabetes", diabetes, largest, config)
    results |= runs("small", SMALL, [(1, eta) for eta in rates], 10 * config.num_runs, config.num_steps, small_key)
    pairs = [(M, config.scaling * M) for M in config.batch_sizes]
    pairs.append((largest, 0.6 * config.scaling * largest))
    results |= runs("diabetes", diabetes, pairs, config.num_runs, config.num_steps, key)
    return results | thresholds(diabetes, config) | scaling(diabetes, config)


def curves(name: str, losses: dynamics.Quadratics, batch_size: int, config: Config) -> dict[str, np.ndarray]:
    """Excess losses up to 0.97 of the stability threshold: exact, with additive noise, of the diffusion."""
    design = designs.WithoutReplacement(batch_size)
    fractions = 0.97 * np.sin(np.linspace(0.02, np.pi / 2, config.num_rates))  # denser where the curves rise
    rates = fractions * dynamics.stability_threshold(losses, design)
    return {
        f"{name}/fraction": fractions,
        f"{name}/losses": np.array([excess_losses(losses, design, eta) for eta in rates]),
    }


def excess_losses(losses: dynamics.Quadratics, design: designs.Design, rate: float) -> list[float]:
    """½ tr(H̄V), exact, with additive noise, and of the diffusion."""
    laws = (
        dynamics.step_law(losses, design, rate).stationary().covariance,
        dynamics.additive_noise(losses, design, rate),
        dynamics.ornstein_uhlenbeck(losses, design, rate),
    )
    return [float(losses.excess_loss(V)) for V in laws]


def runs(
    name: str,
    losses: dynamics.Quadratics,
    pairs: list[tuple[int, float]],
    num_runs: int,
    num_steps: int,
    key: jax.Array,
) -> dict[str, np.ndarray]:
    """For each batch size and step size: simulated and exact excess loss, and variances along principal axes.

    A run's average over its second half is one sample, whose expectation is that of the exact laws after as many steps.
    """
    rows = []
    for place, (batch_size, rate) in enumerate(progress(pairs, f"runs, {name}")):
        design, key_here = designs.WithoutReplacement(batch_size), jax.random.fold_in(key, place)
        squares = second_half(losses, design, rate, num_runs, num_steps, key_here)
        expected = exact_second_half(losses, design, rate, num_steps)
        loss = 0.5 * (squares * losses.mean_hessian).sum(axis=(1, 2))
        of_loss = [loss.mean(), loss.std(ddof=1) / np.sqrt(num_runs), losses.excess_loss(expected)]
        axes = np.linalg.eigh(losses.mean_hessian)[1]
        worst = np.abs(z_scores(*(np.einsum("...pq,pk,qk->...k", S, axes, axes) for S in (squares, expected)))).max()
        threshold = dynamics.stability_threshold(losses, design)
        rows.append([batch_size, rate / threshold, *of_loss, *excess_losses(losses, design, rate), worst])
    return {f"{name}/runs": np.array(rows, dtype=float)}


def second_half(
    losses: dynamics.Quadratics, design: designs.Design, rate: float, num_runs: int, num_steps: int, key: jax.Array
) -> np.ndarray:
    """For every run, δδᵀ averaged over the second half of its steps, shape (num_runs, d, d)."""
    theta, minimum = np.tile(losses.minimum(), (num_runs, 1)), losses.minimum()
    total: Any = 0
    stretches = [num_steps // 2] + [EVERY] * (num_steps // 2 // EVERY)
    for place, length in enumerate(stretches):
        options = {"key": jax.random.fold_in(key, place), "num_runs": num_runs, "num_steps": length, "start": theta}
        theta = np.asarray(dynamics.simulate_steps(losses, design, rate, **options))
        delta = theta - minimum
        total = total + (delta[:, :, None] * delta[:, None] if place else 0)
    return total / (len(stretches) - 1)


def exact_second_half(losses: dynamics.Quadratics, design: designs.Design, rate: float, num_steps: int) -> np.ndarray:
    """The expectation of the same average, from the law after every step."""
    law, minimum = dynamics.step_law(losses, design, rate), losses.minimum()
    state = law.iterate(minimum, num_steps // 2)
    found = []
    for step in range(1, num_steps // 2 // EVERY * EVERY + 1):
        state = law.apply(state)
        if step % EVERY == 0:
            found.append(state.second_moment(minimum))
    return np.mean(found, axis=0)


def thresholds(losses: dynamics.Quadratics, config: Config) -> dict[str, np.ndarray]:
    """η*(M) without and with replacement, and the spectral radius there."""
    N = losses.population_size
    sizes = np.unique(np.round(np.geomspace(1, N, config.num_sizes)).astype(int))
    without = [dynamics.stability_threshold(losses, designs.WithoutReplacement(int(M))) for M in sizes]
    radius = [
        dynamics.step_law(losses, designs.WithoutReplacement(int(M)), eta).spectral_radius()
        for M, eta in zip(sizes, without, strict=True)
    ]
    return {
        "small/threshold": np.array(dynamics.stability_threshold(SMALL, designs.WithoutReplacement(1))),
        "threshold/size": sizes,
        "threshold/without": np.array(without),
        "threshold/with": np.array(
            [dynamics.stability_threshold(losses, designs.WithReplacement(int(M))) for M in sizes]
        ),
        "threshold/radius": np.array(radius),
        "threshold/descent": 2 / np.linalg.eigvalsh(losses.mean_hessian)[-1:],
    }


def scaling(losses: dynamics.Quadratics, config: Config) -> dict[str, np.ndarray]:
    """Excess loss over that of the diffusion with replacement, η/M · tr C/4, along two rules; NaN where unstable."""
    N = losses.population_size
    sizes = np.unique(np.round(np.geomspace(1, N - 1, config.num_sizes)).astype(int))
    trace = np.mean(np.sum(losses.gradients(losses.minimum()) ** 2, axis=1))
    kappas, found = np.array([config.scaling / 100, config.scaling]), {}
    for rule in ("size", "factor"):
        found[f"scaling/{rule}"] = np.array(
            [[scaled(losses, int(M), kappa, rule) * 4 / (kappa * trace) for M in sizes] for kappa in kappas]
        )
    return found | {
        "scaling/sizes": sizes,
        "scaling/kappa": kappas,
        "scaling/unit": kappas[-1:] * trace / 4,
        "scaling/population": np.array(N),
    }


def scaled(losses: dynamics.Quadratics, batch_size: int, kappa: float, rule: str) -> float:
    """The stationary excess loss for η = κM, or η = κ/c_M."""
    design = designs.WithoutReplacement(batch_size)
    factor = float(design.variance_factor(losses.population_size))
    rate = kappa * batch_size if rule == "size" else kappa / factor
    law = dynamics.step_law(losses, design, rate)
    return float(losses.excess_loss(law.stationary().covariance)) if law.spectral_radius() < 1 else np.nan


def check(results: dict[str, np.ndarray]) -> dict[str, Any]:
    """Confirm exact laws by simulated runs, and that approximations and scaling rules fail where they must."""
    return check_runs(results) | check_thresholds(results) | check_scaling(results)


def check_runs(results: dict[str, np.ndarray]) -> dict[str, Any]:
    """Simulated covariances are the exact ones; those of additive noise and of the diffusion are rejected."""
    quarter = results["small/runs"][1, 5:8]
    require(
        np.allclose(quarter, [9 / 17, 1 / 2, 3 / 8], rtol=1e-12, atol=0),
        f"at η = 1/4 got {quarter}, not 9/17, 1/2, 3/8",
    )
    findings = {}
    for name in ("small", "diabetes"):
        _, fraction, loss, error, expected, stationary, additive, diffusion, axes = results[f"{name}/runs"].T
        z = np.abs((loss - expected) / error).max()
        require(z < MAX_Z, f"{name}: the excess loss is {z:.1f} standard errors off")
        require(axes.max() < MAX_Z, f"{name}: a variance is {axes.max():.1f} standard errors off")
        gap = np.abs(expected / stationary - 1).max()
        require(gap < 0.03, f"{name}: runs must be stationary to 3%, got {gap:.1%}")
        far = np.abs(diffusion - loss)[fraction > 0.2] / error[fraction > 0.2]
        require(far.size and far.min() > MAX_Z, f"{name}: the diffusion approximation must be rejected")
        near = np.abs(additive - loss)[fraction > 0.5] / error[fraction > 0.5]
        require(near.size and near.min() > MAX_Z, f"{name}: additive noise must be rejected")
        findings |= {
            f"worst_z_{name}": float(max(z, axes.max())),
            f"z_of_diffusion_{name}": float(far.min()),
            f"z_of_additive_noise_{name}": float(near.min()),
        }
    return findings


def check_thresholds(results: dict[str, np.ndarray]) -> dict[str, Any]:
    """η*(M) is where the spectral radius is 1, rises with M, and is 2/λ_max for all data only."""
    without, replaced, descent = (results[f"threshold/{name}"] for name in ("without", "with", "descent"))
    small = results["small/threshold"]
    require(abs(small - 6 / 7) < 1e-12, f"the threshold of the three quadratics must be 6/7, got {small}")
    off = np.abs(results["threshold/radius"] - 1).max()
    require(off < 1e-9, f"at the threshold the spectral radius must be 1, off by {off:.1e}")
    require(np.all(np.diff(without) > 0), "the threshold must rise with the batch size")
    require(abs(without[-1] / descent[0] - 1) < 1e-9, f"at M = N it must be 2/λ_max = {descent[0]}, got {without[-1]}")
    require(without[0] < descent[0] / 2, "2/λ_max must be rejected as the threshold of single examples")
    require(np.all(replaced[1:] < without[1:]), "with replacement the threshold must be lower")
    return {"threshold_of_one": float(without[0]), "threshold_of_all": float(without[-1])}


def check_scaling(results: dict[str, np.ndarray]) -> dict[str, Any]:
    """Far below the threshold ηc_M is what counts, not η/M; near it neither."""
    sizes, N = results["scaling/sizes"], int(results["scaling/population"])
    slow, fast = results["scaling/size"]
    law = (N - sizes) / (N - 1)
    require(np.abs(slow / law - 1).max() < 0.15, "for small steps the noise along η/M must be that of ηc_M")
    half = sizes > N / 2
    require(np.all(slow[half] < 0.75), "that η/M fixes the noise must be rejected above M = N/2")
    stable = np.flatnonzero(~np.isnan(fast))
    require(len(stable) < len(fast), "linear scaling must lead into instability")
    growth = fast[stable[-1]] / fast[0]
    require(growth > 2, f"noise must grow towards the threshold along η/M, got a factor of {growth:.2f}")
    return {"last_stable_size": int(sizes[stable[-1]]), "growth_along_linear_scaling": float(growth)}


def summarize(findings: dict[str, Any]) -> str:
    """One sentence for the terminal."""
    return (
        f"simulated covariances within {max(findings['worst_z_small'], findings['worst_z_diabetes']):.1f} standard "
        f"errors of the exact ones, those of the diffusion off by {findings['z_of_diffusion_diabetes']:.0f} and more; "
        f"η* rises from {findings['threshold_of_one']:.3f} at M = 1 to {findings['threshold_of_all']:.3f} at M = N; "
        f"linear scaling is unstable beyond M = {findings['last_stable_size']}"
    )


def draw(results: dict[str, np.ndarray]) -> Figure:
    """Three panels: noise against step size, along scaling rules, and the threshold."""
    figure = page(ncols=3, height_to_width_ratio=0.85)
    left, middle, right = figure.subplots(1, 3)
    draw_noise(left, results)
    draw_scaling(middle, results)
    draw_thresholds(right, results)
    return figure


def draw_noise(axes: Any, results: dict[str, np.ndarray]) -> None:
    """Excess loss over that of the diffusion."""
    largest = int(results["diabetes/runs"][:, 0].max())
    shown = (("small", 0, "three quadratics, $M=1$", 1), ("diabetes", 1, f"diabetes, $M={largest}$", largest))
    for name, style, label, size in shown:
        fraction, losses = results[f"{name}/fraction"], results[f"{name}/losses"]
        axes.plot(fraction, losses[:, 0] / losses[:, 2], color=COLORS[style])
        axes.plot(fraction, losses[:, 1] / losses[:, 2], color=COLORS[style], linestyle=(0, (4, 1.5)))
        rows = results[f"{name}/runs"]
        rows = rows[rows[:, 0] == size]
        axes.errorbar(rows[:, 1], rows[:, 2] / rows[:, 7], 2 * rows[:, 3] / rows[:, 7], **points(style), label=label)
    axes.axhline(1, color="black", linewidth=0.8, linestyle=(0, (1, 1)))
    axes.plot([], [], color="black", label="exact")
    axes.plot([], [], color="black", linestyle=(0, (4, 1.5)), label="additive noise")
    axes.plot([], [], color="black", linewidth=0.8, linestyle=(0, (1, 1)), label="diffusion")
    axes.set(xlabel=r"step size $\eta\,/\,\eta^*(M)$", ylabel=r"excess loss $\div$ diffusion's", yscale="log")
    axes.set(ylim=(0.8, 20), xlim=(0, 1))
    axes.set_yticks([1, 2, 5, 10, 20], ["1", "2", "5", "10", "20"])
    axes.minorticks_off()
    axes.legend(loc="upper left", fontsize="small", labelspacing=0.3)


def draw_scaling(axes: Any, results: dict[str, np.ndarray]) -> None:
    """Excess loss in units of the diffusion with replacement, along η ∝ M and η ∝ 1/c_M."""
    sizes = results["scaling/sizes"]
    kappas = results["scaling/kappa"]
    for rule, dash, label in (("size", (0, ()), "{0:g}M"), ("factor", (0, (4, 1.5)), "{0:g}/c_M")):
        for row in (1, 0):
            name = rf"$\eta={label.format(kappas[row])}$"
            axes.plot(sizes, results[f"scaling/{rule}"][row], color=COLORS[row], linestyle=dash, label=name)
    rows, unit = results["diabetes/runs"], results["scaling/unit"]
    rows = rows[[int(np.flatnonzero(rows[:, 0] == size)[0]) for size in np.unique(rows[:, 0])]]
    axes.errorbar(rows[:, 0], rows[:, 2] / unit, 2 * rows[:, 3] / unit, **points(1))
    axes.set(xscale="log", xlabel="batch size $M$ (examples)", ylabel=r"excess loss $\div$ $\kappa\,\mathrm{tr}\,C/4$")
    axes.set(ylim=(0, 5))
    axes.legend(loc="upper right", fontsize="small", labelspacing=0.3, handlelength=1.7, bbox_to_anchor=(1.03, 1))


def draw_thresholds(axes: Any, results: dict[str, np.ndarray]) -> None:
    """The stability threshold against the batch size; inside, how far it is from that of all data."""
    sizes, descent = results["threshold/size"], results["threshold/descent"][0]
    inside = axes.inset_axes((0.5, 0.15, 0.48, 0.29))
    for name, color, dash in (("without", COLORS[0], (0, ())), ("with", COLORS[1], (0, (4, 1.5)))):
        threshold = results[f"threshold/{name}"]
        axes.plot(sizes, threshold, color=color, linestyle=dash, label=f"{name} replacement")
        gap = 1 - threshold / descent
        inside.plot(sizes[gap > 1e-9], gap[gap > 1e-9], color=color, linestyle=dash)
    axes.axhline(descent, color="black", linewidth=0.8, linestyle=(0, (1, 1)))
    axes.text(1, descent + 0.005, r"$2/\lambda_{\max}$", va="bottom", fontsize="small")
    axes.set(
        xscale="log", xlabel="batch size $M$ (examples)", ylabel=r"stability threshold $\eta^*(M)$", ylim=(0, 0.56)
    )
    axes.legend(loc="upper right", bbox_to_anchor=(1, 0.74), fontsize="small")
    inside.set(xscale="log", yscale="log", ylim=(1e-4, 1))
    inside.text(0.04, 0.1, r"$1-\eta^*\lambda_{\max}/2$", fontsize="small", transform=inside.transAxes)
    inside.tick_params(labelsize="small")


def points(style: int) -> dict[str, Any]:
    """Marks of simulated values."""
    return {"color": COLORS[style], "marker": MARKERS[style], "linestyle": "none"}
