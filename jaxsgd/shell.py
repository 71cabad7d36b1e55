"""How a program gets on with what started it: it stops when it is asked to, and says what the terminal can show.

SLURM, Kubernetes and ``timeout`` send SIGTERM some seconds before they kill, and a terminal that is closed sends
SIGHUP. By default either ends a process where it is. Within :func:`interruptible` they stop it as Ctrl-C does, by a
:class:`KeyboardInterrupt`: a run of SGD writes its checkpoint, a command says that it was interrupted. After that the
signal has the effect it would have had, so the process ends with the status that is expected of it (128 + 15 in a
shell). Everything in the package that may take long does so, and needs nothing of its caller.

Guarantees of :func:`interruptible`:
    - a handler of the program's own, or of a library, is left alone, whether Python knows of it or not.
    - what was there before is there again afterward; threads other than the first, which may not, change nothing.
    - a signal that comes where an exception is lost, such as in the garbage collector, stops the work at the next
      :func:`stop_if_asked`, and the process at the end of the block.
    - a second signal does not disturb the writing that the first has brought about.
    - processes forked within end as they would have.
"""

import codecs
import contextlib
import os
import signal
import sys
import threading
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import NoReturn

__all__ = ["interruptible", "leave", "legible", "printable", "stop_if_asked"]

_SIGNALS = [
    getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)
]  # Windows lacks the second
_received: list[int] = []  # since the outermost block began

_PLAIN = {
    "✓": "+",
    "×": "x",
    "·": "*",
    "−": "-",
    "–": "-",
    "—": "-",
    "‖": "||",
    "∞": "inf",
    "≤": "<=",
    "≥": ">=",
    "≈": "~",
    "≠": "!=",
    "…": "...",
    "’": "'",
    "“": '"',
    "”": '"',
    "→": "->",
    "←": "<-",
    "±": "+-",
    "√": "sqrt",
    "⟨": "<",
    "⟩": ">",
    "∇": "grad",
    "∂": "d",
    "∈": "in",
    "⁄": "/",
}
_RAISED = {"<super>": "^", "<sub>": "_"}


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Within, SIGTERM and SIGHUP raise a :class:`KeyboardInterrupt`; after it, they end the process.

    Files are closed and what was printed is shown before that, but ``finally`` clauses outside of the block are not
    reached, nor would they have been without it. Blocks may be nested: the outermost one counts.

    >>> with interruptible():
    ...     pass  # what may take long, and writes what it has when it is interrupted
    """
    first = threading.current_thread() is threading.main_thread()
    ours = [number for number in _SIGNALS if first and _ends_the_process(number)]
    if not ours:
        yield
        return
    process, is_over = os.getpid(), False

    def stop(number: int, _: FrameType | None) -> None:
        if os.getpid() != process:  # a fork of it
            _end(number)
        _received.append(number)
        if len(_received) == 1 and not is_over:
            raise KeyboardInterrupt

    try:
        try:
            for number in ours:
                signal.signal(number, stop)
            yield
        finally:
            is_over = True  # a signal is no longer raised, but counts
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)
        if _received:
            number = _received[0]
            _received.clear()
            _end(number)


def stop_if_asked() -> None:
    """Raise :class:`KeyboardInterrupt` if a signal has come since :func:`interruptible` began; for long loops."""
    if _received:
        raise KeyboardInterrupt


def leave(status: int) -> NoReturn:
    """End the process with the status of a command.

    After Ctrl-C, 130, without taking the interpreter apart: what JAX was stopped in the middle of would take it down.
    """
    if status == 128 + signal.SIGINT:
        _flush()
        os._exit(status)
    sys.exit(status)


def printable(text: str) -> str:
    r"""The text with its control characters, and all others that have no form, written as Python writes them.

    A name may hold what clears a screen or writes over a line.

    >>> printable("layer\x1b[2J: 3 × 4")
    'layer\\x1b[2J: 3 × 4'
    """
    return "".join(
        each if each.isprintable() or each == "\n" else each.encode("unicode_escape").decode() for each in text
    )


@contextlib.contextmanager
def legible() -> Iterator[None]:
    """Within, what standard output cannot show, θ or ✓ in ASCII, is spelled: ``theta`` and ``+``."""
    before = []
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            before.append((stream, stream.errors))
            stream.reconfigure(errors="jaxsgd.spelled")
    try:
        yield
    finally:
        for stream, errors in before:
            with contextlib.suppress(ValueError):  # closed meanwhile
                stream.reconfigure(errors=errors)


def _ends_the_process(number: int) -> bool:
    """Whether nothing handles a signal: neither Python nor, where the system tells, a library such as JAX's own."""
    if signal.getsignal(number) is not signal.SIG_DFL:
        return False
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        caught = next(line.split()[1] for line in lines if line.startswith("SigCgt"))
        return not int(caught, 16) >> (number - 1) & 1
    return True


def _end(number: int) -> None:
    """Let a signal have its usual effect on this process."""
    _flush()
    signal.signal(number, signal.SIG_DFL)
    signal.raise_signal(number)
    sys.exit(128 + number)  # it is blocked


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # there may be no stream, or nobody who reads it
            stream.flush()


def _spelled(error: UnicodeError) -> tuple[str | bytes, int]:
    """Of characters that an encoding lacks: how they are spelled in ASCII."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(_in_ascii, error.object[error.start : error.end])), error.end


def _in_ascii(character: str) -> str:
    if character in _PLAIN:
        return _PLAIN[character]
    if "\u2500" <= character <= "\u257f":  # of which boxes are drawn
        return {"─": "-", "│": "|"}.get(character, "+")
    parts = "".join(_PLAIN.get(each, each) for each in unicodedata.normalize("NFKD", character))
    if whole := parts.encode("ascii", "ignore").decode():  # ĝ is g, ½ is 1/2, ² is ^2
        return _RAISED.get(unicodedata.decomposition(character).partition(" ")[0], "") + whole
    kind, _, name = unicodedata.name(character, "").partition(" LETTER ")
    if kind in ("GREEK SMALL", "GREEK CAPITAL"):
        return name.lower() if kind == "GREEK SMALL" else name.capitalize()
    return "" if unicodedata.combining(character) else character.encode("unicode_escape").decode()


codecs.register_error("jaxsgd.spelled", _spelled)
