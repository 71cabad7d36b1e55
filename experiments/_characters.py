"""Windows of a text, and a small model of its characters, whose gradients are vectors.

The text is Python's own help on its syntax. The model predicts a character from the two before it, by embeddings and
one hidden layer. Windows lie on a circle, so that all of them are alike.
"""

from pydoc_data.topics import topics
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxsgd import problems

LENGTH, SYMBOLS = 32, 64  # characters of a window; the 63 most frequent ones, and one for all others


def windows(count: int, stride: int) -> Any:
    """Windows of the text from every ``stride`` characters on, each with the two characters before it."""
    text = np.array(list("".join(topics.values())))
    symbols, frequencies = np.unique(text, return_counts=True)
    kept = np.sort(symbols[np.argsort(-frequencies, kind="stable")][: SYMBOLS - 1])
    places = np.minimum(np.searchsorted(kept, text), len(kept) - 1)
    codes = np.where(kept[places] == text, places, SYMBOLS - 1)[: count * stride].astype(np.int32)
    places = (np.arange(count)[:, None] * stride + np.arange(-2, LENGTH)) % (count * stride)
    return {"x": jnp.asarray(codes[places])}


def parameters(key: jax.Array, hidden: int) -> Any:
    """Two embeddings, of the last character and of the one before it, and a layer."""
    first, second = jax.random.split(key)
    return {
        "embeddings": 0.5 * jax.random.normal(first, (2, SYMBOLS, hidden), jnp.float32),
        "weights": jax.random.normal(second, (hidden, SYMBOLS), jnp.float32) / hidden**0.5,
        "bias": jnp.zeros(SYMBOLS, jnp.float32),
    }


def loss_fn(params: Any, example: Any) -> Any:
    """Mean cross-entropy of the characters of a window, in float32 at least."""
    x, (last, before) = example["x"], params["embeddings"]
    logits = jnp.tanh(last[x[1:-1]] + before[x[:-2]]) @ params["weights"] + params["bias"][None]
    return optax.softmax_cross_entropy_with_integer_labels(wide(logits), x[2:]).mean()


def mean_gradient(params: Any, batch: Any) -> jax.Array:
    """The gradient of the mean loss as a vector, added up over examples in the dtype of the parameters."""
    return flat(jax.grad(problems.mean_loss, argnums=1)(loss_fn, params, batch))


def flat(tree: Any) -> jax.Array:
    """All coordinates, in float32 at least."""
    return jnp.concatenate([wide(leaf).ravel() for leaf in tree.values()])


def wide(values: jax.Array) -> jax.Array:
    """The same numbers, in float32 if they are in bfloat16."""
    return values.astype(jnp.float32) if values.dtype == jnp.bfloat16 else values


def gradients(params: Any, batch: Any) -> jax.Array:
    """The gradient of every window, each in the dtype of the parameters until it is done, shape (n, p)."""
    return jax.vmap(lambda x: flat(jax.grad(loss_fn)(params, {"x": x})))(batch["x"])


def rounded(key: jax.Array, params: Any) -> Any:
    """Every parameter rounded to one of its two neighbors in bfloat16, at random and without bias.

    A float32 is a bfloat16 and 16 bits more: random ones are added to them, and what carries over rounds up.
    """
    leaves, tree = jax.tree.flatten(params)

    def one(leaf_key: jax.Array, leaf: jax.Array) -> jax.Array:
        noise = jax.random.bits(leaf_key, leaf.shape, jnp.uint16).astype(jnp.uint32)
        bits = (jax.lax.bitcast_convert_type(leaf, jnp.uint32) + noise) & jnp.uint32(0xFFFF0000)
        return jax.lax.bitcast_convert_type(bits, jnp.float32).astype(jnp.bfloat16)

    return tree.unflatten([one(*pair) for pair in zip(jax.random.split(key, len(leaves)), leaves, strict=True)])
