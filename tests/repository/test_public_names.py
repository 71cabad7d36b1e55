"""Every name that could be imported from a public module of 0.1.0 can be imported from the same place."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

OFFERED = {
    line.split()[0]: line.split()[1:]
    for line in (Path(__file__).parent / "names_of_0_1_0.txt").read_text(encoding="utf-8").splitlines()
}


def test_the_list_is_whole() -> None:
    assert len(OFFERED) == 24
    assert sum(map(len, OFFERED.values())) == 222


@pytest.mark.parametrize("module", OFFERED)
def test_names_of_0_1_0_are_still_there(module: str) -> None:
    found = importlib.import_module(module)
    missing = [name for name in OFFERED[module] if not hasattr(found, name)]
    assert not missing


@pytest.mark.parametrize("first", ["jaxsgd", "jaxsgd.noise_scale", "jaxsgd.noise_scale as scale"])
def test_the_noise_scale_is_a_function_whatever_is_imported_first(first: str) -> None:
    """Catches a module that takes the place of the function of the same name when it is imported later."""
    program = (
        f"import {first}\nimport jaxsgd\nfrom jaxsgd.noise_scale import noise_scale_law\n"
        "assert callable(jaxsgd.noise_scale) and callable(noise_scale_law)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
