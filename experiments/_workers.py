"""Runs experiments side by side, each in one of a few processes that import everything once."""

import contextlib
import io
import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed

Attempt = Callable[[str, list[str]], int]
"""Runs one experiment with some flags, prints what it found, and returns its exit status."""


def attempts(
    attempt: Attempt, stems: Sequence[str], flags: list[str], jobs: int
) -> Iterator[tuple[str, int, str, str]]:
    """Name, exit status, output and errors of every experiment, as they finish.

    Ctrl-C reaches the processes as well, and other signals are passed on to them: those at work stop, and nothing else
    is begun.
    """
    pool = ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn"), initializer=_ignore_interruptions)
    try:
        running = {pool.submit(_captured, attempt, stem, flags): stem for stem in stems}
        for future in as_completed(running):
            yield running[future], *future.result()
    except KeyboardInterrupt:
        for process in multiprocessing.active_children():
            process.terminate()  # at any moment: files are whole or not there
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _ignore_interruptions() -> None:
    """An idle process ends with the pool, without a traceback of its own."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _captured(attempt: Attempt, stem: str, flags: list[str]) -> tuple[int, str, str]:
    output, errors = io.StringIO(), io.StringIO()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
            status = attempt(stem, flags)
    except KeyboardInterrupt:
        status = 130
    finally:
        _ignore_interruptions()
    return status, output.getvalue(), errors.getvalue()
