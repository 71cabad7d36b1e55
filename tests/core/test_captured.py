"""A loss that reads something else than before is another loss; one that does not is compiled once."""

import warnings
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsgd import gradient_moments, per_example_gradients

PARAMS, BATCH = jnp.asarray([1.0, 2.0]), jnp.asarray([[1.0, 0.0], [1.0, 1.0]])
scale = 1.0
table = np.ones(2)


def model(params, x):
    return params @ x


def of_global(params, x):
    return scale * (params @ x) ** 2


def of_array(params, x):
    return (params @ (x * table)) ** 2


@jax.jit
def of_function(params, x):
    return model(params, x) ** 2


def of_functions_around(factor):
    def loss(params, x):
        return factor * (params @ x) ** 2

    def change(value):
        nonlocal factor
        factor = value

    return loss, change


class Model:
    def __init__(self):
        self.scale = 1.0

    def loss(self, params, x):
        return self.scale * (params @ x) ** 2


def changed_closure(monkeypatch):
    del monkeypatch
    loss, change = of_functions_around(1.0)
    return loss, lambda: change(3.0), "factor"


def changed_attribute(monkeypatch):
    del monkeypatch
    owner = Model()
    return owner.loss, lambda: setattr(owner, "scale", 3.0), "self.scale"


def changed_global(name, loss, value):
    def case(monkeypatch):
        return loss, lambda: monkeypatch.setitem(globals(), name, value), name

    return case


def edited(params, x):
    return 3.0 * (params @ x)


CASES = {
    "closure": changed_closure,
    "attribute": changed_attribute,
    "global": changed_global("scale", of_global, 3.0),
    "partial": changed_global("scale", partial(of_global), 3.0),
    "array": changed_global("table", of_array, np.full(2, 3.0)),
}


@pytest.mark.parametrize("case", CASES)
def test_what_changed_is_seen(case, monkeypatch) -> None:
    loss, change, name = CASES[case](monkeypatch)
    before = gradient_moments(loss, PARAMS, BATCH).mean, per_example_gradients(loss)(PARAMS, BATCH).squared_norms()
    change()
    with pytest.warns(UserWarning, match=f"loss_fn reads {name}, which is not what it was"):
        moments = gradient_moments(loss, PARAMS, BATCH)
    norms = per_example_gradients(loss)(PARAMS, BATCH).squared_norms()
    truth = jax.vmap(jax.grad(lambda p, x: loss(p, x)), (None, 0))(PARAMS, BATCH)
    np.testing.assert_allclose(moments.mean, truth.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(norms, (truth**2).sum(axis=1), rtol=1e-12)
    assert not np.allclose(before[1], norms)


def test_an_edited_cell_is_seen() -> None:
    """A function that the loss calls is defined anew, as in a notebook."""
    cells = {"__name__": "__main__"}
    exec("def model(params, x): return params @ x\ndef loss(params, x): return model(params, x) ** 2", cells)
    before = per_example_gradients(cells["loss"])(PARAMS, BATCH).mean()
    exec("def model(params, x): return 3.0 * (params @ x)", cells)
    with pytest.warns(UserWarning, match="loss_fn reads model"):
        after = per_example_gradients(cells["loss"])(PARAMS, BATCH).mean()
    np.testing.assert_allclose(after, 9 * before, rtol=1e-12)


def test_what_stays_is_compiled_once() -> None:
    """Equal numbers are the same; a name of an attribute is not read, and a counter is written."""
    traced, factor, mean = 0, 1.0, 0.0

    def loss(params, x):
        nonlocal traced
        traced += 1
        return factor * (params * x).mean() ** 2

    def change(number):
        nonlocal factor, mean
        factor, mean = float("1.0"), number

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        counts = []
        for number in range(3):
            change(number)
            gradient_moments(loss, PARAMS, BATCH)
            counts.append(traced)
    assert mean == 2
    assert np.diff(counts).tolist() == [1, 1]  # the check of its shapes, at every call


class Settings:
    scale = 1.0


settings = Settings()


class Callable:
    def __init__(self):
        self.scale = 1.0

    def __call__(self, params, x):
        return self.scale * (params @ x) ** 2


def of_attribute(params, x):
    return settings.scale * (params @ x) ** 2


def of_helper(params, x):
    return of_attribute(params, x)


def with_closure():
    own = Settings()
    return (lambda params, x: own.scale * (params @ x) ** 2), own


@pytest.mark.parametrize("kind", ["global", "helper", "closure", "class", "callable"])
def test_attributes_are_seen(kind, monkeypatch) -> None:
    """Each alone: one change that is noticed has everything compiled anew."""
    loss, owner = {
        "global": lambda: (lambda p, x: of_attribute(p, x), settings),
        "helper": lambda: (lambda p, x: of_helper(p, x), settings),
        "closure": with_closure,
        "class": lambda: (lambda p, x: of_attribute(p, x), Settings),
        "callable": lambda: (lambda loss: (loss, loss))(Callable()),
    }[kind]()
    before = per_example_gradients(loss)(PARAMS, BATCH).mean()
    monkeypatch.setattr(owner, "scale", 3.0)
    with pytest.warns(UserWarning, match="scale, which is not what it was"):
        after = per_example_gradients(loss)(PARAMS, BATCH).mean()
    np.testing.assert_allclose(after, 3 * before, rtol=1e-12)


def test_a_variable_that_becomes_none_is_seen() -> None:
    penalty = 1.0

    def loss(params, x):
        return (params @ x) ** 2 + (0.0 if penalty is None else penalty * params @ params)

    before = per_example_gradients(loss)(PARAMS, BATCH).mean()
    penalty = None
    with pytest.warns(UserWarning, match="loss_fn reads penalty"):
        after = per_example_gradients(loss)(PARAMS, BATCH).mean()
    np.testing.assert_allclose(after, before - 2 * PARAMS, rtol=1e-12)
