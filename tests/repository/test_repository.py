"""What is published: no private addresses, pinned and hashed dependencies, a clean wheel, one version."""

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import jaxsgd

ROOT = Path(__file__).parents[2]


def tracked() -> list[str]:
    """Every file under version control; outside of it (an unpacked source archive), every file but hidden ones."""
    if not (ROOT / ".git").exists():
        files = (path.relative_to(ROOT) for path in ROOT.rglob("*") if path.is_file())
        return [str(path) for path in files if not any(part.startswith(".") for part in path.parts)]
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [name for name in listed.split("\0") if name and (ROOT / name).exists()]


# Put together from parts, so that this file does not match.
ADDRESSES = ["file:" + "//", "index" + "-url", "find" + "-links", "//" + "pypi.", "/" + "simple"]
SWITCHES = [b"--no-emit-" + b"index" + b"-url", b"--no-emit-" + b"find" + b"-links"]  # the Makefile's, against them


def addresses_in(name: str, content: bytes) -> list[str]:
    for switch in SWITCHES if name == "Makefile" else []:
        content = content.replace(switch, b"")
    return [f"{name}: {address}" for address in ADDRESSES if address.encode() in content]


def test_no_address_of_a_package_index_or_a_local_file() -> None:
    """Catches an address that works on one network only, which tools write into lock files and notebooks."""
    assert [hit for name in tracked() for hit in addresses_in(name, (ROOT / name).read_bytes())] == []


def test_addresses_are_found() -> None:
    """The control: each pattern is found, in the Makefile too, and the Makefile's own switches are not."""
    for address in ADDRESSES:
        assert addresses_in("Makefile", f"x {address} y".encode()) == [f"Makefile: {address}"]
        assert addresses_in("README.md", f"x{address}y".encode()) == [f"README.md: {address}"]
    assert addresses_in("Makefile", b" ".join(SWITCHES)) == []
    assert "Makefile" in tracked()


def test_every_requirement_is_pinned_and_hashed() -> None:
    """Catches a requirement that pip would take in any version, or from anyone."""
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    starts = [i for i, line in enumerate(lines) if line and line[0] not in " #"]
    assert len(starts) > 20
    for start, stop in zip(starts, [*starts[1:], len(lines)], strict=True):
        assert re.match(r"[A-Za-z0-9._-]+(\[[^]]*\])?==[^ ]+", lines[start]), f"not pinned: {lines[start]}"
        hashes = [line for line in lines[start:stop] if re.search(r"--hash=sha256:[0-9a-f]{64}\b", line)]
        assert hashes, f"not hashed: {lines[start]}"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The names in a wheel built from a copy of the tracked files."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in tracked():
        (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / "source" / name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    result = subprocess.run(
        [*command, "--wheel-dir", folder / "built", folder / "source"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    (built,) = (folder / "built").iterdir()
    return zipfile.ZipFile(built).namelist()


def test_the_wheel_holds_the_package_and_nothing_else(wheel: list[str]) -> None:
    """Catches tests or experiments installed beside the package, and modules left out."""
    information = f"jaxsgd-{jaxsgd.__version__}.dist-info"
    assert {name.split("/")[0] for name in wheel} == {"jaxsgd", information}
    modules = {name for name in tracked() if name.startswith("jaxsgd/")}
    assert {name for name in wheel if name.startswith("jaxsgd/")} == modules


def test_the_wheel_is_marked_as_typed(wheel: list[str]) -> None:
    assert "jaxsgd/py.typed" in wheel


def test_one_version() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.search(r"^## \[?([\w.]+)", changelog, re.MULTILINE)[1] == jaxsgd.__version__
    assert re.search(r"^version: \"?([\w.]+)", citation, re.MULTILINE)[1] == jaxsgd.__version__
