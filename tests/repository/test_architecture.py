"""How the package is laid out: rooms on floors, one face for each room, and nothing that touches JAX at import."""

import ast
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import jaxsgd

PACKAGE = Path(jaxsgd.__file__).parent
TESTS = PACKAGE.parent / "tests"

# A room is a package, or a module that stands alone. It may import the rooms on its right, all of lower floors.
FLOORS: list[dict[str, str]] = [
    {"_core": "", "shell": "", "tracking": ""},
    {
        "kernels": "_core",
        "designs": "_core",
        "sources": "_core",
        "problems": "_core",
        "tails": "_core",
        "exchange": "_core",
        "batch_losses": "_core",
    },
    {
        "moments": "_core kernels sources",
        "checks": "_core kernels",
        "model_agnostic": "_core kernels",
        "monitors": "_core kernels",
        "dynamics": "_core designs",
        "additivity": "_core batch_losses",
    },
    {
        "estimators": "_core kernels designs moments batch_losses shell",
        "noise": "_core kernels moments",
        "signal_to_noise": "_core kernels moments",
        "training": "_core kernels designs monitors shell tracking",
    },
    {
        "noise_scale": "noise",
        "batch_size": "_core designs kernels noise training",
        "variance_reduction": "_core kernels designs estimators",
        "surfaces": "_core kernels",
        "sweeps": "_core shell training",
    },
    {
        "report": "_core additivity batch_losses batch_size checks designs estimators kernels moments noise problems "
        "shell sources"
    },
    {"__main__": "report shell"},
]
TABLE = {room: set(allowed.split()) for floor in FLOORS for room, allowed in floor.items()}
ENTRIES = {path.stem if path.suffix == ".py" else path.name for path in PACKAGE.iterdir()} - {"__pycache__", "py.typed"}
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def room_of(path: Path) -> str:
    """The room that a file is in."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """What a file imports of the package, inside functions too, as ``designs`` or ``designs._base``."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            found |= {target(str(node.module), alias.name) for alias in node.names}
    return {name.removeprefix("jaxsgd.") for name in found if name.startswith("jaxsgd.")}


def target(module: str, name: str) -> str:
    """The module that ``from module import name`` reads: ``name`` itself where it is one."""
    place = PACKAGE.parent.joinpath(*module.split("."), name)
    return f"{module}.{name}" if place.is_dir() or place.with_suffix(".py").is_file() else module


def test_the_table_lists_every_room() -> None:
    assert ENTRIES - {"__init__"} == set(TABLE)
    assert len(set(TABLE) - {"__main__", "noise_scale"}) <= 26


def test_imports_go_down() -> None:
    """Catches a row that allows a sideways or an upward import; with this, there is no circle of rooms."""
    below: set[str] = set()
    for floor in FLOORS:
        for room, allowed in floor.items():
            assert set(allowed.split()) <= below, f"{room} may import {set(allowed.split()) - below}"
        below |= set(floor)


@pytest.mark.parametrize("room", TABLE)
def test_a_room_imports_what_the_table_says(room: str) -> None:
    """Catches an import that is not allowed, and a permission that nothing uses; doctests may import more."""
    found = {name.split(".")[0] for path in FILES if room_of(path) == room for name in imported(path)}
    assert found - {room} == TABLE[room]


def is_behind_a_face(name: str, path: Path) -> bool:
    """Whether an imported module is private to a package that the file is not in."""
    parts = name.split(".")
    inside = path.relative_to(PACKAGE).parts
    for depth, part in enumerate(parts):
        if part.startswith("_") and part != "_core" and parts[:depth] != list(inside[:depth]):
            return True
    return False


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_reaches_past_a_face(path: Path) -> None:
    past = [name for name in imported(path) if is_behind_a_face(name, path)]
    assert not past, f"{path} reaches past a face, for {past}"


@pytest.mark.parametrize("folder", sorted({path.parent for path in FILES} - {PACKAGE}), ids=lambda path: path.name)
def test_a_package_is_a_face_and_more_than_one_module(folder: Path) -> None:
    """Catches logic in an ``__init__``, a package of one module, and a package in a package but in ``kernels``."""
    face = ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))
    assert ast.get_docstring(face)
    allowed = ast.Import | ast.ImportFrom
    others = [node for node in face.body[1:] if not isinstance(node, allowed)]
    assert all(is_of_a_face(node) for node in others), f"{folder.name}/__init__.py does more than offer names"
    assert len([path for path in folder.glob("*.py") if path.stem != "__init__"]) >= 2
    assert folder.parent in (PACKAGE, PACKAGE / "kernels")


def is_of_a_face(node: ast.stmt) -> bool:
    """``__all__ = [...]``, and the line by which what is offered says where it is offered."""
    if isinstance(node, ast.Assign):
        return [ast.unparse(target) for target in node.targets] == ["__all__"]
    return ast.unparse(node) == "at_home(__name__, __all__)"


@pytest.mark.parametrize("folder", [PACKAGE, TESTS], ids=lambda path: path.name)
def test_no_file_is_long(folder: Path) -> None:
    """A longer one has two subjects: each goes into a file that is called by its own."""
    lengths = {path.name: len(path.read_text(encoding="utf-8").splitlines()) for path in folder.rglob("*.py")}
    assert {name: length for name, length in lengths.items() if length > 400} == {}


PUBLIC = sorted(room for room in ENTRIES if not room.startswith("_"))


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_module_says_what_it_offers(name: str) -> None:
    module = importlib.import_module(f"jaxsgd.{name}")
    assert sorted(set(module.__all__)) == sorted(module.__all__)
    assert set(module.__all__) <= set(vars(module))


@pytest.mark.parametrize("name", [name for name in PUBLIC if name != "noise_scale"])
def test_what_is_offered_says_its_public_home(name: str) -> None:
    """Catches ``jaxsgd.designs._uniform.WithReplacement`` in a repr, in a pickle and in ``help()``."""
    module = importlib.import_module(f"jaxsgd.{name}")
    for offered in module.__all__:
        value = getattr(module, offered)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert value.__module__.startswith("jaxsgd"), offered
            assert "._" not in value.__module__, f"{offered} says {value.__module__}"


def test_only_public_names_are_shown() -> None:
    """Tab completion lists what ``dir`` does."""
    shown = [name for name in dir(jaxsgd) if not name.startswith("__")]
    assert set(shown) == set(jaxsgd.__all__) - {"__version__"}
    assert set(PUBLIC) <= set(shown)


IMPORT = """
import sys, jax
before = dict(jax.config.values)
import jaxsgd, jaxsgd._core.files
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
