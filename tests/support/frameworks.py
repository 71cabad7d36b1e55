"""Models as flax, equinox and haiku build them, for the registry of models: none of these is written for the engine."""

from functools import wraps

import equinox as eqx
import flax.linen as linen
import haiku as hk
import jax
import jax.numpy as jnp
from flax import nnx

from tests.support.models import MODELS, N, cross_entropy, labels, model, normal

KEY = jax.random.key(0)
F64 = jnp.float64


def random_like(params):
    """Parameters of order 1/2 everywhere: the zero biases and unit scales of an initializer hide mistakes."""
    leaves, structure = jax.tree.flatten(params)
    return structure.unflatten(normal(i, *leaf.shape).astype(leaf.dtype) / 2 for i, leaf in enumerate(leaves))


def with_default_promotion(function):
    """The function under JAX's own defaults: flax looks up the type of float64 + float32, haiku multiplies by masks."""

    @wraps(function)
    def call(*arguments):
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            return function(*arguments)

    return call


def images_and_labels(*shape):
    return {"x": normal(100, N, *shape), "y": labels(101, 3, N)}


def sequences(length, vocabulary):
    return {"tokens": labels(102, vocabulary, N, length), "next": labels(103, vocabulary, N, length)}


def token_loss(logits, example):
    return jnp.mean(jax.vmap(cross_entropy)(logits, example["next"]))


# flax linen


class LinenCNN(linen.Module):
    @linen.compact
    def __call__(self, x):
        x = linen.gelu(linen.Conv(6, (3, 3), param_dtype=F64)(x))
        x = linen.avg_pool(x, (2, 2), (2, 2))
        x = linen.Conv(8, (2, 2), strides=2, padding="VALID", feature_group_count=2, param_dtype=F64)(x)
        x = linen.relu(linen.GroupNorm(num_groups=2, param_dtype=F64)(x))
        return linen.Dense(3, param_dtype=F64)(x.reshape(-1))


class LinenBlock(linen.Module):
    width: int
    dropout: float = 0.0

    @linen.compact
    def __call__(self, x):
        mask = linen.make_causal_mask(jnp.ones(x.shape[0]))
        attention = linen.MultiHeadDotProductAttention(2, param_dtype=F64)
        x = x + attention(linen.LayerNorm(param_dtype=F64)(x), mask=mask)
        y = linen.gelu(linen.Dense(2 * self.width, param_dtype=F64)(linen.LayerNorm(param_dtype=F64)(x)))
        return x + linen.Dropout(self.dropout, deterministic=self.dropout == 0)(
            linen.Dense(self.width, param_dtype=F64)(y)
        )


class LinenTransformer(linen.Module):
    @linen.compact
    def __call__(self, tokens):
        table = linen.Embed(15, 14, param_dtype=F64)
        x = LinenBlock(14, dropout=0.5)(table(tokens))
        return table.attend(linen.LayerNorm(param_dtype=F64)(x))


class LinenScanned(linen.Module):
    """Two rematerialized blocks scanned over."""

    @linen.compact
    def __call__(self, x):
        def layer(block, x, _):
            return block(x), None

        scanned = linen.scan(linen.remat(layer), variable_axes={"params": 0}, split_rngs={"params": True}, length=2)
        return scanned(LinenBlock(x.shape[-1]), x, None)[0]


class LinenRNN(linen.Module):
    @linen.compact
    def __call__(self, x):
        return linen.Dense(3, param_dtype=F64)(linen.RNN(linen.GRUCell(8, param_dtype=F64))(x)[-1])


@model("linen_cnn", "linen_rnn")
def linen_classifier(name):
    net, shape, dense = (
        (LinenCNN(), (6, 6, 2), {"Conv_0/kernel"}) if name == "linen_cnn" else (LinenRNN(), (3, 5), set())
    )

    @with_default_promotion
    def loss(params, example):
        return cross_entropy(net.apply(params, example["x"]), example["y"])

    params = random_like(jax.eval_shape(with_default_promotion(net.init), KEY, jnp.zeros(shape)))
    return loss, params, images_and_labels(*shape), dense


ATTENTION_BIASES = {"query/bias", "key/bias", "value/bias"}  # of shape (heads, size)


@model()
def linen_transformer():
    """Tied embeddings, attention, and dropout, whose keys are part of the examples."""
    net = LinenTransformer()

    @with_default_promotion
    def loss(params, example):
        logits = net.apply(params, example["tokens"], rngs={"dropout": example["key"]})
        return token_loss(logits, example)

    params = random_like(jax.eval_shape(with_default_promotion(net.init), KEY, jnp.zeros(3, int)))
    return loss, params, sequences(3, 15) | {"key": jax.random.split(KEY, N)}, ATTENTION_BIASES


@model()
def linen_scanned():
    net = LinenScanned()

    @with_default_promotion
    def loss(params, example):
        return jnp.sum(jnp.tanh(net.apply(params, example["x"])) * example["r"])

    params = random_like(jax.eval_shape(with_default_promotion(net.init), KEY, jnp.zeros((3, 12))))
    batch = {"x": normal(0, N, 3, 12), "r": normal(1, N, 3, 12)}
    return loss, params, batch, ATTENTION_BIASES


# flax nnx


