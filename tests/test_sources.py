"""Data from files, sources and loaders gives the statistics of the same arrays in memory, in bounded memory."""

import concurrent.futures
import pickle
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


class Transformed(Vectorized):
    """Scales its own example, and takes a vector of indices without complaint: then all by the largest of them."""

    def __getitem__(self, index):
        x = X[index] + 1.0
        return {"x": x / x.max(), "y": Y[index]}


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
resource.setrlimit(resource.RLIMIT_DATA, (used + 144 * 2**20, resource.RLIM_INFINITY))
m = jaxsgd.gradient_moments(loss_fn, params, data, chunk_size=2000)
assert int(m.count) == len(data["x"])
try:
    np.array(data["x"])
except MemoryError:
    print("held to the limit")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
def test_a_data_set_larger_than_the_memory_allowed(tmp_path):
    """192 MiB of examples, 144 MiB to spare, of which chunks take some 80: the control is that all at once fail."""
    np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.float32, (98304, 512))[:] = 0.5
    command = [sys.executable, "-c", LIMITED, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.stdout.strip() == "held to the limit", result.stderr


# ---- on other people's terms ----


def test_a_source_that_transforms_its_example_is_a_loop_over_it():
    """Catches a vector of indices handed to ``source[i]``: the maximum would be that of the chunk."""
    source = Transformed()
    loop = [source[i] for i in range(N)]
    truth = {name: np.stack([example[name] for example in loop]) for name in ("x", "y")}
    for batch_size in (1, 3, N):
        found = list(sources.batches(source, batch_size))
        for name, expected in truth.items():
            np.testing.assert_array_equal(np.concatenate([batch[name] for batch in found]), expected)
    assert not np.array_equal(source[np.arange(N)]["x"], truth["x"]), "the control: a vector gives something else"


class TooLong(OneByOne):
    """Says that it has more examples than it has."""

    def __len__(self):
        return N + 2


def test_a_length_that_is_too_large():
    with pytest.raises(ValueError, match=rf"says that it has {N + 2} examples, but data\[{N}\] fails: IndexError"):
        list(sources.batches(TooLong(), 4))


@pytest.mark.parametrize("index", [-1, N, N + 5])
@pytest.mark.parametrize(
    "data",
    [ARRAYS, jax.tree.map(jnp.asarray, ARRAYS), OneByOne(), ManyAtOnce()],
    ids=["numpy", "jax", "one by one", "many at once"],
)
def test_indices_outside(data, index):
    """JAX would clamp them, NumPy count from the end."""
    with pytest.raises(ValueError, match=f"indices must be from 0 to {N - 1}, got {index}"):
        sources.take(data, np.array([0, index]))


class TooFew(OneByOne):
    """Forgets an example."""

    def __getitems__(self, indices):
        return [self[index] for index in indices[1:]]


def test_fewer_examples_than_asked_for():
    with pytest.raises(ValueError, match="must give 4 examples for as many, got 3"):
        list(sources.batches(TooFew(), 4))


class Spent:
    """A loader around an iterator that can be gone through once."""

    def __init__(self):
        self.batches = iter([{"x": X[:4], "y": Y[:4]}, {"x": X[4:], "y": Y[4:]}])

    def __iter__(self):
        return self.batches


def test_a_loader_that_is_spent_is_no_smaller_data_set():
    loader = Spent()
    assert len(list(sources.batches(loader))) == 2
    with pytest.raises(ValueError, match="got 2 batches before and 0 now"):
        list(sources.batches(loader))


class Lists(OneByOne):
    """Examples as Hugging Face's data sets give them, if not asked for arrays."""

    def __getitem__(self, index):
        return {"x": X[index].tolist(), "y": float(Y[index])}


def test_lists_of_numbers_are_refused_with_the_remedy():
    with pytest.raises(TypeError, match=r"data\[0\]\['x'\] is a list of numbers.*with_format\('numpy'\)"):
        list(sources.batches(Lists(), 4))


def test_sparse_matrices_are_refused_with_the_remedy():
    sparse = pytest.importorskip("scipy.sparse")
    with pytest.raises(TypeError, match=r"got a sparse csr_matrix: pass data.toarray\(\)"):
        sources.kind(sparse.csr_matrix(X))


def test_frames_are_refused_with_the_remedy():
    pandas = pytest.importorskip("pandas")
    with pytest.raises(TypeError, match="got a pandas frame, whose brackets choose columns"):
        sources.kind(pandas.DataFrame(X))


def test_masked_entries_are_refused():
    masked = np.ma.masked_array(X, X == 1)
    with pytest.raises(ValueError, match="must have no masked entries"):
        list(sources.batches({"x": masked}, 4))
    np.testing.assert_array_equal(next(sources.batches({"x": np.ma.masked_array(X)}))["x"], X)


def test_numbers_of_the_other_byte_order():
    """JAX takes none; as FITS and IDX files have them."""
    big = X.astype(">f4")
    found = next(sources.batches({"x": big}, 4))["x"]
    assert found.dtype.isnative
    np.testing.assert_array_equal(found, X[:4])
    check({"x": X.astype(">f8"), "y": Y}, 3)


def test_a_mapped_file_that_shrinks_is_noticed(tmp_path):
    """Reading on would end the process with a bus error."""
    np.save(tmp_path / "x.npy", np.ones((4096, 8)))
    batches = sources.batches(sources.load(tmp_path / "x.npy"), 1024)
    next(batches)
    with (tmp_path / "x.npy").open("r+b") as file:
        file.truncate(8192)
    with pytest.raises(ValueError, match=r"x\.npy has shrunk"):
        next(batches)


def sum_of_rows(data):
    return [float(data.rows(np.array([k % N]))["x"].sum()) for k in range(60)]


def many_groups(path):
    import pyarrow as pa
    from pyarrow import parquet as pq

    pq.write_table(pa.table({"x": list(X), "y": Y}), path, row_group_size=1)
    return sources.load(path)


FORKS = """
import multiprocessing, sys
import numpy as np
from jaxsgd import sources

def sums(data):
    return [float(data.rows(np.array([k % 7]))["x"].sum()) for k in range(60)]

data = sources.load(sys.argv[1])
truth = sums(data)
with multiprocessing.get_context("fork").Pool(4) as pool:
    for found in pool.map(sums, [data] * 4):
        print("same" if found == truth else "other")
"""


def test_a_parquet_file_is_read_by_threads_workers_and_forks(tmp_path):
    """A ``ParquetFile`` that threads share ends in a double free or hangs for ever."""
    data = many_groups(tmp_path / "data.parquet")
    truth = sum_of_rows(data)
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        assert list(threads.map(lambda _: sum_of_rows(data), range(40))) == [truth] * 40
    assert sum_of_rows(pickle.loads(pickle.dumps(data))) == truth
    command = [sys.executable, "-c", FORKS, str(tmp_path / "data.parquet")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert result.stdout.split() == ["same"] * 4, result.stderr


def test_batches_pass_through_what_shows_progress() -> None:
    """An object with a length that wraps the iterator of batches, as progress bars do."""

    class Bar:
        def __init__(self, batches, total: int) -> None:
            self.batches, self.total, self.shown = batches, total, 0

        def __len__(self) -> int:
            return self.total

        def __iter__(self):
            for batch in self.batches:
                self.shown += 1
                yield batch

    bar = Bar(sources.batches(ARRAYS, 3), 3)
    found = jaxsgd.gradient_moments(loss_fn, jnp.ones(3), bar)
    assert bar.shown == 3
    truth = jaxsgd.gradient_moments(loss_fn, jnp.ones(3), ARRAYS)
    assert int(found.count) == N
    assert_close(found.mean, truth.mean, atol=1e-12)
