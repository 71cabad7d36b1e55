"""Every way to be refused by ``monitors``: the exception, its message, and the call that gives it."""

from typing import Any

import jax.numpy as jnp

from jaxsgd import monitors
from tests.support.error_helpers import ONE, Case, G, recomputed


def monitored(monitor: Any, g: Any = G, **extra: Any) -> Any:
    return monitor.update(g.mean(), monitor.init(g.mean()), **extra)


def twice(monitor: Any) -> Any:
    return monitors.readings((monitor.init(ONE), monitor.init(ONE)))


CASES: list[Case] = [
    (
        ValueError,
        "the number of examples must be at most population_size, 2, got 4",
        lambda *_: monitored(monitors.noise_scale(population_size=2), per_example_gradients=G),
    ),
    (ValueError, "every must be at least 1, got 0", lambda *_: monitors.noise_scale(every=0)),
    (ValueError, "decay must be at least 0 and below 1, got 1.0", lambda *_: monitors.noise_scale(decay=1.0)),
    (ValueError, "num_groups must be at least 2, got 1", lambda *_: monitors.two_batch_noise_scale(num_groups=1)),
    (
        ValueError,
        "per_example_gradients must be given to update for monitors.noise_scale: … monitors.observed … "
        "state = monitors.observe(state, per_example_gradients=...)",
        lambda *_: monitored(monitors.noise_scale()),
    ),
    (
        ValueError,
        "full_gradient must be given to update for monitors.full_gradient_cosine",
        lambda *_: monitors.observe(monitors.full_gradient_cosine().init(ONE), per_example_gradients=G),
    ),
    (
        TypeError,
        "per_example_gradients must be what jaxsgd.per_example_gradients(loss_fn)(params, batch) gives, or a function "
        "without arguments that does, got PyTreeDef({'w': *})",
        lambda *_: monitors.observe(monitors.noise_scale().init(ONE), per_example_gradients={"w": jnp.ones((4, 2))}),
    ),
    (
        ValueError,
        "state must hold the state of a monitor, as … of a flax.nnx.Optimizer it is opt_state; got PyTreeDef((*, *))",
        lambda *_: monitors.readings((ONE, ONE)),
    ),
    (
        ValueError,
        "state must hold the state of a monitor, as … got PyTreeDef(*)",
        lambda *_: monitors.observe(ONE, per_example_gradients=G),
    ),
    (
        ValueError,
        "where must accept at least one parameter, got none",
        lambda *_: monitored(monitors.noise_scale(where=lambda path: False), per_example_gradients=G),
    ),
    (
        ValueError,
        "where must be None where gradients are computed anew, with a memory_limit",
        lambda *_: monitored(
            monitors.noise_scale(where=lambda path: True), recomputed(), per_example_gradients=recomputed()
        ),
    ),
    (
        ValueError,
        "num_groups must divide a fixed batch size, got 3 for a batch size that is 4",
        lambda *_: monitored(monitors.two_batch_noise_scale(num_groups=3), per_example_gradients=G),
    ),
    (
        ValueError,
        "group_size must be given to two_batch_noise_scale with group_gradients",
        lambda *_: monitored(monitors.two_batch_noise_scale(), group_gradients=G.materialize()),
    ),
    (
        ValueError,
        "population_size must be at least 1, got 0",
        lambda *_: monitors.noise_scale(population_size=0),
    ),
    (
        ValueError,
        "confidence_level must be … got 1.0",
        lambda *_: monitors.two_batch_noise_scale(confidence_level=1.0),
    ),
    (
        ValueError,
        "by must be prefixes of names of parameters, such as … got 'encoder'",
        lambda *_: monitors.noise_scale(by=["encoder"]).init({"w": ONE}),
    ),
    (
        ValueError,
        "by must be None where gradients are computed anew, with a memory_limit",
        lambda *_: monitored(monitors.noise_scale(by=1), recomputed(), per_example_gradients=recomputed()),
    ),
    (ValueError, "name must tell monitors apart, got 'noise_scale' twice", lambda *_: twice(monitors.noise_scale())),
]
