"""A report says what the library finds, on whole data and on subsets, in every form; and its page stands alone."""

import copy
import inspect
import json
import math
import re
import shutil
import subprocess
import sys
import textwrap
from fractions import Fraction
from functools import partial
from html import escape
from html.parser import HTMLParser
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsgd
import jaxsgd.report as report_module
from jaxsgd import Problem, designs, estimators, problems
from jaxsgd._core.tables import decimal
from jaxsgd.report import _figures, load_checkpoint, report, save_checkpoint
from jaxsgd.report._findings import advised
from jaxsgd.report._measure import grid
from jaxsgd.report._subset import Reservoir, draw
from tests.support.frameworks import with_default_promotion
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


@pytest.fixture(scope="module")
def whole():
    return report(Problem(*PROBLEM, BATCH_LOSS), name="clusters <script>alert('x')</script>", key=KEY)


@pytest.fixture(scope="module")
def sampled():
    return report(PROBLEM, sample_size=24, chunk_size=7, key=KEY, batch_size=8)


@pytest.fixture(scope="module")
def page(whole):
    return whole.to_html()


def said(found):
    """What the text says, wherever its lines are broken."""
    return " ".join(found.text.split())


def strict(text):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


# Numbers


def test_numbers_are_the_library_s(whole):
    m = jaxsgd.gradient_moments(*PROBLEM)
    g = jaxsgd.per_example_gradients(PROBLEM.loss_fn)(PROBLEM.params, PROBLEM.data)
    T, G = float(m.trace_covariance(ddof=0)), float(m.squared_mean_norm)
    assert_close(whole.noise_scale, T / G)
    assert_close(whole.mean_loss, m.mean_loss)
    assert whole.batch_sizes.tolist() == list(range(1, 61))
    assert_close(whole.variance, estimators.variance_curve(m).variance)
    assert_close(whole.variance_with_replacement, estimators.variance_curve(m, design="with_replacement").variance)
    assert_close(whole.norms**2, g.squared_norms())
    M = whole.batch_size
    laws = {
        "WithReplacement": designs.WithReplacement(M),
        "WithoutReplacement": designs.WithoutReplacement(M),
        "Bernoulli": designs.Bernoulli(Fraction(M, 60)),
        "CircularBlocks": designs.CircularBlocks(M),
        "Importance": designs.Importance(estimators.optimal_probabilities(g), M),
        "Stratified": designs.Stratified.proportional(np.asarray(PROBLEM.data["y"]), M),
    }
    table = estimators.compare(laws, g)
    rows = {row.design: row for row in whole.designs}
    assert rows.keys() == laws.keys()
    for name, variance, effect in zip(table.names, table.variance, table.design_effect, strict=True):
        assert_close(rows[name].effect, effect)
        assert_close(rows[name].variance, variance)
        assert not rows[name].on_subset
    assert [row.effect for row in whole.designs] == sorted(row.effect for row in whole.designs)


def test_shares_of_the_parameters_add_up(whole):
    g = jaxsgd.per_example_gradients(PROBLEM.loss_fn)(PROBLEM.params, PROBLEM.data)
    assert [p.name for p in whole.parameters] == ["b", "w"]
    noise = [float(leaf.sum()) for leaf in jax.tree.leaves(g.variance(ddof=0))]
    signal = [float((leaf**2).sum()) for leaf in jax.tree.leaves(g.mean())]
    assert_close(np.asarray([p.of_trace for p in whole.parameters]), np.asarray(noise) / sum(noise))
    assert_close(np.asarray([p.of_mean for p in whole.parameters]), np.asarray(signal) / sum(signal))
    assert all(p.error <= whole.check.tolerance for p in whole.parameters)


