"""Data split over devices, on every mesh: tests of ``support``, in a process of their own where the CPU plays eight."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
QUICKLY_COMPILED = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"


def on_eight_devices(tests: str, which: str, environment: dict[str, str]) -> None:
    """Run a file of tests of ``support``, the slow ones or the others."""
    flags = f"--xla_force_host_platform_device_count=8 {QUICKLY_COMPILED}"
    path = str(ROOT / "tests" / "support" / tests)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", which, path]
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"} | environment
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("which", ["not slow", pytest.param("slow", marks=pytest.mark.slow)])
def test_data_are_split(which: str, what_is_compiled: dict[str, str]) -> None:
    on_eight_devices("eight_devices.py", which, what_is_compiled)


@pytest.mark.parametrize("which", ["not slow", pytest.param("slow", marks=pytest.mark.slow)])
def test_every_function_on_every_mesh(which: str, what_is_compiled: dict[str, str]) -> None:
    on_eight_devices("mesh_matrix.py", which, what_is_compiled)
