"""What the documentation shows is what happens, and everything public is documented."""

import ast
import doctest
import importlib
import inspect
import io
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import jaxsgd

PACKAGE = Path(jaxsgd.__file__).parent
ROOT = PACKAGE.parent


def module_name(path: Path) -> str:
    """``designs/_base.py`` -> ``jaxsgd.designs._base``, and ``designs/__init__.py`` -> ``jaxsgd.designs``."""
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


FILES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
PUBLIC = [name for name in FILES if not re.search(r"\._", name)]
MAX = 30  # lines of the docstring of a function or a class: derivations stand at the head of the module
EXAMPLES = 326  # lines of doctests in the package: a file that is no longer found would take its own along


def examples(name: str) -> Iterator[doctest.DocTest]:
    """The examples of every docstring of a file, wherever its names are offered."""
    text, values = FILES[name].read_text(encoding="utf-8"), vars(importlib.import_module(name))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (shown := ast.get_docstring(node)):
            where = getattr(node, "name", name)
            yield doctest.DocTestParser().get_doctest(shown, dict(values), where, str(FILES[name]), 0)


@pytest.mark.parametrize("name", FILES)
def test_doctests_under_strict_switches(name: str) -> None:
    """With float64 and every check of the tests turned on."""
    output, runner = io.StringIO(), doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    for test in examples(name):
        runner.run(test, out=output.write)
    assert runner.failures == 0, output.getvalue()
    shown = FILES[name].read_text(encoding="utf-8").count(">>> ")
    assert runner.tries == shown, "an example is not collected"


def test_no_example_is_lost() -> None:
    """Catches files that the tests of this module do not find."""
    assert sum(path.read_text(encoding="utf-8").count(">>> ") for path in FILES.values()) == EXAMPLES


AS_A_READER = """
import doctest, sys
from tests.repository.test_docs import EXAMPLES, FILES, examples
runner = doctest.DocTestRunner()
for name in FILES:
    for test in examples(name):
        runner.run(test)
sys.exit(runner.failures != 0 or runner.tries != EXAMPLES)
"""


def run(*arguments: str, **switches: str) -> None:
    result = subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(PACKAGE.parent)} | switches,
    )
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.slow
def test_doctests_as_a_reader_runs_them() -> None:
    """In float32 and with JAX's defaults. Catches an output that holds under the tests' switches only."""
    run("-c", AS_A_READER)


@pytest.mark.slow
def test_doctests_under_switches_that_readers_turn_on() -> None:
    """In float32, without any promotion, and with a look at every result for NaN."""
    run("-c", AS_A_READER, JAX_NUMPY_DTYPE_PROMOTION="strict", JAX_DEBUG_NANS="1")


PAGES = ["README.md", "docs/guide.md"]


@pytest.mark.parametrize("page", PAGES)
def test_examples_as_a_reader_runs_them(page: str, what_is_compiled: dict[str, str]) -> None:
    """Catches a page that shows nothing, or something else than what comes out."""
    assert ">>> " in (ROOT / page).read_text(encoding="utf-8"), f"{page} shows no example"
    run("-m", "doctest", page, **what_is_compiled)


def test_the_readme_is_short() -> None:
    """Catches what belongs on a page of ``docs``."""
    assert (ROOT / "README.md").stat().st_size <= 10_000


def test_links_between_pages_lead_somewhere() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for link in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / link).exists(), f"{page.name} links to {link}"


class OnlyExceptions(doctest.OutputChecker):
    """In float64 other numbers are drawn."""

    def check_output(self, want: str, got: str, optionflags: int) -> bool:
        return True


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_examples_under_strict_switches(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    found = doctest.DocTestParser().get_doctest(text, {}, page, page, 0)
    assert doctest.DocTestRunner(checker=OnlyExceptions()).run(found).failed == 0


def test_every_name_offered_exists() -> None:
    for module in map(importlib.import_module, PUBLIC):
        for name in getattr(module, "__all__", ()):
            assert hasattr(module, name), f"{module.__name__} offers {name}, which does not exist"


def undocumented(body: list[ast.stmt], home: object, prefix: str) -> list[str]:
    """Public functions, classes and methods of a module or a class that have no docstring, and inherit none."""
    missing = []
    for node in body:
        overloaded = "overload" in map(ast.unparse, getattr(node, "decorator_list", []))
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_") and not overloaded:
            name = f"{prefix}.{node.name}"
            if not ast.get_docstring(node) and not is_documented_above(home, node.name):
                missing.append(name)
            if isinstance(node, ast.ClassDef):
                missing += undocumented(node.body, getattr(home, node.name), name)
    return missing


def is_documented_above(home: object, name: str) -> bool:
    """Whether a method overrides a documented one of the package, whose docstring ``help()`` shows in its place."""
    above = home.__mro__[1:] if isinstance(home, type) else ()
    ours = [vars(base)[name] for base in above if base.__module__.startswith("jaxsgd") and name in vars(base)]
    return any(method.__doc__ for method in ours) and bool(inspect.getdoc(getattr(home, name)))


class Base:
    def documented(self) -> None:
        """Says what it does."""

    def silent(self) -> None: ...


class Kind(Base):
    def documented(self) -> None: ...

    def silent(self) -> None: ...

    def new(self) -> None: ...


@pytest.mark.parametrize(
    ("place", "missing"), [("jaxsgd.kernels", ["silent", "new"]), ("abc", ["documented", "silent", "new"])]
)
def test_an_override_inherits_its_docstring(place: str, missing: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a check that lets every method of a subclass pass, and what other packages' base classes say."""
    monkeypatch.setattr(Base, "__module__", place)
    assert [name for name in ("documented", "silent", "new") if not is_documented_above(Kind, name)] == missing


@pytest.mark.parametrize("name", FILES)
def test_everything_public_is_documented(name: str) -> None:
    """Catches a new name without a word about it, in private modules too, whose names a face may offer."""
    tree = ast.parse(FILES[name].read_text(encoding="utf-8"))
    assert ast.get_docstring(tree), f"{name} has no docstring"
    assert undocumented(tree.body, importlib.import_module(name), name) == []


@pytest.mark.parametrize("name", FILES)
def test_docstrings_are_short(name: str) -> None:
    """Catches a derivation in a function's docstring: ``help()`` is to fit a screen."""
    nodes = ast.walk(ast.parse(FILES[name].read_text(encoding="utf-8")))
    documented = [node for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    lengths = [(node.name, len((ast.get_docstring(node) or "").splitlines())) for node in documented]
    assert not [f"{place} has {length} lines" for place, length in lengths if length > MAX]
