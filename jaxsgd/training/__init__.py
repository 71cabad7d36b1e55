"""Runs of SGD with any Optax optimizer and any sampling design, over seeds and learning rates at once.

A run is one compiled loop, called on the host for some steps at a time. How many is data, not shape: one executable
does every part, so results depend neither on where a run was cut nor on whether it was killed and taken up again.

Keys and batches. Run r has the key ``fold_in(key, r)`` (without ``num_runs``, that of run 0), and what is drawn at step
t of it depends on that key and t alone: more runs, more steps or more learning rates change none that were there, and
all learning rates see the same batches. These are the batches of ``designs.batches``, with which a loop of one's own
draws the same: a design with ``indices`` and ``draw_weights`` has only the examples drawn differentiated, any other all
N, and weighted; ``designs.Reshuffling`` runs through its epochs one after the other, any other design draws independent
batches. An empty batch makes a step with ĝ = 0, if that is the design's law.

Optimizers. With ``learning_rates``, the optimizer is a function that makes one from a learning rate, such as
``optax.adam``, or a transformation with the hyperparameter ``learning_rate`` in its state, as those of
``optax.inject_hyperparams``. The gradient is the sum of per-example gradients in factored form, whose statistics are at
hand for monitors, or ``jax.grad``'s, which is cheaper where a large parameter has no factored form. They agree up to
rounding.

Records. They are made at steps 0, ``record_every``, 2 ``record_every``, … and at the last. A writer gets those of
several runs under ``name/0``, ``name/1``, … in the order of the axes of :class:`RunResult`. What is kept of θ at the
steps ``keep_params_at`` takes as many times the size of the parameters of all runs in the memory of the host, nothing
on the device, and as much in every checkpoint.

Checkpoints. The state is written at every record, whenever ``checkpoint_every_seconds`` have passed since (less often
where it takes long to write, so that it takes a twentieth of the time at most), and when a run is interrupted, and read
at the start. Ctrl-C, SIGTERM and SIGHUP interrupt a run between two looks at the host, in the main thread and unless
the program handles them itself (:mod:`jaxsgd.shell`). Beside the file stays an empty one whose name begins with a dot,
a lock. A checkpoint that is damaged, in use by another run or of a run with other arguments, which are named, is
refused, and nothing is overwritten.

Several devices and processes. Data may be split over the devices of a mesh, those of other processes included, each of
which then makes this same call. The first of them writes the checkpoint, and all read it. Between two looks at the host
they make ``record_every`` steps unless ``chunk_size`` says otherwise, as clocks differ, and for that reason write at
records only; signals do to them what they do to any process.

A loss that differs between two calls is refused, and so is one that is not finite at the start, naming the example.

Guarantees:
    - the same for every ``chunk_size`` and after every restart from a checkpoint, bit for bit, on one machine.
    - what a run that is killed has to make again took ``checkpoint_every_seconds`` and one look at the host, at most.
    - monitors, writers, records and kept parameters change no parameter, bit for bit.
    - one compilation for a loss, optimizer, design and shapes, whatever the number of steps.
"""

from jaxsgd._core.faces import at_home
from jaxsgd.training._run import RunResult, run_sgd

__all__ = ["RunResult", "run_sgd"]

at_home(__name__, __all__)
