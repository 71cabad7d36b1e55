"""Hashes of what is computed from: equal ones mean the same arrays, bit for bit, or the same program."""

import hashlib
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsgd._core import devices

_NUMBERS_AT_A_TIME = 2**24
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


def digest(tree: Any) -> str:
    """A hash of the structure of a pytree and of every bit of its arrays."""
    found = hashlib.sha256(_ADDRESS.sub("", str(jax.tree.structure(tree))).encode())
    for leaf in jax.tree.leaves(tree):
        leaf = plain(leaf)
        for i, block in enumerate(map(viewed, devices.blocks(leaf, _NUMBERS_AT_A_TIME))):
            if i == 0:
                found.update(f"{block.dtype} {leaf.shape}".encode())
            found.update(np.ascontiguousarray(block).tobytes())
    return found.hexdigest()[:16]


def program_digest(program: Any) -> str:
    """A hash of a jaxpr: of every operation, and of the arrays that are constants of it."""
    return digest([_ADDRESS.sub("", str(program.jaxpr)).encode().hex(), *program.consts])


def plain(leaf: Any) -> Any:
    """An array of numbers: the data of keys, the bytes of words in hexadecimal digits."""
    if isinstance(leaf, str):
        return np.frombuffer(bytes.fromhex(leaf), np.uint8)
    return jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf


def viewed(array: np.ndarray) -> np.ndarray:
    """An array of a dtype that NumPy does not have, as integers of its size; any other as it is."""
    return array.view(f"u{array.dtype.itemsize}") if array.dtype.kind == "V" else array
