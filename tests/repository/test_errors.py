"""Every `raise` of the package is reached, and says which argument, which value and which rule.

The cases stand beside the other tests of a room: in its ``errors.py``, or ``errors_of_….py`` where the room is one
module. One test reads the package, and fails if no case reaches some `raise`.
"""

import ast
import builtins
import importlib
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import jaxsgd
from tests.support.error_helpers import Case
from tests.support.registry import linear_loss

PACKAGE = Path(jaxsgd.__file__).parent
TESTS = Path(__file__).parents[1]
FILES = sorted([*TESTS.rglob("errors.py"), *TESTS.rglob("errors_of_*.py")])
CASES: list[Case] = [
    case
    for path in FILES
    for case in importlib.import_module(".".join(path.relative_to(TESTS.parent).with_suffix("").parts)).CASES
]
NUM_CASES = 472  # a file that is no longer found would take its own along
RAISES = 236  # statements that raise, for the same reason

pytestmark = pytest.mark.usefixtures("without_type_checks")


def pattern(message: str) -> str:
    """The whole message, but for what " … " leaves out, and for what comes before and after."""
    return "(?s)" + ".*".join(map(re.escape, message.split(" … ")))


@pytest.mark.parametrize("case", CASES, ids=[message[:60] for _, message, _ in CASES])
def test_message(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exception, message, call = case
    with pytest.raises(exception, match=pattern(message)) as info:
        call(tmp_path, monkeypatch)
    assert type(info.value) is exception


def is_message(raised: ast.expr | None) -> bool:
    """Whether a `raise` makes an exception of Python's own: not a bare one, nor one that the package catches itself."""
    return isinstance(raised, ast.Call) and isinstance(raised.func, ast.Name) and hasattr(builtins, raised.func.id)


def raise_statements() -> dict[tuple[str, int], str]:
    """The lines of every `raise` of a new exception, with the place of the statement they belong to."""
    places = {}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Raise) and is_message(node.exc):
                for line in range(node.lineno, node.end_lineno + 1):
                    places[str(path), line] = f"{path.relative_to(PACKAGE)}:{node.lineno}"
    return places


def reached(case: Case, folder: Path, places: dict[tuple[str, int], str]) -> set[str]:
    """The `raise` statements that the exception, its cause and its context went through."""
    found: set[str] = set()
    with pytest.MonkeyPatch.context() as monkeypatch, pytest.raises(case[0]) as info:
        case[2](folder, monkeypatch)
    error: BaseException | None = info.value
    while error is not None:
        trace = error.__traceback__
        while trace is not None:
            place = (trace.tb_frame.f_code.co_filename, trace.tb_lineno)
            found |= {places[place]} if place in places else set()
            trace = trace.tb_next
        error = error.__cause__ or error.__context__
    return found


def test_every_case_is_collected() -> None:
    assert len(CASES) == NUM_CASES


def test_every_raise_statement_is_reached(tmp_path: Path) -> None:
    places = raise_statements()
    assert len(set(places.values())) == RAISES
    missed = set(places.values()).difference(*(reached(case, tmp_path, places) for case in CASES))
    assert not missed, f"no case reaches the raise at {', '.join(sorted(missed))}"


def test_shapes_are_checked_under_jit() -> None:
    """Catches a check that only runs on concrete arrays."""
    with pytest.raises(ValueError, match="batch must have equally many examples"):
        jax.jit(jaxsgd.per_example_gradients(linear_loss))(jnp.ones(2), (jnp.ones((3, 2)), jnp.ones((4, 2))))
    with pytest.raises(TypeError, match="params must be real floating-point arrays"):
        jax.jit(jaxsgd.per_example_gradients(linear_loss))(jnp.ones(2, int), jnp.ones((3, 2)))
