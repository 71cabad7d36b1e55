"""From the loss of one example to the factored gradients of a batch.

One worked example: the weights W of a layer.

>>> import jax, jax.numpy as jnp
>>> def loss_fn(W, x):
...     return jnp.sum(jnp.tanh(x @ W))
>>> W, X = jnp.ones((2, 3), jnp.float32), jnp.arange(8, dtype=jnp.float32).reshape(4, 2)

**The equation.** The gradient's jaxpr for one example ends with

>>> product, last = jax.make_jaxpr(jax.grad(loss_fn))(W, X[0]).eqns[-2:]
>>> print(product)
a:f32[3,2] = dot_general[
  dimension_numbers=(([], []), ([], []))
  preferred_element_type=float32
] b c
>>> print(last)
a:f32[2,3] = transpose[permutation=(1, 0)] b

where b is the gradient of the layer's output and c the example x. Nothing is contracted: b cᵀ, and after that c bᵀ.

**The recipe.** ``_rules`` reads this from its end. ``transpose`` passes on what its operand is and exchanges the two
sides; ``dot_general`` produces a factor: it keeps the operands and not the product. No axis of b or c is contracted, so
there is one position, and none is a batch axis, so there is one block.

**The factor.** The values c and b, and no product of theirs, are computed for all four examples under ``vmap``. They
have shapes (examples, blocks, positions, side), and are 4 · (2 + 3) numbers where the gradients would be 4 · 2 · 3.

>>> losses, (factor,), rules = loss_and_factors(loss_fn, W, X)
>>> type(factor).__name__, rules, factor.left.shape, factor.right.shape
('OuterProducts', ('dot_general',), (4, 1, 1, 2), (4, 1, 1, 3))

**The statistic.** ‖c bᵀ‖² = Σ_jk c_j² b_k² = ‖c‖² ‖b‖², and no gradient is formed:

>>> c, b = factor.left[:, 0, 0], factor.right[:, 0, 0]
>>> formed = jax.vmap(jax.grad(loss_fn), in_axes=(None, 0))(W, X)
>>> for norms in (factor.squared_norms(), jnp.sum(c**2, axis=1) * jnp.sum(b**2, axis=1)):
...     assert jnp.allclose(norms, jnp.sum(formed**2, axis=(1, 2)))
"""

from jaxsgd.kernels.tracing._trace import loss_and_factors

__all__ = ["loss_and_factors"]
