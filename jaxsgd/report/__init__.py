"""A report on a model and its data: how noisy its gradients are, what batch size that is worth, how far to trust it.

From a terminal, for any function that returns a :class:`jaxsgd.Problem`, without writing code for jaxsgd:

    jaxsgd report my_package.my_module:make_problem --data examples.npz --out folder

which prints a summary and writes ``report.html`` (one page, nothing else needed), ``report.json``, ``variance.npz`` and
the figures as PNG and PDF. Each function below makes a problem of a model of one library, with ``data`` a dict of
arrays ``x`` and ``y``, such as an ``.npz`` holds, and with Optax's ``softmax_cross_entropy_with_integer_labels`` as
``cross_entropy``:

    def plain_problem(data):                                  # functions and a pytree
        def loss_fn(params, example):                         # ONE example, without the batch axis
            return cross_entropy(apply(params, example["x"]), example["y"])
        return Problem(loss_fn, init(jax.random.key(0)), data)

    def linen_problem(data):                                  # flax linen
        net = Net()
        def loss_fn(params, example):
            return cross_entropy(net.apply(params, example["x"]), example["y"])
        return Problem(loss_fn, net.init(jax.random.key(0), data["x"][0]), data)

    def nnx_problem(data):                                    # flax nnx
        definition, params, rest = nnx.split(Net(nnx.Rngs(0)), nnx.Param, ...)
        def loss_fn(params, example):
            return cross_entropy(nnx.merge(definition, params, rest)(example["x"]), example["y"])
        return Problem(loss_fn, params, data)

    def equinox_problem(data):                                # equinox
        params, static = eqx.partition(Net(jax.random.key(0)), eqx.is_inexact_array)
        def loss_fn(params, example):
            return cross_entropy(eqx.combine(params, static)(example["x"]), example["y"])
        return Problem(loss_fn, params, data)

    def haiku_problem(data):                                  # haiku
        net = hk.without_apply_rng(hk.transform(forward))
        def loss_fn(params, example):
            return cross_entropy(net.apply(params, example["x"]), example["y"])
        return Problem(loss_fn, net.init(jax.random.key(0), data["x"][0]), data)

    def dropout_problem(data):                                # the keys are part of the examples
        net = Net()
        def loss_fn(params, example):
            logits = net.apply(params, example["x"], rngs={"dropout": example["key"]})
            return cross_entropy(logits, example["y"])
        keys = jax.random.split(jax.random.key(1), len(data["x"]))
        return Problem(loss_fn, net.init(jax.random.key(0), data["x"][0]), {**data, "key": keys})

    def text_problem():                                       # a language model on windows of 65 bytes
        text = np.frombuffer(Path("corpus.txt").read_bytes(), np.uint8)
        windows = text[: len(text) // 65 * 65].reshape(-1, 65)
        net = GPT()
        def loss_fn(params, window):
            return cross_entropy(net.apply(params, window[:-1]), window[1:]).mean()
        return Problem(loss_fn, net.init(jax.random.key(0), windows[0, :-1]), windows)
"""

from jaxsgd._core.faces import at_home
from jaxsgd.report._batch_loss import BatchLossFindings
from jaxsgd.report._command_line import main
from jaxsgd.report._designs import DesignRow
from jaxsgd.report._findings import ParameterShare
from jaxsgd.report._measure import as_problem, report
from jaxsgd.report._parameters import load_checkpoint, save_checkpoint
from jaxsgd.report._report import Report

__all__ = [
    "BatchLossFindings",
    "DesignRow",
    "ParameterShare",
    "Report",
    "as_problem",
    "load_checkpoint",
    "main",
    "report",
    "save_checkpoint",
]

at_home(__name__, __all__)
