"""Every way to be refused by the package, with the message: the argument, its value and the rule."""

from tests.support import (
    errors_of_batch_losses,
    errors_of_designs,
    errors_of_dynamics,
    errors_of_estimates,
    errors_of_files,
    errors_of_gradients,
    errors_of_training,
)
from tests.support.error_helpers import Case

CASES: list[Case] = [
    *errors_of_gradients.CASES,
    *errors_of_designs.CASES,
    *errors_of_estimates.CASES,
    *errors_of_dynamics.CASES,
    *errors_of_batch_losses.CASES,
    *errors_of_training.CASES,
    *errors_of_files.CASES,
]
