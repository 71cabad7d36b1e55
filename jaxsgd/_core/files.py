"""Result files that are either whole or not there.

A file is written under a temporary name in its own folder, flushed to the disk and renamed, and the folder is flushed
where the system can do that: a reader, or a run that is killed, sees the old file or the new one, never half of one.
What a killed writer left under a temporary name is removed by the next that writes the same file. A record is such a
file with a checksum of all its bytes and the settings it belongs to.

A new file may be read and written by whom the umask says, as any other; one that takes the place of another may be by
whom that one was. Any name is possible that the file system allows, the longest included.
"""

import contextlib
import errno
import glob
import hashlib
import io
import json
import os
import secrets
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

_SETTINGS = "settings of the record"
_DIGEST = 64  # hexadecimal digits of SHA-256
_TEMPORARY = f".{'?' * 16}.tmp"  # the end of a temporary name, with digits in place of the question marks
_LONGEST_END = 2**16 + 22  # bytes of the record at the end of an archive, with a comment


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically; nothing is left behind if it is interrupted.

    Raises:
        OSError: naming the file, if the disk is full or the folder cannot be written to; an older file is still there.
    """
    name = beside(path, _TEMPORARY).name.removesuffix(_TEMPORARY)
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(glob.escape(name) + _TEMPORARY):
        _remove_if_left_behind(left)
    try:
        handle, temporary = _created(path)
        try:
            with os.fdopen(handle, "wb") as file:
                with contextlib.suppress(FileNotFoundError):
                    os.chmod(temporary, path.stat().st_mode & 0o777)
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
                os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):  # an interruption may come after the renaming
                temporary.unlink()
            raise
    except OSError as error:
        if error.errno is not None:
            error.filename = str(path)  # whatever it was called meanwhile
            del error.filename2
        raise
    _flush_folder(path.parent)


def beside(path: Path, ending: str) -> Path:
    """A hidden file that belongs to another, ``.NAME`` with an ending; of a long name, by a hash of it.

    Raises:
        OSError: naming the file, if its own name is longer than the file system allows.
    """
    limit = _longest_name(path.parent)
    if len(os.fsencode(path.name)) > limit:
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), str(path))
    name = f".{path.name}{ending}"
    if len(os.fsencode(name)) > limit:
        name = f".{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:32]}{ending}"
    return path.with_name(name)


def _longest_name(folder: Path) -> int:
    """How many bytes a name may have in a folder, which need not be there yet."""
    there = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    try:
        return os.pathconf(there, "PC_NAME_MAX")
    except (AttributeError, OSError, ValueError):  # not on every system
        return 255


def _created(path: Path) -> tuple[int, Path]:
    """A new file beside another, open and locked, that others may read and write as the umask allows."""
    while True:
        temporary = beside(path, f".{secrets.token_hex(8)}.tmp")
        handle = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
        with contextlib.suppress(OSError, ImportError):  # a file system may have no locks
            _lock(handle)
        if os.fstat(handle).st_nlink:
            return handle, temporary
        os.close(handle)  # another writer took it for one that was left behind, before it was locked


def _flush_folder(folder: Path) -> None:
    """Have the disk store which files a folder holds, where the system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Hold a lock, unless another process does: whether it is held.

    The lock is the operating system's, on an empty file that stays, so none is left behind by a process that is killed.
    Where the system has no such locks, nobody is kept out.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            held = _lock(handle)
        except ImportError:
            held = True
        yield held
    finally:
        os.close(handle)  # which unlocks it


def _lock(handle: int) -> bool:
    """Lock an open file until it is closed: whether nobody else had done so."""
    import fcntl  # not on every system

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _remove_if_left_behind(path: Path) -> None:
    """Remove a temporary file, unless its writer, who holds a lock on it, is at work."""
    with contextlib.suppress(OSError, ImportError), path.open("rb") as file:  # others may be removing it as well
        if _lock(file.fileno()):
            path.unlink()


def pack_arrays(arrays: dict[str, np.ndarray]) -> bytes:
    """The content of an ``.npz`` file: the same bytes for the same arrays."""
    buffer = io.BytesIO()
    archive = zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED)
    try:
        for name, array in arrays.items():
            entry = zipfile.ZipInfo(f"{name}.npy")  # dated 1980, whenever it is written
            if entry.filename != f"{name}.npy":
                raise ValueError(f"names of arrays must be such as archives can hold, got {name!r}")
            entry.compress_type = zipfile.ZIP_DEFLATED
            with archive.open(entry, "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.asarray(array), allow_pickle=False)
        archive.close()
    except BaseException:
        archive.fp = None  # closed as it is: after an interruption it may refuse to be, and hide that
        raise
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
            members = zipfile.ZipFile(file).namelist()
            arrays = {name.removesuffix(".npy"): archive[name] for name in members}  # by its whole name: w is not w.npy
            count = _members(file)
        if count not in (len(members), 2**16 - 1):  # or too many for the field, and counted elsewhere
            raise ValueError(f"it has {len(members)} members, and says that it has {count}")
        if len(arrays) < len(members):
            raise ValueError(f"it has {len(members)} members, of which only {len(arrays)} have a name of their own")
        for name, array in arrays.items():
            if not isinstance(array, np.ndarray):
                raise ValueError(f"its member {name} is not an array")
        return arrays
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no file {path}") from None
    except Exception as error:  # a damaged archive fails in as many ways as there are decoders
        raise ValueError(f"{path} is not a readable .npz file: {error}") from error


def _members(file: IO[bytes]) -> int:
    """How many members an archive says at its end that it has; Python's reader does not compare."""
    file.seek(-min(_LONGEST_END, os.fstat(file.fileno()).st_size), os.SEEK_END)
    end = file.read()
    at = end.rfind(b"PK\5\6")
    return int.from_bytes(end[at + 10 : at + 12], "little")


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
