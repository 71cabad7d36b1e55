"""What a loss reads besides its arguments: the globals and the variables of functions around it, and attributes.

A loss is compiled once, as under ``jax.jit``, for whose programs what is read so is a constant. ``jax.grad`` reads it
anew at every call, and so does the reader of a notebook in which a cell was edited: in

    def model(params, x): …          # edited, and run again
    def loss_fn(params, example): return (model(params, example["x"]) - example["y"]) ** 2

``loss_fn`` is the same function as before, and computes another loss. So the names that it reads are looked up at every
call, in microseconds, and where one is another object than it was, everything compiled is forgotten. So are
attributes of what they stand for. What changes deeper inside, an entry of a list or of an array, is not seen.
"""

import dis
import functools
import warnings
import weakref
from collections.abc import Callable, Iterator
from types import CodeType, FunctionType, MethodType
from typing import Any

import jax

_VALUES = (bool, int, float, complex, str, bytes, type(None))  # the same where they are equal
_seen: "weakref.WeakKeyDictionary[Any, dict[str, Any]]" = weakref.WeakKeyDictionary()


def forget_what_changed(loss_fn: Callable[..., Any], arguments: Any) -> None:
    """Have a loss compiled anew, with a warning, if what it reads is not what it was at the last call.

    Not under a transformation, which is compiled as a whole by somebody else.
    """
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(arguments)):
        return
    owner = loss_fn.__self__ if isinstance(loss_fn, MethodType) else loss_fn
    now = {name: _reference(value) for name, value in _read(loss_fn, "", set())}
    try:
        before = _seen.get(owner)
        _seen[owner] = now
    except TypeError:  # it has no hash or no weak references
        return
    changed = [name for name in now if before is not None and not _same(before.get(name), now[name])]
    if changed:
        jax.clear_caches()  # type: ignore[no-untyped-call]
        warnings.warn(
            f"loss_fn reads {changed[0]}, which is not what it was at the last call: everything is compiled anew. What "
            "changes often should be an argument, in params or in the batch",
            stacklevel=4,
        )


def _read(function: Any, prefix: str, known: set[int]) -> Iterator[tuple[str, Any]]:
    """The names that a function reads, also through functions of its own module, and what they stand for."""
    if id(function) in known:
        return
    known.add(id(function))
    if isinstance(function, functools.partial):
        yield from _read(function.func, prefix, known)
    elif isinstance(function, MethodType):
        yield from (
            (f"{prefix}self.{name}", value) for name, value in getattr(function.__self__, "__dict__", {}).items()
        )
        yield from _read(function.__func__, prefix, known)
    elif hasattr(function, "__wrapped__"):  # by jax.jit, and the like, whose own settings are no business of the loss
        yield from _read(function.__wrapped__, prefix, known)
    elif isinstance(vars(type(function)).get("__call__"), FunctionType):
        yield from _read(MethodType(vars(type(function))["__call__"], function), prefix, known)
    elif isinstance(function, FunctionType):
        read, globals_ = _names(function.__code__), function.__globals__
        cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
        variables = [(name, cell.cell_contents) for name, cell in cells if name in read and _is_filled(cell)]
        variables += [(name, globals_[name]) for name in read if name in globals_]
        for name, value in variables:
            yield f"{prefix}{name}", value
            yield from ((f"{prefix}{name}.{each}", _attribute(value, each)) for each in _attributes(function.__code__))
            inner = getattr(value, "__wrapped__", value)
            if getattr(inner, "__globals__", None) is globals_:
                yield from _read(inner, f"{prefix}{name}.", known)


def _is_filled(cell: Any) -> bool:
    try:
        _ = cell.cell_contents
    except ValueError:
        return False
    return True


@functools.lru_cache(maxsize=4096)
def _names(code: CodeType) -> frozenset[str]:
    """What a function reads that is not its own, and does not write, as a counter of its calls."""
    done: dict[str, set[str]] = {"LOAD": set(), "STORE": set()}
    for instruction in _instructions(code):
        action, _, where = instruction.opname.partition("_")
        if action in done and where in ("GLOBAL", "NAME", "DEREF"):
            done[action].add(instruction.argval)
    return frozenset(done["LOAD"] - done["STORE"])


def _instructions(code: CodeType) -> Iterator[dis.Instruction]:
    yield from dis.get_instructions(code)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _instructions(constant)


@functools.lru_cache(maxsize=4096)
def _attributes(code: CodeType) -> frozenset[str]:
    """The names of the attributes that a function asks anything for."""
    return frozenset(i.argval for i in _instructions(code) if i.opname in ("LOAD_ATTR", "LOAD_METHOD"))


def _attribute(value: Any, name: str) -> Any:
    """An attribute of an object, or of its class, that is not computed; None if there is none."""
    return getattr(value, "__dict__", {}).get(name, vars(type(value)).get(name))


def _reference(value: Any) -> Any:
    """A value to compare with later that keeps nothing alive, where that is possible."""
    if isinstance(value, _VALUES):
        return value
    try:
        return weakref.ref(value)
    except TypeError:
        return id(value)


def _same(before: Any, now: Any) -> bool:
    if isinstance(before, weakref.ref) and isinstance(now, weakref.ref):
        return before() is now() and now() is not None
    return type(before) is type(now) and bool(before == now or before != before)
