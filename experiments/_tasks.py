"""What is trained where the batch size is at stake: small networks on digits, on clothes and on text, all real data."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PyTree

from experiments import _models, _text
from experiments._claims import MissingDataError
from jaxsgd import problems

LENGTH, WIDTH, NUM_BLOCKS = 8, 16, 1  # of the GPT


@dataclass(frozen=True)
class Task:
    """A problem whose initial weights come from a key, with examples that tell its loss.

    Attributes:
        loss_fn: of one example.
        init: from a key to θ.
        data: that is trained on.
        seen: examples of it that tell the training loss.
        held_out: examples that are not trained on.
    """

    loss_fn: Any
    init: Callable[[Array], PyTree]
    data: PyTree
    seen: PyTree
    held_out: PyTree


@functools.cache
def named(name: str) -> Task:
    """The problem of that name, the same object every time, so that it is compiled once."""
    try:
        return {"digits": digits, "clothes": clothes, "text": text}[name]()
    except FileNotFoundError as error:
        raise MissingDataError(str(error)) from error


def digits(hidden: int = 16) -> Task:
    """A network with one hidden layer on the digits of scikit-learn, every sixth of them held out."""
    loss_fn, _, data = problems.digits_mlp(key=jax.random.key(0), hidden=hidden)
    held_out = np.arange(len(data["y"])) % 6 == 5
    train, test = (jax.tree.map(lambda leaf, rows=rows: leaf[rows], data) for rows in (~held_out, held_out))
    return Task(loss_fn, lambda key: problems.digits_mlp(key=key, hidden=hidden).params, train, train, test)


def clothes(num_seen: int = 2000) -> Task:
    """A network of two convolutions on Fashion-MNIST, all 60,000 images."""
    images = problems.fashion_mnist()
    return Task(
        _clothes_loss, _clothes_params, images.train, _first(images.train, num_seen), _first(images.test, num_seen)
    )


def text(num_seen: int = 1000) -> Task:
    """A GPT of one block on windows of 8 letters of the text that comes with Python, a tenth of them held out."""
    model = _models.gpt(LENGTH, 1, scanned=False, width=WIDTH, num_blocks=NUM_BLOCKS, vocabulary=_text.NUM_SYMBOLS)
    pieces = jnp.asarray(_text.windows(LENGTH), int)
    order = np.random.default_rng(0).permutation(len(pieces))
    train, test = (
        {"tokens": pieces[rows, :-1], "next": pieces[rows, 1:]}
        for rows in (order[len(order) // 10 :], order[: len(order) // 10])
    )

    def init(key: Array) -> PyTree:
        """Other random weights of the same sizes: layers of fan-in 16 or 64, small embeddings."""
        leaves, structure = jax.tree.flatten(model.params)
        keys = jax.random.split(key, len(leaves))
        drawn = [
            leaf if leaf.ndim < 2 else jnp.std(leaf) * jax.random.normal(k, leaf.shape, leaf.dtype)
            for leaf, k in zip(leaves, keys, strict=True)
        ]
        return jax.tree.unflatten(structure, drawn)

    return Task(model.loss_fn, init, train, _first(train, num_seen), _first(test, num_seen))


def _first(data: PyTree, count: int) -> PyTree:
    return jax.tree.map(lambda leaf: leaf[:count], data)


def _clothes_params(key: Array) -> PyTree:
    shapes = {"patches": (16, 8), "windows": (72, 16), "dense": (144, 10)}
    keys = jax.random.split(key, len(shapes))
    return {
        name: {"w": jax.random.normal(k, shape) * np.sqrt(2 / shape[0]), "b": jnp.zeros(shape[1])}
        for (name, shape), k in zip(shapes.items(), keys, strict=True)
    }


def _clothes_loss(params: PyTree, example: PyTree) -> Array:
    """Cross-entropy after convolutions of 4 × 4 with stride 4 and of 3 × 3 with stride 2, as products of patches."""
    patches = example["x"].reshape(7, 4, 7, 4).transpose(0, 2, 1, 3).reshape(7, 7, 16)
    x = _dense(params["patches"], patches)
    shifted = [x[i : i + 5 : 2, j : j + 5 : 2] for i in range(3) for j in range(3)]
    x = _dense(params["windows"], jnp.concatenate(shifted, axis=-1))
    logits = x.reshape(-1) @ params["dense"]["w"] + params["dense"]["b"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, example["y"])


def _dense(layer: PyTree, x: Array) -> Array:
    return jax.nn.relu(x @ layer["w"] + layer["b"])
