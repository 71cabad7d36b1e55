"""Optimizers whose settings are numbers, for a loss and for a multiple of it, and runs of many of them at once."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxsgd
from jaxsgd import designs, training

Numbers = dict[str, float]
PLAIN: Numbers = {"scale": 1.0, "clip": np.inf, "penalty": 0.0, "momentum": 0.0, "rate": 0.1, "decay": 0.0}
ADAM: Numbers = {"scale": 1.0, "penalty": 0.0, "epsilon": 0.0, "decay": 0.0, "rate": 0.01}
SCALED = {"penalty", "clip", "epsilon"}  # what sets a scale, and with the sum has to be M times as large


def sgd_like(s: Numbers) -> optax.GradientTransformation:
    """SGD on ``scale`` times the loss, with what may set a scale; a decay here is not multiplied by the rate."""
    gradient = optax.scale(s["scale"]), optax.clip_by_global_norm(s["clip"]), optax.add_decayed_weights(s["penalty"])
    step = optax.trace(s["momentum"]), optax.scale(-s["rate"]), optax.add_decayed_weights(-s["decay"])
    return optax.chain(*gradient, *step)


def adam_like(s: Numbers) -> optax.GradientTransformation:
    """Adam on ``scale`` times the loss; a penalty goes through its moments, a decay does not (AdamW)."""
    gradient = optax.scale(s["scale"]), optax.add_decayed_weights(s["penalty"])
    step = optax.scale_by_adam(eps=s["epsilon"]), optax.add_decayed_weights(s["decay"]), optax.scale(-s["rate"])
    return optax.chain(*gradient, *step)


FAMILIES = {"sgd": (sgd_like, PLAIN), "adam": (adam_like, ADAM)}


def for_sum(family: str, numbers: Numbers, factor: float, *, scaled: bool = False) -> Numbers:
    """For a loss ``factor`` times as large: the rate of SGD over it and, if ``scaled``, what sets a scale times it."""
    full = FAMILIES[family][1] | numbers
    slower = {"rate": full["rate"] / factor} if family == "sgd" else {}
    larger = {name: factor * full[name] for name in SCALED & full.keys() if scaled}
    return numbers | {"scale": factor} | slower | larger


def variants(problem: jaxsgd.Problem, family: str, chosen: list[Numbers], M: int, num_steps: int) -> np.ndarray:
    """The parameters after every step of an optimizer with each of several choices, on the same batches.

    Runs with several learning rates are side by side and see the same batches; here the number of a choice is in place
    of the rate. Shape (choices, steps + 1, d).
    """
    make, default = FAMILIES[family]
    columns = {name: jnp.asarray([(default | numbers)[name] for numbers in chosen]) for name in default}
    result = training.run_sgd(
        *problem,
        lambda number: make({name: column[number.astype(int)] for name, column in columns.items()}),
        designs.WithoutReplacement(M),
        num_steps,
        jax.random.key(0),
        learning_rates=np.arange(len(chosen)),
        keep_params_at=range(num_steps + 1),
    )
    leaves = jax.tree.leaves(result.kept_params)
    return np.concatenate([leaf.reshape(len(chosen), num_steps + 1, -1) for leaf in leaves], axis=-1)