@pytest.mark.slow
def test_a_subset_is_used_for_single_gradients_and_all_data_for_the_rest(whole, sampled):
    """Catches a noise scale of the subset, and numbers of the subset that do not say so."""
    assert_close(sampled.noise_scale, whole.noise_scale)
    assert_close(sampled.variance, whole.variance)
    assert (sampled.sample_size, sampled.num_examples, sampled.is_sampled) == (24, 60, True)
    assert_close(sampled.norms, whole.norms[sampled.indices])
    subset = jax.tree.map(lambda leaf: leaf[sampled.indices], PROBLEM.data)
    g = jaxsgd.per_example_gradients(PROBLEM.loss_fn)(PROBLEM.params, subset)
    rows = {row.design: row for row in sampled.designs}
    assert {name: row.on_subset for name, row in rows.items()} == {
        "WithReplacement": False,
        "WithoutReplacement": False,
        "Bernoulli": False,
        "Importance": True,
    }
    assert_close(rows["WithoutReplacement"].effect, 52 / 59)
    expected = estimators.design_effect(designs.Importance(estimators.optimal_probabilities(g), 8), g)
    assert_close(rows["Importance"].effect, expected)
    assert_close(rows["Importance"].variance, expected * sampled.trace_covariance / 8)
    assert "p ∝ gradient norm *" in said(sampled)
    assert "from 24 of them" in said(sampled)
    assert "from all 60 examples" in said(whole)
    assert "*" not in whole.text


def test_steps_and_examples_are_those_of_the_formula():
    """B = 63/5, N = 4: 1 + B (N − M)/(M (N − 1)) and M/B times that."""
    found = report(problems.line_fit())
    for M in range(1, 5):
        steps = 1 + Fraction(63, 5) * Fraction(4 - M, 3 * M)
        assert found.steps(M) == pytest.approx(float(steps), rel=1e-12)
        assert found.examples(M) == pytest.approx(float(steps * M / Fraction(63, 5)), rel=1e-12)
        assert found.variance_at(M) == pytest.approx(float(Fraction(63, 4) * Fraction(4 - M, 3 * M)), rel=1e-12)


@pytest.mark.parametrize(
    ("noise_scale", "population_size", "size"),
    [
        (0.0, 9, 1),
        (0.3, 9, 1),
        (36.4, 1797, 32),
        (64.0, 10**9, 32),  # 64 less a millionth: the signal would be less than the noise
        (64.1, 10**9, 64),
        (64.1, 500, 32),  # 500 · 64.1/(499 + 64.1) = 56.9
        (math.inf, 100, 64),
        (12.6, 4, 2),
    ],
)
def test_the_advice_is_the_largest_power_of_two_up_to_where_noise_equals_signal(noise_scale, population_size, size):
    assert advised(noise_scale, population_size) == size


def test_batch_sizes_of_large_data_are_a_grid():
    sizes = grid(10**6)
    assert (sizes[0], sizes[-1]) == (1, 10**6)
    assert len(sizes) < 1001
    assert (np.diff(sizes) > 0).all()


def test_streams_give_what_arrays_give(whole):
    batches = [jax.tree.map(lambda leaf, i=i: leaf[i : i + 13], PROBLEM.data) for i in range(0, 60, 13)]
    streamed = report((PROBLEM.loss_fn, PROBLEM.params, iter(batches)), key=KEY, batch_size=whole.batch_size)
    assert_close(streamed.noise_scale, whole.noise_scale)
    assert streamed.indices.tolist() == list(range(60))
    assert_close(streamed.norms, whole.norms)
    assert [row.design for row in streamed.designs] == [row.design for row in whole.designs]


@pytest.mark.slow
def test_gradients_that_are_not_kept_give_the_same(whole):
    limited = report(PROBLEM, key=KEY, memory_limit=2_000, batch_size=whole.batch_size)
    assert "computed anew" in limited.explanation
    assert_close(limited.norms, whole.norms)
    assert_close([r.effect for r in limited.designs], [r.effect for r in whole.designs])
    assert_close([p.of_trace for p in limited.parameters], [p.of_trace for p in whole.parameters])


