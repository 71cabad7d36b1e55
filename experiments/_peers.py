"""Asks a process under .venv-peers, which ``make peers`` sets up, for the times and values of PyTorch's libraries.

Weights and data are handed over in PyTorch's layout and statistics of coordinates are handed back in ours: kernels are
HWIO here and OIHW there, images NHWC and NCHW, matrices (in, out) and (out, in), and so the rows of the first matrix
after a convolution, which follow the flattened image, are in another order too.
"""

import contextlib
import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import jax
import numpy as np

from jaxsgd import Problem

FOLDER = Path(__file__).parent
PYTHON = FOLDER.parent / ".venv-peers" / "bin" / "python"
COMMAND = (str(PYTHON), str(FOLDER / "_peers_worker.py"))
PLAIN = "PyTorch: mean"
FORMING_GRADIENTS = ("Opacus hooks", "BackPACK: Gram matrix")


class PeerError(ChildProcessError):
    """The other process failed, or answered what it should not."""


class Worker:
    """The other process; a context, at whose end it stops."""

    def __init__(self, command: tuple[str, ...] = COMMAND) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._errors = Path(self._folder.name) / "stderr"
        with self._errors.open("w") as errors:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, encoding="utf-8"
            )
        try:
            hello = self._ask(do="hello")
        except PeerError:
            self.close()
            raise
        self.offered: list[str] = hello["offered"]
        self.versions: dict[str, str] = hello["versions"]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process and remove what was handed over."""
        self._process.communicate()
        self._folder.cleanup()

    def load(self, problem: Problem, platform: str) -> str:
        """Hand a workload over; why it cannot be run there, or nothing."""
        weights = torch_weights(problem.params, problem.data["x"].shape) if "x" in problem.data else None
        if weights is None:
            return "not offered: tied weights"
        arrays = {f"weights/{i}": np.ascontiguousarray(leaf) for i, leaf in enumerate(weights)}
        x = np.asarray(problem.data["x"])
        arrays["x"] = np.ascontiguousarray(x.transpose(0, 3, 1, 2)) if x.ndim == 4 else x
        path = self._path("workload.npz")
        np.savez(path, **arrays, y=np.asarray(problem.data["y"], np.int64))
        answer = self._ask(do="load", path=path, threads=os.cpu_count(), platform=platform)
        self._places = places(problem)
        return str(answer["reason"])

    def seconds(self, name: str) -> float:
        """The time of one call."""
        return float(self._ask(do="time", name=name)["seconds"])

    def values(self, name: str) -> dict[str, np.ndarray]:
        """The parts of a statistic, those with a number for every coordinate in the order of our parameters."""
        path = self._path("values.npz")
        self._ask(do="values", name=name, path=path)
        with np.load(path) as stored:
            found = dict(stored)
        for part in {"mean", "second_moment"} & found.keys():
            ordered = np.empty_like(found[part])
            ordered[self._places] = found[part]
            found[part] = ordered
        return found

    def _path(self, name: str) -> str:
        return str(Path(self._folder.name) / name)

    def _ask(self, **request: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        try:
            answer = json.loads(line)
        except ValueError:
            last = self._errors.read_text(encoding="utf-8").strip().splitlines()[-1:]
            raise PeerError(f"{request['do']} was answered by {line!r}; last error: {''.join(last)}") from None
        if "error" in answer:
            raise PeerError(f"{request['do']} {request.get('name', '')}: {answer['error']}")
        return answer


@contextlib.contextmanager
def started(wanted: bool) -> Iterator[Worker | None]:
    """A worker if one is wanted and its environment exists; otherwise None."""
    if not wanted or not Path(COMMAND[0]).exists():
        yield None
        return
    with Worker(COMMAND) as worker:
        yield worker


def findings(results: dict[str, np.ndarray]) -> dict[str, Any]:
    """What the peers took, how far their values are from ours, and where they were faster by either measure."""
    offered, workloads = results["peers"].tolist(), results["workloads"].tolist()
    if not offered:
        return {"peers": "not run: `make peers` sets them up"}
    table: dict[str, Any] = {}
    slower = []
    for row, workload in enumerate(workloads):
        cells = {name: _cell(results, "peer_", row, column) for column, name in enumerate(offered)}
        table[workload] = str(results["peer_reasons"][row]) or cells
        for name, theirs in cells.items():
            statistic = name.split(": ")[1]
            if theirs is not None and statistic in results["names"]:
                ours = _cell(results, "", row, results["names"].tolist().index(statistic))
                if any(ours[field] >= theirs[field] for field in theirs):
                    slower.append({"workload": workload, "peer": name, "ours": ours, "theirs": theirs})
    errors = results["peer_error"][~np.isnan(results["peer_error"])]
    return {
        "peers": table,
        "peer_versions": dict(item.split(" ") for item in results["peer_versions"].tolist()),
        "largest_disagreement": float(errors.max(initial=0)),
        "slower_than_peers": slower,
    }


def _cell(results: dict[str, np.ndarray], prefix: str, row: int, column: int) -> Any:
    values = {field: float(results[prefix + field][row, column]) for field in ("ratio", "milliseconds")}
    return None if np.isnan(values["ratio"]) else {field: round(value, 2) for field, value in values.items()}


def torch_weights(params: Any, images: tuple[int, ...]) -> list[np.ndarray] | None:
    """Weights and biases in turn, in PyTorch's layout; None for models whose weights are shared."""
    if isinstance(params, list):
        params = {"convolutions": [], "dense": params}
    if params.keys() != {"convolutions", "dense"}:
        return None
    found: list[np.ndarray] = []
    for layer in params["convolutions"]:
        found += [np.asarray(layer["kernel"]).transpose(3, 2, 0, 1), np.asarray(layer["b"])]
    for number, layer in enumerate(params["dense"]):
        matrix = np.asarray(layer["w"])
        if number == 0 and params["convolutions"]:
            height, width = (size >> len(params["convolutions"]) for size in images[1:3])
            matrix = matrix.reshape(height, width, -1, matrix.shape[1]).transpose(2, 0, 1, 3).reshape(matrix.shape)
        found += [matrix.T, np.asarray(layer["b"])]
    return found


def places(problem: Problem) -> np.ndarray:
    """For each coordinate in PyTorch's order, where it is among ours: the layout of numbered coordinates."""
    leaves, structure = jax.tree.flatten(problem.params)
    ends = np.cumsum([leaf.size for leaf in leaves])
    numbered = [np.arange(end - leaf.size, end).reshape(leaf.shape) for leaf, end in zip(leaves, ends, strict=True)]
    found = torch_weights(jax.tree.unflatten(structure, numbered), problem.data["x"].shape)
    return np.concatenate([leaf.ravel() for leaf in found or []])
