"""The runs behind a row or a figure: which they are, how many, of how many seeds, and where their folders lie."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

from ..load.records import BASELINE, FinetuneRun, PretrainRun

Run = PretrainRun | FinetuneRun
NAMES = {"vanilla": "vanilla", "maml": "MAML"}


@dataclass(frozen=True, eq=False)
class Runs:
    """Distinct runs, as the last cell of a row; `runs_of` makes it."""

    runs: tuple[Run, ...]

    def __iter__(self) -> Iterator[Run]:
        return iter(self.runs)

    def __len__(self) -> int:
        return len(self.runs)

    def __str__(self) -> str:
        """ "From 4 runs (2 vanilla, 2 MAML) of 2 seeds." """
        return self._told

    @cached_property
    def _told(self) -> str:
        if not self.runs:
            return "From no run."
        kinds = Counter(NAMES.get(run.objective, run.objective) for run in self.runs)
        parts = ", ".join(f"{count:,} {kind}" for kind, count in kinds.items())
        seeds = {_seed(run) for run in self.runs if run.objective != BASELINE}
        of = f" of {counted(len(seeds), 'seed')}" if seeds else ""
        return f"From {counted(len(self), 'run')} ({parts}){of}."

    def folders(self, base: Path) -> list[str]:
        """The path of each run's folder from `base`, in the form of a link."""
        return [_relative(run.path, base) for run in self.runs]


@lru_cache(maxsize=100_000)
def _relative(path: Path, base: Path) -> str:
    return Path(os.path.relpath(path.absolute(), base.absolute())).as_posix()


def runs_of(*parts: Run | Iterable[Run]) -> Runs:
    """All of these runs, each once."""
    found: dict[Path, Run] = {}
    for part in parts:
        runs = [part] if isinstance(part, PretrainRun | FinetuneRun) else part
        found |= {run.path: run for run in runs}
    return Runs(tuple(found.values()))


def counted(count: int, name: str) -> str:
    """ "1 run", "2 runs"."""
    return f"{count:,} {name}{'' if count == 1 else 's'}"


def _seed(run: Run) -> int | None:
    """That of pretraining, which a tuned model of ours shares; of a model from elsewhere that of tuning."""
    if isinstance(run, PretrainRun):
        return run.seed
    return run.seeds[1] if run.seeds[0] is None else run.seeds[0]
