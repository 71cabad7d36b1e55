"""Prints the peak memory, in bytes, of a process that streams the moments of a data set, and of nothing else.

Command    python -m experiments._peak_memory SIZES NUM_EXAMPLES CHUNK_SIZE streamed|held

Chunks are drawn as they are asked for, and forgotten; or all are drawn first and held, as a control.
"""

import itertools
import json
import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np

import jaxsgd
from experiments._models import mlp

Chunk = dict[str, np.ndarray]


def peak_bytes(sizes: tuple[int, ...], num_examples: int, chunk_size: int, *, held: bool = False) -> int:
    """The peak memory of a fresh process."""
    arguments = [json.dumps(sizes), str(num_examples), str(chunk_size), "held" if held else "streamed"]
    command = [sys.executable, "-m", "experiments._peak_memory", *arguments]
    folder = Path(__file__).parent.parent
    return int(subprocess.run(command, cwd=folder, check=True, stdout=subprocess.PIPE, text=True).stdout)


def chunks(sizes: tuple[int, ...], num_examples: int, chunk_size: int) -> Iterator[Chunk]:
    """The data set, chunk by chunk; the same numbers in every chunk, so that drawing them takes no time."""
    generator = np.random.default_rng(0)
    x = generator.standard_normal((chunk_size, sizes[0]), dtype=np.float32)
    y = generator.integers(0, sizes[-1], chunk_size, dtype=np.int32)
    for start in range(0, num_examples, chunk_size):
        size = min(chunk_size, num_examples - start)
        yield {"x": x[:size].copy(), "y": y[:size].copy()}


def main(arguments: list[str]) -> None:
    """Stream, and print the peak."""
    sizes, num_examples, chunk_size = tuple(json.loads(arguments[0])), int(arguments[1]), int(arguments[2])
    loss_fn, params, _ = mlp(sizes, 1)
    data = chunks(sizes, num_examples, chunk_size)
    if arguments[3] == "held":
        data = itertools.chain(list(data))
    m = jaxsgd.gradient_moments(loss_fn, params, data, per_coordinate=True)
    jax.block_until_ready(m)
    if int(m.count) != num_examples:
        raise ValueError(f"the moments must be of {num_examples} examples, got {int(m.count)}")
    print(own_peak_bytes())


def own_peak_bytes() -> int:
    """The peak resident size of this program: on Linux, what getrusage reports begins with the parent's."""
    status = Path("/proc/self/status")
    if status.exists():
        (kibibytes,) = re.findall(r"VmHWM:\s+(\d+) kB", status.read_text(encoding="ascii"))
        return 1024 * int(kibibytes)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    main(sys.argv[1:])
