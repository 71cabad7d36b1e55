"""How much memory is free, asked before much of it is taken: what does not fit is refused, not begun.

What fits may still fail, as other programs take memory too; what is larger than all that is free cannot succeed.
"""

import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

_WORTH_ASKING = 2**28  # bytes, below which nothing is asked


def require(what: str, numbers: int, dtype: Any, instead: str) -> None:
    """Raise unless so many numbers at once are no more than the memory that is free.

    Args:
        what: what takes them, as in "a Gram matrix of 1000 by 1000 examples".
        numbers: how many there are at the same time.
        dtype: of what type.
        instead: what to call in place of it.
    """
    needed = numbers * jnp.dtype(dtype).itemsize
    free = free_bytes() if needed > _WORTH_ASKING else needed
    if needed > free:
        raise ValueError(f"{what} takes {needed:.3g} bytes, and {free:.3g} are free: {instead}")


def free_bytes() -> int:
    """How many bytes are free on the devices of this process; of a CPU those of the machine, or of its container."""
    devices = jax.local_devices()
    stats = [device.memory_stats() for device in devices]
    if all(each and "bytes_limit" in each for each in stats):
        return sum(each["bytes_limit"] - each.get("bytes_in_use", 0) for each in stats)
    return min(_of_machine(), _of_container())


def _of_machine() -> int:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):  # not Linux: all that there is, as far as that is told
        pages = {name: os.sysconf(name) for name in ("SC_PHYS_PAGES", "SC_PAGE_SIZE") if name in os.sysconf_names}
        return pages["SC_PHYS_PAGES"] * pages["SC_PAGE_SIZE"] if len(pages) == 2 else _UNKNOWN


def _of_container() -> int:
    folder = Path("/sys/fs/cgroup")
    try:
        limit, used = ((folder / name).read_text(encoding="ascii").strip() for name in ("memory.max", "memory.current"))
        return int(limit) - int(used)
    except (OSError, ValueError):  # none, or "max"
        return _UNKNOWN


_UNKNOWN = 2**63
