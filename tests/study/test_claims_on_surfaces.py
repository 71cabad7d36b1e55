"""Claims 37 and 38: what a surface is over, and if one θ fits all. ``test_claims`` says what they are claims of."""

import jax
import jax.numpy as jnp
import numpy as np

import jaxsgd
from jaxsgd import designs, dynamics, surfaces
from tests.support.claims import LINE, POINTS, F, line_gradient, rational_moments

CUBIC = ((1, -3, 1, -1), (1, -1, -1, 3), (1, 1, -1, -3), (1, 3, 1, 1))  # orthogonal polynomials on the four points
TARGETS = [y for _, y in POINTS]


def test_claim_37_there_is_no_error_surface_over_examples() -> None:
    """It makes no sense to plot an error surface over examples: TRUE.

    Over examples there are N numbers. Their order is arbitrary, and changes neither the surface over parameters nor its
    gradient; a point between two examples is no example, and at every θ some point of the plane has loss 0.
    """
    loss_fn, params, data = LINE
    axes = {"m": jnp.asarray([1.0, 0.0]), "b": jnp.asarray([0.0, 1.0])}
    steps = jnp.asarray([[0.0, 0.0], [0.5, -1.0], [2.0, 1.0]])
    reordered = jax.tree.map(lambda leaf: leaf[jnp.asarray([2, 0, 3, 1])], data)
    over_examples = [surfaces.losses_along(loss_fn, params, d, axes, steps) for d in (data, reordered)]
    assert not np.array_equal(*over_examples)
    np.testing.assert_allclose(*(losses.mean(axis=1) for losses in over_examples), rtol=1e-15)
    gradients = [jaxsgd.per_example_gradients(loss_fn)(params, d).mean() for d in (data, reordered)]
    assert gradients[0] == gradients[1] == {"m": -1, "b": -0.5}
    for m, b in ((1, 1), (-2, 5)):
        assert line_gradient((m, b), (7, 7 * m + b)).tolist() == [0, 0]


def test_claim_38_one_weight_vector_for_all_examples() -> None:
    """There is one weight vector that fits all training examples: CONDITIONAL on a model that can.

    A cubic through the four points has g_i = 0 for every i at its minimum: no batch is noisy there, and SGD with
    η = 1/12 converges. The line has ḡ = 0 only: it compromises, with tr Σ = 209/100, and stays 15/224 above it.
    """
    laws = {}
    for width in (2, 4):
        losses = dynamics.Quadratics.from_least_squares([row[:width] for row in CUBIC], TARGETS)
        g = losses.gradients(losses.minimum())
        assert not g.sum(axis=0).any()
        noise = sum(rational_moments(designs.WithoutReplacement(1), column)[1] for column in g.T)
        stationary = dynamics.step_law(losses, designs.WithoutReplacement(1), F(1, 12)).stationary()
        laws[width] = g.any(), noise, losses.excess_loss(stationary.covariance)
        assert (stationary.mean == losses.minimum()).all()
    assert laws == {2: (True, F(209, 100), F(15, 224)), 4: (False, 0, 0)}
