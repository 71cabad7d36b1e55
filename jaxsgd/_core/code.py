"""A hash of what a Python function computes from: its code, and what that refers to, as far as it is the user's.

What JAX traces has its jaxpr (:mod:`jaxsgd._core.fingerprints`). A function that runs on the host is known by its
bytecode, in which neither comments nor line numbers are left, and by the values of the names in it:

    rate = 0.1
    def loss_fn(p, x): return (p - x) ** 2
    def run(key, M): return training.run_sgd(loss_fn, …, optax.sgd(rate), …)
        → the bytecode of run, that of loss_fn, 0.1; of training and optax, which are installed, nothing

A list, dict or set of which a function uses nothing but what adds to it, as in ``calls.append(M)``, is where the
function writes, not what it computes from. Of an object of somebody else's class there is what its ``repr`` says.
"""

import contextlib
import dataclasses
import dis
import hashlib
import importlib
import importlib.util
import inspect
import os
import sys
import sysconfig
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from functools import partial, singledispatch
from pathlib import Path
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import jax
import numpy as np

from jaxsgd._core.fingerprints import digest

_PACKAGE = str(Path(__file__).parents[1])
_FOLDERS = (_PACKAGE, *(sysconfig.get_path(each) for each in ("stdlib", "platstdlib", "purelib", "platlib")))
_INSTALLED = ("<frozen", *(os.path.join(folder, "") for folder in _FOLDERS))
_LOADS = ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_DEREF")
_METHODS = ("LOAD_METHOD", "LOAD_ATTR")
_ADDS = {"add", "append", "extend", "insert", "update"}
_OF_EVERY_CLASS = {"__dict__", "__doc__", "__firstlineno__", "__module__", "__static_attributes__", "__weakref__"}
_COMPARED_BY_IDENTITY = (FunctionType, type, list, dict, set)  # and objects: each is said once, and may hold itself


def code_digest(function: Callable[..., Any]) -> str:
    """A hash of a function, the same in every process that runs the same version of Python."""
    found = hashlib.sha256(f"{sys.version_info[:2]}".encode())
    for word in _words(function, {}):
        found.update(f"{word}\0".encode(errors="surrogatepass"))
    return found.hexdigest()[:16]


def _words(value: Any, seen: dict[int, tuple[int, Any]]) -> Iterator[str]:
    """What a value is, in words; ``seen`` keeps what was said, so that its identity lasts."""
    if isinstance(value, str):
        yield f"str {value}"
        return
    if isinstance(value, _COMPARED_BY_IDENTITY) or _parts.dispatch(type(value)) is _parts.dispatch(object):
        if id(value) in seen:
            yield f"again {seen[id(value)][0]}"
            return
        seen[id(value)] = len(seen), value
    yield type(value).__qualname__
    for part in _parts(value):
        yield from _words(part, seen)
    yield "end"


@singledispatch
def _parts(value: Any) -> Iterator[Any]:
    """What a value consists of; of an object that is none of the kinds below, its class and what it holds."""
    kind = type(value)
    yield kind
    if hasattr(value, "__wrapped__"):  # by jax.jit, by functools.cache
        yield value.__wrapped__
    elif dataclasses.is_dataclass(value):
        yield [getattr(value, field.name, None) for field in dataclasses.fields(value)]
    elif _is_own(kind.__module__) and hasattr(value, "__dict__"):
        yield vars(value)
    elif not jax.tree_util.all_leaves([value]):
        yield jax.tree.leaves(value)
    elif any("__repr__" in vars(each) for each in kind.__mro__[:-1]) and " at 0x" not in repr(value):
        yield repr(value)


@_parts.register(type(None))
@_parts.register(bool | int | float | complex | bytes | range | np.dtype | os.PathLike)
def _(value: Any) -> Iterator[Any]:
    yield repr(value)


@_parts.register(np.ndarray | np.generic | jax.Array)
def _(value: Any) -> Iterator[Any]:
    if isinstance(value, np.memmap):
        found = os.stat(str(value.filename))  # of which there may be more than can be read through
        yield f"{value.filename} {found.st_size} {found.st_mtime_ns} {value.offset} {value.shape} {value.dtype}"
    elif value.dtype == object:
        yield np.asarray(value).tolist()
    else:
        yield digest(value if isinstance(value, jax.Array) else np.asarray(value))


@_parts.register(Mapping)
def _(value: Any) -> Iterator[Any]:
    yield from (part for item in value.items() for part in item)


@_parts.register(Sequence)
def _(value: Any) -> Iterator[Any]:
    yield from value


@_parts.register(AbstractSet)
def _(value: Any) -> Iterator[Any]:
    yield from sorted("\0".join(_words(each, {})) for each in value)