class NnxCNN(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(2, 5, (3, 3), param_dtype=F64, rngs=rngs)
        self.norm = nnx.LayerNorm(5, param_dtype=F64, rngs=rngs)
        self.out = nnx.Linear(5, 3, param_dtype=F64, rngs=rngs)

    def __call__(self, x):
        return self.out(nnx.gelu(self.norm(self.conv(x))).mean((0, 1)))


class NnxTransformer(nnx.Module):
    def __init__(self, rngs):
        self.embed = nnx.Embed(9, 10, param_dtype=F64, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(
            2, 10, qkv_features=8, param_dtype=F64, decode=False, deterministic=True, rngs=rngs
        )
        self.norm = nnx.RMSNorm(10, param_dtype=F64, rngs=rngs)
        self.out = nnx.Linear(10, 9, param_dtype=F64, rngs=rngs)

    def __call__(self, tokens):
        x = self.embed(tokens)
        return self.out(self.norm(x + self.attention(x)))


@model("nnx_cnn", "nnx_transformer")
def nnx_model(name):
    """The parameters are an ``nnx.State``."""
    kind = NnxCNN if name == "nnx_cnn" else NnxTransformer
    definition, params, rest = nnx.split(kind(nnx.Rngs(0)), nnx.Param, ...)

    @with_default_promotion
    def loss(params, example):
        net = nnx.merge(definition, params, rest)
        if name == "nnx_cnn":
            return cross_entropy(net(example["x"]), example["y"])
        return token_loss(net(example["tokens"]), example)

    batch = images_and_labels(5, 4, 2) if name == "nnx_cnn" else sequences(3, 9)
    return loss, random_like(params), batch, {"conv/kernel"} if name == "nnx_cnn" else ATTENTION_BIASES


# equinox


class EquinoxCNN(eqx.Module):
    conv: eqx.nn.Conv2d
    norm: eqx.nn.LayerNorm
    mlp: eqx.nn.MLP

    def __init__(self, keys):
        self.conv = eqx.nn.Conv2d(2, 6, 3, stride=2, padding=1, groups=2, key=keys[0])
        self.norm = eqx.nn.LayerNorm((6, 3, 2))
        self.mlp = eqx.nn.MLP(36, 3, 10, 2, activation=jax.nn.silu, key=keys[1])

    def __call__(self, x):
        return self.mlp(self.norm(self.conv(x)).reshape(-1))


class EquinoxAttention(eqx.Module):
    attention: eqx.nn.MultiheadAttention
    norm: eqx.nn.LayerNorm
    out: eqx.nn.Linear

    def __init__(self, keys):
        self.attention = eqx.nn.MultiheadAttention(2, 8, dropout_p=0.3, key=keys[0])
        self.norm = eqx.nn.LayerNorm(8)
        self.out = eqx.nn.Linear(8, 3, key=keys[1])

    def __call__(self, x, key):
        x = x + self.attention(x, x, x, key=key)
        return self.out(jax.vmap(self.norm)(x).mean(axis=0))


class EquinoxGRU(eqx.Module):
    cell: eqx.nn.GRUCell
    out: eqx.nn.Linear

    def __init__(self, keys):
        self.cell = eqx.nn.GRUCell(4, 8, key=keys[0])
        self.out = eqx.nn.Linear(8, 3, key=keys[1])

    def __call__(self, xs):
        state, _ = jax.lax.scan(lambda state, x: (self.cell(x, state), None), jnp.zeros(8), xs)
        return self.out(state)


EQUINOX = {
    "equinox_cnn": (EquinoxCNN, (2, 6, 4)),
    "equinox_attention": (EquinoxAttention, (3, 8)),
    "equinox_gru": (EquinoxGRU, (3, 4)),
}


@model(*EQUINOX)
def equinox_model(name):
    """The parameters are the arrays of the module, a pytree whose other leaves are None."""
    kind, shape = EQUINOX[name]
    params, static = eqx.partition(kind(jax.random.split(KEY)), eqx.is_inexact_array)

    def loss(params, example):
        net = eqx.combine(params, static)
        keys = (example["key"],) if name == "equinox_attention" else ()
        return cross_entropy(net(example["x"], *keys), example["y"])

    batch = images_and_labels(*shape)
    if name == "equinox_attention":
        batch["key"] = jax.random.split(KEY, N)
    return loss, random_like(params), batch, {"conv", "norm"} if name == "equinox_cnn" else set()


# haiku


def haiku_cnn(x):
    x = jax.nn.gelu(hk.Conv2D(5, 3, rate=2, with_bias=False)(x))
    x = hk.DepthwiseConv2D(2, 2, padding="VALID")(x[None])[0]
    x = hk.dropout(hk.next_rng_key(), 0.3, hk.LayerNorm(-1, True, True)(x))
    return hk.Linear(3)(x.mean((0, 1)))


def haiku_lstm(x):
    cell = hk.LSTM(7)
    states, _ = hk.dynamic_unroll(cell, x, cell.initial_state(None))
    return hk.nets.MLP([6, 3])(states[-1])


@model("haiku_cnn", "haiku_lstm")
def haiku_model(name):
    function, shape = (haiku_cnn, (5, 6, 2)) if name == "haiku_cnn" else (haiku_lstm, (3, 4))
    dense = {"conv2_d", "depthwise_conv2_d"} if name == "haiku_cnn" else set()
    net = hk.transform(function)

    @with_default_promotion
    def loss(params, example):
        return cross_entropy(net.apply(params, example["key"], example["x"]), example["y"])

    params = random_like(jax.eval_shape(with_default_promotion(net.init), KEY, jnp.zeros(shape)))
    return loss, params, images_and_labels(*shape) | {"key": jax.random.split(KEY, N)}, dense


NAMES = [name for name in MODELS if name.startswith(("linen", "nnx", "equinox", "haiku"))]
