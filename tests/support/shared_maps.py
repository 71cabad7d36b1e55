"""Losses whose weights go through maps that all examples share, look-ups of every kind, and branches: more models."""

import jax
import jax.numpy as jnp

from tests.support.models import N, labels, model, normal

MASK = jnp.asarray([[(3 * i + 5 * j) % 7 < 4 for j in range(9)] for i in range(8)])
VECTORS = {"x": normal(1, N, 8)}


@model(
    "masked", "masked_by_where", "masked_positions", "masked_transposed", "masked_twice", "scaled_columns", "divided"
)
def masked(name):
    """Weights times an array that is no parameter, or where it says so: pruning, autoregressive masks, fixed scales."""
    mask, columns = MASK.astype(float), jnp.linspace(0.5, 2.0, 9)
    maps = {
        "masked": lambda w: w * mask,
        "masked_by_where": lambda w: jnp.where(MASK, w, 0.0),
        "masked_positions": lambda w: w * mask,
        "masked_transposed": lambda w: (w.T * mask.T).T[::-1],
        "masked_twice": lambda w: jnp.where(MASK, 0.0, mask.at[0].set(2.0) * w),
        "scaled_columns": lambda w: w * columns[None] * jnp.arange(1.0, 9.0)[:, None],
        "divided": lambda w: w / (1 + mask),
    }

    def loss(params, example):
        return jnp.sum(jnp.tanh(example["x"] @ maps[name](params["w"])) ** 2)

    size = (20,) if name == "masked_positions" else ()
    return loss, {"w": normal(0, 8, 9)}, {"x": normal(1, N, *size, 8)}, {"w"} if size else set()


def rounds_its_gradient(rounded):
    """The identity, whose gradient is a function of what comes."""
    identity = jax.custom_vjp(lambda w: w)
    identity.defvjp(lambda w: (w, None), lambda _, g: (rounded(g),))
    return identity


@model("gradient_to_integers", "gradient_to_signs", "look_up_to_integers", "reduced_precision", "narrow_and_back")
def rounded(name):
    """Gradients that are rounded on the way, which products of what they are made of do not know."""
    maps = {
        "gradient_to_integers": rounds_its_gradient(lambda g: (10 * g).astype(int).astype(g.dtype)),
        "gradient_to_signs": rounds_its_gradient(lambda g: (g > 0.1).astype(bool).astype(g.dtype)),
        "look_up_to_integers": rounds_its_gradient(lambda g: (10 * g).astype(int).astype(g.dtype)),
        "reduced_precision": lambda w: jax.lax.reduce_precision(w, 4, 3),
        "narrow_and_back": lambda w: w.astype(jnp.float16).astype(w.dtype),
    }

    def loss(params, example):
        w = maps[name](params["w"])
        return jnp.sum(jnp.tanh(w[example["i"]] if name == "look_up_to_integers" else example["x"] @ w) ** 3)

    return loss, {"w": normal(0, 8, 9)}, VECTORS | {"i": labels(3, 8, N, 2)}, {"w"}


@model("parts_of_every_sign")
def parts(name):
    """Weights whose positive and negative parts meet the same example: more to keep than their gradient."""

    def loss(params, example):
        w, x = params["w"], example["x"]
        return jnp.sum(jnp.tanh(x @ jax.nn.relu(w)) + jnp.sin(x @ jnp.abs(w)) + x @ jnp.minimum(w, 0.1))

    return loss, {"w": normal(0, 8, 9)}, {"x": normal(1, N, 8)}, {"w"}


@model("masked_recurrence", "masked_scan")
def masked_loops(name):
    """A mask inside a loop, and one outside of it."""
    mask = (jnp.arange(36).reshape(6, 6) % 3 > 0).astype(float)

    def loss(params, example):
        outside = params["w"] * mask if name == "masked_scan" else params["w"]

        def step(h, x):
            w = outside if name == "masked_scan" else params["w"] * mask
            return jnp.tanh(h @ w + x), None

        return jnp.sum(jax.lax.scan(step, jnp.zeros(6), example["x"])[0])

    return loss, {"w": normal(0, 6, 6) / 2}, {"x": normal(1, N, 2, 6)}, set()


@model("low_rank", "low_rank_transposed", "product_of_three", "einsum_of_two", "merged_adapter")
def products(name):
    """Weights that are multiplied with each other, or with fixed ones, before they meet an example."""
    fixed = normal(9, 9, 8)

    def loss(params, example):
        a, b, x = params["a"], params["b"], example["x"]
        w = {
            "low_rank": lambda: a @ b,
            "low_rank_transposed": lambda: (b.T @ a.T).T,
            "product_of_three": lambda: a @ params["c"] @ b,
            "einsum_of_two": lambda: jnp.einsum("ir,ro->io", a, b),
            "merged_adapter": lambda: fixed + 0.5 * (a @ b),
        }[name]()
        return jnp.sum(jnp.tanh(x @ w) ** 2)

    params = {"a": normal(0, 9, 2), "b": normal(2, 2, 8)}
    params |= {"c": normal(3, 2, 2)} if name == "product_of_three" else {}
    return loss, params, {"x": normal(1, N, 9)}, set()


