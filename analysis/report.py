"""python analysis/report.py [ROOT ...] [--out DIR] [--equal BUDGET]: from run folders to one page, tables and figures.

Writes index.html (self-contained), report.md, report.json, references.bib, every table as CSV, LaTeX (booktabs) and
Parquet, every figure as SVG, and those under the term that is shown first (--equal) as PDF too, at the width of a
column or of the text. Without a ROOT it takes the newest grid under runs/; without --out it writes into ROOT/report of the first root.
"""

from __future__ import annotations

import argparse
import gc
import io
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

if not __package__:  # run as a script: import this folder as the package that it is
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    __package__ = "analysis"

# numpy's products have one thread, which it must know before it is imported: the other cores draw
os.environ.setdefault("OMP_NUM_THREADS", "1")

import jinja2
import orjson
import pyarrow
from markupsafe import Markup
from pyarrow import parquet

from metapt.errors import run_command
from metapt.files import write_bytes_atomically

from .build import Report, build
from .figures import rendering
from .load.collect import Collection, collect, newest_grid
from .stats.matched_budget import TERMS, UPDATES
from .tables import Flat, Table

TEMPLATES = Path(__file__).resolve().parent / "templates"
ENDINGS = {".csv", ".tex", ".parquet", ".svg", ".pdf"}  # of tables and figures
REFERENCES = TEMPLATES / "references.bib"
RUNS = Path("runs")


def main(argv: Sequence[str]) -> None:
    """Makes the report, prints the F1 table and the path of the page.

    Raises:
        UserError: a root is missing or holds no run.
    """
    parser = argparse.ArgumentParser(
        prog="python analysis/report.py", description="From run folders to one report."
    )
    parser.add_argument(
        "roots", nargs="*", type=Path, metavar="ROOT", help="a grid's folder [the newest under runs/]"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="where the report is written [ROOT/report]")
    parser.add_argument("--uner", type=Path, metavar="DIR", default=os.environ.get("METAPT_UNER_DIR"), help="SET/train.iob2, for statistics of the training data [METAPT_UNER_DIR]")  # fmt: skip
    parser.add_argument("--equal", choices=[term.lower() for term in TERMS], default=UPDATES, help="what MAML and vanilla have spent alike in the comparisons that are shown first [updates]")  # fmt: skip
    parser.add_argument("--no-sentences", action="store_true", help="leave the case studies out, which quote the evaluation sets: for a page that is published")  # fmt: skip
    arguments = parser.parse_args(argv)
    roots = arguments.roots or [newest_grid(RUNS)]
    out = arguments.out or roots[0] / "report"
    equal = next(term for term in TERMS if term.lower() == arguments.equal)
    uner = arguments.uner and Path(arguments.uner)
    rendering.begin()
    report = build(read(roots, out), uner=uner, equal=equal, sentences=not arguments.no_sentences)
    write(report, out)
    if report.notice:
        print(f"{report.notice}\n")
    print(
        f"{report.f1.title}. {report.f1.about}\n{report.f1.to_text()}\n"
        if report.f1.rows
        else "no finished run to show\n"
    )
    print(
        report.about,
        *report.summaries[report.equal],
        "",
        f"report: {(out / 'index.html').absolute()}",
        sep="\n",
    )


def read(roots: Sequence[Path], out: Path) -> Collection:
    """`collect`, without the garbage collector, which then passes over what was found and comes less often: nearly all that a report makes stays to its end."""
    gc.disable()
    try:
        return collect(roots, out)
    finally:
        gc.freeze()
        gc.set_threshold(50_000, 20, 100)
        gc.enable()


def write(report: Report, out: Path) -> None:
    """Writes every file of the report, and removes tables and figures of an earlier one that are no longer made."""
    written = set()
    for name, content in _files(report, out):
        write_bytes_atomically(out / name, content)
        written.add(out / name)
    for path in {*(out / "tables").glob("*"), *(out / "figures").glob("*")} - written:
        if path.suffix in ENDINGS:
            path.unlink()


