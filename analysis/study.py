"""What every section of the report is made from, and what a section is.

An analysis is a module with a function `section(study) -> Section`, named in ANALYSES of sections.py: that is all there is
to adding one. It says what it shows and from how many runs, and where it has too little to show, what would be needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from analysis.collect import Collection
from analysis.comparison import Comparison, comparisons, last_steps
from analysis.drawing import Figure
from analysis.significance import RESAMPLES, Scores
from analysis.tables import Table


@dataclass
class Section:
    """A part of the report; tables without rows are not shown. `blocks` is further markup, which only the page has."""

    name: str
    title: str
    paragraphs: Sequence[str] = ()
    figures: Sequence[Figure] = ()
    tables: Sequence[Table] = ()
    blocks: Sequence[Markup] = ()


class Study:
    """The runs, their scores, and the comparisons of MAML with vanilla: all, on target sets, and those of the last steps."""

    def __init__(self, collection: Collection, resamples: int = RESAMPLES, uner: Path | None = None) -> None:
        self.collection = collection
        self.uner = uner
        self.scores = Scores(collection.finetuning, resamples)
        self.found: list[Comparison] = comparisons(collection, self.scores)
        targets = set(collection.target_sets())
        self.on_targets = [item for item in self.found if item.set_name in targets]
        self.last = last_steps(self.on_targets)


def counted(count: int, name: str) -> str:
    """ "1 run", "2 runs"."""
    return f"{count:,} {name}{'' if count == 1 else 's'}"
