"""Tables for the page: the runs of a row are its details, and groups of columns have a head of their own."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from urllib.parse import quote

from markupsafe import Markup, escape

from .run_refs import Runs, counted
from .tables import MAX_ROWS, MISSING, Table, unbroken

LONG_TEXT = 28  # characters above which the text of a cell is wrapped
FOLDED_TEXT = 160  # characters above which a cell shows only the start of its text until a reader opens it
MAX_LINKS = 12  # runs in the details of a row; the files of the report have all


def to_html(table: Table, base: Path | None = None) -> Markup:
    """Format the first MAX_ROWS rows as a `table` element; every text is escaped. End tags that HTML does not need are left out.

    Args:
        base: folder of the page, to which links to run folders are relative; None for a page without links, whose rows
            say how many runs of which objectives and seeds they are computed from, if no column does.
    """
    columns = table.columns_without_runs()
    shows_runs = base is not None or not any(column.head in ("seed", "seeds") for column in table.columns)
    (_, *lines), numeric = table.lines(columns, MAX_ROWS)
    rows = []
    for index, (texts, cells) in enumerate(zip(lines, table.rows, strict=False)):
        shaded = ' class="shaded"' if index in table.shaded else ""
        runs = next((cell for cell in cells if isinstance(cell, Runs)), None) if shows_runs else None
        first = f'<th scope="row">{_row_head(table, texts[0], runs, base)}'
        others = (_cell(text, right) for text, right in zip(texts[1:], numeric[1:], strict=True))
        rows.append(f"<tr{shaded}>{first}{''.join(others)}\n")
    return Markup(
        f'<table aria-label="{escape(table.title)}">\n<thead>{_head(table, columns)}</thead>\n'
        f"<tbody>\n{''.join(rows)}</tbody>\n</table>"
    )


def _head(table: Table, columns: Sequence[int]) -> str:
    """One row of heads, or two if columns are in groups."""
    above, below = [], []
    for group, indices in table.column_groups():
        shown = [index for index in indices if index in columns]
        heads = [
            f'<th scope="col"{_span(table, group)}{_html_class(table.is_numeric(index))}>'
            f"{escape(unbroken(table.columns[index].head))}</th>"
            for index in shown
        ]
        if group:
            above.append(f'<th scope="colgroup" colspan="{len(shown)}">{escape(group)}</th>')
            below += heads
        else:
            above += heads
    return "".join(f"<tr>{''.join(row)}</tr>" for row in (above, below) if row)


def _span(table: Table, group: str) -> str:
    return ' rowspan="2"' if table.is_wide and not group else ""


def _row_head(table: Table, text: str, runs: Runs | None, base: Path | None) -> str:
    """The first cell of a row, which opens to its runs."""
    if not runs:
        return escape(text)
    found = escape(str(runs)) if base is None else _links(table, runs.folders(base))
    return f"<details><summary>{escape(text or MISSING)}</summary><div>{found}</div></details>"


def _links(table: Table, folders: Sequence[str]) -> str:
    """The number of runs, and links to their folders."""
    items = [_item(folder) for folder in folders[:MAX_LINKS]]
    if more := len(folders) - len(items):
        items.append(f"<li>{more:,} more: tables/{escape(table.name)}.csv</li>")
    return f"{counted(len(folders), 'run')}:<ul>{''.join(items)}</ul>"


def _cell(text: str, is_numeric: bool) -> str:
    if len(text) > FOLDED_TEXT and not is_numeric:
        start = text[:LONG_TEXT].rstrip(" ,")
        return f'<td class="long"><details><summary>{escape(start)} …</summary><div>{escape(text)}</div></details>'
    html_class = ' class="long"' if len(text) > LONG_TEXT and not is_numeric else _html_class(is_numeric)
    return f"<td{html_class}>{escape(text)}"


def _html_class(is_numeric: bool) -> str:
    return " class=n" if is_numeric else ""


@lru_cache(maxsize=100_000)
def _item(folder: str) -> str:
    """A run in the details of a row: its kind and name, as a link to its folder."""
    name = escape("/".join(folder.split("/")[-2:]))
    return f'<li><a href="{escape(quote(folder))}">{name}</a></li>'
