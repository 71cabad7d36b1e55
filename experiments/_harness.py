"""Finds the experiments, reads their flags, runs them and writes what they found.

An experiment is a module ``experiments/<stem>.py`` whose docstring opens with its claim and which defines

    Config                      a frozen dataclass; every field is a flag
    QUICK                       a Config that takes seconds
    compute(config) -> arrays   a dict of NumPy arrays, all that ``check`` and ``draw`` need
    check(arrays) -> findings   a dict of numbers; raises through :func:`require` where the claim fails
    draw(arrays) -> Figure
    summarize(findings) -> str  one sentence

and becomes ``<stem>.png``, ``.pdf``, ``.npz`` and ``.json``. Nothing is written before the claim is confirmed, and
every file is written whole or not at all.
"""

import ast
import dataclasses
import difflib
import importlib
import importlib.metadata
import io
import itertools
import json
import platform
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import numpy as np
import tyro
from tqdm import tqdm

from experiments._journal import Journal

if TYPE_CHECKING:
    from matplotlib.figure import Figure

T = TypeVar("T")

FOLDER = Path(__file__).parent
FIGURES = FOLDER.parent / "figures"
GROUPS: dict[str, Callable[[str], bool]] = {
    "all": lambda _: True,
    "study": lambda stem: not stem.endswith("_speed"),
    "benchmarks": lambda stem: stem.endswith("_speed"),
}
TYRO_STYLE = (tyro.conf.FlagCreatePairsOff,)
PACKAGES = ("jax", "jaxlib", "jaxsgd", "matplotlib", "numpy", "optax", "scikit-learn")


@dataclasses.dataclass(frozen=True)
class Options:
    """What every experiment understands besides its own settings."""

    quick: bool = False
    """Run the small configuration, into figures/quick: seconds instead of minutes."""
    redraw: bool = False
    """Check and draw the stored arrays again; compute nothing."""
    out: Path | None = None
    """Folder for the files (default: figures, or figures/quick with --quick)."""

    @property
    def folder(self) -> Path:
        """Where the files go."""
        return self.out or (FIGURES / "quick" if self.quick else FIGURES)


@dataclasses.dataclass(frozen=True)
class GroupOptions(Options):
    """What a group of experiments understands."""

    jobs: int = 2
    """Experiments of the study at a time; those of speed run alone."""

    def shared_flags(self) -> list[str]:
        """What every experiment of the group is given."""
        given = {"--quick": self.quick, "--redraw": self.redraw}
        return [flag for flag, is_given in given.items() if is_given] + (["--out", str(self.out)] if self.out else [])


class UnconfirmedError(AssertionError):
    """An experiment did not find what it claims."""


def require(confirmed: bool | np.bool_, message: str) -> None:
    """Raise :class:`UnconfirmedError` unless ``confirmed``."""
    if not confirmed:
        raise UnconfirmedError(message)


def z_scores(samples: np.ndarray, expected: Any = 0.0, axis: int = 0) -> np.ndarray:
    """The mean of independent samples along an axis less what is expected, in standard errors."""
    error = samples.std(axis=axis, ddof=1) / np.sqrt(samples.shape[axis])
    return np.asarray((samples.mean(axis=axis) - expected) / error)


def progress(items: Iterable[T], description: str) -> Iterable[T]:
    """A progress bar on a terminal, nothing elsewhere."""
    return tqdm(items, desc=description, leave=False, disable=None, dynamic_ncols=True)


def stems() -> list[str]:
    """The names of all experiments."""
    return sorted(path.stem for path in FOLDER.glob("[a-z]*.py"))


def claim(stem: str) -> str:
    """The first paragraph of an experiment's docstring, read without importing it."""
    docstring = ast.get_docstring(ast.parse((FOLDER / f"{stem}.py").read_text(encoding="utf-8"))) or ""
    return " ".join(docstring.split("\n\n")[0].split())


