"""The mean loss of any model, and the models of the speed experiments: plain JAX, random float32 weights and data."""

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsgd import Problem

VOCABULARY = 256


def mean_loss(loss_fn: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """The loss of a batch that is the mean of its examples' losses."""
    return lambda params, data: jnp.mean(jax.vmap(loss_fn, (None, 0))(params, data))


def mlp(sizes: tuple[int, ...], count: int) -> Problem:
    """A fully connected ReLU network with the given layer sizes."""
    draw = Draw()
    params = [{"w": draw.matrix(i, o), "b": draw.zeros(o)} for i, o in itertools.pairwise(sizes)]
    return Problem(_mlp_loss, params, {"x": draw.normal(count, sizes[0]), "y": draw.labels(sizes[-1], count)})


def cnn(count: int) -> Problem:
    """Two 5 × 5 convolutions (32, 64) with pooling and a dense layer of 128, on 28 × 28 images."""
    return _convolutional((28, 28, 1), ((5, 32), (5, 64)), (128, 10), count)


def cnn_3c3d(count: int) -> Problem:
    """Three convolutions (64, 96, 128) with pooling and dense layers of 512 and 256, on 32 × 32 × 3 images."""
    return _convolutional((32, 32, 3), ((5, 64), (3, 96), (3, 128)), (512, 256, 10), count)


def gpt(
    length: int, count: int, *, scanned: bool, width: int = 128, num_blocks: int = 3, vocabulary: int = VOCABULARY
) -> Problem:
    """A GPT with tied embeddings; blocks unrolled, or stacked and scanned over."""
    draw = Draw()
    blocks: Any = [_block_params(draw, width) for _ in range(num_blocks)]
    if scanned:
        blocks = jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)
    params = {
        "table": 0.02 * draw.normal(vocabulary, width),
        "positions": 0.02 * draw.normal(length, width),
        "blocks": blocks,
        "norm": _norm_params(draw, width),
    }
    tokens = draw.labels(vocabulary, count, length + 1)
    return Problem(partial(_gpt_loss, scanned), params, {"tokens": tokens[:, :-1], "next": tokens[:, 1:]})


class Draw:
    """Random arrays, the same in every run."""

    def __init__(self) -> None:
        self._generator = np.random.default_rng(0)

    def normal(self, *shape: int) -> jax.Array:
        """Standard normal numbers."""
        return jnp.asarray(self._generator.standard_normal(shape, dtype=np.float32))

    def matrix(self, *shape: int) -> jax.Array:
        """Weights with variance 1/fan-in."""
        return self.normal(*shape) / np.float32(np.sqrt(np.prod(shape[:-1])))

    def zeros(self, *shape: int) -> jax.Array:
        """Zeros."""
        return jnp.zeros(shape, jnp.float32)

    def labels(self, high: int, *shape: int) -> jax.Array:
        """Integers below ``high``."""
        return jnp.asarray(self._generator.integers(0, high, shape, dtype=np.int32))


def _cross_entropy(logits: jax.Array, label: jax.Array) -> jax.Array:
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), label[..., None], axis=-1).mean()


def _dense_layers(layers: Any, x: jax.Array) -> jax.Array:
    for layer in layers[:-1]:
        x = jax.nn.relu(x @ layer["w"] + layer["b"])
    return x @ layers[-1]["w"] + layers[-1]["b"]


def _mlp_loss(params: Any, example: Any) -> jax.Array:
    return _cross_entropy(_dense_layers(params, example["x"]), example["y"])


def _convolutional(
    image: tuple[int, int, int], kernels: tuple[tuple[int, int], ...], sizes: tuple[int, ...], count: int
) -> Problem:
    draw, (height, width, channels), convolutions = Draw(), image, []
    for size, features in kernels:
        kernel = draw.matrix(size, size, channels, features)
        convolutions.append({"kernel": kernel, "b": draw.zeros(features)})
        height, width, channels = height // 2, width // 2, features
    inputs = (height * width * channels, *sizes[:-1])
    dense = [{"w": draw.matrix(i, o), "b": draw.zeros(o)} for i, o in zip(inputs, sizes, strict=True)]
    data = {"x": draw.normal(count, *image), "y": draw.labels(sizes[-1], count)}
    return Problem(_cnn_loss, {"convolutions": convolutions, "dense": dense}, data)


def _cnn_loss(params: Any, example: Any) -> jax.Array:
    x = example["x"][None]
    for layer in params["convolutions"]:
        x = jax.lax.conv_general_dilated(x, layer["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        x = jax.nn.relu(x + layer["b"])
        x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    return _cross_entropy(_dense_layers(params["dense"], x.reshape(-1)), example["y"])


def _norm_params(draw: Draw, width: int) -> dict[str, jax.Array]:
    return {"scale": draw.zeros(width) + 1, "shift": draw.zeros(width)}


def _block_params(draw: Draw, width: int) -> dict[str, Any]:
    return {
        "norm1": _norm_params(draw, width),
        "norm2": _norm_params(draw, width),
        "qkv": draw.matrix(width, 3 * width),
        "out": draw.matrix(width, width),
        "up": draw.matrix(width, 4 * width),
        "down": draw.matrix(4 * width, width),
    }


def _norm(params: Any, x: jax.Array) -> jax.Array:
    centered = x - x.mean(-1, keepdims=True)
    variance = jnp.mean(centered**2, axis=-1, keepdims=True)
    return centered * jax.lax.rsqrt(variance + 1e-5) * params["scale"][None] + params["shift"][None]


def _block(x: jax.Array, params: Any, heads: int = 4) -> jax.Array:
    length, width = x.shape
    projected = _norm(params["norm1"], x) @ params["qkv"]
    q, k, v = (part.reshape(length, heads, width // heads) for part in jnp.split(projected, 3, axis=-1))
    scores = jnp.einsum("thk,shk->hts", q, k) / np.float32(np.sqrt(width // heads))
    scores = jnp.where(jnp.tril(jnp.ones((length, length), bool)), scores, -1e9)
    mixed = jnp.einsum("hts,shk->thk", jax.nn.softmax(scores, axis=-1), v).reshape(length, width)
    x = x + mixed @ params["out"]
    return x + jax.nn.gelu(_norm(params["norm2"], x) @ params["up"]) @ params["down"]


def _gpt_loss(scanned: bool, params: Any, example: Any) -> jax.Array:
    x = params["table"][example["tokens"]] + params["positions"]
    if scanned:
        x = jax.lax.scan(lambda x, block: (_block(x, block), None), x, params["blocks"])[0]
    else:
        for block in params["blocks"]:
            x = _block(x, block)
    return _cross_entropy(_norm(params["norm"], x) @ params["table"].T, example["next"])
