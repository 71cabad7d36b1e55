"""Problems to report on, and readers of what a report writes."""

import json
import re
from functools import partial
from html.parser import HTMLParser

import jax
import jax.numpy as jnp
import numpy as np

from jaxsgd import Problem, problems
from tests.support.twins import assert_close as close

KEY = jax.random.key(3)
assert_close = partial(close, atol=1e-9)


def clustered(count=60):
    """Three classes in blocks: neighbors are alike, norms differ, and the labels explain part of the noise."""
    rng = np.random.default_rng(0)
    y = np.repeat(np.arange(3), count // 3)
    x = rng.normal(size=(count, 4)) + 2 * np.eye(3, 4)[y]

    def loss_fn(params, example):
        return -jax.nn.log_softmax(example["x"] @ params["w"] + params["b"])[example["y"]]

    params = {"w": jnp.asarray(rng.normal(size=(4, 3))), "b": jnp.zeros(3)}
    return Problem(loss_fn, params, {"x": jnp.asarray(x), "y": jnp.asarray(y)})


PROBLEM = clustered()
LINE = problems.line_fit()


def mean_of(loss_fn):
    return lambda params, batch: jax.vmap(loss_fn, (None, 0))(params, batch).mean()


BATCH_LOSS = mean_of(PROBLEM.loss_fn)
LINES = Problem(LINE.loss_fn, LINE.params, {"x": jnp.arange(8.0) ** 2, "y": jnp.arange(8.0) % 3})
LINE_LOSS = mean_of(LINE.loss_fn)


def said(found):
    """What the text says, wherever its lines are broken."""
    return " ".join(found.text.split())


def strict(text):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


class Page(HTMLParser):
    """Collects what a page refers to, and checks that every element is closed."""

    VOID = ("meta",)

    def __init__(self, text):
        super().__init__()
        self.tags, self.ids, self.links, self.text, self._open = [], [], [], "", []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self._open += [] if tag in self.VOID else [tag]
        for name, value in attrs:
            self.ids += [value] if name == "id" else []
            self.links += [value] if name in ("src", "href", "xlink:href", "action", "data", "srcset") else []
            self.links += re.findall(r"url\(([^)]*)\)", value or "")
            assert "http" not in (value or ""), f"{tag} {name}={value}"
            assert not name.startswith("on")

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open and self._open[-1] == "style":
            assert not re.search(r"https?:|@import|url\(|@font-face", data)
        self.text += data
