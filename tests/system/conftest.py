"""Jobs to be killed, and what becomes of those that are not."""

import functools
import time
from collections.abc import Callable, Iterator

import pytest

from tests.support.fault_jobs import Nursery
from tests.support.killing import result_of


@pytest.fixture(scope="session")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    found = Nursery(tmp_path_factory.mktemp("compiled"))
    yield found
    found.close()


@pytest.fixture(scope="session")
def undisturbed(
    nursery: Nursery, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[dict[str, bytes], float]]:
    """By job: the result of one that was not killed, and how many seconds one took that found everything compiled."""

    @functools.cache
    def find(job: str) -> tuple[dict[str, bytes], float]:
        for _ in range(2):
            folder, started = tmp_path_factory.mktemp(job), time.monotonic()
            assert nursery.wait(nursery.start(job, folder)) == 0, (folder / "output").read_text()
        return result_of(folder), time.monotonic() - started

    return find
