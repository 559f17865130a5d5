"""A report as one HTML file that needs no other: every text escaped, every picture inside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from jinja2 import Environment
from markupsafe import Markup

Table = Sequence[Mapping[str, str]]

STYLE = """
:root { color-scheme: light dark; --ink: #1d2733; --faint: #5c6b73; --line: #dde3e9;
        --page: #fff; --good: #eef7f2; --bad: #fbeef3 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #dbe2ea; --faint: #97a5b1; --line: #33404c; --page: #12181e; --good: #17301f;
          --bad: #3a1826 } }
body { background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, sans-serif;
       max-width: 1060px; margin: 2em auto; padding: 0 1em; overflow-wrap: anywhere }
h1 { font-size: 1.5em; margin-bottom: .2em } h2 { font-size: 1.1em; margin: 2em 0 .4em }
.verdict { font-size: 1.1em; padding: .6em .9em; border-left: 6px solid #2a8f5c;
           background: var(--good) }
.verdict.bad { border-color: #b8336a; background: var(--bad) }
.verdict.plain { border-color: var(--faint); background: none }
.verdict p { margin: .3em 0 }
svg { display: block; width: 100%; max-width: 600px; height: auto }
svg text { font-family: system-ui, sans-serif !important }
/* A shade at a side on which there is more of a table, beneath what lies on the table's own end. */
.scroll { overflow-x: auto; background:
  linear-gradient(90deg, var(--page) 50%, #0000) 0 0 / 3em 100% no-repeat local,
  linear-gradient(270deg, var(--page) 50%, #0000) 100% 0 / 3em 100% no-repeat local,
  linear-gradient(90deg, var(--line), #0000) 0 0 / 1em 100% no-repeat scroll,
  linear-gradient(270deg, var(--line), #0000) 100% 0 / 1em 100% no-repeat scroll }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9em }
th, td { padding: .3em .8em .3em 0; text-align: left; border-bottom: 1px solid var(--line);
         vertical-align: top; overflow-wrap: normal }
td.long { min-width: 16em; overflow-wrap: anywhere }
tr.more td { border: 0 } tr.below td { padding-top: 0 }
tr.below div { max-width: calc(min(100vw, 1060px) - 2em); color: var(--faint);
               overflow-wrap: anywhere }
td.number, th.number { text-align: right } th { color: var(--faint); font-weight: 600 }
@media (max-width: 500px) {
  table { font-size: .8em } th, td { padding-right: .6em } td.long { min-width: 12em } }
footer { color: var(--faint); margin-top: 2.5em; font-size: .85em }
"""

# Columns of words, set to the left; all others hold numbers.
LONG = {"what was run", "more", "why", "set otherwise", "planned for"}
BELOW = {"why", "set otherwise", "planned for"}  # these stand in lines of their own
WORDS = LONG | {"", "of", "run", "against", "what", "state", "unit", "precision",
                "samples, rates, tokens"}  # fmt: skip

PAGE = """<!DOCTYPE html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{{ title }}</title><style>{{ style }}</style></head>
<body>
<h1>{{ title }}</h1>
<div class="verdict {{ tone }}">
{% for sentence in verdict %}<p>{{ sentence }}.</p>{% endfor %}
</div>
{% for heading, content in tables.items() %}{% if content %}
<h2>{{ heading }}</h2>
<div class="scroll"><table>
<tr>{% for name in content[0] if name not in below %}<th{{ kind(name) }}>{{ name }}</th>
{%- endfor %}</tr>
{% for row in content %}<tr{% if under(row) %} class=more{% endif %}>
{% for name, cell in row.items() if name not in below %}<td{{ kind(name) }}>{{ cell }}</td>
{%- endfor %}</tr>
{% if under(row) %}<tr class=below><td colspan={{ row | length }}>
{% for text in under(row) %}<div>{{ text }}</div>
{% endfor %}</td></tr>
{% endif %}{% endfor %}</table></div>
{% endif %}{% if pictures.get(heading) %}{{ picture(heading) }}{% endif %}{% endfor %}
{% for heading in pictures if heading not in tables %}
<h2>{{ heading }}</h2>{{ picture(heading) }}
{% endfor %}
<footer>{{ footer }}</footer>
</body></html>
"""


def render_page(
    title: str,
    verdict: Sequence[str],
    *,
    tone: str,
    tables: Mapping[str, Table],
    pictures: Mapping[str, Path],
    footer: str,
) -> str:
    """Return the page; every cell, name and sentence is escaped.

    Args:
        verdict: its sentences.
        tone: how the verdict is shown: `good`, `bad`, or `plain` news.
        tables: heading -> rows, all with the keys of the first.
        pictures: heading -> SVG file, put into the page as it is.
    """

    def picture(heading: str) -> Markup:
        # Drawn by matplotlib, which escapes what it writes; the prologue is a file's only.
        drawn = pictures[heading].read_text(encoding="utf-8")
        return Markup(drawn[drawn.index("<svg") :])

    def kind(name: str) -> Markup:
        return Markup(" class=long" if name in LONG else "" if name in WORDS else " class=number")

    def under(row: Mapping[str, str]) -> list[str]:
        return [f"{name}: {cell}" for name, cell in row.items() if name in BELOW]

    template = Environment(autoescape=True).from_string(PAGE)
    return template.render(
        title=title, verdict=verdict, tone=tone, tables=tables, pictures=pictures,
        picture=picture, kind=kind, under=under, below=BELOW, footer=footer, style=Markup(STYLE),
    )  # fmt: skip
