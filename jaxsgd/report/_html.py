"""A report as one page that needs nothing else: figures inline, no script, no font, no address.

The sentences and tables are those of ``_text``; here they get a style and an order on the page.
"""

from collections.abc import Sequence
from html import escape

from jaxsgd.report._figures import inline
from jaxsgd.report._findings import Findings, batch_size_table
from jaxsgd.report._text import Verdict, design_rows, parameter_rows, scope, size_rows, verdicts

_STYLE = """
:root { color-scheme: light dark; --page: #fcfcfb; --card: #ffffff; --line: #dcdcd8; --ink: #1b1c1e; --quiet: #686b70;
  --first: #0072b2; --second: #c04f00; --third: #4ba3d8; --good: #1a7f4b; --bad: #b3261e; }
@media (prefers-color-scheme: dark) {
  :root { --page: #16181b; --card: #1f2226; --line: #363a40; --ink: #e9eaec; --quiet: #a2a7ae;
    --first: #5fb4e8; --second: #f0985a; --third: #5d9cc4; --good: #5fcf95; --bad: #ff8a80; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); overflow-wrap: break-word;
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", sans-serif; }
main { max-width: 68rem; margin: 0 auto; padding: 2rem 1.25rem 3rem; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .4rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.5rem 0 .5rem; }
p { margin: .4rem 0; max-width: 46rem; }
.quiet, footer { color: var(--quiet); font-size: .92rem; }
.facts { display: flex; flex-wrap: wrap; gap: .1rem 1.4rem; padding: 0; margin: .3rem 0 .6rem; list-style: none; }
.cards, .figures { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); }
.cards { margin-top: 1.4rem; }
.card, figure { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; padding: 1rem 1.1rem; }
.card { border-left: .3rem solid var(--good); }
.card.bad { border-left-color: var(--bad); }
.card h2 { margin: 0; font-size: .85rem; font-weight: 600; color: var(--quiet); }
.card strong { display: block; font-size: 1.7rem; line-height: 1.3; }
.card p { font-size: .92rem; margin: .2rem 0 0; }
figure { margin: 0; }
figure svg { display: block; width: 100%; height: auto; color: var(--ink); }
figcaption { font-size: .88rem; color: var(--quiet); margin-top: .5rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td { padding: .32rem .9rem .32rem 0; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th { font-weight: 600; color: var(--quiet); white-space: normal; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; white-space: normal; }
tr.chosen td { font-weight: 700; }
details { margin: .6rem 0; }
summary { cursor: pointer; }
pre { overflow-x: auto; font: .8rem/1.45 ui-monospace, "SF Mono", Menlo, Consolas, monospace; background: var(--card);
  border: 1px solid var(--line); border-radius: .6rem; padding: .8rem 1rem; }
footer { margin-top: 2.5rem; border-top: 1px solid var(--line); padding-top: .8rem; }
@media (max-width: 30rem) { main { padding: 1.2rem .8rem 2rem; } figure { padding: .6rem .5rem; }
  table { font-size: .85rem; } th, td { padding-right: .6rem; } td:first-child { min-width: 4rem; } }
@media print { .card, figure, table { break-inside: avoid; } }
"""

_CAPTIONS = {
    "variance": "The noise of a batch falls like 1/M; without replacement it reaches zero at all data. Where it meets "
    "the dotted line it is as large as the signal: that is the noise scale.",
    "tradeoff": "Larger batches take fewer steps, smaller ones fewer examples. Both are relative to the fewest "
    "possible, and about twice that at the noise scale.",
    "designs": "How a data loader draws its batches changes their noise. 1 is independent draws of as many examples.",
    "norms": "The gradients of single examples, and their mean, which is shorter by what cancels.",
}


def as_html(findings: Findings, figures: dict[str, bytes]) -> str:
    """The page; ``figures`` are SVG images by name."""
    facts = [
        f"{findings.num_examples:,} examples",
        f"{findings.num_params:,} parameters ({findings.dtype})",
        f"mean loss {findings.mean_loss:.4g}",
    ]
    body = "\n".join(
        [
            f"<h1>{escape(findings.name)}</h1>",
            f"<ul class='facts quiet'>{''.join(f'<li>{escape(fact)}</li>' for fact in facts)}</ul>",
            f"<p class='quiet'>{escape(scope(findings))}</p>",
            f"<div class='cards'>{''.join(map(_card, verdicts(findings)))}</div>",
            "<h2>Figures</h2>",
            f"<div class='figures'>{''.join(_figure(name, svg) for name, svg in figures.items())}</div>",
            "<h2>Batch sizes</h2>",
            "<p class='quiet'>Noise is E‖ĝ − ḡ‖² without replacement, signal is ‖ḡ‖²; steps and examples of a whole "
            "run are relative to the fewest.</p>",
            _batch_sizes(findings),
            "<h2>Sampling designs</h2>",
            _table(design_rows(findings)),
            "<h2>Parameters</h2>",
            "<p class='quiet'>The rule by which per-example gradients are kept in factored form, shares of tr Σ and of "
            "‖ḡ‖², and the largest relative error of any statistic against a loop over examples.</p>",
            _table(parameter_rows(findings)),
            _details("What is kept of the gradients, and what statistics cost", findings.explanation),
            _form(findings),
            f"<footer>{escape(_footer(findings))}</footer>",
        ]
    )
    return (
        "<!DOCTYPE html>\n<html lang='en'>\n<head>\n<meta charset='utf-8'>\n"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>\n"
        f"<title>{escape(findings.name)}: gradient noise</title>\n<style>{_STYLE}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _card(verdict: Verdict) -> str:
    kind = "card" if verdict.good else "card bad"
    return (
        f"<section class='{kind}'><h2>{escape(verdict.title)}</h2><strong>{escape(verdict.value)}</strong>"
        f"<p>{escape(verdict.text)}</p></section>"
    )


def _figure(name: str, svg: bytes) -> str:
    return f"<figure>{inline(svg, name)}<figcaption>{_CAPTIONS[name]}</figcaption></figure>\n"


def _batch_sizes(findings: Findings) -> str:
    sizes = [row.batch_size for row in batch_size_table(findings)]
    return _table(size_rows(findings), sizes.index(findings.batch_size))


def _table(rows: Sequence[tuple[str, ...]], chosen: int | None = None) -> str:
    head = "".join(f"<th scope='col'>{escape(cell)}</th>" for cell in rows[0])
    body = "\n".join(
        f"<tr{' class=chosen' if at == chosen else ''}>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>"
        for at, row in enumerate(rows[1:])
    )
    return f"<div class='scroll'><table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>"


def _details(title: str, text: str) -> str:
    return f"<details><summary>{escape(title)}</summary><pre>{escape(text)}</pre></details>"


def _form(findings: Findings) -> str:
    found = findings.batch_loss and findings.batch_loss.additivity
    return _details("The form of the batch loss", str(found)) if found else ""


def _footer(findings: Findings) -> str:
    settings = ", ".join(f"{name} {value}" for name, value in findings.settings.items())
    return f"One θ, {settings}. The same command writes the same bytes."
