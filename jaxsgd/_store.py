"""Result files that are either whole or not there.

A file is written under a temporary name in its own folder, flushed to the disk and renamed: a reader, or a run that
is killed, sees the old file or the new one, never half of one. A record is such a file with a checksum of all its bytes
and the settings it belongs to. Imports nothing of the package.
"""

import hashlib
import io
import json
import os
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

_SETTINGS = "settings of the record"
_DIGEST = 64  # hexadecimal digits of SHA-256


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


def pack_record(arrays: Mapping[str, np.ndarray], settings: Mapping[str, Any]) -> bytes:
    """An ``.npz`` file with the settings it belongs to, and a checksum of everything before it as the zip comment.

    NumPy reads it as any other. ``settings`` are what JSON can hold.
    """
    text = json.dumps(dict(settings), sort_keys=True)
    content = pack_arrays({**arrays, _SETTINGS: np.frombuffer(text.encode(), np.uint8)})
    content = content[:-2] + _DIGEST.to_bytes(2, "little")  # the length of the comment
    return content + hashlib.sha256(content).hexdigest().encode()


def read_record(path: Path, settings: Mapping[str, Any] | None = None) -> dict[str, np.ndarray]:
    """Read what :func:`pack_record` packed, bit for bit.

    Args:
        path: the file.
        settings: what the record must belong to; not compared by default.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if a single bit of it differs from what was written, or it belongs to other settings.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no file {path}") from None
    if hashlib.sha256(content[:-_DIGEST]).hexdigest().encode() != content[-_DIGEST:]:
        raise ValueError(f"{path} is damaged: its {len(content)} bytes do not have the checksum they were written with")
    arrays = read_arrays(path)
    stored = json.loads(arrays.pop(_SETTINGS).tobytes())
    wanted = stored if settings is None else json.loads(json.dumps(dict(settings)))
    for name in sorted(stored.keys() | wanted.keys()):
        if stored.get(name) != wanted.get(name):
            raise ValueError(
                f"{path} is of another run: {name} is {stored.get(name)} there, and {wanted.get(name)} here"
            )
    return arrays
