"""Data from files, sources and loaders gives the statistics of the same arrays in memory, in bounded memory."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsgd
from jaxsgd import problems, sources
from tests.support.twins import assert_close

N = 7
X = np.arange(3.0 * N).reshape(N, 3) % 5
Y = np.arange(N) % 2 * 1.0
ARRAYS = {"x": X, "y": Y}


def loss_fn(params, example):
    return (example["x"] @ params - example["y"]) ** 2


class Vectorized:
    """Takes a vector of indices."""

    def __len__(self):
        return N

    def __getitem__(self, indices):
        return {"x": X[indices], "y": Y[indices]}


class OneByOne(Vectorized):
    """Takes one index, as a list of examples does."""

    def __getitem__(self, index):
        return {"x": X[int(index)], "y": float(Y[int(index)])}


class ManyAtOnce(OneByOne):
    """Has the batched look-up of grain and PyTorch."""

    def __getitems__(self, indices):
        assert isinstance(indices, list)
        return [OneByOne.__getitem__(self, index) for index in indices]


class Loader:
    """Can only be gone through, every time from the beginning."""

    def __iter__(self):
        return iter([{"x": X[:4], "y": Y[:4]}, {"x": X[4:], "y": memoryview(Y[4:])}])


def folder(path):
    path.mkdir()
    np.save(path / "x.npy", X)
    np.save(path / "y.npy", Y)
    return path


def archive(path):
    np.savez(path.with_suffix(".npz"), x=X, y=Y)
    return path.with_suffix(".npz")


def parquet(path):
    import pyarrow as pa
    from pyarrow import parquet as pq

    pq.write_table(pa.table({"x": list(X), "y": Y}), path.with_suffix(".parquet"), row_group_size=3)
    return path.with_suffix(".parquet")


@pytest.mark.parametrize("write", [folder, archive, parquet])
@pytest.mark.parametrize("chunk_size", [1, 3, N, N + 1, None])
def test_files_equal_the_arrays(write, chunk_size, tmp_path):
    check(sources.load(write(tmp_path / "data")), chunk_size)


@pytest.mark.parametrize("source", [Vectorized(), OneByOne(), ManyAtOnce()])
@pytest.mark.parametrize("chunk_size", [1, 3, N, N + 1, None])
def test_sources_equal_the_arrays(source, chunk_size):
    """Size 1 catches a vector of one index that is taken for an index."""
    assert sources.kind(source) == "source"
    check(source, chunk_size)


def test_loaders_can_be_gone_through_again():
    loader = Loader()
    assert sources.kind(loader) == "batches"
    check(loader)
    check(loader)


def check(data, chunk_size=None):
    params = jnp.array([1.0, -2.0, 0.5])
    found = jaxsgd.gradient_moments(loss_fn, params, data, chunk_size=chunk_size, per_coordinate=True)
    truth = jaxsgd.gradient_moments(loss_fn, params, ARRAYS, per_coordinate=True)
    jax.tree.map(lambda a, b: assert_close(a, b, atol=1e-11), found, truth)
    assert int(found.count) == N


@pytest.mark.parametrize(
    "data",
    [ARRAYS, X, jnp.asarray(X), [X, Y], (X,), {"a": {"b": X}}, problems.line_fit().data, {}, None],
    ids=lambda data: type(data).__name__,
)
def test_pytrees_of_arrays_are_not_taken_for_sources(data):
    assert sources.kind(data) == "arrays"


def test_rows_of_a_parquet_file_in_any_order(tmp_path):
    data = sources.load(parquet(tmp_path / "data"))
    order = np.array([6, 0, 3, 3, 5, 1])
    np.testing.assert_array_equal(data[order]["x"], X[order])
    np.testing.assert_array_equal(data[order]["y"], Y[order])


def test_an_array_of_its_own(tmp_path):
    np.save(tmp_path / "x.npy", X)
    loaded = sources.load(str(tmp_path / "x.npy"))
    assert isinstance(loaded, np.memmap)
    np.testing.assert_array_equal(loaded, X)


LIMITED = """
import resource, sys
import jax, numpy as np, jaxsgd
from jaxsgd import sources

loss_fn = lambda params, example: (example["x"] @ params) ** 2
data = sources.load(sys.argv[1])
params = jax.numpy.ones(data["x"].shape[1])
jaxsgd.gradient_moments(loss_fn, params, {"x": data["x"][:4000]}, chunk_size=2000)

used = int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmData"))) * 1024
resource.setrlimit(resource.RLIMIT_DATA, (used + 64 * 2**20, resource.RLIM_INFINITY))
m = jaxsgd.gradient_moments(loss_fn, params, data, chunk_size=2000)
assert int(m.count) == len(data["x"])
try:
    np.array(data["x"])
except MemoryError:
    print("held to the limit")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
def test_a_data_set_larger_than_the_memory_allowed(tmp_path):
    """128 MiB of examples with 64 MiB to spare; holding them at once must fail, or the limit would mean nothing."""
    np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.float32, (65536, 512))[:] = 0.5
    command = [sys.executable, "-c", LIMITED, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.stdout.strip() == "held to the limit", result.stderr
