"""Parts of transformers, and a whole one, for the registry of models."""

import jax
import jax.numpy as jnp

from tests.support.models import N, cross_entropy, labels, model, normal


def layer_norm(x, scale, shift):
    centered = x - x.mean(-1, keepdims=True)
    return centered * jax.lax.rsqrt((centered**2).mean(-1, keepdims=True) + 1e-5) * scale + shift


@model("layer_norm", "rms_norm")
def norms(name):
    def loss(params, example):
        x = example["x"]
        if name == "layer_norm":
            x = layer_norm(x, params["scale"][None], params["shift"][None])
        else:
            x = x * jax.lax.rsqrt((x**2).mean(-1, keepdims=True) + 1e-5) * params["scale"][None]
        return jnp.sum(jnp.tanh(x @ params["w"]) ** 2)

    params = {"w": normal(0, 6, 8), "scale": normal(1, 6), "shift": normal(2, 6)}
    return loss, params, {"x": normal(3, N, 2, 6)}, set()


@model("attention", "grouped_query_attention")
def attention(name):
    heads, groups, size, width = 4, 4 if name == "attention" else 2, 5, 9

    def loss(params, example):
        x = example["x"]
        q = jnp.einsum("td,dhk->thk", x, params["q"])
        k, v = (jnp.einsum("td,dhk->thk", x, params[name]) for name in "kv")
        k, v = (jnp.repeat(array, heads // groups, axis=1) for array in (k, v))
        scores = jnp.einsum("thk,shk->hts", q, k) / 5**0.5
        mask = jnp.tril(jnp.ones(scores.shape[1:], bool))[None] & (example["seen"][None, None, :] > 0)
        weights = jax.nn.softmax(jnp.where(mask, scores, -1e9), axis=-1)
        return jnp.sum(jnp.einsum("hts,shk,hkd->td", weights, v, params["o"]) ** 2)

    params = {"q": normal(0, width, heads, size), "o": normal(1, heads, size, width)}
    params |= {"k": normal(2, width, groups, size), "v": normal(3, width, groups, size)}
    batch = {"x": normal(4, N, 3, width), "seen": labels(5, 2, N, 3).at[:, 0].set(1)}
    return loss, params, batch, set()


@model("gpt", "gpt_scanned")
def gpt(name):
    """Three blocks: embeddings, attention, LayerNorm, an MLP, residual connections, a tied output layer."""
    width, vocabulary, length = 16, 17, 3

    def block(x, w):
        y = layer_norm(x, w["scale1"][None], w["shift1"][None])
        q, k, v = (part.reshape(length, 2, width // 2) for part in jnp.split(y @ w["qkv"], 3, axis=-1))
        scores = jnp.einsum("thk,shk->hts", q, k) / (width / 2) ** 0.5
        scores = jnp.where(jnp.tril(jnp.ones((length, length), bool))[None], scores, -1e9)
        mixed = jnp.einsum("hts,shk->thk", jax.nn.softmax(scores, -1), v).reshape(length, width)
        x = x + mixed @ w["out"]
        return x + jax.nn.gelu(layer_norm(x, w["scale2"][None], w["shift2"][None]) @ w["up"]) @ w["down"]

    def loss(params, example):
        x = params["table"][example["tokens"]] + params["positions"]
        if name == "gpt_scanned":
            x = jax.lax.scan(lambda x, w: (jax.checkpoint(block)(x, w), None), x, params["blocks"])[0]
        else:
            for w in params["blocks"]:
                x = block(x, w)
        logits = layer_norm(x, params["scale"][None], params["shift"][None]) @ params["table"].T
        return jnp.mean(jax.vmap(cross_entropy)(logits, example["next"]))

    def weights(seed):
        shapes = {
            "qkv": (width, 3 * width),
            "out": (width, width),
            "up": (width, 4 * width),
            "down": (4 * width, width),
        }
        matrices = {key: normal(seed + i, *shape) / width**0.5 for i, (key, shape) in enumerate(shapes.items())}
        return matrices | {key: normal(seed + 9, width) for key in ("scale1", "shift1", "scale2", "shift2")}

    blocks = [weights(10 * i) for i in range(3)]
    if name == "gpt_scanned":
        blocks = jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)
    params = {"table": normal(50, vocabulary, width), "positions": normal(51, length, width), "blocks": blocks}
    params |= {"scale": normal(52, width), "shift": normal(53, width)}
    batch = {"tokens": labels(54, vocabulary, N, length), "next": labels(55, vocabulary, N, length)}
    return loss, params, batch, {"positions"}
