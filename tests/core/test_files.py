"""Files are whole or not there, equal arrays give equal bytes, and what cannot be read is refused."""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxsgd._core import files

ARRAYS = {"a": np.arange(6.0).reshape(2, 3), "b": np.array([1, 2, 3]), "empty": np.zeros((0, 2))}


def test_arrays_survive(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "x.npz"
    files.write_bytes(path, files.pack_arrays(ARRAYS))
    read = files.read_arrays(path)
    assert read.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert read[name].dtype == array.dtype
        np.testing.assert_array_equal(read[name], array)


@pytest.fixture
def umask() -> Iterator[Callable[[int], Any]]:
    before = os.umask(0)
    yield os.umask
    os.umask(before)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


@pytest.mark.parametrize("mask", [0o022, 0o002, 0o077])
def test_the_umask_says_who_may_read_a_new_file(tmp_path: Path, umask: Callable[[int], Any], mask: int) -> None:
    """Catches a secret that all may read, and a shared folder whose files the group may not write."""
    umask(mask)
    files.write_bytes(tmp_path / "x", b"content")
    with files.locked(tmp_path / "lock"):
        assert mode(tmp_path / "x") == mode(tmp_path / "lock") == 0o666 & ~mask


@pytest.mark.parametrize("given", [0o600, 0o640, 0o444])
def test_who_may_read_a_file_may_read_the_one_in_its_place(
    tmp_path: Path, umask: Callable[[int], Any], given: int
) -> None:
    umask(0o022)
    (tmp_path / "x").write_bytes(b"old")
    (tmp_path / "x").chmod(given)
    files.write_bytes(tmp_path / "x", b"new")
    assert (mode(tmp_path / "x"), (tmp_path / "x").read_bytes()) == (given, b"new")


@pytest.mark.parametrize("name", ["a" * 255, "ü" * 127 + "a", "a" * 251 + ".npz", "a" * 240])
def test_a_name_may_be_as_long_as_the_file_system_allows(tmp_path: Path, name: str) -> None:
    """Catches a temporary name, or that of a lock, that is longer than the name; in bytes, not letters."""
    path = tmp_path / "new" / name
    left = tmp_path / "new" / files.beside(path, files._TEMPORARY).name.replace("?", "0")
    left.parent.mkdir()
    left.write_bytes(b"half")
    files.write_bytes(path, b"content")
    with files.locked(files.beside(path, ".lock")) as held:
        assert held
        assert files.beside(path, ".lock") != files.beside(path.with_name("b" + name[1:]), ".lock")
    assert path.read_bytes() == b"content"
    assert not left.exists(), "what a killed writer left is found again"


def test_a_writer_whose_file_was_taken_for_one_left_behind_takes_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another writer may come between the file and its lock. Catches a rename of what is no longer there."""
    lock, removed = files._lock, []

    def after_another(handle: int) -> bool:
        if not removed:
            removed.extend(tmp_path.glob(".x.*.tmp"))
            removed[0].unlink()
        return lock(handle)

    monkeypatch.setattr(files, "_lock", after_another)
    files.write_bytes(tmp_path / "x", b"content")
    assert len(removed) == 1
    assert os.listdir(tmp_path) == ["x"]


def test_names_that_end_alike_are_two(tmp_path: Path) -> None:
    """Catches w.npy read as the member of this name, which is that of w."""
    arrays = {"w": np.ones(2), "w.npy": np.zeros(3), "w.npy.npy": np.zeros(4)}
    files.write_bytes(tmp_path / "x.npz", files.pack_arrays(arrays))
    read = files.read_arrays(tmp_path / "x.npz")
    assert {name: array.shape for name, array in read.items()} == {"w": (2,), "w.npy": (3,), "w.npy.npy": (4,)}


@pytest.mark.parametrize("name", ["file", "allow_pickle", "args"])
def test_any_name_survives(tmp_path: Path, name: str) -> None:
    """Catches names that are taken for options of NumPy's writer, and arrays that are lost."""
    files.write_bytes(tmp_path / "x.npz", files.pack_arrays({name: np.arange(3)}))
    np.testing.assert_array_equal(files.read_arrays(tmp_path / "x.npz")[name], np.arange(3))


@pytest.mark.parametrize("step", ["fsync", "chmod", "replace"])
@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, error: type[BaseException]
) -> None:
    """Catches a file opened for writing in place, and a temporary file left behind."""
    path = tmp_path / "x.bin"
    files.write_bytes(path, b"old")

    def fail(*_: object) -> None:
        raise error("stop")

    with monkeypatch.context() as patched:
        patched.setattr(os, step, fail)
        with pytest.raises(error, match="stop"):
            files.write_bytes(path, b"new and longer")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["x.bin"]
    files.write_bytes(path, b"new")
    assert path.read_bytes() == b"new"


