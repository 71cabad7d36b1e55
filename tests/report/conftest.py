"""Reports that several files look at, each made once."""

import pytest

from jaxsgd import Problem
from jaxsgd.report import report
from tests.support.reports import BATCH_LOSS, KEY, PROBLEM


@pytest.fixture(scope="session")
def whole():
    return report(Problem(*PROBLEM, BATCH_LOSS), name="clusters <script>alert('x')</script>", key=KEY)


@pytest.fixture(scope="session")
def sampled():
    return report(PROBLEM, sample_size=24, chunk_size=7, key=KEY, batch_size=8)


@pytest.fixture(scope="session")
def page(whole):
    return whole.to_html()
