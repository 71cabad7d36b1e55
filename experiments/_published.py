"""The table of the replications: what was published, what is found here, and what was changed."""

from typing import Any

QUADRATICS = "quadratics of one parameter, two kinds; exact; powers of log(nK) from the step size divided out"
NOISY = "from E θ² = 1 to a loss of 0.01; rates and momenta on a grid; exact"
DIGITS = "digits; one hidden layer, plain SGD, two learning rates"


def percent(share: float, digits: int = 0) -> str:
    """As the page writes it."""
    return f"{share:.{digits}%}".replace("%", " %")


def cases(found: Any) -> dict[str, dict[str, str]]:
    """By case, from the other findings; the page quotes them."""
    powers = {name: f"n^{n:.2f} K^{K:.2f}".replace("-", "−") for name, (n, K) in found["exponents_of_n_and_K"].items()}
    plain, tuned = (float(f"{size:.2g}") for size in found["critical_batch_sizes"])
    clusters, k_means = (" to ".join(map(percent, found["left_by"][name])) for name in ("weighted clusters", "k-means"))
    rows = {
        "error of SGD on independent examples (HaoChen & Sra 2019)": ("O(1/(nK))", powers["independent"], QUADRATICS),
        "error with one shuffle (Safran & Shamir 2020; Mishchenko et al. 2020)": (
            "Ω(1/(nK²)); at most the bound",
            f"{powers['shuffled once']}; at most {percent(found['share_of_bound'], 1)} of the bound",
            QUADRATICS,
        ),
        "error with reshuffling (Safran & Shamir 2020; HaoChen & Sra 2019)": (
            "Ω(1/(nK)² + 1/(nK³)); O(1/(nK)² + 1/K³)",
            f"{powers['reshuffled, few epochs']} for few epochs, {powers['reshuffled, many epochs']} for many",
            QUADRATICS,
        ),
        "stationary risk of momentum (Zhang et al. 2019)": (
            "(1 + β) αc/(2B (2β + 2 − αh)(1 − β))",
            "the same to rounding",
            "nothing",
        ),
        "momentum at small batches (Zhang et al. 2019)": (
            "no benefit",
            f"{percent(found['saved_at_one'], 2)} fewer steps at B = 1",
            NOISY,
        ),
        "momentum at large batches (Zhang et al. 2019)": (
            "perfect scaling extends to larger batches",
            f"critical batch size {plain:,.0f} without it, {tuned:,.0f} with; "
            f"at most {found['fewer_steps_at_most']:.0f} times fewer steps",
            NOISY,
        ),
        "one gradient from each cluster (Faghri et al. 2020)": (
            "least variance if clusters are weighted",
            f"{clusters} of the variance at random; k-means {k_means}",
            f"{DIGITS}; clusters found anew at each point, by exchange",
        ),
        "gradient variance along a run (Faghri et al. 2020)": (
            "rises",
            "not found: tr Σ falls to " + " and ".join(map(percent, found["growth_of_trace"])),
            DIGITS,
        ),
        "gradient variance at smaller learning rates (Faghri et al. 2020)": (
            "higher",
            "higher at every point after the start",
            DIGITS,
        ),
        "noise scale of normalization layers (Gray et al. 2024)": (
            "predicts that of all parameters",
            "see layernorm_noise_scale",
            "not repeated here",
        ),
    }
    return {name: dict(zip(("published", "ours", "changed"), row, strict=True)) for name, row in rows.items()}
