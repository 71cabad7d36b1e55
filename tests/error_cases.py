"""Every way to be refused by the package, with the message: the argument, its value and the rule."""

import errors_of_batch_losses
import errors_of_designs
import errors_of_dynamics
import errors_of_estimates
import errors_of_files
import errors_of_gradients
import errors_of_training
from error_helpers import Case

CASES: list[Case] = [
    *errors_of_gradients.CASES,
    *errors_of_designs.CASES,
    *errors_of_estimates.CASES,
    *errors_of_dynamics.CASES,
    *errors_of_batch_losses.CASES,
    *errors_of_training.CASES,
    *errors_of_files.CASES,
]
