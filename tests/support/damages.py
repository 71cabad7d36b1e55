"""Ways to damage a file, each by a generator of random numbers."""

import json
import random
from typing import Any


def cut(content: bytes, generator: random.Random) -> bytes:
    return content[: generator.randrange(len(content))]


def flipped(content: bytes, generator: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(generator.randint(1, 4)):
        changed[generator.randrange(len(changed))] ^= 1 << generator.randrange(8)
    return bytes(changed)


def overwritten_head(content: bytes, generator: random.Random) -> bytes:
    """A few of the first bytes, where headers are, changed to any others."""
    changed = bytearray(content)
    for _ in range(generator.randint(1, 20)):
        changed[generator.randrange(min(len(changed), 160))] = generator.randrange(256)
    return bytes(changed)


def respelled(content: bytes, generator: random.Random) -> bytes:
    """One letter, digit or bracket in place of another: what is text stays text."""
    changed, text = bytearray(content), b"0123456789-+.eE{}[]()\",:' _truefalsnNIity<>fiuOSV|\n"
    for _ in range(generator.randint(1, 3)):
        changed[generator.randrange(len(changed))] = generator.choice(text)
    return bytes(changed)


def with_more(content: bytes, generator: random.Random) -> bytes:
    at = generator.randrange(len(content) + 1)
    return content[:at] + generator.randbytes(generator.randint(1, 30)) + content[at:]


def with_less(content: bytes, generator: random.Random) -> bytes:
    at = generator.randrange(len(content))
    return content[:at] + content[at + generator.randint(1, 30) :]


def twice(content: bytes, generator: random.Random) -> bytes:
    return content + content


def noise(content: bytes, generator: random.Random) -> bytes:
    return generator.randbytes(generator.randrange(300))


def document(content: bytes, generator: random.Random) -> bytes:
    """A line of JSON with the words that a log or a journal has, and values of any kind."""

    def value(depth: int) -> Any:
        if depth == 0 or generator.random() < 0.5:
            return generator.choice([None, True, 0, 7, -1.5, 10**400, "", "nan", "1", "--quick", "all"])
        if generator.random() < 0.3:
            return [value(depth - 1) for _ in range(generator.randint(0, 3))]
        return {generator.choice(["step", "loss", "flags", "done", "stem"]): value(depth - 1) for _ in range(3)}

    known = {"flags": ["all", "--quick"], "done": value(2), "step": value(1), "loss": value(1)}
    return json.dumps(generator.choice([known, value(3)])).encode() + b"\n"


def nothing(content: bytes, generator: random.Random) -> bytes:
    """No damage: then there must be an answer."""
    return content


DAMAGES = [cut, flipped, overwritten_head, respelled, with_more, with_less, twice, noise, document, nothing]
