"""Runs of SGD with any Optax optimizer and any sampling design, over seeds and learning rates at once.

A run is one compiled loop, called on the host for some steps at a time. How many is data, not shape: one executable
does every part, so results depend neither on where a run was cut nor on whether it was killed and taken up again. What
is drawn at a step depends on the key and the number of the step alone.
"""

from jaxsgd._core.faces import at_home
from jaxsgd.training._run import RunResult, run_sgd

__all__ = ["RunResult", "run_sgd"]

at_home(__name__, __all__)