@model(
    "weight_norm",
    "normalized_rows",
    "normalized_whole",
    "normalized_positions",
    "standardized",
    "along_itself",
    "number_times_itself",
)
def normalized(name):
    """Weights divided by a norm of themselves, from which a part of every gradient is taken away; or all of it."""

    def loss(params, example):
        v, x = params["v"], example["x"]
        if name in ("weight_norm", "normalized_positions"):
            w = v * (params["g"] / jnp.linalg.norm(v, axis=0))[None]
        elif name == "normalized_rows":
            w = v / jnp.linalg.norm(v, axis=1, keepdims=True)
        elif name == "normalized_whole":
            w = params["g"][0] * v / jnp.sqrt(jnp.sum(v**2))
        elif name == "standardized":
            w = v - v.mean(axis=0, keepdims=True)
        elif name == "number_times_itself":
            return jnp.sum(jnp.tanh(x)) * jnp.sum(v**2)
        else:  # of x along the first column, where all but a thousandth of the gradient disappears
            w, x = v / jnp.linalg.norm(v, axis=0, keepdims=True), jax.lax.stop_gradient(v[:, 0]) + 1e-3 * x
            return jnp.tanh((x @ w)[0])
        return jnp.sum(jnp.tanh(x @ w) ** 2)

    size = (20,) if name == "normalized_positions" else ()
    params = {"v": normal(0, 8, 9)} | ({"g": normal(2, 9)} if "norm" in name and name != "normalized_rows" else {})
    return loss, params, {"x": normal(1, N, *size, 8)}, {"v"} if size else set()


@model("stacked_weights", "split_weights", "gates")
def put_together(name):
    """Weights that are put together or taken apart before they meet an example."""

    def loss(params, example):
        x = example["x"]
        if name == "stacked_weights":
            w = jnp.concatenate([params["u"], 2 * params["v"]], axis=1)
            return jnp.sum(jnp.tanh(x @ w)[::2])
        if name == "split_weights":
            q, k = jnp.split(params["w"], [3], axis=1)
            return jnp.sum(jnp.tanh(x @ q)) * jnp.sum(jnp.tanh(x @ k))
        w, b = jnp.concatenate([params["u"], params["v"]], axis=0), params["b"]
        i, f = jnp.split(jnp.concatenate([x, jnp.tanh(x)]) @ w + b, 2)
        return jnp.sum(jnp.tanh(i) * jax.nn.sigmoid(f))

    params = {
        "stacked_weights": {"u": normal(0, 8, 4), "v": normal(2, 8, 5)},
        "split_weights": {"w": normal(0, 8, 9)},
        "gates": {"u": normal(0, 8, 6), "v": normal(2, 8, 6), "b": normal(3, 6)},
    }[name]
    return loss, params, VECTORS, set()


@model("complex_examples", "complex_weights", "fourier")
def complex_numbers(name):
    """Real parameters of complex products: of spectral layers, and of complex data."""

    def loss(params, example):
        x = jax.lax.complex(example["x"], jnp.roll(example["x"], 1))
        if name == "complex_examples":
            return jnp.sum(jnp.abs(x @ params["r"].astype(x.dtype)) ** 2)
        w = jax.lax.complex(params["r"], params["i"])
        if name == "complex_weights":
            return jnp.sum(jnp.abs(jnp.tanh(x @ w.conj())))
        return jnp.sum(jnp.tanh(jnp.fft.irfft(jnp.fft.rfft(example["x"], 14) @ w, 16)) ** 2)

    params = {"r": normal(0, 8, 9), "i": normal(2, 8, 9)} if name != "complex_examples" else {"r": normal(0, 8, 9)}
    return loss, params, VECTORS, set()


