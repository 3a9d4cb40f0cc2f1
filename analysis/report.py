"""The command `metapt report`, also `python analysis/report.py` in a clone: from run folders to a report.

Writes index.html (self-contained), report.md, report.json and references.bib; every table as CSV, LaTeX (booktabs) and
Parquet; every figure as SVG for the page, and on request as PDF at the width of a column or of the text of a paper.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

if not __package__:  # run as a script: import the folder of this file as a package
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    __package__ = "analysis"

# numpy uses one thread, because other processes draw figures; it reads this variable when it is imported
os.environ.setdefault("OMP_NUM_THREADS", "1")

import jinja2
import orjson
import pyarrow
from markupsafe import Markup, escape
from pyarrow import parquet

from metapt.errors import run_command
from metapt.files import write_bytes_atomically

from . import html_table
from .build import Report, build
from .latex import to_latex
from .load.collect import MARGIN, collect, newest_grid
from .load.contrasts import Contrast
from .load.records import TARGETS
from .sections.base import Section
from .stats.budgets import BUDGETS, UPDATES
from .tables import FlatCell, Table, enumerated, unbroken

TEMPLATES = Path(__file__).resolve().parent / "templates"
OUTPUT_SUFFIXES = {".csv", ".tex", ".parquet", ".svg", ".pdf"}  # of tables and figures
REFERENCES = TEMPLATES / "references.bib"
RUNS = Path("runs")


def main(argv: Sequence[str]) -> None:
    """Write the report, and print the F1 table, the summary and the path of the page.

    Raises:
        UserError: a root does not exist or has no run.
    """
    arguments = _parser().parse_args(argv)
    roots = arguments.roots or [newest_grid(RUNS)]
    out = arguments.out or roots[0] / "report"
    budget = next(name for name in BUDGETS if name.lower().replace(" ", "-") == arguments.budget)
    contrasts = [Contrast(first, second) for first, second in arguments.compare]
    collection = collect(roots, out, arguments.targets, contrasts, arguments.margin)
    report = build(collection, uner=arguments.uner, budget=budget, sentences=not arguments.no_sentences)
    write(report, out, links=not arguments.standalone, pdf=arguments.pdf)
    _print(report, out)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="metapt report",
        description="Write a report (page, tables and figures) from the run folders of one or more grids.",
    )
    _add_paths(parser)
    _add_analyses(parser)
    _add_output(parser)
    return parser


def _add_paths(parser: argparse.ArgumentParser) -> None:
    """Options for what is read and written."""
    parser.add_argument(
        "roots",
        nargs="*",
        type=Path,
        metavar="ROOT",
        help="Grid folder to read (default: the newest grid under runs/).",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="Folder to write the report to (default: report/ in the first ROOT).",
    )
    parser.add_argument(
        "--uner",
        type=Path,
        metavar="DIR",
        default=os.environ.get("METAPT_UNER_DIR") or None,
        help="Universal NER folder with SET/train.iob2, which adds statistics of the training data and "
        "out-of-vocabulary rates (default: the environment variable METAPT_UNER_DIR).",
    )


def _add_analyses(parser: argparse.ArgumentParser) -> None:
    """Options for what is compared."""
    parser.add_argument(
        "--budget",
        choices=[name.lower().replace(" ", "-") for name in BUDGETS],
        default=UPDATES,
        help="Matched budget that the page shows first, at which comparisons get verdicts (default: %(default)s).",
    )
    parser.add_argument(
        "--compare",
        nargs=2,
        action="append",
        default=[],
        metavar=("FIRST", "SECOND"),
        help="Compare two arms, each an objective or OBJECTIVE/VARIANT; may be repeated (default: the comparisons "
        "that the grids declare, otherwise every objective with vanilla).",
    )
    parser.add_argument(
        "--targets",
        type=lambda text: tuple(filter(None, text.split(","))),
        default=(),
        metavar="NAME,...",
        help="Languages or evaluation sets that averages and verdicts are about (default: those of the grids, "
        f"otherwise {','.join(TARGETS)}).",
    )
    parser.add_argument(
        "--margin",
        type=float,
        metavar="POINTS",
        help="Largest difference of F1 without practical importance, in points (default: that of the grids, "
        f"otherwise {MARGIN:g}).",
    )


def _add_output(parser: argparse.ArgumentParser) -> None:
    """Options for the form of the report."""
    parser.add_argument(
        "--no-sentences",
        action="store_true",
        help="Omit the case studies, which quote sentences of the evaluation sets, so that the report may be "
        "published (default: include them).",
    )
    parser.add_argument(
        "--standalone",
        action="store_true",
        help="Write index.html without links to run folders and other files, so that it may be moved or sent alone "
        "(default: with links).",
    )
    parser.add_argument(
        "--pdf",
        action="store_true",
        help="Write every figure as PDF too, for a paper, which takes as long as the rest (default: SVG only).",
    )


def _print(report: Report, out: Path) -> None:
    if report.notice:
        print(f"{report.notice}\n")
    if report.f1.rows:
        print(f"{report.f1.title}. {report.f1.full_note}\n{report.f1.to_text()}\n")
    else:
        print("No finished fine-tuning run.\n")
    print(report.run_counts, *report.default_lead.paragraphs, sep="\n")
    print(f"\nreport: {(out / 'index.html').absolute()}")


def write(report: Report, out: Path, links: bool = True, pdf: bool = False) -> None:
    """Write every file of the report, and remove tables and figures that only an earlier report had.

    Args:
        links: whether the page links to run folders and other files.
        pdf: whether to write figures as PDF too.
    """
    written = set()
    for name, content in _files(report, out, links, pdf):
        write_bytes_atomically(out / name, content)
        written.add(out / name)
    for path in {*(out / "tables").glob("*"), *(out / "figures").glob("*")} - written:
        if path.suffix in OUTPUT_SUFFIXES:
            path.unlink()


def _files(report: Report, out: Path, links: bool, pdf: bool) -> Iterator[tuple[str, bytes]]:
    """Yield (name, content) of every file: tables first, since other processes may still draw figures; the page last."""
    pdfs = [(figure.name, figure.submit_pdf()) for figure in report.figures if pdf]
    for table in report.tables:
        yield f"tables/{table.name}.csv", table.to_csv(out).encode()
        yield f"tables/{table.name}.tex", to_latex(table).encode()
        yield f"tables/{table.name}.parquet", to_parquet(table, out)
    yield "report.json", to_json(report, out)
    yield "report.md", to_markdown(report).encode()
    yield "references.bib", REFERENCES.read_bytes()
    for figure in report.figures:
        yield f"figures/{figure.name}.svg", figure.to_svg().encode()
    for name, drawn in pdfs:
        yield f"figures/{name}.pdf", drawn.result()
    yield "index.html", to_html(report, out, links).encode()


def to_parquet(table: Table, out: Path) -> bytes:
    """Format a table as Parquet with the columns of its CSV; title and note are metadata of the file."""
    rows = table.flat_rows(out)
    columns = {head: _array([row[index] for row in rows]) for index, head in enumerate(table.flat_heads)}
    metadata = {"title": table.title, "note": table.full_note}
    file = io.BytesIO()
    parquet.write_table(pyarrow.table(columns).replace_schema_metadata(metadata), file)
    return file.getvalue()


def _array(values: Sequence[FlatCell]) -> pyarrow.Array:
    """An array of one type: numbers keep theirs, mixed types become text."""
    kinds = {type(value) for value in values if value is not None}
    if kinds <= {int, float} or len(kinds) == 1:
        return pyarrow.array(values, from_pandas=True)
    return pyarrow.array([None if value is None else str(value) for value in values], pyarrow.string())


def to_json(report: Report, out: Path) -> bytes:
    """Format the report's texts and tables as JSON; columns are those of the CSV files, and NaN is null."""
    content = {
        "title": report.title,
        "notice": report.notice,
        "run_counts": report.run_counts,
        "summary": [
            {"comparison": lead.contrast, "budgets": lead.budgets, "paragraphs": list(lead.paragraphs)}
            for lead in report.leads
        ],
        "sections": [_section_json(section, out) for section in (*report.leads, *report.sections)],
        "tables": {table.name: _table_json(table, out) for table in report.tables},
    }
    options = orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE | orjson.OPT_SERIALIZE_NUMPY
    return orjson.dumps(content, option=options)


