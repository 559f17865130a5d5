"""A report as one HTML file that needs no other: every text escaped, every picture inside it."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path

from jinja2 import Environment
from markupsafe import Markup

Table = Sequence[Mapping[str, str]]

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1d2733; max-width: 1060px;
       margin: 2em auto; padding: 0 1em }
h1 { font-size: 1.5em; margin-bottom: .2em } h2 { font-size: 1.1em; margin: 2em 0 .4em }
.verdict { font-size: 1.15em; padding: .6em .9em; border-left: 6px solid #2a8f5c;
           background: #eef7f2 }
.verdict.bad { border-color: #b8336a; background: #fbeef3 }
img { max-width: 100%; display: block } .scroll { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9em }
th, td { padding: .3em .8em; text-align: left; border-bottom: 1px solid #dde3e9 }
td.number, th.number { text-align: right } th { color: #5c6b73; font-weight: 600 }
footer { color: #5c6b73; margin-top: 2.5em; font-size: .85em }
"""

# Columns of words, set to the left; all others hold numbers.
WORDS = {"run", "against", "what", "more", "state", "unit", "precision", "samples, rates, tokens"}

PAGE = """<!DOCTYPE html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{{ title }}</title><style>{{ style }}</style></head>
<body>
<h1>{{ title }}</h1>
<p class="verdict{{ '' if good else ' bad' }}">{{ verdict }}</p>
{% for heading, content in tables.items() %}{% if content %}
<h2>{{ heading }}</h2>
<div class="scroll"><table>
<tr>{% for name in content[0] %}<th{{ kind(name) }}>{{ name }}</th>{% endfor %}</tr>
{% for row in content %}<tr>
{% for name, cell in row.items() %}<td{{ kind(name) }}>{{ cell }}</td>{% endfor %}
</tr>
{% endfor %}</table></div>
{% endif %}{% if pictures.get(heading) %}{{ picture(heading) }}{% endif %}{% endfor %}
{% for heading in pictures if heading not in tables %}
<h2>{{ heading }}</h2>{{ picture(heading) }}
{% endfor %}
<footer>{{ footer }}</footer>
</body></html>
"""


def render_page(
    title: str,
    verdict: str,
    *,
    good: bool,
    tables: Mapping[str, Table],
    pictures: Mapping[str, Path],
    footer: str,
) -> str:
    """Return the page; every cell, name and sentence is escaped.

    Args:
        good: whether the verdict is shown as good news.
        tables: heading -> rows, all with the keys of the first.
        pictures: heading -> PNG file.
    """

    def picture(heading: str) -> Markup:
        data = base64.b64encode(pictures[heading].read_bytes()).decode()
        return Markup('<img alt="{}" src="data:image/png;base64,{}">').format(heading, data)

    def kind(name: str) -> Markup:
        return Markup("" if name in WORDS else " class=number")

    template = Environment(autoescape=True).from_string(PAGE)
    return template.render(
        title=title, verdict=verdict, good=good, tables=tables, pictures=pictures,
        picture=picture, kind=kind, footer=footer, style=Markup(STYLE),
    )  # fmt: skip
