"""Result files that are either whole or not there.

A file is written under a temporary name in its own folder, flushed to the disk and renamed: a reader, or a run that
is killed, sees the old file or the new one, never half of one. Imports nothing of the package.
"""

import io
import os
import tempfile
import zipfile
from pathlib import Path

import numpy as np


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically; nothing is left behind if it is interrupted."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)  # mkstemp's files are private
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def pack_arrays(arrays: dict[str, np.ndarray]) -> bytes:
    """The content of an ``.npz`` file: the same bytes for the same arrays."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays.items():
            entry = zipfile.ZipInfo(f"{name}.npy")  # dated 1980, whenever it is written
            entry.compress_type = zipfile.ZIP_DEFLATED
            with archive.open(entry, "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.asarray(array), allow_pickle=False)
    return buffer.getvalue()


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read an ``.npz`` file, refusing pickled objects.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not an ``.npz`` file, is damaged, or holds Python objects.
    """
    try:
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise ValueError("it holds one array, not an archive of named arrays")
            return {name: archive[name] for name in archive.files}
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no file {path}") from None
    except Exception as error:  # a damaged archive fails in as many ways as there are decoders
        raise ValueError(f"{path} is not a readable .npz file: {error}") from error
