"""Tables, texts and links of the page of results, as HTML that needs neither a network nor scripts.

Every text from a file is escaped. Start reading at `csv_table`.
"""

import csv
import html
import math
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from urllib.parse import quote

from common.tables import cells_of_any_length

ROWS, COLUMNS = 12, 16  # of a table on the page; the file has the rest
LONGEST = 500  # characters of a cell on the page

STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 0 auto; padding: 1rem 1.5rem 4rem; }
h2 { border-bottom: 2px solid #8886; padding-bottom: .2rem; margin-top: 3rem; }
h3 { margin: 2.2rem 0 .3rem; }
h4 { margin: 1rem 0 .2rem; }
pre { background: #8882; padding: .6rem .8rem; white-space: pre-wrap; overflow-wrap: anywhere; margin: .4rem 0; }
code { font-size: .9em; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85rem; margin: .4rem 0; font-variant-numeric: tabular-nums; }
th, td { border: 1px solid #8886; padding: .15rem .5rem; text-align: left; vertical-align: top; }
th { background: #8882; }
td.number { text-align: right; }
figure { display: inline-block; margin: .5rem 1rem .5rem 0; max-width: 100%; vertical-align: top; }
figure img { max-width: 100%; max-height: 32rem; background: white; }
figure img.small { width: 128px; image-rendering: pixelated; }
figcaption { font-size: .85rem; max-width: 60rem; overflow-wrap: anywhere; }
figure.small figcaption { max-width: 16rem; }
figure.small pre { font-size: .75rem; }
.facts, .note { font-size: .9rem; margin: .2rem 0; }
.note { font-style: italic; }
details { margin: .6rem 0; border-left: 3px solid #8886; padding-left: .8rem; }
summary { cursor: pointer; }
"""


def text(value: object) -> str:
    """A text for HTML; what is no Unicode in a file's name becomes a question mark."""
    return html.escape(str(value).encode(errors="replace").decode())


def address(path: Path, start: Path) -> str:
    """The relative link from a page in the folder `start` to a file."""
    return html.escape(quote(os.fsencode(os.path.relpath(path, start))))


def link(path: Path, start: Path, words: str = "") -> str:
    """A link to a file, by its name or the given words."""
    return f'<a href="{address(path, start)}">{text(words or path.name)}</a>'


def command_html(command: str) -> str:
    """The command behind something, or that nothing tells it."""
    return f"<pre>{text(command)}</pre>" if command else '<p class="note">command unknown</p>'


def cell_html(cell: str, tag: str = "td") -> str:
    """A cell of a table; numbers are shortened to five digits and stand at the right, long texts are cut."""
    try:
        number = float(cell)
    except ValueError:
        return f"<{tag}>{text(cell if len(cell) <= LONGEST else f'{cell[:LONGEST]} ..')}</{tag}>"
    short = f"{number:.5g}" if math.isfinite(number) and len(cell) > 7 and not cell.lstrip("-").isdigit() else cell
    return f'<{tag} class="number">{text(short)}</{tag}>'


def table_html(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table that scrolls where it is too wide for the window."""
    head = "".join(f"<th>{text(cell)}</th>" for cell in header)
    body = "".join(f"<tr>{''.join(map(cell_html, row))}</tr>\n" for row in rows)
    return f'<div class="scroll"><table><tr>{head}</tr>\n{body}</table></div>'


def csv_table(path: Path, start: Path, name: str) -> str:
    """A CSV file: its first rows and columns, and a named link to it. Raises OSError, ValueError or csv.Error."""
    with path.open(newline="", encoding="utf-8") as file, cells_of_any_length():
        reader = csv.reader(file)
        header = next(reader, [])
        rows, count = [], 0
        for row in reader:
            count += 1
            if count <= ROWS:
                rows.append(row[:COLUMNS])
    if not header:
        raise ValueError("it is empty")
    cut = [f"{min(count, ROWS)} of {count} rows"] if count > ROWS else [f"{count} row{'s' * (count != 1)}"]
    cut += [f"{COLUMNS} of {len(header)} columns"] if len(header) > COLUMNS else []
    words = f"{link(path, start, name)}: {', '.join(cut)}"
    table = table_html(header[:COLUMNS], rows)
    if count > ROWS:
        return f"<details><summary>{words}</summary>\n{table}</details>"
    return f'<p class="facts">{words}</p>\n{table}'


def markdown(path: Path, start: Path, name: str) -> str:
    """A text in the Markdown that this project's reports have: headings, tables, paragraphs, code. Raises OSError."""
    parts = [f'<p class="facts">{link(path, start, name)}</p>']
    blocks = re.split(r"\n\s*\n", path.read_text(encoding="utf-8").strip())
    for block in blocks:
        lines = block.splitlines()
        if lines and all(line.startswith("|") for line in lines):
            cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))] for line in lines]
            parts.append(table_html(cells[0], [row for row in cells[1:] if not set("".join(row)) <= set("-: ")]))
        elif match := re.match(r"#+\s+(.*)", block):
            parts.append(f"<h4>{text(match[1])}</h4>")
            parts += [f"<p>{text(' '.join(lines[1:]))}</p>"] if lines[1:] else []
        elif lines:
            parts.append("<p>" + re.sub(r"`([^`]+)`", r"<code>\1</code>", text(" ".join(lines))) + "</p>")
    return "\n".join(parts)


def document(title: str, body: str) -> str:
    """A whole page."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{text(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )
