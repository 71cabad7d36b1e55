"""Arrays in files of the IDX format, in which MNIST and its kin are kept: two zeros, a type, the shape, the numbers."""

import gzip
import math
import zlib
from pathlib import Path

import numpy as np

_DTYPES = {8: ">u1", 9: ">i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}


def read(path: Path) -> np.ndarray:
    """The array of a file that is compressed by gzip.

    Raises:
        ValueError: naming the file, if it is damaged or none of this format.
    """
    try:
        content = gzip.decompress(path.read_bytes())
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise ValueError(f"{path} is damaged or not compressed by gzip: {error}") from None
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] not in _DTYPES:
        raise ValueError(f"{path} is no IDX file: it begins with {content[:4]!r}")
    dtype, begin = np.dtype(_DTYPES[content[2]]), 4 + 4 * content[3]
    shape = np.frombuffer(content[4:begin].ljust(begin - 4, b"\0"), ">u4").tolist()
    expected = begin + math.prod(shape) * dtype.itemsize
    if len(content) != expected:
        raise ValueError(
            f"{path} is damaged: {expected} bytes are to hold an array of shape {shape}, got {len(content)}"
        )
    return np.frombuffer(content, dtype, offset=begin).reshape(shape)