def test_the_file_is_flushed_to_the_disk_before_it_is_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a rename that a power failure turns into an empty file."""
    order: list[str] = []
    for name in ("fsync", "replace"):
        original = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, n=name, f=original: (order.append(n), f(*a))[1])
    files.write_bytes(tmp_path / "x.bin", b"content")
    assert order == ["fsync", "replace", "fsync"], "and so is the folder, which knows the name, after"


def test_equal_arrays_give_equal_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a time stamp in the archive."""
    first = files.pack_arrays(ARRAYS)
    later = time.localtime(time.time() + 1e6)
    monkeypatch.setattr(time, "localtime", lambda *_: later)
    assert files.pack_arrays({name: array.copy() for name, array in ARRAYS.items()}) == first
    assert files.pack_arrays(ARRAYS | {"b": np.array([1, 2, 4])}) != first


def test_object_arrays_are_refused(tmp_path: Path) -> None:
    """Catches a pickle, which would run code when read, on the way in and on the way out."""
    with pytest.raises(ValueError, match="Object arrays"):
        files.pack_arrays({"a": np.array([{}], dtype=object)})
    np.savez(tmp_path / "x.npz", a=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match="Object arrays"):
        files.read_arrays(tmp_path / "x.npz")


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    """Catches a partial file that reads as fewer arrays."""
    content, path = files.pack_arrays({"a": np.arange(20.0), "b": np.ones(3)}), tmp_path / "x.npz"
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match="is not a readable"):
            files.read_arrays(path)


def test_damage_is_refused_or_harmless(tmp_path: Path) -> None:
    """Catches errors of the decompressor that escape under another name, and values that change in silence."""
    array = np.random.default_rng(0).normal(size=30)
    content, path, refused = files.pack_arrays({"a": array}), tmp_path / "x.npz", 0
    for position in range(len(content)):
        path.write_bytes(content[:position] + bytes([content[position] ^ 0xFF]) + content[position + 1 :])
        try:
            (read,) = files.read_arrays(path).values()
        except ValueError:
            refused += 1
        else:
            np.testing.assert_array_equal(read, array)
    assert refused > len(content) / 2


SETTINGS = {"steps": 10, "rates": [0.1, 0.2], "name": "a"}


def test_records_survive_with_their_settings(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    files.write_bytes(path, files.pack_record(ARRAYS, SETTINGS))
    for read in (files.read_record(path), files.read_record(path, dict(reversed(SETTINGS.items())))):
        assert read.keys() == ARRAYS.keys()
        for name, array in ARRAYS.items():
            np.testing.assert_array_equal(read[name], array)
    assert "a" in np.load(path).files, "NumPy reads it too"
    assert files.pack_record(ARRAYS, SETTINGS) == path.read_bytes()


@pytest.mark.parametrize("other", [{"steps": 11}, {"rates": [0.1]}, {"more": 1}])
def test_a_record_of_other_settings_is_refused_by_name(tmp_path: Path, other: dict[str, object]) -> None:
    path = tmp_path / "x.npz"
    files.write_bytes(path, files.pack_record(ARRAYS, SETTINGS))
    with pytest.raises(ValueError, match=f"is of another run: {next(iter(other))} is "):
        files.read_record(path, SETTINGS | other)


def test_every_flipped_bit_and_every_truncation_of_a_record_is_refused(tmp_path: Path) -> None:
    """Catches what a checksum of the arrays alone would let pass: names, settings, the archive's own tables."""
    content, path = files.pack_record({"a": np.arange(4.0)}, SETTINGS), tmp_path / "x.npz"
    for position in range(len(content)):
        flipped = bytes([content[position] ^ 1 << position % 8])
        for damaged in (content[:position], content[:position] + flipped + content[position + 1 :]):
            path.write_bytes(damaged)
            with pytest.raises(ValueError, match=r"x\.npz is damaged"):
                files.read_record(path)
    path.write_bytes(content + b"\0")
    with pytest.raises(ValueError, match=r"x\.npz is damaged"):
        files.read_record(path)
