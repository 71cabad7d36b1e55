"""A program stops when it is asked to, as it would have, but with what it has written; a terminal shows what it can."""

import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from jaxsgd import shell

BEFORE = """
import faulthandler, gc, importlib.util, os, signal, sys, threading, time
spec = importlib.util.spec_from_file_location("shell", sys.argv[1])
shell = importlib.util.module_from_spec(spec)
spec.loader.exec_module(shell)
number = int(sys.argv[2])
signal.signal(number, signal.SIG_DFL)  # under nohup, it is another

def ask():
    os.kill(os.getpid(), number)
    for _ in range(1000): pass  # bytecode, between which Python handles signals
"""

ENDS = {
    "stopped": """
try:
    with shell.interruptible():
        try:
            ask()
            print("went on")
        except KeyboardInterrupt:
            print("saved")
finally:
    print("reached the clause outside")
""",
    "in a block in a block": """
with shell.interruptible():
    try:
        with shell.interruptible():
            ask()
    except KeyboardInterrupt:
        print("saved")
""",
    "asked twice": """
with shell.interruptible():
    try:
        ask()
    except KeyboardInterrupt:
        ask()
        print("saved")
""",
    "the exception is lost": """
class Lost:
    def __del__(self): ask()
sys.unraisablehook = lambda _: None
with shell.interruptible():
    Lost()
    try:
        shell.stop_if_asked()
    except KeyboardInterrupt:
        print("saved")
""",
    "the exception is ignored": """
with shell.interruptible():
    try: ask()
    except BaseException: pass
    print("saved")
print("went on")
""",
    "afterward": """
with shell.interruptible(): pass
assert signal.getsignal(number) is signal.SIG_DFL
print("saved", flush=True)
ask()
print("went on")
""",
    "a fork": """
with shell.interruptible():
    child = os.fork()
    if child == 0:
        try: ask()
        finally: print("a clause of the child", flush=True)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status == -number, status
    print("saved", flush=True)
ask()
""",
    "in a thread": """
def block():
    with shell.interruptible():
        assert signal.getsignal(number) is signal.SIG_DFL
        print("saved", flush=True)
thread = threading.Thread(target=block); thread.start(); thread.join()
ask()
""",
}

GOES_ON = {
    "a handler of its own": "signal.signal(number, lambda *_: print('handled'))",
    "a handler that ignores it": "signal.signal(number, signal.SIG_IGN); print('handled')",
    "a handler that Python does not know": "faulthandler.register(number, file=open(os.devnull)); print('handled')",
}


def python(text: str, number: int) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", BEFORE + text, str(Path(shell.__file__)), str(int(number))]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("name", ENDS)
def test_a_process_ends_by_the_signal_when_it_is_done(name, number) -> None:
    """Also what was printed is there. Catches another status, and a process that cannot be ended."""
    done = python(ENDS[name], number)
    assert (done.returncode, done.stdout, done.stderr) == (-number, "saved\n", "")


@pytest.mark.parametrize("name", GOES_ON)
def test_handlers_of_others_are_left_alone(name) -> None:
    """The last is of the kind that ``jax.distributed`` has for preemptions."""
    text = f"{GOES_ON[name]}\nbefore = signal.getsignal(number)\nwith shell.interruptible(): ask()\nask()\n"
    done = python(f"{text}assert signal.getsignal(number) is before\nprint('went on')\n", signal.SIGTERM)
    assert (done.returncode, done.stderr) == (0, "")
    assert set(done.stdout.split("\n")) == {"handled", "went on", ""}


def test_a_signal_that_is_blocked_ends_the_process_with_its_status() -> None:
    text = """
with shell.interruptible():
    try: ask()
    except KeyboardInterrupt: signal.pthread_sigmask(signal.SIG_BLOCK, [number])
"""
    assert python(text, signal.SIGTERM).returncode == 128 + signal.SIGTERM


@pytest.mark.parametrize(("status", "said"), [(130, "whole"), (3, "whole torn down")])
def test_after_an_interruption_nothing_is_torn_down(status, said) -> None:
    """What JAX was stopped in the middle of ended the process with a segmentation fault. Catches ``sys.exit``."""
    program = "import atexit, sys\nfrom jaxsgd import shell\natexit.register(print, 'torn down')\n"
    program += f"print('whole', end=' ')\nshell.leave({status})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (status, said)


def test_without_a_signal_nothing_happens() -> None:
    with shell.interruptible():
        assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
        shell.stop_if_asked()
    with pytest.raises(ValueError, match="as it is"), shell.interruptible():
        raise ValueError("as it is")
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("loss θ\n  ĝ ‖·‖ 日本", "loss θ\n  ĝ ‖·‖ 日本"),
        ("\x1b[2Jw\r\x07\t", r"\x1b[2Jw\r\x07\t"),
        ("a\u202eb\x9b\x7f\u2028", r"a\u202eb\x9b\x7f\u2028"),
        (os.fsdecode(b"\xff"), r"\udcff"),
    ],
)
def test_control_characters_are_written_out(text, shown) -> None:
    """Terminal controls of one byte and of eight bits, marks that turn the direction, bytes that are no text."""
    assert shell.printable(text) == shown


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [
        ("utf-8", "✓ θ ‖ĝ‖² ≤ ½ 3× Σ ─│╭ 日"),
        ("latin-1", "+ theta ||g||² <= ½ 3× Sigma -|+ \\u65e5"),
        ("ascii", "+ theta ||g||^2 <= 1/2 3x Sigma -|+ \\u65e5"),
    ],
)
def test_what_a_terminal_cannot_show_is_spelled(encoding, shown, monkeypatch) -> None:
    buffer = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(buffer, encoding=encoding))
    with shell.legible():
        print("✓ θ ‖ĝ‖² ≤ ½ 3× Σ ─│╭ 日", end="", flush=True)
    assert buffer.getvalue().decode(encoding) == shown
    assert sys.stdout.errors == "strict", "as it was"


def test_streams_that_are_none_are_left_alone(monkeypatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    with shell.legible():
        pass
