"""Losses of every kind that the engine must be right on, each with parameters, a batch, and what it should find.

Each entry gives ``(loss_fn, params, batch, dense)``: ``dense`` names the parameters with a matrix-sized gradient that
are expected to stay dense. Everything else that has a matrix-sized gradient must be factored, so a rule that stops
applying is noticed.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

N = 5
# Compiling takes most of the time of a test; this halves it.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
MODELS: dict[str, Callable[[], tuple[Any, Any, Any, set[str]]]] = {}


def model(*names: str):
    """Register a function of a name under each name."""

    def register(function):
        for name in names or (function.__name__,):
            MODELS[name] = cache(partial(function, name) if names else function)
        return function

    return register


def normal(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def labels(seed: int, high: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).integers(0, high, shape))


def cross_entropy(logits, label):
    return -jax.nn.log_softmax(logits)[label]


ACTIVATIONS = {"tanh": jnp.tanh, "sigmoid": jax.nn.sigmoid, "relu": jax.nn.relu, "gelu": jax.nn.gelu}


@jax.custom_jvp
def cubed(x):
    return x**3


@cubed.defjvp
def _(primals, tangents):
    return cubed(*primals), 3 * primals[0] ** 2 * tangents[0]


@jax.custom_vjp
def swish(x):
    return x * jax.nn.sigmoid(x)


swish.defvjp(
    lambda x: (swish(x), x),
    lambda x, ct: (ct * (jax.nn.sigmoid(x) * (1 + x * (1 - jax.nn.sigmoid(x)))),),
)


def mlp_parts():
    params = {"w1": normal(0, 6, 7), "b1": normal(1, 7), "w2": normal(2, 7, 3), "b2": normal(3, 3)}
    return params, {"x": normal(4, N, 6), "y": labels(5, 3, N)}


def mlp_loss(activation, params, example, wrap=lambda f: f):
    def layer(w, b, x):
        return activation(x @ w + b)

    hidden = wrap(layer)(params["w1"], params["b1"], example["x"])
    return cross_entropy(hidden @ params["w2"] + params["b2"], example["y"])


@model(*ACTIVATIONS)
def mlp(name):
    return partial(mlp_loss, ACTIVATIONS[name]), *mlp_parts(), set()


@model("custom_jvp", "custom_vjp")
def mlp_custom(name):
    return partial(mlp_loss, cubed if name == "custom_jvp" else swish), *mlp_parts(), set()


@model("inside_jit", "checkpoint", "checkpoint_of_jit")
def mlp_wrapped(name):
    wraps = {"inside_jit": jax.jit, "checkpoint": jax.checkpoint}
    wrap = wraps.get(name, lambda f: jax.checkpoint(jax.jit(f)))
    return partial(mlp_loss, jnp.tanh, wrap=wrap), *mlp_parts(), set()


@model()
def positions():
    """A dense layer applied at several positions, more sides than positions."""
    params, _ = mlp_parts()

    def loss(params, example):
        hidden = jnp.tanh(example["x"] @ params["w1"] + params["b1"][None])
        return jnp.sum(hidden @ params["w2"] * example["r"])

    return loss, params | {"b2": normal(3, 3)}, {"x": normal(4, N, 2, 6), "r": normal(5, N, 2, 3)}, set()


@model()
def many_positions():
    """More positions than sides: the gradients are smaller than their factors."""
    loss, params, _, _ = positions()
    return loss, params, {"x": normal(4, N, 20, 6), "r": normal(5, N, 20, 3)}, {"w1", "w2"}


@model()
def loss_that_vmaps():
    def loss(params, example):
        return jax.vmap(lambda x: jnp.tanh(params["w"] @ x).sum())(example["x"]).mean()

    return loss, {"w": normal(0, 7, 6)}, {"x": normal(1, N, 2, 6)}, set()


@model()
def loss_that_scans_examples():
    def loss(params, example):
        def add(total, x):
            return total + jnp.sum(jnp.tanh(x @ params["w"]) ** 2), None

        return jax.lax.scan(add, jnp.zeros(()), example["x"])[0]

    return loss, {"w": normal(0, 6, 7)}, {"x": normal(1, N, 3, 6)}, set()


@model()
def tied_embedding():
    def loss(params, example):
        hidden = jnp.tanh(params["table"][example["tokens"]] @ params["w"])
        return jnp.sum(jax.vmap(cross_entropy)(hidden @ params["table"].T, example["next"]))

    batch = {"tokens": labels(1, 11, N, 2), "next": labels(2, 11, N, 2)}
    return loss, {"table": normal(0, 11, 13), "w": normal(3, 13, 13)}, batch, set()


@model("embedding", "embedding_take_clip", "embedding_take_fill")
def embedding(name):
    """A table looked up with repeated, negative and (for ``take``) outlying indices."""

    def lookup(table, tokens):
        if name == "embedding":
            return table[tokens]
        return jnp.take(table, tokens, axis=0, mode=name.rsplit("_", 1)[1], fill_value=0)

    def loss(params, example):
        rows = lookup(params["table"], example["tokens"]) + params["positions"]
        return jnp.sum(jnp.tanh(rows) @ params["w"] * example["r"])

    tokens = labels(1, 9, N, 4).at[:, 1].set(-2).at[1, 3].set(8 if name == "embedding" else 12).at[2].set(4)
    batch = {"tokens": tokens, "r": normal(4, N, 4, 9)}
    return loss, {"table": normal(0, 9, 8), "positions": normal(2, 4, 8), "w": normal(3, 8, 9)}, batch, {"positions"}


CONVOLUTIONS = {
    "conv_same": {"window_strides": (1, 1), "padding": "SAME"},
    "conv_valid_strided": {"window_strides": (2, 1), "padding": "VALID"},
    "conv_dilated": {"window_strides": (1, 2), "padding": "VALID", "rhs_dilation": (2, 1)},
    "conv_grouped": {"window_strides": (1, 1), "padding": [(0, 1), (2, 0)], "feature_group_count": 2},
    "conv_depthwise": {"window_strides": (2, 2), "padding": "SAME", "feature_group_count": 4},
    "conv_transposed": {"window_strides": (1, 1), "padding": [(1, 1), (1, 1)], "lhs_dilation": (2, 2)},
}


@model(*CONVOLUTIONS)
def convolution(name):
    options = CONVOLUTIONS[name]

    def loss(params, example):
        out = jax.lax.conv_general_dilated(
            example["x"][None], params["kernel"], dimension_numbers=("NHWC", "HWIO", "NHWC"), **options
        )
        pooled = jax.lax.reduce_window(jnp.tanh(out), 0.0, jax.lax.add, (1, 2, 1, 1), (1, 1, 1, 1), "VALID")
        return jnp.sum(pooled**2)

    kernel = normal(0, 3, 2, 4 // options.get("feature_group_count", 1), 8)
    return loss, {"kernel": kernel}, {"x": normal(1, N, 7, 6, 4)}, {"kernel"}


@model("conv_1d_first_axes", "conv_small_output")
def convolution_layouts(name):
    """Channels first in one dimension; and so few places that the factors are kept."""
    one_dimensional = name == "conv_1d_first_axes"
    numbers = ("NCH", "OIH", "NCH") if one_dimensional else ("NCHW", "OIHW", "NCHW")

    def loss(params, example):
        strides = (1,) if one_dimensional else (1, 1)
        out = jax.lax.conv_general_dilated(
            example["x"][None], params["kernel"], strides, "VALID", dimension_numbers=numbers
        )
        return jnp.sum(jnp.tanh(out) ** 2)

    if one_dimensional:
        return loss, {"kernel": normal(0, 8, 6, 3)}, {"x": normal(1, N, 6, 5)}, set()
    return loss, {"kernel": normal(0, 8, 6, 3, 3)}, {"x": normal(1, N, 6, 4, 3)}, set()


@model("scan_over_layers", "scan_over_layers_checkpoint", "scan_unrolled_reverse")
def scan_over_layers(name):
    def loss(params, example):
        def layer(x, layer):
            return jnp.tanh(x @ layer["w"] + layer["b"][None]), None

        body = jax.checkpoint(layer) if name.endswith("checkpoint") else layer
        options = {"reverse": True, "unroll": 2} if name.endswith("reverse") else {}
        return jnp.sum(jax.lax.scan(body, example["x"], params, **options)[0] ** 2)

    return loss, {"w": normal(0, 3, 8, 8), "b": normal(1, 3, 8)}, {"x": normal(2, N, 2, 8)}, set()


@model("recurrent", "recurrent_embedding")
def recurrent(name):
    """Weights used at every step of a loop, in one of them a table too."""

    def loss(params, example):
        def step(state, x):
            inputs = params["table"][x] if name == "recurrent_embedding" else x @ params["input"]
            return jnp.tanh(state @ params["state"] + inputs), state

        state, states = jax.lax.scan(step, jnp.zeros(16), example["x"])
        return jnp.sum((state @ params["out"]) ** 2) + states.sum()

    params = {"input": normal(0, 9, 16), "state": normal(1, 16, 16), "out": normal(2, 16, 8)}
    if name == "recurrent_embedding":
        return loss, params | {"table": normal(3, 9, 16)}, {"x": labels(4, 9, N, 3)}, set()
    return loss, params, {"x": normal(4, N, 3, 9)}, set()


@model()
def recurrent_layers():
    """A loop over time inside a loop over layers."""

    def loss(params, example):
        def layer(xs, w):
            def step(state, x):
                state = jnp.tanh(state @ w["a"] + x @ w["b"])
                return state, state

            return jax.lax.scan(step, jnp.zeros(9), xs)[1], None

        return jnp.sum(jax.lax.scan(layer, example["x"], params)[0] ** 2)

    return loss, {"a": normal(0, 2, 9, 9), "b": normal(1, 2, 9, 9)}, {"x": normal(2, N, 3, 9)}, set()


@model("used_twice", "used_transposed", "sliced", "scaled", "negated", "reshaped", "cast")
def reused(name):
    def loss(params, example):
        x, w = example["x"], params["w"]
        match name:
            case "used_twice":
                return jnp.sum(jnp.tanh(jnp.tanh(x @ w) @ w))
            case "used_transposed":
                return jnp.sum(jnp.tanh(jnp.tanh(x @ w) @ w.T))
            case "sliced":
                return jnp.sum(jnp.tanh(x[:4] @ w[1:5, ::2]))
            case "scaled":
                return jnp.sum(jnp.tanh(x @ (w * 3.0 / x.sum())))
            case "negated":
                return jnp.sum(jnp.tanh(x @ -w))
            case "reshaped":
                return jnp.sum(jnp.tanh(jnp.einsum("i,ikl->kl", x, w.reshape(8, 2, 4)[::-1])))
            case "cast":
                return jnp.sum(jnp.tanh(x.astype(jnp.float32) @ w.astype(jnp.float32)))

    return loss, {"w": normal(0, 8, 8)}, {"x": normal(1, N, 8)}, set()


@model("weight_normalized", "masked_weight")
def dense(name):
    """Weights that are normalized or masked."""

    def loss(params, example):
        w = params["w"]
        if name == "weight_normalized":
            w = w / jnp.sqrt(jnp.sum(w**2, axis=0, keepdims=True))
        elif name == "masked_weight":
            w = w * jnp.tri(8, dtype=w.dtype)
        return jnp.sum(jnp.tanh(example["x"] @ w))

    return loss, {"w": normal(0, 8, 8)}, {"x": normal(1, N, 8)}, set()


@model("penalized", "penalized_embedding", "penalized_positions")
def penalized(name):
    """A penalty on the weights adds the same to every gradient."""
    size = {"penalized": (), "penalized_embedding": (2,), "penalized_positions": (20,)}[name]

    def loss(params, example):
        rows = params["w"][example["i"]] if name == "penalized_embedding" else example["x"] @ params["w"]
        penalty = 0.1 * jnp.sum(params["w"] ** 2) + jnp.sum(jnp.abs(params["alone"]))
        return jnp.sum(jnp.tanh(rows)) + penalty + jnp.sum(example["x"])

    batch = {"x": normal(1, N, *size, 8), "i": labels(2, 8, N, 2)}
    params = {"w": normal(0, 8, 8), "alone": normal(3, 9, 9)}
    return loss, params, batch, {"w"} if name == "penalized_positions" else set()


@model()
def partly_frozen():
    def loss(params, example):
        frozen = jax.lax.stop_gradient(params["frozen"])
        return jnp.sum(jnp.tanh(jnp.tanh(example["x"] @ frozen) @ params["w"])) * params["scale"]

    params = {"frozen": normal(0, 8, 8), "w": normal(1, 8, 8), "ignored": normal(2, 9, 9)}
    return loss, params | {"scale": jnp.asarray(1.5), "empty": jnp.zeros((0, 3))}, {"x": normal(3, N, 8)}, set()


@model("cond", "while_loop")
def control_flow(name):
    """Branches, and a loop beside the gradient."""

    def loss(params, example):
        x = example["x"]
        if name == "cond":
            return jax.lax.cond(x[0] > 0, lambda: jnp.sum((x @ params["w"]) ** 2), lambda: jnp.sum(x @ params["w"]))
        scale = jax.lax.while_loop(lambda s: s < x[0], lambda s: 2 * s + 1, jnp.zeros(()))
        return jnp.sum(jnp.tanh(x @ params["w"])) * scale

    return loss, {"w": normal(0, 8, 8)}, {"x": normal(1, N, 8)}, set()


@model()
def dropout():
    def loss(params, example):
        hidden = jnp.tanh(example["x"] @ params["w1"])
        kept = jax.random.bernoulli(example["key"], 0.5, hidden.shape)
        return jnp.sum(jnp.where(kept, hidden, 0.0) @ params["w2"])

    params = {"w1": normal(0, 6, 9), "w2": normal(1, 9, 4)}
    return loss, params, {"x": normal(2, N, 6), "key": jax.random.split(jax.random.key(0), N)}, set()
