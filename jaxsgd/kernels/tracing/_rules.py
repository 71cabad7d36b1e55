"""The rules: which operation produced a gradient, and what of it to keep.

:func:`find` walks back from the gradient of a parameter to the operation that produced it and keeps that operation's
operands instead of its result: for the weights of a dense layer, the layer's input and the gradient of its output. Each
rule is registered for the primitives it understands. Where none applies the gradient itself is kept: slower, never
wrong.

The obvious way is a rule for every kind of layer. Here no layer is known, only equations of the gradient, so that a few
rules serve a layer however it is written. *Producing* rules, of a product (``_products``), a convolution
(``_convolution``), an addition of rows (``_lookups``), make a factor of the operands, and the walk ends. Rules *passing
on*, of a transposition (``_moves``), a scale or a mask (``_scales``), a sum of two uses (``_sums``), a product with a
matrix that all examples share, go to the operand and change what comes of it. Loops and branches (``_control_flow``) do
either. All this happens to recipes, before an array is computed.
"""

from dataclasses import replace

from jaxsgd.kernels.factors import Dense
from jaxsgd.kernels.tracing import _control_flow, _convolution, _lookups, _moves, _products, _scales
from jaxsgd.kernels.tracing._jaxpr import Value
from jaxsgd.kernels.tracing._recipe import NoRule, Recipe, is_zero, recipe_of, zero
from jaxsgd.kernels.tracing._sums import added, terms_of

RULES = (_control_flow, _convolution, _lookups, _moves, _products, _scales)  # imported, and so registered


def find(value: Value) -> Recipe:
    """The recipe for a value: factored where a rule applies, else dense."""
    terms = terms_of(value)
    alike = all(term.shape == value.shape for term in terms)
    shared = tuple(term for term in terms if alike and not term.varies and not is_zero(term))
    try:
        if not shared:
            return recipe_of(value)
        recipe = added([zero(value), *(recipe_of(term) for term in terms if term not in shared)])
    except NoRule as reason:
        why = str(reason)
        return Recipe(Dense, (value,), lambda array: Dense(array, why), why=why)
    return replace(recipe, shared=shared)