LIMITED = """
import resource, sys
import jax, numpy as np
from jaxsgd import sources
from jaxsgd.report import report

loss_fn = lambda params, example: (example["x"] @ params) ** 2
data = sources.load(sys.argv[1])
params = jax.numpy.ones(data["x"].shape[1])
report((loss_fn, params, {"x": data["x"][:4096]}), chunk_size=2048, sample_size=512).files()

used = int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmData"))) * 1024
resource.setrlimit(resource.RLIMIT_DATA, (used + 64 * 2**20, resource.RLIM_INFINITY))
found = report((loss_fn, params, data), chunk_size=2048, sample_size=512)
assert found.num_examples == len(data["x"]) and len(found.files()) == 11
try:
    np.array(data["x"])
except MemoryError:
    print("held to the limit")
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
def test_a_report_on_a_data_set_larger_than_the_memory_allowed(tmp_path):
    """128 MiB of examples with 64 MiB to spare; holding them at once must fail, or the limit would mean nothing."""
    rows = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.float32, (65536, 512))
    rows[:] = np.linspace(0.1, 1, 65536, dtype=np.float32)[:, None]
    command = [sys.executable, "-c", LIMITED, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "held to the limit", done.stderr[-2000:]


# Subsets


@pytest.mark.parametrize("streamed", [False, True])
def test_subsets_are_uniform(streamed):
    """Inclusion of every example, and of neighbors together, against their probabilities; the control fails."""
    N, n, R = 10, 3, 1500
    data, together, alone = np.arange(N), np.zeros(N), np.zeros(N)
    for r in range(R):
        key = jax.random.fold_in(KEY, r)
        if streamed:
            reservoir = Reservoir(n, key)
            for _ in reservoir.passing(iter(np.array_split(data, 3))):
                pass
            subset = reservoir.subset()
        else:
            subset = draw(data, n, key)
        assert subset.examples.tolist() == subset.indices.tolist() == sorted(set(subset.indices.tolist()))
        taken = np.isin(data, subset.indices)
        alone += taken
        together += taken & np.roll(taken, 1)
    for count, p in [(alone, n / N), (together, n * (n - 1) / (N * (N - 1)))]:
        error = (p * (1 - p) / R) ** 0.5
        assert np.abs(count / R - p).max() < 4.5 * error
        first_ones = np.where(data < n, 1.0, 0.0)
        assert np.abs(first_ones - p).max() > 4.5 * error


def test_a_reservoir_of_jax_arrays_and_keys():
    batches = [{"x": jnp.arange(4.0) + 4 * i, "key": jax.random.split(jax.random.key(i), 4)} for i in range(5)]
    reservoir = Reservoir(6, KEY)
    list(reservoir.passing(iter(batches)))
    subset = reservoir.subset()
    assert subset.examples["x"].tolist() == subset.indices.tolist()
    keys = jnp.concatenate([batch["key"] for batch in batches])[subset.indices]
    assert jnp.array_equal(jax.random.key_data(subset.examples["key"]), jax.random.key_data(keys))


# Batch losses


def test_the_form_of_the_batch_loss(whole):
    assert (whole.batch_loss.additivity.kind, whole.batch_loss.agrees) == ("mean", True)
    assert whole.batch_loss.gradient_difference < 1e-12


@pytest.mark.parametrize(
    ("batch_loss_fn", "kind", "agrees"),
    [
        (lambda p, b: LINE_LOSS(p, b) + 0.1 * (p["m"] ** 2 + p["b"] ** 2), "mean", False),
        (lambda p, b: b["x"].shape[0] * LINE_LOSS(p, b), "sum", True),
        pytest.param(lambda p, b: 2 * LINE_LOSS(p, b), "mean", False, marks=pytest.mark.slow),
        pytest.param(
            lambda p, b, key: LINE_LOSS(p, b) * (1 + jax.random.uniform(key)), "mean", True, marks=pytest.mark.slow
        ),
    ],
    ids=["penalty", "sum", "factor", "key"],
)
def test_a_batch_loss_of_other_terms_is_noticed(batch_loss_fn, kind, agrees):
    """A penalty that the loss of an example lacks: every number would be about another loss."""
    found = report(Problem(*LINES, batch_loss_fn))
    assert (found.batch_loss.additivity.kind, found.batch_loss.agrees) == (kind, agrees)
    assert ("give every example's loss the same terms" in said(found)) is not agrees
    assert (found.batch_loss.gradient_difference is None) is ("key" in inspect.signature(batch_loss_fn).parameters)


def test_a_form_that_cannot_be_told_is_no_failure():
    problem = problems.line_fit()
    data = jax.tree.map(lambda leaf: leaf[:3], problem.data)
    found = report(
        (problem.loss_fn, problem.params, data, lambda p, b: jax.vmap(problem.loss_fn, (None, 0))(p, b).mean())
    )
    assert "must be at least 4, got 3" in found.batch_loss.note
    assert "! Batch loss: not told" in said(found)


# Odd problems: every form of the report is made


def given(params, example):
    """A loss whose gradient is the example."""
    return params * example


@pytest.mark.parametrize(
    ("gradients", "B"),
    [
        ([0.0, 0.0, 0.0, 0.0], 0.0),
        ([1.0, 1.0, 1.0, 1.0], 0.0),
        ([-1.5, -0.5, 0.5, 1.5], math.inf),
        ([-1.5, -0.5, 0.5, 1.5 + 4e-9], 1.25e18),
        ([1.0, 1.001, 1.002, 1.003], 1.25e-6),
    ],
    ids=["none", "equal", "no mean", "hardly a mean", "hardly any noise"],
)
def test_odd_problems(gradients, B):
    found = report((given, jnp.asarray(1.0), jnp.asarray(gradients)))
    assert found.noise_scale == pytest.approx(B, rel=0.01)
    page = found.to_html()
    assert Page(page).tags.count("svg") == len(_figures.FIGURES)
    written = strict(found.to_json())
    assert written["noise_scale"] == ("inf" if math.inf == B else pytest.approx(B, rel=0.01))
    assert "nan" not in found.text.lower() + Page(page).text.lower()


def test_unshuffled_data_are_noticed(whole):
    """Three blocks of alike examples: the card is there, and gone when they are shuffled."""
    assert "Stored order: shuffle" in said(whole)
    order = np.random.default_rng(1).permutation(60)
    shuffled = report((PROBLEM.loss_fn, PROBLEM.params, jax.tree.map(lambda leaf: leaf[order], PROBLEM.data)))
    assert "Stored order" not in shuffled.text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.1, "0.100"),
        (0.00123, "0.00123"),
        (1e-4, "1.00e-04"),
        (12.6, "12.6"),
        (1797.3, "1797"),
        (123456.0, "123456"),
        (2e6, "2.00e+06"),
        (-2.5, "-2.50"),
        (math.inf, "∞"),
        (math.nan, "–"),
    ],
)
def test_numbers_for_readers(value, text):
    assert decimal(value) == text


# Files


def test_json_holds_the_numbers(whole):
    written = strict(whole.to_json())
    for name in ("num_examples", "num_params", "noise_scale", "trace_covariance", "squared_mean_norm", "batch_size"):
        assert written[name] == getattr(whole, name)
    assert [row["effect"] for row in written["designs"]] == [row.effect for row in whole.designs]
    assert written["batch_loss"]["additivity"]["kind"] == "mean"
    for row in written["batch_size_table"]:
        assert row["variance"] == pytest.approx(whole.variance[row["batch_size"] - 1], rel=1e-12)
    assert written["settings"]["jaxsgd"] == jaxsgd.__version__


def test_files_are_written_into_a_new_folder(whole, page, tmp_path):
    """The same bytes for the same findings are test_command_line's."""
    paths = whole.write(tmp_path / "a" / "b")
    assert paths[-1].name == "report.html"
    assert {path.name for path in paths} == {path.name for path in (tmp_path / "a" / "b").iterdir()}
    assert (tmp_path / "a" / "b" / "report.html").read_text(encoding="utf-8").split("<svg")[0] == page.split("<svg")[0]
    with np.load(tmp_path / "a" / "b" / "variance.npz") as arrays:
        assert_close(arrays["variance"], whole.variance)
    for path in paths:
        start = {".png": b"\x89PNG", ".pdf": b"%PDF", ".html": b"<!DOCTYPE", ".json": b"{", ".npz": b"PK"}[path.suffix]
        assert path.read_bytes().startswith(start)


