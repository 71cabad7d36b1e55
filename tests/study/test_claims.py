"""The 38 claims and questions of the source pages, in order of number, each settled by library code and exact numbers.

They are in the files ``test_claims_on_*``. The docstring of a test is the sentence in our own words and the verdict;
``docs/questions.md`` has them as a table, with the figure of each. S0, S1 and S2 are the three pages: a proof for one
example, a question on averaged errors, a question on averaged gradients.
"""

import re
from pathlib import Path


def test_the_page_has_a_row_for_every_claim() -> None:
    """Catches a claim without a verdict, a figure or a test, and a test that was renamed."""
    root = Path(__file__).parents[2]
    pattern = r"^\| (\d+) \| .+ \| .+ \| \[`(\w+)`\]\(\.\./figures/\2\.png\) \| `test_claim_(\d\d)(_\w+)` \|$"
    rows = re.findall(pattern, (root / "docs" / "questions.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert [int(number) for number, *_ in rows] == list(range(1, 39))
    files = Path(__file__).parent.glob("test_claims_on_*.py")
    tests = [name for path in files for name in re.findall(r"^def test_claim_(\w+)\(", path.read_text("utf-8"), re.M)]
    assert sorted(tests) == [f"{digits}{name}" for _, _, digits, name in rows]
    for number, figure, digits, _ in rows:
        assert int(digits) == int(number)
        assert (root / "experiments" / f"{figure}.py").exists()
