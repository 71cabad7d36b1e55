"""Statistics of the gradient noise along a run, as Optax transformations that change no update.

A monitor goes in front of an optimizer, ``optax.chain(monitors.noise_scale(every=16), optax.adam(1e-3))``, or into the
``monitors`` of ``training.run_sgd``. It reads what it needs from the extra arguments of ``update``:

    per_example_gradients   those of the batch, g; or terms=, a batch's :class:`Terms`, whose weights may be unequal.
                            Either may be a function without arguments, called at the steps that measure only
    group_gradients         in their place, for :func:`two_batch_noise_scale`
    full_gradient           a function without arguments, for :func:`full_gradient_cosine`
    grad                    ĝ, where it is at hand; without it, the mean of the terms is taken
    step                    the number of the step; without it, a monitor counts its calls

and :func:`readings` finds what the monitors of any optimizer state have measured. A loop that calls ``update`` itself
and hands on nothing, such as flax's ``TrainState.apply_gradients``, shows them the batch through the state:

    tx = monitors.observed(optax.chain(monitors.noise_scale(every=16), optax.adam(1e-3)))
    ...
    state = monitors.observe(state, per_example_gradients=g)
    state = state.apply_gradients(grads=g.mean())

Shown ``g.in_metric(noise.optimizer_metric(state))`` for g, a monitor reads the noise scale as Adam's updates feel it.

What is measured is the gradient of the batch, wherever in a chain the monitor stands: it may have been clipped before.
Inside ``optax.MultiSteps`` the last microbatch of every step is looked at, in front of it each one. Inside
``optax.masked`` it is still that of all parameters: ``where=`` chooses some. After a batch whose gradients are not
finite readings are NaN, unless ``optax.apply_if_finite`` is around the monitor as well, which then forgets that batch.

Under ``vmap`` a schedule saves time only if ``step`` is the same for all runs, as ``run_sgd`` has it: a count that is
mapped over turns the choice between measuring and not into doing both.

Numerators and denominators are averaged apart, with weights that fall by ``decay`` from one measurement to the next,
and divided when read: a ratio of two noisy estimates has no mean, one of averages is nearly unbiased. Nothing is
clipped: a noise scale is negative or infinite where the mean gradient cannot be told from zero.

Noise scales are read as

    noise_scale          T̄/Ḡ of the averages ``trace_covariance`` and ``squared_mean_norm``
    noise_scale_low      the lower end of an interval for B = Σ w tr Σ(θ)/Σ w ‖ḡ(θ)‖², the ratio of the weighted
                         averages of what is true along the run that was made, in which B itself may change
    noise_scale_high     its upper end; infinite where the measurements do not tell ‖ḡ‖² from 0
    num_effective        how many independent measurements the averages are worth, from the weights and the measured
                         autocorrelation; fewer than three or so leave the interval at [0, ∞]

of all parameters and, with ``by=``, of groups of them, as ``"blocks/0/noise_scale_low"``. Asked for 95 %, the interval
held B in 95 % of runs on digits or more, early and late, of batches drawn anew at each step
(``experiments/noise_scale_along_training.py``). It does not know of reshuffling: the examples of such a batch are those
that the run has not seen for longest, whose mean gradient is longer than ḡ, its square 1.2 times as long after a
hundred steps on digits, later more, and B is read too small by as much.
"""

from jaxsgd._core.faces import at_home
from jaxsgd.monitors._monitors import full_gradient_cosine, gradient_snr, gradient_tests
from jaxsgd.monitors._noise_scales import noise_scale, two_batch_noise_scale
from jaxsgd.monitors._terms import Terms, noise_moments
from jaxsgd.monitors._transformation import MonitorState, observe, observed, readings

__all__ = [
    "MonitorState",
    "Terms",
    "full_gradient_cosine",
    "gradient_snr",
    "gradient_tests",
    "noise_moments",
    "noise_scale",
    "observe",
    "observed",
    "readings",
    "two_batch_noise_scale",
]

at_home(__name__, __all__)
