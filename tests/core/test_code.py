"""What an edit changes changes the hash of a function, and nothing else does, in any process."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import jaxsgd
from jaxsgd._core.code import code_digest

MODULE = '''
import dataclasses, functools, math
import jax, jax.numpy as jnp, numpy as np, optax
import helper
from jaxsgd import designs, training

rate, layers, calls, names = 0.1, [3, 4], [], {"a", "b", "c"}
data = {"x": jnp.arange(3.0), "key": jax.random.key(0), "word": np.array(["a", None], object), "t": np.dtype("f4")}

@dataclasses.dataclass(frozen=True)
class Net:
    hidden: int = 3
    def apply(self, x): return x * 2
    @property
    def size(self): return 4

class Own:
    """Of whom it is."""
    def __init__(self): self.held = {"net": Net(), "self": self}

own, optimizer, design = Own(), optax.adam(rate), designs.WithReplacement(5)
half = functools.partial(math.pow, 6)

@jax.jit
def loss(p, x):
    """Say what it is."""  # and why
    return (p - x) ** 7 if x in {"u", "v"} else other(p)

def other(p): return loss(p, 8) + helper.f(p) + other(p)

def made(scale):
    def run(key, M, *, bias=9):
        """Run."""
        import late
        calls.append(M)
        return training.run_sgd(loss, data, optimizer, design, own, layers, names, half, scale, late.g(lambda: "c"))
    return run

run = made(10)
'''
EDITS = {
    "module.py": {
        "= 0.1, [3, 4]": "= 0.2, [3, 4]",
        "[3, 4]": "[3, 5]",
        '"b", "c"}': '"b", "d"}',
        "arange(3.0)": "arange(4.0)",
        "random.key(0)": "random.key(1)",
        '["a", None]': '["b", None]',
        '"f4"': '"f8"',
        "hidden: int = 3": "hidden: int = 4",
        "x * 2": "x + 2",
        "size(self): return 4": "size(self): return 5",
        '"self": self': '"self": None',
        "WithReplacement(5)": "WithReplacement(6)",
        "pow, 6": "pow, 7",
        "** 7": "** 8",
        '"v"}': '"w"}',
        "+ other(p)": "- other(p)",
        "bias=9": "bias=8",
        "made(10)": "made(11)",
        'lambda: "c"': 'lambda: "d"',
        "adam(rate)": "sgd(rate)",
        "append(M)": "append(key)",
        "math.pow": "math.fmod",
    },
    "helper.py": {"return x": "return -x"},
    "late.py": {"return x": "return -x"},
}


PRINT = "from jaxsgd._core.code import code_digest; import module; print(code_digest(module.run))"
TEXTS = {"module.py": MODULE, "helper.py": "def f(x):\n    return x\n", "late.py": "def g(x):\n    return x\n"}


@pytest.fixture
def load(tmp_path, monkeypatch):
    """The module, after an edit of one of the three files."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def find(edited="", old="", new=""):
        for name, text in TEXTS.items():
            assert name != edited or text.count(old) == 1
            (tmp_path / name).write_text(text.replace(old, new) if name == edited else text)
            monkeypatch.delitem(sys.modules, name.removesuffix(".py"), raising=False)
        importlib.invalidate_caches()
        with monkeypatch.context() as patched, jax.numpy_dtype_promotion("standard"):
            patched.syspath_prepend(tmp_path)
            module = importlib.import_module("module")
            return code_digest(module.run), module

    yield find
    for name in TEXTS:
        sys.modules.pop(name.removesuffix(".py"), None)


@pytest.mark.parametrize(("file", "old", "new"), [(file, *edit) for file in EDITS for edit in EDITS[file].items()])
def test_every_edit_is_seen(load, file, old, new):
    before, after = load()[0], load(file, old, new)[0]
    assert before != after
    assert load()[0] == before, "it is undone"


@pytest.mark.parametrize(
    ("old", "new"),
    [('"""Say what it is."""  # and why', '"""Do."""'), ("\n\n@jax", "\n\n\n# Here.\n@jax"), ('"""Run."""', '"."')],
)
def test_comments_and_docstrings_are_no_code(load, old, new):
    assert load()[0] == load("module.py", old, new)[0]


def test_what_a_function_only_adds_to_is_no_part_of_it(load):
    """Catches cells that are computed again after every call, in a session that collects something."""
    before, module = load()
    module.calls.append(3)
    assert code_digest(module.run) == before
    module.layers.append(3)
    assert code_digest(module.run) != before, "the control: a list that is read"


def test_what_is_both_added_to_and_read_is_a_part(load):
    def code():
        seen = [1]
        return lambda x: (seen.append(x), len(seen)), seen

    run, seen = code()
    before = code_digest(run)
    seen.append(2)
    assert code_digest(run) != before


@pytest.mark.slow
@pytest.mark.parametrize("seed", ["1", "2"])
def test_other_processes_find_the_same(load, tmp_path, seed):
    """Catches the order of a set, an address, and what is compiled or read from a file with compiled code."""
    found = load()[0]
    environment = {"PYTHONPATH": f"{Path(jaxsgd.__file__).parents[1]}:{tmp_path}", "PYTHONHASHSEED": seed}
    for _ in range(2):
        command = [sys.executable, "-c", PRINT]
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, env=environment | {"JAX_ENABLE_X64": "1"}
        )
        assert done.stdout.split() == [found]


def test_memory_maps_are_known_by_their_file(tmp_path):
    """Catches a data set that is read through, and one that was written anew."""
    path = tmp_path / "x.npy"
    np.save(path, np.arange(4))
    data = np.load(path, mmap_mode="r")
    before = code_digest(lambda: data)
    assert before == code_digest(lambda: data)
    os.utime(path, ns=(0, 0))
    assert before != code_digest(lambda: data)
