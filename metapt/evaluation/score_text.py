"""What `metapt score` prints: the scores of a system, and the comparison of two."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from metapt.data.char_spans import Adjustments
from metapt.data.columns import UNER_LAYOUT
from metapt.data.labelled_files import LabelledFile
from metapt.evaluation.bootstrap import LEVEL, RESAMPLES
from metapt.evaluation.f1_text import CI, f1_text
from metapt.evaluation.score_system import Comparison, ScoredSystem
from metapt.evaluation.span_matching import LENGTHS, OUTCOMES, SPURIOUS

COUNTS = ("gold", "predicted", "correct")
RATES = ("precision", "recall", "f1")
MEANINGS = (  # of OUTCOMES and SPURIOUS
    "type and both boundaries are right",
    "the words are right, the type is not",
    "another predicted span overlaps the gold span",
    "no predicted span overlaps the gold span",
    "predicted, but overlaps no gold span",
)
ALPHA = 1 - LEVEL


def system_text(system: ScoredSystem) -> str:
    """The scores of one system: F1 with interval, counts by strict IOB2 and conlleval, by type, and errors."""
    scores = system.scores
    words = (
        f"{scores['sentences']:,} sentences, {scores['words']:,} words, {scores['gold_spans']:,} gold spans"
    )
    rows = [["", *COUNTS, "precision", "recall", "F1"], _score_row("strict IOB2", scores)]
    rows.append(_score_row("conlleval", scores["conlleval"]))
    rows += [
        _score_row(kind, values)
        for kind, values in scores["per_type"].items()
        if values["gold_spans"] or values["predicted_spans"]
    ]
    parts = [
        f"{system.name} on {system.set_name.name}: {words}\n{f1_text(scores)}, over {_units(scores)}",
        _table(rows),
        _table(_error_rows(system)),
    ]
    return "\n\n".join(parts)


def _units(scores: Mapping[str, Any]) -> str:
    """What an interval is over, such as `85 documents`."""
    return f"{scores['units']:,} {scores['unit']}s"


def comparison_text(first: ScoredSystem, second: ScoredSystem, comparison: Comparison) -> str:
    """Two systems, their difference, and what it means."""
    scores = first.scores
    if not scores["gold_spans"]:
        return f"{first.set_name.name}: no gold span, so that A and B cannot be compared"
    lines = [
        f"{first.set_name.name}: {scores['gold_spans']:,} gold spans; every CI is over {_units(scores)}",
        _table(
            [
                [letter, system.name, f1_text(system.scores)]
                for letter, system in (("A", first), ("B", second))
            ],
            left=3,
        ),
        f"A minus B: {_points(comparison.difference)} points, {CI} [{_points(comparison.interval[0])}, "
        f"{_points(comparison.interval[1])}], p = {comparison.p:.4f}",
        "",
        *_meaning(comparison),
        f"p: fraction of {RESAMPLES:,} random swaps of the two outputs (each time, those of about half of the {scores['unit']}s) with a "
        "difference at least as large (approximate randomization test).",
        "Both describe these two outputs; how much a system varies from one training seed to the next is not in them.",
    ]
    return "\n".join(lines)


def _meaning(comparison: Comparison) -> Iterator[str]:
    better = "A" if comparison.difference > 0 else "B"
    if comparison.excludes_zero != (comparison.p < ALPHA):
        yield "The CI and the test disagree, as they may near their limits: the result is inconclusive."
    elif comparison.excludes_zero:
        yield f"The CI excludes 0: {better} is better on texts like these."
    else:
        yield "The CI includes 0: the result is inconclusive."


def notices(systems: Sequence[ScoredSystem]) -> Iterator[str]:
    """What the reader should know about how the files were read."""
    yield from _reading(systems[0].gold.file, systems[0].gold.adjustments)
    for system in systems:
        yield from _reading(system.predictions.file, system.predictions.adjustments)
        scores = system.scores
        if extra := scores["conlleval"]["predicted_spans"] - scores["predicted_spans"]:
            yield (
                f"{system.predictions.file.path}: {extra} predicted spans begin with I-; conlleval counts them, strict "
                "IOB2 does not"
            )


def _reading(file: LabelledFile, adjustments: Adjustments) -> Iterator[str]:
    """How a file was read: recognized columns, and entities that were changed."""
    if file.is_recognized and file.layout is not None and file.layout != UNER_LAYOUT:
        yield f"{file.path}: {file.layout}; columns= changes it"
    for notice in adjustments.notices():
        yield f"{file.path}: {notice}"


def _score_row(name: str, scores: dict[str, Any]) -> list[str]:
    counts = [f"{scores[f'{count}_spans']:,}" for count in COUNTS]
    return [name, *counts, *(f"{scores[rate]:.3f}" for rate in RATES)]


def _error_rows(system: ScoredSystem) -> list[list[str]]:
    """A row for each outcome: number of spans of one word, of several words, and of both."""
    tally = system.match.tally
    rows = [["errors", *LENGTHS, "all", ""]]
    for column, (outcome, meaning) in enumerate(zip((*OUTCOMES, SPURIOUS), MEANINGS, strict=True)):
        counts = [int(tally[row, column]) for row in range(len(LENGTHS))]
        rows.append([outcome, *(f"{count:,}" for count in (*counts, sum(counts))), f" {meaning}"])
    return rows


def _points(value: float) -> str:
    return f"{100 * value:+.1f}"


def _table(rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Rows in columns: the first `left` columns, and the last of a table with an empty head, flush left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            f"{cell:<{width}}" if number < left or cell.startswith(" ") else f"{cell:>{width}}"
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
