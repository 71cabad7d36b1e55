"""Batch losses that people write, by kind, and a batch that has what each of them reads."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tests.support.registry import skewed

Loss = Callable[..., Any]


def params(dtype: Any = float) -> Any:
    return {"slope": jnp.asarray([0.3, -0.2, 0.5], dtype), "shift": jnp.asarray(0.1, dtype)}


def batch(n: int = 16, dtype: Any = float) -> Any:
    """Asymmetric inputs and targets, positive weights, two classes, three labels, lengths with a zero, sequences."""
    lengths = np.array([3, 1, 4, 1, 5, 2, 5, 3])[np.arange(n) % 8] - (np.arange(n) == 9)
    return {
        "x": jnp.asarray(skewed(n, 3), dtype),
        "y": jnp.asarray(skewed(n, seed=1), dtype),
        "weight": jnp.asarray(skewed(n, seed=2) + 0.6, dtype),
        "positive": jnp.asarray(np.arange(n) % 3 == 0),
        "label": jnp.asarray((7 * np.arange(n) + 1) % 5 % 3),
        "tokens": jnp.asarray(skewed(n, 5, seed=3), dtype),
        "mask": jnp.asarray(np.arange(5) < lengths[:, None], dtype),
        "key": jax.random.split(jax.random.key(4), n),
    }


def scores(theta: Any, b: Any) -> jax.Array:
    return jnp.tanh(b["x"] @ theta["slope"]) + theta["shift"]


def residuals(theta: Any, b: Any) -> jax.Array:
    return scores(theta, b) - b["y"]


def squares(theta: Any, b: Any) -> jax.Array:
    return residuals(theta, b) ** 2


def penalty(theta: Any) -> jax.Array:
    return 0.3 * jnp.sum(theta["slope"] ** 2)


def cross_entropy(theta: Any, b: Any) -> jax.Array:
    logits = b["x"] * theta["slope"][None] + theta["shift"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, b["label"])


def focal(theta: Any, b: Any) -> jax.Array:
    return optax.sigmoid_focal_loss(scores(theta, b), b["positive"].astype(b["y"].dtype), gamma=2.0)


def token_losses(theta: Any, b: Any) -> jax.Array:
    return b["mask"] * (b["tokens"] * theta["slope"][0] - b["y"][:, None]) ** 2


def pairwise(theta: Any, b: Any, of_pair: Callable[[jax.Array], jax.Array]) -> jax.Array:
    s = scores(theta, b)
    return of_pair(s[:, None] - s[None, :])


def auc(theta: Any, b: Any, hinge: Any = lambda d: (1 - d) ** 2) -> Any:
    """Over pairs of a positive and a negative; 0 if there are none."""
    counted = (b["positive"][:, None] & ~b["positive"][None, :]).astype(b["y"].dtype)
    return jnp.sum(counted * pairwise(theta, b, hinge)) / jnp.maximum(jnp.sum(counted), 1)


def batch_norm(theta: Any, b: Any, epsilon: float = 1e-5) -> Any:
    h = b["x"] @ theta["slope"]
    return jnp.mean(((h - jnp.mean(h)) / jnp.sqrt(jnp.var(h) + epsilon) * theta["shift"] - b["y"]) ** 2)


def info_nce(theta: Any, b: Any) -> Any:
    similarity = (b["x"] * theta["slope"][None]) @ b["tokens"][:, :3].T
    return -jnp.mean(jnp.diagonal(jax.nn.log_softmax(similarity)))


def cvar(theta: Any, b: Any) -> Any:
    """The mean of the larger half."""
    losses = jnp.sort(squares(theta, b))
    return jnp.mean(losses[len(losses) // 2 :])


def dice(theta: Any, b: Any) -> Any:
    p, y = jax.nn.sigmoid(scores(theta, b)), b["positive"].astype(b["y"].dtype)
    return 1 - (2 * jnp.sum(p * y) + 1) / (jnp.sum(p) + jnp.sum(y) + 1)


def ghost_norm(theta: Any, b: Any) -> Any:
    """BatchNorm of groups of two: additive over blocks of even size."""
    h = (b["x"] @ theta["slope"])[: len(b["y"]) // 2 * 2].reshape(-1, 2)
    normal = (h - h.mean(axis=1, keepdims=True)) / jnp.sqrt(h.var(axis=1, keepdims=True) + 0.1)
    return jnp.mean((normal - 2 * theta["shift"]) ** 3)


def mean_over_devices(theta: Any, b: Any) -> Any:
    """One example per device, pmean of the losses inside the differentiated function."""

    def on_device(one: Any) -> jax.Array:
        return jax.lax.pmean(squares(theta, jax.tree.map(lambda leaf: leaf[None], one))[0], "devices")

    return jax.vmap(on_device, axis_name="devices")(b)[0]


def token_mean_over_devices(theta: Any, b: Any) -> Any:
    """The same with sums of tokens: a mean of ratios would be a mean, a ratio of sums is not."""

    def on_device(one: Any) -> jax.Array:
        loss = jnp.sum(token_losses(theta, jax.tree.map(lambda leaf: leaf[None], one)))
        return jax.lax.psum(loss, "devices") / jax.lax.psum(jnp.sum(one["mask"]), "devices")

    return jax.vmap(on_device, axis_name="devices")(b)[0]


def dropout(theta: Any, b: Any, key: jax.Array, *, by_row: bool) -> Any:
    """One mask of features for the whole batch, or one per row."""
    shape = b["x"].shape if by_row else b["x"].shape[1:]
    kept = jax.random.bernoulli(key, 0.5, shape).astype(b["y"].dtype)
    return jnp.mean(squares(theta, b | {"x": b["x"] * jnp.broadcast_to(kept, b["x"].shape)}))


def own_keys(theta: Any, b: Any) -> Any:
    kept = jax.vmap(lambda key: jax.random.bernoulli(key, 0.5, (3,)))(b["key"]).astype(b["y"].dtype)
    return jnp.mean(squares(theta, b | {"x": b["x"] * kept}))


def pairs_mean(theta: Any, b: Any) -> Any:
    n = len(b["y"])
    return jnp.sum(pairwise(theta, b, lambda d: 1 - jnp.cos(d))) / (n * (n - 1))


LOSSES: dict[str, dict[str, Loss]] = {
    "mean": {
        "squares": lambda t, b: jnp.mean(squares(t, b)),
        "with_aux": lambda t, b: (jnp.mean(squares(t, b)), {"residuals": residuals(t, b)}),
        "with_penalty": lambda t, b: jnp.mean(squares(t, b)) + penalty(t),
        "cross_entropy": lambda t, b: jnp.mean(cross_entropy(t, b)),
        "focal": lambda t, b: jnp.mean(focal(t, b)),
        "mean_of_weighted": lambda t, b: jnp.mean(b["weight"] * squares(t, b)),
        "token_mean_of_each_sequence": lambda t, b: jnp.mean(
            jnp.sum(token_losses(t, b), axis=1) / jnp.maximum(jnp.sum(b["mask"], axis=1), 1)
        ),
        "token_sum_of_each_sequence": lambda t, b: jnp.mean(jnp.sum(token_losses(t, b), axis=1)),
        "log_of_product": lambda t, b: jnp.log(jnp.prod(squares(t, b) + 0.5)) / len(b["y"]),
        "pmean": mean_over_devices,
        "own_keys": own_keys,
        "constant": lambda t, b: 0.0 * t["shift"] + 3.0,
        "rockafellar": lambda t, b: t["shift"] + jnp.mean(jax.nn.relu(squares(t, b) - t["shift"])) / 0.5,
    },
    "sum": {
        "squares": lambda t, b: jnp.sum(squares(t, b)),
        "with_penalty": lambda t, b: jnp.sum(squares(t, b)) + penalty(t),
        "over_a_constant": lambda t, b: jnp.sum(squares(t, b)) / 1000,
        "tokens": lambda t, b: jnp.sum(token_losses(t, b)),
        "class_weights": lambda t, b: jnp.sum(jnp.asarray([1.0, 2.0, 5.0], b["y"].dtype)[b["label"]] * squares(t, b)),
    },
    "weighted_sum": {
        "weights_in_the_batch": lambda t, b: jnp.sum(b["weight"] * squares(t, b)) / 50,
        "weights_and_penalty": lambda t, b: jnp.sum(b["weight"] * squares(t, b)) + penalty(t),
        "over_square_root": lambda t, b: jnp.sum(squares(t, b)) / len(b["y"]) ** 0.5,
        "over_one_more": lambda t, b: jnp.sum(squares(t, b)) / (len(b["y"]) + 1),
    },
    "ratio": {
        "weighted_mean": lambda t, b: jnp.sum(b["weight"] * squares(t, b)) / jnp.sum(b["weight"]),
        "token_mean": lambda t, b: jnp.sum(token_losses(t, b)) / jnp.maximum(jnp.sum(b["mask"]), 1),
        "token_mean_with_penalty": lambda t, b: jnp.sum(token_losses(t, b)) / jnp.sum(b["mask"]) + penalty(t),
        "token_mean_over_devices": token_mean_over_devices,
        "class_weighted_mean": lambda t, b: (lambda w: jnp.sum(w * cross_entropy(t, b)) / jnp.sum(w))(
            jnp.asarray([1.0, 2.0, 5.0], b["y"].dtype)[b["label"]]
        ),
        "dice": dice,
        "self_normalized": lambda t, b: jnp.sum(jnp.exp(scores(t, b)) * b["y"]) / jnp.sum(jnp.exp(scores(t, b))),
    },
    "pairwise": {
        "mean_over_pairs": pairs_mean,
        "mean_plus_mean_over_pairs": lambda t, b: pairs_mean(t, b) + jnp.mean(squares(t, b)),
        "sum_over_pairs": lambda t, b: jnp.sum(pairwise(t, b, jnp.cos)),
        "squared_mean": lambda t, b: jnp.mean(residuals(t, b)) ** 2,
        "variance": lambda t, b: jnp.var(residuals(t, b)),
        "product_of_means": lambda t, b: jnp.mean(residuals(t, b)) * jnp.mean(scores(t, b)),
        "centred": lambda t, b: jnp.mean((scores(t, b) - jnp.mean(scores(t, b)) - b["y"]) ** 2),
        "auc": auc,
        "auc_hinge": lambda t, b: auc(t, b, lambda d: jax.nn.relu(1 - 3 * d)),
    },
    "coupled": {
        "batch_norm": batch_norm,
        "batch_norm_undefined_for_one": lambda t, b: batch_norm(t, b, 0.0),
        "info_nce": info_nce,
        "cvar": cvar,
        "max": lambda t, b: jnp.max(squares(t, b)),
        "log_mean_exp": lambda t, b: jax.nn.logsumexp(squares(t, b)) - jnp.log(float(len(b["y"]))).astype(b["y"].dtype),
        "product": lambda t, b: jnp.prod(squares(t, b) + 0.5),
        "cubed_mean": lambda t, b: jnp.mean(residuals(t, b)) ** 3,
        "ghost_norm": ghost_norm,
        "by_position": lambda t, b: jnp.sum(jnp.arange(1.0, len(b["y"]) + 1).astype(b["y"].dtype) * squares(t, b)),
        "next_row": lambda t, b: jnp.mean((scores(t, b) - jnp.roll(b["y"], 1)) ** 2),
        "mean_and_detached_max": lambda t, b: jnp.mean(squares(t, b)) + jax.lax.stop_gradient(jnp.max(squares(t, b))),
    },
}