@model("upsampled", "upsampled_valid", "upsampled_1d", "upsampled_uneven", "upsampled_dilated")
def transposed_convolutions(name):
    """Convolutions whose input is spread out, as decoders have them: with strides below one, and uneven ones."""
    rank = 1 if name == "upsampled_1d" else 2
    strides = {"upsampled_uneven": (3, 2), "upsampled_1d": (3,)}.get(name, (2,) * rank)
    padding = {"upsampled_valid": "VALID", "upsampled_uneven": [(2, 1), (0, 3)]}.get(name, "SAME")
    dilation = (2, 1) if name == "upsampled_dilated" else None
    numbers = ("NWC", "WIO", "NWC") if rank == 1 else ("NHWC", "HWIO", "NHWC")

    def loss(params, example):
        y = jax.lax.conv_transpose(
            example["x"], params["w"], strides, padding, rhs_dilation=dilation, dimension_numbers=numbers
        )
        return jnp.sum(jnp.tanh(y) ** 2 * jnp.arange(1.0, y.size + 1, dtype=y.dtype).reshape(y.shape))

    places, kernel = ((4,), (5,)) if rank == 1 else ((2, 2), (3, 4))
    return loss, {"w": normal(0, *kernel, 9, 8)}, {"x": normal(1, N, 1, *places, 9)}, set()


@model("vmapped_look_up", "sliced_look_up", "pairs_look_up", "scalar_pairs", "matrix_look_up", "fixed_look_up", "mixed")
def look_ups(name):
    """Rows of a table by every way to say which; some of them outside, and some twice."""

    def loss(params, example):
        t, i, j = params["t"], example["i"], example["j"]
        rows = {
            "vmapped_look_up": lambda: jax.vmap(lambda i: t[i])(i),
            "sliced_look_up": lambda: jax.lax.dynamic_slice_in_dim(t, i[0], 3),
            "pairs_look_up": lambda: t[i, j],
            "scalar_pairs": lambda: t[i[0], j[0]],
            "matrix_look_up": lambda: t[i],
            "fixed_look_up": lambda: t[jnp.asarray([2, 2, 5])] * example["x"][:3],
            "mixed": lambda: jnp.concatenate([t[i, j], t[j[0], i[:2] % 3]]),
        }[name]()
        return jnp.sum(jnp.tanh(rows) ** 2 * jnp.arange(1.0, rows.size + 1, dtype=rows.dtype).reshape(rows.shape))

    shape = {"pairs_look_up": (9, 7, 8), "scalar_pairs": (9, 7, 8), "matrix_look_up": (9, 4, 3), "mixed": (9, 7, 8)}
    batch = {"i": labels(2, 9, N, 4).at[0, 0].set(-1), "j": labels(3, 7, N, 4), "x": normal(4, N, 8, 8)}
    return loss, {"t": normal(0, *shape.get(name, (9, 8)))}, batch, set()


@model("switch", "cond_of_two_layers", "cond_in_a_loop", "cond_divides", "cond_looks_up")
def branches(name):
    """Weights of the branch that is taken, whose gradient is zero, or not even finite, in the others."""

    def loss(params, example):
        x, w, v = example["x"], params["w"], params["v"]
        if name == "switch":
            kinds = [lambda: jnp.sum(jnp.tanh(x @ w)), lambda: jnp.sum((x @ v) ** 2), lambda: jnp.sum(x)]
            return jax.lax.switch(example["i"] % 3, kinds)
        if name == "cond_of_two_layers":
            return jax.lax.cond(x[0] > 0, lambda: jnp.tanh(jnp.tanh(x @ w) @ v), lambda: (x @ v) @ w).sum()
        if name == "cond_divides":
            return jax.lax.cond(x[0] > 0, lambda: jnp.sum(x @ (w / x[0])), lambda: jnp.sum(jnp.tanh(x @ v)))
        if name == "cond_looks_up":
            return jax.lax.cond(x[0] > 0, lambda: jnp.sum(w[example["i"]] ** 2), lambda: jnp.sum(w[2] * v[3]))

        def step(h, t):
            return jax.lax.cond(t % 2 == 0, lambda: jnp.tanh(h @ w), lambda: jnp.tanh(h @ v)), None

        return jnp.sum(jax.lax.scan(step, x, jnp.arange(3))[0])

    params = {"w": normal(0, 8, 8), "v": normal(2, 8, 8)}
    return loss, params, VECTORS | {"i": labels(3, 8, N)}, set()


@model()
def unrolled():
    """The same weights in more equations than Python nests calls."""

    def loss(params, example):
        h = example["x"]
        for _ in range(600):
            h = jnp.tanh(h @ params["w"])
        return jnp.sum(h)

    return loss, {"w": normal(0, 8, 8) / 2}, VECTORS, {"w"}


@model()
def choice_of_platforms():
    """A choice that is compiled for one platform only."""

    def loss(params, example):
        x = example["x"]
        return jnp.sum(
            jax.lax.platform_dependent(x, cpu=lambda x: jnp.tanh(x @ params["w"]), default=lambda x: x @ params["w"])
        )

    return loss, {"w": normal(0, 8, 9)}, VECTORS, {"w"}
