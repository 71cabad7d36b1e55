"""Gradient statistics for JAX: how noisy is a minibatch gradient, exactly, for every batch size and design.

Symbols, the same in code, docstrings and figures:

    N, M, P   population_size, batch_size, num_params: sizes of the data set, the batch, the parameters
    θ         params, a pytree
    g_i       the gradient of the loss of example i, all at the same θ
    ḡ         mean, (1/N) Σ g_i
    Σ         the population covariance of the g_i, divisor N; S² has divisor N−1
    tr Σ      trace_covariance(ddof=0); tr S² is trace_covariance(ddof=1)
    K         gram, K_ij = ⟨g_i, g_j⟩
    w         weights, the random weight vector of a sampling design; ĝ = Σ w_i g_i
    c_M       variance_factor, (N−M)/(M(N−1)): without replacement, Cov ĝ = c_M Σ

Modules, and the only modules of the package that each may import:

    _validate    :
    _validate_batch_losses : _validate
    _validate_designs : _validate
    _validate_dynamics :
    _validate_losses :
    _jaxpr       :
    _factors     :
    _dense       : _factors
    _outer       : _dense, _factors
    _sparse      : _dense, _factors
    _shifted     : _dense, _factors
    _recipe      : _dense, _outer, _shifted, _sparse, _jaxpr
    _convolution : _factors, _outer, _jaxpr, _recipe
    _rules       : _convolution, _dense, _factors, _outer, _sparse, _jaxpr, _recipe
    _trace       : _dense, _factors, _outer, _shifted, _jaxpr, _recipe, _rules
    _gradients   : _factors, _recipe, _trace, _validate
    _streamed    : _factors, _gradients
    _store       :
    _sharding    :
    kernels      : _gradients, _sharding, _streamed, _validate
    checks       : _gradients, _sharding, _validate, _validate_losses
    model_agnostic : _factors, _gradients, _validate, _validate_losses
    sources      : _store, _validate
    moments      : _factors, _sharding, kernels, sources, _validate, _validate_losses
    _covariances :
    _law         : _covariances, _validate, _validate_designs
    _uniform     : _covariances, _law, _validate
    _ratio       :
    _independent : _covariances, _law, _ratio, _validate, _validate_designs
    _bernoulli   : _covariances, _independent, _law, _validate_designs
    _importance  : _covariances, _law, _validate, _validate_designs
    _conditional_poisson : _covariances, _law, _validate_designs
    _groups      : _covariances, _law, _validate, _validate_designs
    _stratified  : _covariances, _law, _uniform, _validate, _validate_designs
    _reshuffling : _covariances, _law, _uniform, _validate
    designs      : _bernoulli, _conditional_poisson, _covariances, _groups, _importance, _independent, _law,
                   _reshuffling, _stratified, _uniform
    _contractions : _covariances, _factors, kernels
    _curves      : kernels, moments, designs, _sharding, _validate
    _batch_losses  : _factors, designs, _validate, _validate_batch_losses
    _set_functions :
    _subset_losses : _batch_losses, _set_functions, _sharding
    _sample_estimates : kernels, _sharding, _validate
    _exact       : _contractions, _sharding, designs, kernels, moments
    _comparison  : _contractions, _exact, _sharding, designs, kernels, moments, _validate, _validate_designs
    _affine      : _validate, _validate_dynamics
    _quadratics  : _affine, designs, _validate, _validate_designs, _validate_dynamics
    _langevin    : _law, designs, _validate_designs
    _noisy_quadratic : _validate, _validate_designs, _validate_dynamics
    dynamics     : _affine, _langevin, _noisy_quadratic, _quadratics, designs, _validate, _validate_designs,
                   _validate_dynamics
    _descent     : designs, kernels, _sharding, _validate
    _populations : designs, _validate
    estimators   : _batch_losses, _comparison, _curves, _descent, _exact, _populations, _sample_estimates, _factors,
                   kernels, designs, _validate
    surfaces     : _curves, kernels, _sharding, _validate
    _control_variates : _validate_designs, designs, estimators, kernels
    variance_reduction : _control_variates, _draws, estimators, kernels, _validate
    problems     : _validate
    _exchange_cases :
    _typical_losses :
    _kinks       :
    _pairs       : _factors, kernels
    _hessian     : _factors, _validate, kernels
    batch_size   : _factors, _pairs, _tradeoff, _validate, kernels
    signal_to_noise : _validate, kernels, moments
    tails        : _validate
    noise_scale  : _factors, _hessian, _pairs, _validate, kernels, moments
    _validate_training :
    _draws       : designs
    _batch_statistics : _factors, kernels, _validate, _validate_training
    _monitoring  : _batch_statistics, _factors, _validate, _validate_training
    monitors     : _batch_statistics, _factors, _monitoring, _validate, _validate_training
    _steps       : _dense, _draws, _streamed, kernels, monitors, _validate_training
    _checkpoints : _sharding, _steps, _store
    tracking     :
    _tradeoff    : _validate, _validate_designs, _validate_training
    training     : _checkpoints, _draws, _sharding, _steps, kernels, tracking, _validate, _validate_losses,
                   _validate_training
    sweeps       : training, _sharding, _store, _validate, _validate_training
    exchange     : _exchange_cases, _kinks, _typical_losses, _validate
    batch_losses : _validate
    additivity   : _batch_losses, _set_functions, _subset_losses, _validate, _validate_batch_losses, _validate_losses
    _params_files : _store, _validate
    _subsets     : sources, _validate
    _design_rows : _params_files, designs, estimators, kernels, moments
    _batch_loss_findings : _batch_losses, _factors, additivity, kernels, _validate, _validate_batch_losses
    _findings    : _batch_loss_findings, _design_rows, _params_files, _subsets, batch_size, checks, estimators,
                   kernels, moments, noise_scale, sources, _validate
    _report_figures : _findings
    _report_text : _findings
    _report_html : _findings, _report_figures, _report_text
    report       : _batch_loss_findings, _design_rows, _findings, _params_files, _report_figures, _report_html,
                   _report_text, problems, _store, _validate
    _targets     : _params_files
    _command_line : _params_files, _targets, report, sources
    __main__     : _command_line

Importing this package changes no configuration of JAX.
"""

