"""python analysis/report.py [ROOT ...] [--out DIR]: from run folders to one page, tables and figures.

Writes index.html (self-contained), report.md, tables/*.csv, tables/*.tex and figures/*.svg. Without a ROOT it takes
the newest grid under runs/; without --out it writes into ROOT/report of the first root.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(
    0, str(Path(__file__).resolve().parents[1])
)  # as a script, only this folder would be on the path

import jinja2
from markupsafe import Markup

from analysis.collect import collect, newest_grid
from analysis.sections import Report, build
from metapt.errors import run_command
from metapt.runs import write_atomically

TEMPLATES = Path(__file__).resolve().parent / "templates"
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
    arguments = parser.parse_args(argv)
    roots = arguments.roots or [newest_grid(RUNS)]
    out = arguments.out or roots[0] / "report"
    report = build(collect(roots, out))
    write(report, out)
    if report.notice:
        print(f"{report.notice}\n")
    print(
        f"{report.f1.title}. {report.f1.note}\n{report.f1.to_text()}\n"
        if report.f1.rows
        else "no finished run to show\n"
    )
    print(*report.summary, "", f"report: {(out / 'index.html').absolute()}", sep="\n")


def write(report: Report, out: Path) -> None:
    """Writes every file of the report, and removes tables and figures of an earlier one that are no longer made."""
    files = {Path("index.html"): to_html(report), Path("report.md"): to_markdown(report)}
    for table in report.tables:
        files[Path("tables", f"{table.name}.csv")] = table.to_csv(report.notice)
        files[Path("tables", f"{table.name}.tex")] = table.to_latex(report.notice)
    files |= {
        Path("figures", f"{figure.name}.svg"): figure.to_svg(report.notice) for figure in report.figures
    }
    for stale in [*out.glob("tables/*.csv"), *out.glob("tables/*.tex"), *out.glob("figures/*.svg")]:
        if stale.relative_to(out) not in files:
            stale.unlink()
    for name, text in files.items():
        write_atomically(out / name, text)


def to_html(report: Report) -> str:
    """The page. Autoescape is on: only SVG and tables, which are made here and escape their text, pass as markup."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2").render(report=report, markup=Markup)


def to_markdown(report: Report) -> str:
    """The same as the page; figures are links to the SVG files beside it."""
    parts = [f"# {report.title}"]
    parts += [f"> **{report.notice}**"] if report.notice else []
    parts += report.summary
    for section in report.sections:
        parts += [f"## {section.title}", *section.paragraphs]
        parts += [
            f"![{figure.caption}](figures/{figure.name}.svg)\n\n{figure.caption}"
            for figure in section.figures
        ]
        for table in section.tables:
            if table.on_page:
                parts += [f"**{table.title}.** {table.note}".rstrip(), table.to_markdown().rstrip()]
            else:
                parts.append(f"{table.title}: [tables/{table.name}.csv](tables/{table.name}.csv)")
    return "\n\n".join(parts) + "\n"


def command() -> None:
    """`metapt-report`, as pip installs it."""
    run_command(main)


if __name__ == "__main__":
    command()