def test_a_checkpoint_of_names_that_end_alike_comes_back(tmp_path):
    """Catches w.npy filled with the values of w, whose member of the archive has this name."""
    params = {"w": jnp.arange(3.0), "w.npy": -jnp.arange(3.0)}
    save_checkpoint(tmp_path / "p.npz", params)
    loaded = load_checkpoint(tmp_path / "p.npz", jax.tree.map(jnp.zeros_like, params))
    assert {name: leaf.tolist() for name, leaf in loaded.items()} == {"w": [0, 1, 2], "w.npy": [0, -1, -2]}


def test_a_checkpoint_comes_back(tmp_path):
    params = {"a": [jnp.arange(3.0), jnp.ones((), jnp.bfloat16)], "b": {"w": jnp.ones((2, 0), jnp.float32)}}
    save_checkpoint(tmp_path / "p.npz", params)
    zeros = jax.tree.map(jnp.zeros_like, params)
    loaded = load_checkpoint(tmp_path / "p.npz", zeros)
    assert jax.tree.structure(loaded) == jax.tree.structure(params)
    for mine, theirs in zip(jax.tree.leaves(loaded), jax.tree.leaves(params), strict=True):
        assert mine.dtype == theirs.dtype
        assert jnp.array_equal(mine, theirs)
    with np.load(tmp_path / "p.npz") as arrays:
        assert sorted(arrays.files) == ["a/0", "a/1", "b/w"]


