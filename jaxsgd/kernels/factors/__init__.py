"""What the per-example gradients with respect to one parameter are kept as.

    OuterProducts   g_i = Σ_t a_it b_itᵀ, as a dense layer, a convolution or a recurrence gives it
    Rows            g_i = Σ_t e_(k_it) r_itᵀ, rows added to a table, as an embedding gives it
    Stretched       outer products, each coordinate times a number, as the metric of an optimizer takes them
    Sum             outer products, scaled and not, as the weights of a normalized layer take them
    WithSharedPart  one of these, and a part that is the same for every example, as a weight penalty adds it
    Dense           g_i itself

All are a :class:`Factor`, which has the operations and their formulas.
"""

from jaxsgd.kernels.factors._dense import Dense, dense_one_by_one
from jaxsgd.kernels.factors._factor import Factor, Flops
from jaxsgd.kernels.factors._layout import Layout
from jaxsgd.kernels.factors._outer_products import OuterProducts
from jaxsgd.kernels.factors._rows import Rows, wide
from jaxsgd.kernels.factors._shared_part import WithSharedPart
from jaxsgd.kernels.factors._stretched import Stretched
from jaxsgd.kernels.factors._sum import Sum

__all__ = [
    "Dense",
    "Factor",
    "Flops",
    "Layout",
    "OuterProducts",
    "Rows",
    "Stretched",
    "Sum",
    "WithSharedPart",
    "dense_one_by_one",
    "wide",
]
