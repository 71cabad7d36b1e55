"""Losses with data: small ones whose answers are exact rational numbers, and real data sets.

Every problem is a :class:`Problem` of ``loss_fn``, ``params`` and ``data``, with arrays in JAX's default float dtype.
The small real data sets come with scikit-learn, and Fashion-MNIST is read where it is installed: nothing is downloaded.
"""

import types
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Num, PyTree

from jaxsgd._core import idx, loss_functions, sums, validate
from jaxsgd._core.meshes import on_any_mesh

__all__ = [
    "ACTIVATIONS",
    "FashionMNIST",
    "Problem",
    "breast_cancer_logistic",
    "diabetes_regression",
    "digits_mlp",
    "fashion_mnist",
    "line_fit",
    "mean_loss",
    "mlp",
    "quadratics",
]

FASHION_MNIST = "/usr/share/datasets/fashion-mnist"  # of Debian's package

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "sigmoid": jax.nn.sigmoid,
    "tanh": jnp.tanh,
    "relu": jax.nn.relu,
}


class _Parts(NamedTuple):
    loss_fn: Callable[[Any, Any], Any]
    params: PyTree
    data: Any


class Problem(_Parts):
    """A loss, where to take its gradient, and the examples: the named tuple ``(loss_fn, params, data)``.

    A fourth argument is an attribute, no member of the tuple, so every problem unpacks into the three that the
    functions of this package take: ``loss_fn, params, data = problem`` and ``check_per_example(*problem)``.

    Attributes:
        loss_fn: ``loss_fn(params, example) -> scalar`` for ONE example.
        params: θ, a pytree of floating-point arrays.
        data: a pytree of arrays with N examples along the first axis of each; where data are streamed, also a source or
            an iterable of batches (see :mod:`jaxsgd.sources`).
        batch_loss_fn: ``batch_loss_fn(params, batch) -> scalar``, if the loss that is trained is written for a batch:
            what ``check_additivity`` takes.

    >>> problem = Problem(min, 1.0, [2.0, 3.0], max)
    >>> _, params, _ = problem
    >>> params, len(problem), problem._replace(params=0.0).batch_loss_fn
    (1.0, 3, <built-in function max>)
    """

    batch_loss_fn: Callable[..., Any] | None

    def __new__(
        cls,
        loss_fn: Callable[[Any, Any], Any],
        params: PyTree,
        data: Any,
        batch_loss_fn: Callable[..., Any] | None = None,
    ) -> "Problem":
        """A problem of three or four parts."""
        self = super().__new__(cls, loss_fn, params, data)
        self.batch_loss_fn = batch_loss_fn
        return self

    def _replace(self, **changes: Any) -> "Problem":
        """A problem with some of the four exchanged."""
        return Problem(**{**self._asdict(), "batch_loss_fn": self.batch_loss_fn, **changes})

    @on_any_mesh
    def take(self, rows: Any) -> "Problem":
        """The same problem with some of its examples, in the order given.

        Args:
            rows: which: integers from 0 to N − 1 (a sequence or an array, with repetitions or without), N booleans, or
                a slice, which follows Python's rules.

        Raises:
            TypeError, ValueError: if the data are no arrays, or if ``rows`` are no such numbers, or none. JAX would
                take the last example for any number that is too large.

        >>> problem = line_fit()
        >>> problem.take([3, 0, 3]).data["x"].tolist(), problem.take(problem.data["y"] > 2).data["x"].tolist()
        ([3.0, 0.0, 3.0], [1.0, 3.0])
        """
        chosen = _chosen(rows, validate.leading_axis(data=self.data))
        return self._replace(data=jax.tree.map(lambda leaf: leaf[chosen], self.data))


@on_any_mesh
def mean_loss(loss_fn: Callable[[Any, Any], Any], params: PyTree, data: PyTree) -> Float[Array, ""]:
    """The mean of the losses of all examples, L̄(θ), from 4096 of them at a time, so that memory does not grow with N.

    Under ``jax.grad`` it does, as JAX keeps what a loss computes on its way.

    Args:
        loss_fn: the loss of ONE example, ``loss_fn(params, example) -> scalar``.
        params: θ, a pytree of floating-point arrays.
        data: a pytree of arrays with N examples along the first axis of each.

    Raises:
        TypeError, ValueError: if an argument is of the wrong kind or shape, or the loss is not one real number.

    >>> float(mean_loss(*line_fit())), jax.grad(mean_loss, argnums=1)(*line_fit())["m"].item()
    (0.75, -1.0)
    """
    validate.floating_leaves(params=params)
    validate.leading_axis(data=data)
    loss_functions.require_scalar(loss_fn, params, data)
    return _mean_loss(loss_fn, params, data)


@partial(jax.jit, static_argnums=0)
def _mean_loss(loss_fn: Callable[[Any, Any], Any], params: PyTree, data: PyTree) -> Float[Array, ""]:
    return sums.mean_of_each(partial(loss_fn, params), data)