@_parts.register(partial)
def _(value: Any) -> Iterator[Any]:
    yield from (value.func, value.args, value.keywords)


@_parts.register(MethodType)
def _(value: MethodType) -> Iterator[Any]:
    yield from (value.__func__, value.__self__)


@_parts.register(staticmethod | classmethod)
def _(value: Any) -> Iterator[Any]:
    yield value.__func__


@_parts.register(property)
def _(value: property) -> Iterator[Any]:
    yield from (value.fget, value.fset)


@_parts.register(ModuleType)
def _(value: ModuleType) -> Iterator[Any]:
    yield value.__name__


@_parts.register(type)
def _(value: type) -> Iterator[Any]:
    yield f"{value.__module__}.{value.__qualname__}"
    if _is_own(value.__module__):
        yield value.__bases__
        own = sorted(vars(value).items())
        yield from (part for name, part in own if name not in _OF_EVERY_CLASS and not inspect.isdatadescriptor(part))
        yield from (part for _, part in own if isinstance(part, property))


@_parts.register(CodeType)
def _(value: CodeType) -> Iterator[Any]:
    """Its instructions and constants, but for the docstring, which up to Python 3.12 has the first place."""
    first = int(sys.version_info < (3, 13) and not value.co_name.startswith("<"))
    if sys.version_info >= (3, 13):
        first = bool(value.co_flags & inspect.CO_HAS_DOCSTRING)
    yield from (value.co_code, value.co_names, value.co_varnames, value.co_freevars, value.co_argcount)
    yield from (value.co_kwonlyargcount, value.co_exceptiontable, value.co_consts[first:])


@_parts.register(FunctionType)
def _(value: FunctionType) -> Iterator[Any]:
    code, written = value.__code__, _only_added_to(value.__code__)
    yield from (value.__defaults__, value.__kwdefaults__)
    for name, cell in zip(code.co_freevars, value.__closure__ or (), strict=True):
        with contextlib.suppress(ValueError):  # it is empty
            if not _is_output(name, cell.cell_contents, written):
                yield cell.cell_contents
    if not _is_own(value.__module__, code.co_filename):
        yield f"{value.__module__}.{value.__qualname__}"
        return
    yield code
    names = sorted({name for part in _nested(code) for name in part.co_names})
    known = [(name, value.__globals__[name]) for name in names if name in value.__globals__]
    yield from (found for name, found in known if not _is_output(name, found, written))
    for module in [*(found for _, found in known if isinstance(found, ModuleType)), *_imported(code)]:
        yield from _of_module(module, names)


def _of_module(module: ModuleType, names: list[str]) -> Iterator[Any]:
    """What a function refers to in a module of the user's, ``losses`` in ``losses.margin``, and in those in it."""
    if _is_own(module.__name__, getattr(module, "__file__", None)):
        for name in [each for each in names if each in vars(module)]:
            found = vars(module)[name]
            if isinstance(found, ModuleType):
                yield from _of_module(found, [each for each in names if each != name])
            else:
                yield found


def _imported(code: CodeType) -> Iterator[ModuleType]:
    """The modules of the user's that are imported when the function runs."""
    for instruction in _instructions(code):
        if instruction.opname == "IMPORT_NAME":
            with contextlib.suppress(ImportError, ValueError):
                spec = importlib.util.find_spec(instruction.argval.partition(".")[0])
                if spec is not None and _is_own(spec.name, spec.origin):
                    yield importlib.import_module(instruction.argval)


def _is_own(module: str | None, file: str | None = None) -> bool:
    """Whether code is the user's: neither Python's nor an installed package's."""
    file = file or getattr(sys.modules.get(module or ""), "__file__", None)
    if not file:
        return (module or "").partition(".")[0] not in sys.stdlib_module_names
    return not file.startswith(_INSTALLED) and "site-packages" not in file and "dist-packages" not in file


def _is_output(name: str, value: Any, written: set[str]) -> bool:
    return name in written and isinstance(value, list | dict | set)


def _only_added_to(code: CodeType) -> set[str]:
    """The names of which every use is one of a method that adds to a container."""
    used: set[str] = set()
    added: set[str] = set()
    instructions = [*_instructions(code)]
    for instruction, following in zip(instructions, [*instructions[1:], None], strict=True):
        if instruction.opname in _LOADS:
            is_added_to = following is not None and following.opname in _METHODS and following.argval in _ADDS
            (added if is_added_to else used).add(instruction.argval)
    return added - used


def _instructions(code: CodeType) -> Iterator[dis.Instruction]:
    for part in _nested(code):
        yield from dis.get_instructions(part)


def _nested(code: CodeType) -> Iterator[CodeType]:
    """The code of a function, and of the functions defined in it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _nested(constant)
