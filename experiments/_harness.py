"""Finds the experiments, reads their flags, runs them and writes what they found.

An experiment is a module ``experiments/<stem>.py`` whose docstring opens with its claim and which defines

    Config                      :class:`Settings`, or :class:`Seeded` ones; every field is a flag
    QUICK                       a Config that takes seconds
    compute(config) -> arrays   a dict of what becomes NumPy arrays, all that ``check`` and ``draw`` need
    check(arrays) -> findings   a dict of numbers, as :class:`experiments._claims.Claims` enters them one by one; raises
                                :class:`UnconfirmedError` where the claim fails
    SUMMARY                     one sentence, with the findings' names in braces
    draw(arrays) -> Figure

and becomes ``<stem>.png``, ``.pdf``, ``.npz`` and ``.json``. Nothing is written before the claim is confirmed, every
file is written whole or not at all, and nothing where the numbers stored are the same up to rounding.
"""

import ast
import dataclasses
import difflib
import importlib
import importlib.metadata
import io
import itertools
import platform
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, dataclass_transform

import numpy as np
import tyro
from tqdm import tqdm

from experiments import _files
from experiments._claims import MissingDataError, UnconfirmedError, plain
from experiments._journal import Journal

if TYPE_CHECKING:
    from jaxtyping import Array
    from matplotlib.figure import Figure

T = TypeVar("T")
Arrays = dict[str, np.ndarray]

FOLDER = Path(__file__).parent
FIGURES = FOLDER.parent / "figures"
LONG = ("batch_size_schedule", "branched_critical_batch_size", "fashion_mnist")  # ten minutes each, or more
GROUPS: dict[str, Callable[[str], bool]] = {
    "all": lambda _: True,
    "study": lambda stem: not stem.endswith("_speed") and stem not in LONG,
    "long": lambda stem: stem in LONG,
    "benchmarks": lambda stem: stem.endswith("_speed"),
}
TYRO_STYLE = (tyro.conf.FlagCreatePairsOff,)
NOT_RUN = 3  # the status within a group of an experiment whose data are not installed
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


@dataclass_transform(frozen_default=True)
class Settings:
    """What an experiment can be told: every class that extends this one is a frozen dataclass, and its fields flags."""

    def __init_subclass__(cls) -> None:
        dataclasses.dataclass(frozen=True)(cls)


class Seeded(Settings):
    """Settings of an experiment that draws."""

    seed: int = 0
    """Seed of everything random."""

    def key(self) -> "Array":
        """Where all keys of the experiment come from."""
        import jax

        return jax.random.key(self.seed)


def table(rows: Sequence[Mapping[str, Any]], prefix: str = "") -> Arrays:
    """One array for each column of rows that have the same names; the names follow a prefix."""
    return {f"{prefix}{name}": np.array([row[name] for row in rows]) for name in rows[0]}


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
    """Run what the command line asks for; the exit status is 0, 1 (claim not confirmed), 2 (bad input) or 130.

    SIGTERM and SIGHUP stop it as Ctrl-C does, and end the process as they always do.
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        encoding = sys.stdout.encoding or "ascii"
        print(listing().encode(encoding, "replace").decode(encoding))  # at once: what spells it better imports JAX
        return 0
    from jaxsgd import shell

    with shell.legible(), shell.interruptible():
        return _obeyed(arguments)


def _obeyed(arguments: list[str]) -> int:
    name, flags = arguments[0], arguments[1:]
    if name not in [*stems(), *GROUPS]:
        close = difflib.get_close_matches(name, [*stems(), *GROUPS], n=1)
        hint = f"; did you mean {close[0]}?" if close else ":"
        print(f"there is no experiment {name!r}{hint} `python -m experiments` lists them", file=sys.stderr)
        return 2
    if "--out=" in flags or ("--out", "") in itertools.pairwise(flags):
        print("error: --out must be the name of a folder, got ''", file=sys.stderr)
        return 2
    if name in GROUPS:
        return run_group(name, flags)
    status = attempt(name, flags)
    return 2 if status == NOT_RUN else status


def attempt(stem: str, flags: list[str]) -> int:
    """Run one experiment and print its closing line, or why there is none; the exit status."""
    from jaxsgd import shell

    try:
        print(shell.printable(run(stem, flags)), flush=True)
    except KeyboardInterrupt:
        print("interrupted; no file was left half-written", file=sys.stderr)
        return 130
    except UnconfirmedError as error:
        print(f"claim not confirmed, nothing written: {shell.printable(str(error))}", file=sys.stderr)
        return 1
    except MissingDataError as error:
        print(f"not run: {shell.printable(str(error))}", file=sys.stderr)
        return NOT_RUN
    except (ValueError, TypeError, OSError) as error:
        print(f"error: {shell.printable(str(error))}", file=sys.stderr)
        return 2
    return 0


def run_group(group: str, flags: list[str]) -> int:
    """Run several experiments; what an interrupted round with the same flags has finished is not run again.

    An experiment that fails does not stop the others, nor is it a failure if data are not installed. The exit status is
    0, or that of the first failure.
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
            if status == 0:
                journal.enter(stem)
            elif status != NOT_RUN:
                failures[stem] = status
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
    lines = [
        "usage: python -m experiments STEM|study|long|benchmarks|all [--quick] [--redraw] [--out DIR] [--help]",
        "",
    ]
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
        from jaxsgd import sources

        arrays = sources.load(base.with_suffix(".npz"))
        found = plain(module.check(arrays))
        contents = renewed(base, {"claim": claim(stem), "findings": found})
    else:
        import jax

        jax.config.update("jax_enable_x64", True)
        started = time.perf_counter()
        arrays = {name: np.asarray(value) for name, value in module.compute(config).items()}
        found = plain(module.check(arrays))
        made = record(stem, config, found, time.perf_counter() - started)
        if _files.is_stored(base, arrays, made):
            return f"{stem}: {summary(module, found)}\nthe stored numbers, up to rounding; --redraw draws them anew"
        contents = {".npz": _files.pack_arrays(arrays), ".json": _files.pack_record(made)}
    import matplotlib as mpl

    from experiments._panels import SETTINGS

    with mpl.rc_context(SETTINGS):
        figure = module.draw(arrays)
        contents = {f".{kind}": _rendered(figure, kind) for kind in ("png", "pdf")} | contents
    for suffix, content in contents.items():
        _files.write(base.with_suffix(suffix), content)
    return f"{stem}: {summary(module, found)}\n{' '.join(shown(base.with_suffix(suffix)) for suffix in contents)}"


def summary(module: Any, findings: dict[str, Any]) -> str:
    """One sentence for the terminal."""
    if hasattr(module, "summarize"):
        return module.summarize(findings)
    return module.SUMMARY.format_map(findings)


def renewed(base: Path, made: dict[str, Any]) -> dict[str, bytes]:
    """The record of stored arrays, if they have one, where what is made of them today is not what it says."""
    stored = _files.read_record(base)
    if stored is None or _files.same(made, {name: stored.get(name) for name in made}):
        return {}
    return {".json": _files.pack_record(stored | made)}


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