def _chosen(rows: Any, length: int) -> np.ndarray:
    """The numbers of the examples that ``rows`` stand for."""
    found = np.arange(length)[rows] if isinstance(rows, slice) else np.asarray(rows)
    if found.ndim != 1 or found.dtype.kind not in "iub":
        raise TypeError(f"rows must be integers, booleans or a slice, got {validate.describe(found)}")
    if found.dtype.kind == "b":
        validate.vector(length, rows=found)
        found = np.flatnonzero(found)
    if found.size == 0:
        raise ValueError("rows must choose at least one example, got none")
    outside = found[(found < 0) | (found >= length)]
    if outside.size:
        raise ValueError(f"rows must lie between 0 and {length - 1}, the last example, got {outside[0]}")
    return found


def line_fit(m: float = 1.0, b: float = 1.0) -> Problem:
    """Least squares for the line y ≈ mx + b through (0, 1), (1, 3), (2, 2), (3, 5), at the given m and b.

    The loss of one example is (y − mx − b)², so ∂L/∂m = −2x(y − mx − b) and ∂L/∂b = −2(y − mx − b): everything
    is a rational number. At (1, 1), ḡ = (−1, −1/2) and tr Σ = 63/4; the minimum is at (11/10, 11/10).
    """
    params = {"m": jnp.asarray(m, float), "b": jnp.asarray(b, float)}
    data = {"x": jnp.asarray([0.0, 1.0, 2.0, 3.0]), "y": jnp.asarray([1.0, 3.0, 2.0, 5.0])}
    return Problem(_line_loss, params, data)


def quadratics() -> Problem:
    """Three quadratics ½ h (θ − c)² of one parameter with h = (1, 2, 3) and c = (3, 0, −1), at θ = 0, their minimum.

    Per-example minima differ, and so do curvatures, so gradients are noisy at the minimum of the mean loss (variance 6)
    and the noise grows away from it: Var h = 2/3, Cov(g, h) = 2. ``dynamics`` solves SGD on it in rational numbers.
    """
    data = {"h": jnp.asarray([1.0, 2.0, 3.0]), "c": jnp.asarray([3.0, 0.0, -1.0])}
    return Problem(_quadratic_loss, jnp.zeros(()), data)


def digits_mlp(*, key: Array, hidden: int = 64, activation: str = "tanh") -> Problem:
    """A 64–hidden–10 network on the 1797 handwritten digits of scikit-learn, with cross-entropy.

    Pixels are scaled to 0..1. See :func:`mlp` for the arguments.
    """
    x, y = _load("digits")
    return mlp(x / 16.0, y, key=key, hidden=hidden, activation=activation)


class FashionMNIST(NamedTuple):
    """70,000 gray images of clothes of 10 kinds: data sets with images ``"x"``, from 0 to 1, and labels ``"y"``.

    Attributes:
        train: 60,000 examples: ``"x"`` of shape (60000, 28, 28) and ``"y"`` of shape (60000,).
        test: 10,000 examples that are not among them.
    """

    train: dict[str, Array]
    test: dict[str, Array]


def fashion_mnist(folder: str | Path | None = None) -> FashionMNIST:
    """Fashion-MNIST from its four files ``{train,t10k}-{images-idx3,labels-idx1}-ubyte.gz``.

    Args:
        folder: where they are; by default where Debian's package ``dataset-fashion-mnist`` puts them.

    Raises:
        FileNotFoundError: if one of the files is not there.
        ValueError: if one is damaged, or not of images of 28 × 28 and as many labels.

    References:
        H. Xiao, K. Rasul, R. Vollgraf, "Fashion-MNIST: a novel image dataset for benchmarking machine learning
        algorithms", arXiv:1708.07747, 2017.
    """
    where = Path(FASHION_MNIST if folder is None else folder)
    return FashionMNIST(*(_images_and_labels(where, part) for part in ("train", "t10k")))


def _images_and_labels(folder: Path, part: str) -> dict[str, Array]:
    paths = [folder / f"{part}-{kind}-ubyte.gz" for kind in ("images-idx3", "labels-idx1")]
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(
                f"Fashion-MNIST is not in {folder}, there is no {path.name}: install Debian's package "
                "dataset-fashion-mnist, or name the folder with the four files that its authors publish"
            )
    images, labels = map(idx.read, paths)
    if images.shape[1:] != (28, 28) or labels.shape != images.shape[:1]:
        raise ValueError(
            f"{paths[0]} must be of images of 28 × 28 and as many labels, got {images.shape}, {labels.shape}"
        )
    return {"x": jnp.asarray(images / np.float32(255), float), "y": jnp.asarray(labels, int)}


