"""Random programs of the primitives that have rules: weights through maps that all examples share, then into a net."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

from tests.properties import test_random_shapes
from tests.properties.test_random_shapes import N, check, run, weighted
from tests.support.models import labels, normal

SIDE = 5
FIXED = np.cos(np.arange(SIDE * SIDE)).reshape(SIDE, SIDE)
MASK = FIXED > 0.3
examples = test_random_shapes.examples

SHARED = {  # of a square matrix, and another parameter of the same kind
    "mask": lambda w, v: w * MASK,
    "where": lambda w, v: jnp.where(MASK, 0.0, w),
    "tril": lambda w, v: jnp.tril(w),
    "columns": lambda w, v: w * FIXED[:1],
    "divided": lambda w, v: w / (2 + FIXED),
    "number": lambda w, v: w * 0.7,
    "negated": lambda w, v: -w,
    "transposed": lambda w, v: w.T,
    "reversed": lambda w, v: w[::-1],
    "rolled": lambda w, v: jnp.roll(w, 2, axis=1),
    "reshaped": lambda w, v: jnp.reshape(w.reshape(-1)[::-1], w.shape),
    "times fixed": lambda w, v: w @ FIXED,
    "fixed times": lambda w, v: jnp.asarray(FIXED).T @ w,
    "times another": lambda w, v: w @ v,
    "plus another": lambda w, v: w + v.T,
    "low rank": lambda w, v: w[:, :2] @ v[:2],
    "normalized": lambda w, v: w / jnp.linalg.norm(w, axis=0, keepdims=True),
    "normalized rows": lambda w, v: w / jnp.linalg.norm(w, axis=1, keepdims=True),
    "centered": lambda w, v: w - w.mean(axis=1, keepdims=True),
    "spectrum": lambda w, v: jnp.fft.irfft(jnp.fft.rfft(w, axis=0) * 0.5, SIDE, axis=0),
    "halves exchanged": lambda w, v: jnp.concatenate([w[3:], v[:1], w[1:3]], axis=0),
    "padded": lambda w, v: jnp.pad(w[1:4, 1:3], ((0, 2), (3, 0))),
    "stopped": lambda w, v: jax.lax.stop_gradient(w) * v,
    "doubled": lambda w, v: w + w * v.mean(),
}
LAYERS = {  # of what came before, of an example, and of two weights
    "dense": lambda h, e, w, v: jnp.tanh(h @ w),
    "twice": lambda h, e, w, v: jnp.tanh(jnp.tanh(h @ w) @ w.T),
    "gated": lambda h, e, w, v: jnp.tanh(h @ w) * jax.nn.sigmoid(h @ v),
    "looked up": lambda h, e, w, v: h + w[e["i"][0]],
    "looked up by each": lambda h, e, w, v: h * jax.vmap(lambda i: v[i])(e["i"]).sum(axis=0),
    "one entry": lambda h, e, w, v: h * w[e["i"][0], e["i"][1]],
    "branches": lambda h, e, w, v: jax.lax.cond(h[0] > 0, lambda: jnp.tanh(h @ w), lambda: h * v[e["i"][1]]),
    "switch": lambda h, e, w, v: jax.lax.switch(e["i"][0] % 3, [lambda: h @ w, lambda: jnp.sin(h), lambda: w @ h]),
    "loop": lambda h, e, w, v: jax.lax.scan(lambda s, x: (jnp.tanh(s @ w + x @ v), None), h, e["x"])[0],
    "positions": lambda h, e, w, v: h + jnp.tanh(e["x"] @ w).mean(axis=0),
    "attention": lambda h, e, w, v: h + (jax.nn.softmax((e["x"] @ w) @ (e["x"] @ v).T) @ e["x"])[0],
    "dropped": lambda h, e, w, v: jnp.where(h > 0.1, h @ w, 0.0),
    "of each sign": lambda h, e, w, v: jnp.where(h[0] > 0, 1.0, 0.0) * (h @ w) + h,
}


@st.composite
def programs(draw):
    """For each layer its name, and the maps of its first weight; the second is the other's parameter as it is."""
    maps = st.lists(st.sampled_from(sorted(SHARED)), max_size=3)
    layers = st.lists(st.tuples(st.sampled_from(sorted(LAYERS)), maps, st.integers(0, 1)), min_size=1, max_size=3)
    return (draw(layers),)


def check_program(layers):
    def loss(params, example):
        h = example["h"]
        for name, maps, which in layers:
            w, v = params[which], params[1 - which]
            for each in maps:
                w = SHARED[each](w, v)
            h = LAYERS[name](h, example, w, v)
        return weighted(h)

    params = [normal(0, SIDE, SIDE) / 2, normal(1, SIDE, SIDE) / 2]
    batch = {"h": normal(2, N, SIDE), "x": normal(3, N, 3, SIDE), "i": labels(4, SIDE, N, 2)}
    with jax.numpy_rank_promotion("allow"):
        return check(loss, params, batch)


def test_programs():
    assert {"Dense", "OuterProducts"} <= run(programs(), check_program).keys()