def main(arguments: list[str]) -> int:
    """Run what the command line asks for; the exit status is 0, 1 (claim not confirmed), 2 (bad input) or 130."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(listing())
        return 0
    name, flags = arguments[0], arguments[1:]
    if name not in [*stems(), *GROUPS]:
        close = difflib.get_close_matches(name, [*stems(), *GROUPS], n=1)
        hint = f"; did you mean {close[0]}?" if close else ":"
        print(f"there is no experiment {name!r}{hint} `python -m experiments` lists them", file=sys.stderr)
        return 2
    return run_group(name, flags) if name in GROUPS else attempt(name, flags)


def attempt(stem: str, flags: list[str]) -> int:
    """Run one experiment and print its closing line, or why there is none; the exit status."""
    try:
        print(run(stem, flags), flush=True)
    except KeyboardInterrupt:
        print("interrupted; no file was left half-written", file=sys.stderr)
        return 130
    except UnconfirmedError as error:
        print(f"claim not confirmed, nothing written: {error}", file=sys.stderr)
        return 1
    except (ValueError, TypeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def run_group(group: str, flags: list[str]) -> int:
    """Run several experiments; what an interrupted round with the same flags has finished is not run again.

    An experiment that fails does not stop the others. The exit status is 0, or that of the first failure.
    """
    options = tyro.cli(
        GroupOptions,
        prog=f"python -m experiments {group}",
        description=run_group.__doc__,
        args=flags,
        config=TYRO_STYLE,
    )
    if options.jobs < 1:
        print(f"error: jobs must be at least 1, got {options.jobs}", file=sys.stderr)
        return 2
    shared = options.shared_flags()
    journal, failures = Journal(options.folder, [group, *shared]), {}
    chosen = [stem for stem in stems() if GROUPS[group](stem)]
    missing = [stem for stem in chosen if stem not in journal]
    if len(missing) < len(chosen):
        print(f"finished before the interruption: {', '.join(stem for stem in chosen if stem not in missing)}")
    places = (f"[{number}/{len(chosen)}]" for number in itertools.count(1 + len(chosen) - len(missing)))
    try:
        for stem, status in _attempts(missing, shared, options.jobs if group == "study" else 1, places):
            if status == 130:
                raise KeyboardInterrupt
            if status:
                failures[stem] = status
            else:
                journal.enter(stem)
    except KeyboardInterrupt:
        print("the same command goes on from here", file=sys.stderr)
        return 130
    if failures:
        print(f"failed: {', '.join(failures)}; the same command runs only these again", file=sys.stderr)
        return next(iter(failures.values()))
    journal.close()
    return 0


def _attempts(names: list[str], flags: list[str], jobs: int, places: Iterator[str]) -> Iterator[tuple[str, int]]:
    """Run experiments one by one, saying which before each, or side by side, saying which after each."""
    if jobs == 1:
        for stem in names:
            print(next(places), claim(stem), flush=True)
            yield stem, attempt(stem, flags)
    else:
        from experiments._workers import attempts

        for stem, status, output, errors in attempts(attempt, names, flags, jobs):
            print(next(places), claim(stem))
            print(output, end="", flush=True)
            print(errors, end="", file=sys.stderr, flush=True)
            yield stem, status


def listing() -> str:
    """All experiments with their claims."""
    lines = ["usage: python -m experiments STEM|study|benchmarks|all [--quick] [--redraw] [--out DIR] [--help]", ""]
    lines += [f"{stem}\n    {claim(stem)}" for stem in stems()]
    return "\n".join(lines)


def run(stem: str, flags: list[str]) -> str:
    """Run one experiment; return the closing line."""
    module = importlib.import_module(f"experiments.{stem}")
    config, options = parse(stem, module, flags)
    if not 0 <= getattr(config, "seed", 0) < 2**32:
        raise ValueError(f"--seed must be from 0 to {2**32 - 1}, got {config.seed}")
    base = options.folder / stem
    if options.redraw:
        from jaxsgd._core import files

        findings, arrays = None, files.read_arrays(base.with_suffix(".npz"))
        found = module.check(arrays)
    else:
        import jax

        jax.config.update("jax_enable_x64", True)
        started = time.perf_counter()
        arrays = module.compute(config)
        found = module.check(arrays)
        findings = record(stem, config, found, time.perf_counter() - started)
    import matplotlib as mpl

    from experiments._style import SETTINGS

    with mpl.rc_context(SETTINGS):
        written = write(base, arrays, module.draw(arrays), findings)
    return f"{stem}: {module.summarize(found)}\n{' '.join(map(shown, written))}"


def parse(stem: str, module: Any, flags: list[str]) -> tuple[Any, Options]:
    """Read the flags of one experiment: every field of its Config, and :class:`Options`."""
    default = module.QUICK if "--quick" in flags else module.Config()
    arguments = dataclasses.make_dataclass(
        "Arguments",
        [
            ("config", Annotated[module.Config, tyro.conf.arg(name="")], dataclasses.field(default=default)),
            ("options", Annotated[Options, tyro.conf.arg(name="")], dataclasses.field(default=Options())),
        ],
    )
    parsed = tyro.cli(
        arguments,
        prog=f"python -m experiments {stem}",
        description=claim(stem),
        args=flags,
        config=TYRO_STYLE,
    )
    return parsed.config, parsed.options


def record(stem: str, config: Any, findings: dict[str, float], seconds: float) -> dict[str, Any]:
    """What is needed to obtain the same numbers again, and the numbers."""
    import jax

    device = jax.devices()[0]
    return {
        "experiment": stem,
        "claim": claim(stem),
        "config": {name: _plain(value) for name, value in dataclasses.asdict(config).items()},
        "findings": findings,
        "seconds": round(seconds, 1),
        "device": f"{device.platform} ({device.device_kind}), {jax.device_count()} device(s)",
        "versions": {
            "python": platform.python_version(),
            **{package: importlib.metadata.version(package) for package in PACKAGES},
        },
    }


def write(base: Path, arrays: dict[str, np.ndarray], figure: "Figure", findings: dict[str, Any] | None) -> list[Path]:
    """Write the figure, and the arrays and findings where they are new; the same input gives the same bytes."""
    from jaxsgd._core import files

    contents = {".png": _rendered(figure, "png"), ".pdf": _rendered(figure, "pdf")}
    if findings is not None:
        contents[".npz"] = files.pack_arrays(arrays)
        contents[".json"] = (json.dumps(findings, indent=2) + "\n").encode()
    for suffix, content in contents.items():
        files.write_bytes(base.with_suffix(suffix), content)
    return [base.with_suffix(suffix) for suffix in contents]


def shown(path: Path) -> str:
    """A path as short as it can be named from here."""
    path = path.resolve()
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _rendered(figure: "Figure", kind: str) -> bytes:
    dateless = {"png": {"Software": None}, "pdf": {"CreationDate": None, "Creator": None, "Producer": None}}
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, metadata=dateless[kind])
    return buffer.getvalue()


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value