def _files(report: Report, out: Path) -> Iterator[tuple[str, bytes]]:
    """(name, content): tables before figures, which other processes may still be drawing, and last the page, which has them all."""
    for table in report.tables:
        yield f"tables/{table.name}.csv", table.to_csv(report.notice, out).encode()
        yield f"tables/{table.name}.tex", table.to_latex(report.notice).encode()
        yield f"tables/{table.name}.parquet", to_parquet(table, report.notice, out)
    yield "report.json", to_json(report, out)
    yield "report.md", to_markdown(report).encode()
    yield "references.bib", REFERENCES.read_bytes()
    for figure in report.figures:
        yield f"figures/{figure.name}.svg", figure.to_svg(report.notice).encode()
        if figure.pdf is not None:
            yield f"figures/{figure.name}.pdf", figure.pdf
    yield "index.html", to_html(report, out).encode()


def to_parquet(table: Table, notice: str, out: Path) -> bytes:
    """The table with the columns of its CSV, typed; title, note and notice are metadata of the file."""
    heads = [head for column in table.columns for head in column.csv_heads]
    rows = table.flat_rows(out)
    columns = {head: _array([row[index] for row in rows]) for index, head in enumerate(heads)}
    about = {"title": table.title, "note": table.about, "notice": notice}
    file = io.BytesIO()
    parquet.write_table(pyarrow.table(columns).replace_schema_metadata(about), file)
    return file.getvalue()


def _array(values: Sequence[Flat]) -> pyarrow.Array:
    """One type for a column: numbers as they are, anything mixed as text."""
    kinds = {type(value) for value in values if value is not None}
    if kinds <= {int, float} or len(kinds) == 1:
        return pyarrow.array(values, from_pandas=True)
    return pyarrow.array([None if value is None else str(value) for value in values], pyarrow.string())


def to_json(report: Report, out: Path) -> bytes:
    """For machines: the words of the report and every table, with each cell under the head of its column in the CSV; NaN is null."""
    tables = {}
    for table in report.tables:
        heads = [head for column in table.columns for head in column.csv_heads]
        tables[table.name] = {"title": table.title, "note": table.about, "columns": heads, "rows": table.flat_rows(out)}  # fmt: skip
    sections = [
        {
            "name": section.name,
            "title": section.title,
            "equal": section.term or None,
            "paragraphs": list(section.paragraphs),
            "figures": [
                {"name": figure.name, "caption": figure.caption, "runs": figure.runs.folders(out)}
                for figure in section.figures
            ],
            "tables": [table.name for table in section.tables],
        }
        for section in report.sections
    ]
    content = {
        "title": report.title,
        "notice": report.notice,
        "about": report.about,
        "summary": {term: list(sentences) for term, sentences in report.summaries.items()},
        "sections": sections,
        "tables": tables,
    }
    return orjson.dumps(content, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE | orjson.OPT_SERIALIZE_NUMPY)  # fmt: skip


def to_html(report: Report, out: Path) -> str:
    """The page. Autoescape is on: only SVG and tables, which are made here and escape their text, pass as markup."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2").render(
        report=report, terms=TERMS, out=out, markup=Markup
    )


def to_markdown(report: Report) -> str:
    """The same as the page, under the term that is shown first; figures are links to the SVG files beside it."""
    parts = [f"# {report.title}"]
    parts += [f"> **{report.notice}**"] if report.notice else []
    parts += [report.about, *report.summaries[report.equal]]
    for section in report.shown:
        parts += [
            f"## {section.title}{f', at equal {section.term}' if section.term else ''}",
            *section.paragraphs,
        ]
        parts += [
            f"![{figure.caption}](figures/{figure.name}.svg)\n\n{figure.caption}"
            for figure in section.figures
        ]
        for table in section.tables:
            if table.on_page:
                parts += [
                    f"**{table.title}.** {table.about} {table.cut}".rstrip(),
                    table.to_markdown().rstrip(),
                ]
            else:
                parts.append(f"{table.title}: [tables/{table.name}.csv](tables/{table.name}.csv)")
    return "\n\n".join(parts) + "\n"


def command() -> None:
    """`metapt-report`, as pip installs it."""
    run_command(main)


if __name__ == "__main__":
    command()