def _section_json(section: Section, out: Path) -> dict[str, object]:
    return {
        "name": section.name,
        "title": section.title,
        "budgets": section.budgets,
        "comparison": section.contrast or None,
        "paragraphs": list(section.paragraphs),
        "figures": [
            {"name": figure.name, "caption": figure.caption, "runs": figure.runs.folders(out)}
            for figure in section.figures
        ],
        "tables": [table.name for table in section.tables],
    }


def _table_json(table: Table, out: Path) -> dict[str, object]:
    return {
        "title": table.title,
        "note": table.full_note,
        "columns": table.flat_heads,
        "rows": table.flat_rows(out),
    }


def to_html(report: Report, out: Path, links: bool = True) -> str:
    """Render the page. Autoescape is on; only figures and tables, which escape their own text, are passed as markup."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"code": _code, "text": unbroken, "enumerated": enumerated}
    base = out if links else None
    return environment.get_template("report.html.j2").render(
        report=report, budgets=list(BUDGETS), base=base, markup=Markup, table_html=html_table.to_html
    )


def _code(text: str) -> Markup:
    """Escape a text, with `...` as code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(unbroken(text)))))


def to_markdown(report: Report) -> str:
    """Format the page as Markdown at the budget that is shown first; figures are links to their SVG files."""
    parts = [f"# {report.title}"]
    parts += [f"> **{report.notice}**"] if report.notice else []
    sentence, *notes = report.default_lead.paragraphs
    parts += [sentence, *_markdown_content(report.default_lead), *notes, report.run_counts]
    for section in report.default_sections:
        view = f" ({section.contrast}, matched {enumerated(section.budgets)})" if section.budgets else ""
        parts += [f"## {section.title}{view}", *section.paragraphs, *_markdown_content(section)]
    return "\n\n".join(parts) + "\n"


def _markdown_content(section: Section) -> Iterator[str]:
    """Yield the figures and tables of a section."""
    for figure in section.figures:
        yield f"![{figure.caption}](figures/{figure.name}.svg)\n\n{figure.caption}"
    for table in section.tables:
        if table.on_page:
            note = f"{table.notice} {table.full_note} {table.truncation}".strip()
            yield f"**{table.title}.** {note}".rstrip()
            yield table.to_markdown().rstrip()
        else:
            yield f"{table.title}: [tables/{table.name}.csv](tables/{table.name}.csv)"


if __name__ == "__main__":
    run_command(main)
