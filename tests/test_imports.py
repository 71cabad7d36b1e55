"""The table of modules in the package's docstring is what its imports are, and importing it touches nothing else."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import jaxsgd

PACKAGE = Path(jaxsgd.__file__).parent
MODULES = sorted(path.stem for path in PACKAGE.glob("*.py") if path.stem != "__init__")


def table() -> dict[str, set[str]]:
    """Module -> the modules it may import, from the lines "name : a, b" of the docstring; a comma continues a line."""
    lines = re.sub(r",\n +", ", ", jaxsgd.__doc__.split("may import:")[1]).splitlines()
    rows = [match for line in lines if (match := re.fullmatch(r" {4}(\w+) *:(.*)", line))]
    return {row[1]: set(re.findall(r"\w+", row[2])) for row in rows}


def siblings(module: str) -> set[str]:
    """The modules of the package that a module imports, inside functions too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse((PACKAGE / f"{module}.py").read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {name for alias in node.names for name in inside(alias.name)}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {name for full in names for name in inside(full)}
    return found


def inside(full_name: str) -> set[str]:
    """The module of the package in a dotted name: ``jaxsgd.kernels.Loss`` -> ``kernels``."""
    package, _, rest = full_name.partition(".")
    return {rest.split(".")[0]} if package == "jaxsgd" else set()


def test_the_table_lists_every_module() -> None:
    assert sorted(table()) == MODULES
    assert all(allowed <= set(MODULES) for allowed in table().values())


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_what_the_table_says(module: str) -> None:
    """Catches a sideways import, and a permission that nothing uses; doctests may import more."""
    assert siblings(module) == table()[module]


def test_the_table_has_no_cycle() -> None:
    order: list[str] = []
    remaining = table()
    while remaining:
        free = [module for module, allowed in remaining.items() if allowed <= set(order)]
        assert free, f"a cycle among {sorted(remaining)}"
        order += free
        remaining = {module: allowed for module, allowed in remaining.items() if module not in free}


IMPORT = """
import sys, jax
before = dict(jax.config.values)
import jaxsgd, jaxsgd._store
changed = {name for name, value in jax.config.values.items() if before.get(name, value) != value}
heavy = {"matplotlib", "sklearn", "tyro", "tqdm", "tueplots", "pandas"} & set(sys.modules)
assert not changed, f"importing jaxsgd changes {changed}"
assert not heavy, f"importing jaxsgd imports {heavy}"
assert not jax._src.xla_bridge._backends, "importing jaxsgd starts a device"
"""


def test_importing_changes_no_configuration_and_imports_nothing_heavy() -> None:
    """Catches a switch that changes the importing program, plotting at import, and arrays made at import."""
    result = subprocess.run([sys.executable, "-W", "error", "-c", IMPORT], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
