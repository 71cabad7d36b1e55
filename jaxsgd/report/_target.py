"""From ``my_package.my_module:make_problem`` to the function, and from what goes wrong there to one line.

It is what the command line needs of Python's import system and of the spelling of names; it measures nothing.
"""

import difflib
import importlib
import importlib.util
import inspect
import pkgutil
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

_PACKAGE = str(Path(__file__).parents[1])


class Refusal(Exception):  # noqa: N818 - it is no error of the program
    """What was given cannot be used; the message is the whole answer."""


class _NoModule(Refusal):
    """There is no module of this name."""


def resolve(target: str) -> Any:
    """The object that ``module:name`` or ``file.py:name`` means."""
    where, separator, name = target.rpartition(":")
    if not separator or not where or not name:
        raise Refusal(
            f"the target must be module:function, for example my_package.my_module:make_problem, got {target}"
        )
    try:
        found: Any = _module(where)
    except _NoModule as error:
        if Path(f"{where}.py").is_file():
            raise Refusal(f"{error}; the file is given as {where}.py:{name}") from error
        raise
    for part in name.split("."):
        if not hasattr(found, part):
            options = [each for each in dir(found) if not each.startswith("_")]
            raise Refusal(f"{where} has no {part}{did_you_mean(part, options)}")
        found = getattr(found, part)
    return found


def call(make: Any, target: str, data: Any, key: Any) -> Any:
    """What the target returns, given the data if it has an argument, and a key if it has one of this name.

    An object that cannot be called is returned as it is: a problem, not a function that makes one.
    """
    if not callable(make):
        if data is not None:
            raise Refusal(f"{target} is no function, and --data was given")
        return make
    positional, named = _arguments(make, target, data, key)
    try:
        return make(*positional, **named)
    except Exception as error:
        raise Refusal(f"{target} raised {_described(error)}") from error


def line_of(error: BaseException) -> str:
    """One line for an error, with the place in the user's code where it is not one of this package's messages."""
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
        return f"out of memory: smaller --sample-size, --chunk-size or --memory-limit take less ({_one_line(error)})"
    known = isinstance(error, Refusal | ValueError | TypeError | ImportError)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'writing'}: {error.strerror}"
    return _one_line(error) if known or isinstance(error, OSError) else _described(error)


def place_of(error: BaseException) -> str | None:
    """The deepest line of a traceback that is in nobody's library."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}, line {error.lineno}"
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        library = (
            frame.filename.startswith((_PACKAGE, "<", sys.prefix, sys.base_prefix)) or "site-packages" in frame.filename
        )
        if not library:
            return f"{frame.filename}, line {frame.lineno}"
    return None


def nearest(path: Path) -> str:
    """The end of a message about a file that is not there: one beside it with nearly its name."""
    beside = [each.name for each in path.parent.iterdir()] if path.parent.is_dir() else []
    return did_you_mean(path.name, beside)


def did_you_mean(name: str, options: Any) -> str:
    """The option that a name may have been meant for, as the end of an error message; empty if none is near."""
    near: Sequence[str] = difflib.get_close_matches(name, list(options), n=1, cutoff=0.6)
    return f"; did you mean {near[0]}?" if near else ""


def _module(where: str) -> Any:
    if where.endswith(".py"):
        return _imported(lambda: _from_file(Path(where)), where)
    if not all(part.isidentifier() for part in where.split(".")):
        raise _NoModule(f"{where} is no name of a module")
    _add_to_path(Path.cwd())
    importlib.invalidate_caches()
    parent, _, last = where.rpartition(".")
    for name in [".".join(where.split(".")[: i + 1]) for i in range(where.count("."))]:
        if not hasattr(_imported(partial(importlib.import_module, name), name), "__path__"):
            raise _NoModule(f"{name} is a module, not a package: it has no {where.removeprefix(name + '.')}")
    places = sys.modules[parent].__path__ if parent else [str(Path.cwd())]
    if where not in sys.modules and importlib.util.find_spec(where) is None:
        options = [module.name for module in pkgutil.iter_modules(places)]
        raise _NoModule(f"there is no module {where}{did_you_mean(last, options)}")
    return _imported(lambda: importlib.import_module(where), where)


def _from_file(path: Path) -> Any:
    if not path.exists():
        raise Refusal(f"there is no file {path}{nearest(path)}")
    name = _free_name(path)
    _add_to_path(path.parent)
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
    sys.modules[name] = module  # as an import does: dataclasses look it up
    spec.loader.exec_module(module)  # type: ignore[union-attr]
    return module


def _add_to_path(folder: Path) -> None:
    """Let modules of a folder be imported, unless Python or an installed package has one of the name."""
    name = str(folder.absolute())
    if name not in sys.path and not ("" in sys.path and folder.absolute() == Path.cwd()):
        sys.path.append(name)
        importlib.invalidate_caches()


def _free_name(path: Path) -> str:
    """The name of a file's module: that of the file, unless another module, such as ``numpy``, has it."""
    try:
        spec = importlib.util.find_spec(path.stem)
    except (ImportError, ValueError):  # the name has dots, or is that of a module without a file
        return path.stem if path.stem not in sys.modules else f"_target_{path.stem}"
    is_free = spec is None or (spec.has_location and Path(str(spec.origin)).absolute() == path.absolute())
    return path.stem if is_free else f"_target_{path.stem}"


def _imported(load: Callable[[], Any], where: str) -> Any:
    try:
        return load()
    except Refusal:
        raise
    except ModuleNotFoundError as error:
        if error.name is not None and (where == error.name or where.startswith(f"{error.name}.")):
            options = [module.name for module in pkgutil.iter_modules([str(Path.cwd())])]
            raise _NoModule(f"there is no module {where}{did_you_mean(where, options)}") from error
        raise Refusal(f"{where} does not import: {_described(error)}") from error
    except (Exception, SystemExit) as error:
        raise Refusal(f"{where} does not import: {_described(error)}") from error


def _arguments(make: Any, target: str, data: Any, key: Any) -> tuple[list[Any], dict[str, Any]]:
    parameters = inspect.signature(make).parameters
    named: dict[str, Any] = {"key": key} if "key" in parameters else {}
    fixed = [p for p in parameters.values() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) and p.name != "key"]
    needed = [p for p in fixed if p.default is p.empty]
    if len(needed) > 1:
        names = ", ".join(p.name for p in needed)
        raise Refusal(f"{target} must take no more than the data (and a key), and needs {names}")
    if data is None:
        if needed:
            raise Refusal(f"{target} needs its argument {needed[0].name}: give --data FILE_OR_FOLDER")
        return [], named
    takes = needed or fixed
    if not takes:
        raise Refusal(f"{target} takes no data, and --data was given")
    if takes[0].kind is takes[0].KEYWORD_ONLY:
        return [], named | {takes[0].name: data}
    return [data], named


def _described(error: BaseException) -> str:
    place = place_of(error)
    return f"{type(error).__name__}: {_one_line(error)}" + (f" ({place})" if place else "")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or "no message"
