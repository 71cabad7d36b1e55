"""The page of a report stands alone, says what the text says, and fits a screen."""

import re
import shutil
import subprocess
from html import escape

import pytest

from jaxsgd._core.tables import decimal
from jaxsgd.report import _figures
from tests.support.reports import Page


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