def test_a_problem_unpacks_into_three():
    problem = Problem(max, 2.0, 3.0, min)
    loss_fn, params, data = problem
    assert (loss_fn, params, data, problem.batch_loss_fn) == (max, 2.0, 3.0, min)
    assert Problem(max, 2.0, 3.0).batch_loss_fn is None
    assert problem._replace(params=1.0).batch_loss_fn is min
    assert copy.copy(problem).batch_loss_fn is min


# The page


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


def test_the_page_needs_nothing_else(page):
    parsed = Page(page)
    assert not {"script", "link", "img", "iframe", "object", "embed", "base"} & set(parsed.tags)
    assert all(link.startswith("#") and link[1:] in parsed.ids for link in parsed.links)
    assert len(parsed.links) > 50  # glyphs and clip paths
    assert len(parsed.ids) == len(set(parsed.ids))
    assert parsed.tags.count("svg") == len(_figures.FIGURES)
    assert "alert('x')" in parsed.text  # as text
    assert "http" not in page.replace("&", "")


def test_the_page_says_what_the_text_says(page, whole):
    text = Page(page).text
    for value in (decimal(whole.noise_scale), "stratified by y", "dot_general", "kind: mean"):
        assert value in text
    assert not re.search(r"#[0-9a-f]{6}", page.split("</style>")[1]), "a color that does not follow the page's"


