"""The recipes of the module's docstring, as shown, for every library of models."""

import inspect
import re
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsgd.report as report_module
from jaxsgd import Problem
from jaxsgd.report import report
from tests.support.frameworks import with_default_promotion


def recipes():
    """The functions shown in the module's docstring, by name."""
    code = textwrap.dedent("\n".join(re.findall(r"^    .*$|^$", report_module.__doc__, re.MULTILINE)))
    return {found[1]: found[0] for found in re.findall(r"(def (\w+)\(.*?)(?=\n\n|\Z)", code, re.DOTALL)}


def surroundings(name):
    """What a user has around a recipe: the model, and the imports."""
    import optax

    space = {"jax": jax, "np": np, "Path": Path, "Problem": Problem}
    space["cross_entropy"] = optax.softmax_cross_entropy_with_integer_labels
    if name == "plain_problem":
        space["init"] = lambda key: {"w": jax.random.normal(key, (4, 3), jnp.float32), "b": jnp.zeros(3, jnp.float32)}
        space["apply"] = lambda params, x: x @ params["w"] + params["b"]
    elif name in ("linen_problem", "dropout_problem", "text_problem"):
        linen = pytest.importorskip("flax.linen")

        class Net(linen.Module):
            @linen.compact
            def __call__(self, x):
                x = linen.tanh(linen.Dense(5)(x))
                x = linen.Dropout(0.5, deterministic=name != "dropout_problem")(x)
                return linen.Dense(3)(x)

        class GPT(linen.Module):
            @linen.compact
            def __call__(self, tokens):
                x = linen.Embed(256, 8)(tokens)
                mask = linen.make_causal_mask(tokens)
                x = x + linen.MultiHeadDotProductAttention(2)(linen.LayerNorm()(x), mask=mask)
                return linen.Dense(256)(linen.LayerNorm()(x))

        net = Net()
        original = net.init
        if name == "dropout_problem":
            object.__setattr__(net, "init", lambda key, x: original({"params": key, "dropout": key}, x))
        space |= {"Net": lambda: net, "GPT": GPT}
    elif name == "nnx_problem":
        nnx = pytest.importorskip("flax.nnx")

        class Net(nnx.Module):
            def __init__(self, rngs):
                self.out = nnx.Linear(4, 3, rngs=rngs)

            def __call__(self, x):
                return self.out(x)

        space |= {"nnx": nnx, "Net": Net}
    elif name == "equinox_problem":
        eqx = pytest.importorskip("equinox")
        space |= {"eqx": eqx, "Net": lambda key: eqx.nn.MLP(4, 3, 5, 1, key=key, dtype=jnp.float32)}
    elif name == "haiku_problem":
        hk = pytest.importorskip("haiku")
        space |= {"hk": hk, "forward": lambda x: hk.nets.MLP([5, 3])(x)}
    return space


def test_recipes_are_short():
    found = recipes()
    assert len(found) == 7
    assert all(len(code.splitlines()) <= 10 for code in found.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", recipes())
def test_recipe(name, tmp_path, monkeypatch):
    """As shown in the docstring, from the loaded data to numbers that equal a plain loop over ``jax.grad``."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    (tmp_path / "corpus.txt").write_bytes(rng.integers(97, 123, 400).astype(np.uint8).tobytes())
    data = {"x": rng.normal(size=(6, 4)).astype(np.float32), "y": np.asarray([0, 1, 2, 0, 1, 1], np.int32)}
    space = surroundings(name)
    exec(recipes()[name], space)
    make = space[name]

    @with_default_promotion
    def run():
        problem = make(*[data][: len(inspect.signature(make).parameters)])
        loss_fn, params, examples = problem
        each = [jax.grad(loss_fn)(params, jax.tree.map(lambda leaf, i=i: leaf[i], examples)) for i in range(6)]
        rows = np.stack([np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(g)]) for g in each]).astype(float)
        return report(problem), rows

    found, rows = run()
    assert found.num_examples == 6
    assert found.check.passed
    trace = ((rows - rows.mean(axis=0)) ** 2).sum() / 6
    assert found.noise_scale == pytest.approx(trace / (rows.mean(axis=0) ** 2).sum(), rel=1e-4)
    assert all(re.fullmatch(r"[\w~./]+", parameter.name) for parameter in found.parameters)
