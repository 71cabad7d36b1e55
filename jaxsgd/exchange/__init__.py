"""When may gradient and expectation be exchanged: ∇ E L(θ, X) = E ∇L(θ, X)?

Each of these suffices, at a point θ:

    a   X takes finitely many values, as an example of a data set does, and each L(·, x) is differentiable at θ. This
        is the linearity of the derivative, and nothing else is needed.
    b   Near θ each L(·, x) is differentiable with |∂L| ≤ κ(x) and E κ < ∞: differentiation under the integral sign by
        dominated convergence (R. L. Schilling, Measures, Integrals and Martingales, Cambridge, 2005, theorem 11.5).
    c   Near θ, |L(θ, x) − L(θ', x)| ≤ κ(x) |θ − θ'| with E κ < ∞, and L(·, X) is differentiable at θ with probability
        one: the difference quotients are dominated. For machine learning the useful one, as it allows kinks, if not at
        θ itself (A. Shapiro, D. Dentcheva, A. Ruszczyński, Lectures on Stochastic Programming, SIAM, 2009, chapter 7).
    d   For a pathwise derivative of f(X(θ)): f Lipschitz, differentiable at X(θ) with probability one, and X(θ)
        Lipschitz with an integrable constant (P. Glasserman, Monte Carlo Methods in Financial Engineering, Springer,
        2004, section 7.2.2). This is a case of c.
    e   L(·, X) continuous, differentiable but for countably many θ, |∂L| ≤ Γ with E Γ < ∞, and not kinked at θ itself
        (P. L'Ecuyer, Management Science 36, 1990, and 41, 1995). Continuity is essential.
    f   L(·, x) absolutely continuous and E|∂L| integrable over θ: then F' = E ∂L for almost every θ, by Fubini
        (E. Talvila, American Mathematical Monthly 108, 2001, also for when this is necessary). ∂L may be unbounded.
    g   L(·, x) convex and F finite: ∂F = E ∂L, of subdifferentials, so that only P(kink at θ) = 0 is left to ask
        (R. T. Rockafellar and R. J.-B. Wets, 1982; D. P. Bertsekas, JOTA 12, 1973).
    h   Where the law of X depends on θ, E[f ∇ log p] needs a support that does not (S. Mohamed, M. Rosca, M. Figurnov
        and A. Mnih, JMLR 21(132), 2020, section 4).

The variance is another question: exchange takes first moments, a variance that falls as 1/M takes E|∂L|² < ∞.

``CASES`` are closed forms on both sides; ``LOSSES`` the usual losses; ``KINKS`` what ``jax.grad`` returns at kinks.
"""

from jaxsgd._core.faces import at_home
from jaxsgd.exchange._cases import CASES, Case, cantor
from jaxsgd.exchange._derivatives import derivatives, midpoints
from jaxsgd.exchange._kinks import KINKS, Kink
from jaxsgd.exchange._losses import LOSSES, TypicalLoss

__all__ = ["CASES", "KINKS", "LOSSES", "Case", "Kink", "TypicalLoss", "cantor", "derivatives", "midpoints"]

at_home(__name__, __all__)
