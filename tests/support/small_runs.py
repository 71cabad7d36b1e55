"""A run of SGD that is compiled once, and what it leaves."""

import jax
import numpy as np
import optax

from jaxsgd import designs, training
from tests.support.registry import network

KEY = jax.random.key(0)
PROBLEM, OPTIMIZER = network(), optax.sgd(0.1)  # the same in all tests, compiled once


def run(**options):
    options = {"record_every": 3, "chunk_size": 3} | options
    steps = options.pop("num_steps", 12)
    return training.run_sgd(*PROBLEM, OPTIMIZER, designs.WithoutReplacement(3), steps, KEY, **options)


def same_bits(first, second):
    pairs = zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True)
    return all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in pairs)
