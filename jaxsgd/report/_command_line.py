"""The command line: ``jaxsgd report my_package.my_module:make_problem --data examples.npz --out folder``.

Exit codes: 0 when the report is written; 1 for a mistake in what was given, with one line on standard error that begins
with "error: " and names the thing; 130 after Ctrl-C, and SIGTERM and SIGHUP end it likewise, as signals end processes.
Files are whole or not there. A failure of the package itself is shown as it is, with its traceback. What is shown of
names has its control characters escaped, and what the terminal cannot show is spelled (:mod:`jaxsgd.shell`).
"""

import argparse
import contextlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import jax

from jaxsgd import shell, sources
from jaxsgd.report._measure import as_problem, report
from jaxsgd.report._target import Refusal, call, did_you_mean, line_of, nearest, place_of, resolve

_EPILOG = """
TARGET is a function that returns a jaxsgd.Problem(loss_fn, params, data) or a tuple of these, with the loss of a batch
as a fourth if there is one: a dotted module, or a file, and the name in it, as in my_package.models:make_problem or
models.py:make_problem. The function is given the data of --data if it has an argument (an .npz arrives as a dict of
arrays, a folder of .npy as a dict of memory-mapped arrays), and a random key if it has an argument named key.
"""


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are ours."""

    def error(self, message: str) -> NoReturn:
        raise Refusal(message)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code; ``argv`` are the arguments after ``jaxsgd``."""
    words = list(sys.argv[1:] if argv is None else argv)
    with shell.legible(), shell.interruptible():
        return _attempt(words)


def _attempt(words: list[str]) -> int:
    try:
        return _run(words)
    except KeyboardInterrupt:
        print("interrupted: files written are whole, others are as they were", file=sys.stderr)
        return 130
    except Exception as error:
        if "--traceback" in words or not _is_about_the_input(error):
            raise
        print(f"error: {shell.printable(line_of(error))}", file=sys.stderr)
        return 1


def _run(words: list[str]) -> int:
    top = _Parser("jaxsgd", description="Gradient statistics of a model and its data.", allow_abbrev=False)
    top.add_argument("--version", action="version", version=f"jaxsgd {sys.modules['jaxsgd'].__version__}")
    top.add_argument("command", nargs="?", help="report: measure the gradients of a model on its data")
    known, _ = top.parse_known_args(words[:1])
    if known.command is None:
        if words:
            raise Refusal(f"unknown option {words[0]}{did_you_mean(words[0], top._option_string_actions)}")
        top.print_help()
        return 0
    if known.command != "report":
        raise Refusal(f"unknown command {known.command}, the only one is report")
    parser = _report_parser()
    options, unknown = parser.parse_known_args(words[1:])
    for word in unknown:
        if word.startswith("-"):
            raise Refusal(f"unknown option {word}{did_you_mean(word.split('=')[0], parser._option_string_actions)}")
        raise Refusal(f"unexpected argument {word}: there is one target, and options are named")
    return _report(options)


def _report_parser() -> _Parser:
    what = "Measure the gradients of a model on its data, at one point θ."
    parser = _Parser("jaxsgd report", description=what, epilog=_EPILOG, allow_abbrev=False)
    add = parser.add_argument
    add("target", nargs="?", metavar="TARGET", help="my_package.my_module:make_problem")
    add("--data", metavar="FILE_OR_FOLDER", help=".npz, .npy, .parquet, or a folder of .npy files")
    add("--out", metavar="FOLDER", default="jaxsgd_report", help="where to write (default: %(default)s)")
    add(
        "--checkpoint",
        metavar="FILE",
        action="append",
        help=".npz of jaxsgd.report.save_checkpoint: parameters to take instead; several pool the noise scale",
    )
    add("--seed", type=int, default=0, help="of all random choices (default: %(default)s)")
    add("--batch-size", type=int, metavar="M", help="where sampling designs are compared (default: the advice)")
    add("--sample-size", type=int, default=2048, metavar="n", help="examples kept one by one (default: %(default)s)")
    add(
        "--chunk-size",
        type=int,
        default=256,
        metavar="n",
        help="examples of a chunk of the pass (default: %(default)s)",
    )
    add("--memory-limit", type=int, default=2**30, metavar="BYTES", help="for gradients kept (default: %(default)s)")
    add("--traceback", action="store_true", help="show the traceback of an error")
    return parser


def _report(options: argparse.Namespace) -> int:
    if options.target is None:
        raise Refusal("report needs a target, for example my_package.my_module:make_problem")
    if not 0 <= options.seed < 2**32:
        raise Refusal(f"--seed must be from 0 to {2**32 - 1}, got {options.seed}")
    checkpoints = options.checkpoint or []
    for name in ("out", "data", "checkpoint"):
        if "" in (checkpoints if name == "checkpoint" else [getattr(options, name)]):
            raise Refusal(f"--{name} must be the name of a {'folder' if name == 'out' else 'file or folder'}, got ''")
    _require_folder(Path(options.out))
    for path in (options.data, *checkpoints):
        if path is not None and not Path(path).exists():
            raise Refusal(f"there is no file or folder {path}{nearest(Path(path))}")
    make = resolve(options.target)
    key, model_key = jax.random.split(jax.random.key(options.seed))
    data = None if options.data is None else sources.load(options.data)
    problem = call(make, options.target, data, model_key)
    as_problem(problem, options.target)
    found = report(
        problem,
        name=options.target,
        key=key,
        checkpoint=checkpoints or None,
        batch_size=options.batch_size,
        sample_size=options.sample_size,
        chunk_size=options.chunk_size,
        memory_limit=options.memory_limit,
    )
    paths = found.write(options.out)
    print(shell.printable(f"{found.text}\n\nwrote {paths[-1]}, and {len(paths) - 1} more files beside it"))
    return 0


def _require_folder(path: Path) -> None:
    """Raise before any work if nothing could be written there."""
    with contextlib.suppress(FileNotFoundError):
        path.stat()  # which refuses a name that is too long
    above = next(each for each in (path, *path.absolute().parents) if each.exists())
    if not above.is_dir():
        raise Refusal(f"--out must be a folder, and {above} is a file")
    if not os.access(above, os.W_OK | os.X_OK):
        raise Refusal(f"--out must be a folder that can be written to, and {above} is not")


def _is_about_the_input(error: Exception) -> bool:
    """Whether an error is one of the package's messages, of the system about a file, or from the user's own code."""
    if isinstance(error, Refusal | ValueError | TypeError | OSError | ImportError | MemoryError):
        return True
    return isinstance(error, jax.errors.JaxRuntimeError) or place_of(error) is not None