MEASURE = """<!DOCTYPE html><meta charset="utf-8"><body>{frames}<pre id="out"></pre><script>
const measure = frame => {{
  const page = frame.contentDocument.documentElement;
  const figures = [...page.querySelectorAll("svg")].map(svg => Math.round(svg.getBoundingClientRect().width));
  return [frame.clientWidth, page.scrollWidth, page.scrollHeight, ...figures].join(" ");
}};
addEventListener("load", () => {{
  document.getElementById("out").textContent = [...document.querySelectorAll("iframe")].map(measure).join(";");
}});
</script>"""


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
def test_the_page_fits_a_laptop_and_a_phone(page, tmp_path):
    """Nothing is wider than the screen, figures fill a phone, and a laptop shows two beside each other."""
    frames = "".join(
        f'<iframe width="{w}" height="700" style="border:0" srcdoc="{escape(page)}"></iframe>' for w in (1280, 390)
    )
    (tmp_path / "measure.html").write_text(MEASURE.format(frames=frames), encoding="utf-8")
    command = [
        *("chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
        *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars"),
        *(f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=5000", "--dump-dom"),
        (tmp_path / "measure.html").as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    found = re.search(r'<pre id="out">([^<]+)</pre>', done.stdout)
    assert found, done.stderr[-500:]
    laptop, phone = ([int(value) for value in each.split()] for each in found[1].split(";"))
    assert laptop[:2] == [1280, 1280]
    assert phone[:2] == [390, 390]
    assert phone[2] > laptop[2] > 1000
    assert all(300 <= width <= 390 for width in phone[3:])
    assert all(400 <= width <= 640 for width in laptop[3:])
    assert len(phone[3:]) == len(_figures.FIGURES)


# Recipes


def recipes():
    """The functions shown in the module's docstring, by name."""
    code = textwrap.dedent("\n".join(re.findall(r"^    .*$|^$", report_module.__doc__, re.MULTILINE)))
    return {found[1]: found[0] for found in re.findall(r"(def (\w+)\(.*?)(?=\n\n|\Z)", code, re.DOTALL)}


def surroundings(name):
    """What a user has around a recipe: the model, and the imports."""
    import optax

    space = {"jax": jax, "np": np, "Path": Path, "Problem": Problem}
    space["cross_entropy"] = optax.softmax_cross_entropy_with_integer_labels
    if name == "plain_problem":
        space["init"] = lambda key: {"w": jax.random.normal(key, (4, 3), jnp.float32), "b": jnp.zeros(3, jnp.float32)}
        space["apply"] = lambda params, x: x @ params["w"] + params["b"]
    elif name in ("linen_problem", "dropout_problem", "text_problem"):
        linen = pytest.importorskip("flax.linen")

        class Net(linen.Module):
            @linen.compact
            def __call__(self, x):
                x = linen.tanh(linen.Dense(5)(x))
                x = linen.Dropout(0.5, deterministic=name != "dropout_problem")(x)
                return linen.Dense(3)(x)

        class GPT(linen.Module):
            @linen.compact
            def __call__(self, tokens):
                x = linen.Embed(256, 8)(tokens)
                mask = linen.make_causal_mask(tokens)
                x = x + linen.MultiHeadDotProductAttention(2)(linen.LayerNorm()(x), mask=mask)
                return linen.Dense(256)(linen.LayerNorm()(x))

        net = Net()
        original = net.init
        if name == "dropout_problem":
            object.__setattr__(net, "init", lambda key, x: original({"params": key, "dropout": key}, x))
        space |= {"Net": lambda: net, "GPT": GPT}
    elif name == "nnx_problem":
        nnx = pytest.importorskip("flax.nnx")

        class Net(nnx.Module):
            def __init__(self, rngs):
                self.out = nnx.Linear(4, 3, rngs=rngs)

            def __call__(self, x):
                return self.out(x)

        space |= {"nnx": nnx, "Net": Net}
    elif name == "equinox_problem":
        eqx = pytest.importorskip("equinox")
        space |= {"eqx": eqx, "Net": lambda key: eqx.nn.MLP(4, 3, 5, 1, key=key, dtype=jnp.float32)}
    elif name == "haiku_problem":
        hk = pytest.importorskip("haiku")
        space |= {"hk": hk, "forward": lambda x: hk.nets.MLP([5, 3])(x)}
    return space


def test_recipes_are_short():
    found = recipes()
    assert len(found) == 7
    assert all(len(code.splitlines()) <= 10 for code in found.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", recipes())
def test_recipe(name, tmp_path, monkeypatch):
    """As shown in the docstring, from the loaded data to numbers that equal a plain loop over ``jax.grad``."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    (tmp_path / "corpus.txt").write_bytes(rng.integers(97, 123, 400).astype(np.uint8).tobytes())
    data = {"x": rng.normal(size=(6, 4)).astype(np.float32), "y": np.asarray([0, 1, 2, 0, 1, 1], np.int32)}
    space = surroundings(name)
    exec(recipes()[name], space)
    make = space[name]

    @with_default_promotion
    def run():
        problem = make(*[data][: len(inspect.signature(make).parameters)])
        loss_fn, params, examples = problem
        each = [jax.grad(loss_fn)(params, jax.tree.map(lambda leaf, i=i: leaf[i], examples)) for i in range(6)]
        rows = np.stack([np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(g)]) for g in each]).astype(float)
        return report(problem), rows

    found, rows = run()
    assert found.num_examples == 6
    assert found.check.passed
    trace = ((rows - rows.mean(axis=0)) ** 2).sum() / 6
    assert found.noise_scale == pytest.approx(trace / (rows.mean(axis=0) ** 2).sum(), rel=1e-4)
    assert all(re.fullmatch(r"[\w~./]+", parameter.name) for parameter in found.parameters)