from jaxsgd import (
    additivity,
    batch_losses,
    batch_size,
    checks,
    designs,
    dynamics,
    estimators,
    exchange,
    kernels,
    model_agnostic,
    moments,
    monitors,
    problems,
    report,
    signal_to_noise,
    sources,
    surfaces,
    sweeps,
    tails,
    tracking,
    training,
    variance_reduction,
)
from jaxsgd.additivity import check_additivity
from jaxsgd.checks import check_per_example
from jaxsgd.kernels import PerExampleGradients, per_example_gradients
from jaxsgd.moments import GradientMoments, gradient_moments
from jaxsgd.noise_scale import (
    HessianNoiseScale,
    NoiseScale,
    hessian_noise_scale,
    noise_scale,
    two_batch_noise_scale,
)
from jaxsgd.problems import Problem

__version__ = "0.1.0"

__all__ = [
    "GradientMoments",
    "HessianNoiseScale",
    "NoiseScale",
    "PerExampleGradients",
    "Problem",
    "__version__",
    "additivity",
    "batch_losses",
    "batch_size",
    "check_additivity",
    "check_per_example",
    "checks",
    "designs",
    "dynamics",
    "estimators",
    "exchange",
    "gradient_moments",
    "hessian_noise_scale",
    "kernels",
    "model_agnostic",
    "moments",
    "monitors",
    "noise_scale",
    "per_example_gradients",
    "problems",
    "report",
    "signal_to_noise",
    "sources",
    "surfaces",
    "sweeps",
    "tails",
    "tracking",
    "training",
    "two_batch_noise_scale",
    "variance_reduction",
]