def mlp(
    x: Num[np.ndarray, "n ..."],
    y: Num[np.ndarray, "n ..."],
    *,
    key: Array,
    hidden: int = 64,
    activation: str = "tanh",
) -> Problem:
    """A network with one hidden layer on any data: cross-entropy for integer ``y``, ½ squared error for floats.

    Weights start normal with variance 1/fan-in, biases at zero.

    Args:
        x: inputs, shape (N, ...); flattened to (N, d).
        y: labels 0..C−1 of shape (N,) and integer dtype, or real targets of shape (N,) or (N, k).
        key: for the initial weights.
        hidden: width of the hidden layer.
        activation: "sigmoid", "tanh" or "relu".

    Raises:
        TypeError, ValueError: if the arrays differ in length or are empty, a value is not finite, a label is
            negative, or an argument is of the wrong kind.
    """
    validate.random_key(key=key)
    validate.positive_integer(hidden=hidden)
    validate.one_of(tuple(ACTIVATIONS), activation=activation)
    length = validate.leading_axis(data={"x": x, "y": y})
    for name, value in {"x": x, "y": y}.items():
        if value.dtype.kind not in "iuf":
            raise TypeError(f"{name} must be integers or real numbers, got dtype {value.dtype}")
    validate.finite(x=x, y=y)
    inputs = np.reshape(x, (length, -1))
    classify = np.issubdtype(y.dtype, np.integer)
    if classify:
        validate.labels(y=y)
        targets, outputs = y, int(y.max()) + 1
    else:
        targets = np.reshape(y, (length, -1))
        outputs = targets.shape[1]
    first, second = jax.random.split(key)
    params = {
        "hidden": _dense_layer(first, inputs.shape[1], hidden),
        "output": _dense_layer(second, hidden, outputs),
    }
    data = {
        "x": jnp.asarray(inputs, float),
        "y": jnp.asarray(targets, int if classify else float),
    }
    return Problem(_MLP_LOSSES[classify, activation], params, data)


def diabetes_regression() -> Problem:
    """Linear least squares on scikit-learn's diabetes data, 442 examples and 10 features, at θ = 0.

    Features and targets have mean 0 and variance 1 (divisor N); the loss of one example is ½(xᵀθ − y)².
    """
    x, y = _load("diabetes")
    data = {"x": jnp.asarray(_standardize(x), float), "y": jnp.asarray(_standardize(y), float)}
    return Problem(_squared_loss, jnp.zeros(x.shape[1]), data)


def breast_cancer_logistic() -> Problem:
    """Logistic regression on scikit-learn's breast-cancer data, 569 examples and 30 features, at θ = 0.

    Features have mean 0 and variance 1 (divisor N); labels are 0 and 1; the parameters are a weight vector and
    a bias.
    """
    x, y = _load("breast_cancer")
    params = {"w": jnp.zeros(x.shape[1]), "b": jnp.zeros(())}
    data = {"x": jnp.asarray(_standardize(x), float), "y": jnp.asarray(y, float)}
    return Problem(_logistic_loss, params, data)


def _line_loss(params: PyTree, example: PyTree) -> Float[Array, ""]:
    return (example["y"] - params["m"] * example["x"] - params["b"]) ** 2


def _quadratic_loss(params: PyTree, example: PyTree) -> Float[Array, ""]:
    return 0.5 * example["h"] * (params - example["c"]) ** 2


def _squared_loss(params: PyTree, example: PyTree) -> Float[Array, ""]:
    return 0.5 * (example["x"] @ params - example["y"]) ** 2


def _logistic_loss(params: PyTree, example: PyTree) -> Float[Array, ""]:
    logit = example["x"] @ params["w"] + params["b"]
    return optax.sigmoid_binary_cross_entropy(logit, example["y"])


def _mlp_loss(classify: bool, activation: str) -> Callable[[PyTree, PyTree], Float[Array, ""]]:
    def loss_fn(params: PyTree, example: PyTree) -> Float[Array, ""]:
        hidden, output = params["hidden"], params["output"]
        features = ACTIVATIONS[activation](example["x"] @ hidden["w"] + hidden["b"])
        prediction = features @ output["w"] + output["b"]
        if classify:
            return optax.softmax_cross_entropy_with_integer_labels(prediction, example["y"])
        return 0.5 * jnp.sum((prediction - example["y"]) ** 2)

    return loss_fn


# One function object for each kind of network, so that compiled kernels are shared between problems.
_MLP_LOSSES = {
    (classify, activation): _mlp_loss(classify, activation) for classify in (False, True) for activation in ACTIVATIONS
}


def _dense_layer(key: Array, inputs: int, outputs: int) -> dict[str, Array]:
    return {
        "w": jax.random.normal(key, (inputs, outputs)) / jnp.sqrt(float(inputs)),
        "b": jnp.zeros(outputs),
    }


def _standardize(values: np.ndarray) -> np.ndarray:
    return (values - values.mean(axis=0)) / values.std(axis=0)


def _load(name: str) -> tuple[np.ndarray, np.ndarray]:
    x, y = getattr(_datasets(), f"load_{name}")(return_X_y=True)
    return x, y


def _datasets() -> types.ModuleType:
    try:
        from sklearn import datasets
    except ImportError as error:
        raise ImportError("this problem's data comes with scikit-learn: pip install 'jaxsgd[experiments]'") from error
    return datasets
