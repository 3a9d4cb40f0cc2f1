"""References to the runs behind a row or a figure: which they are, how many, of how many seeds, and where they are."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar, cast

T = TypeVar("T")


class RunRef(NamedTuple):
    """A run folder, the objective or "baseline", the seed by which runs are repeated, if any, and the kind of data.

    `is_synthetic`: the run was pretrained, tuned or scored on synthetic demo data.
    """

    path: Path
    objective: str
    seed: int | None
    is_synthetic: bool = False


class HasRef(Protocol):
    """A run."""

    @property
    def ref(self) -> RunRef: ...


@dataclass(frozen=True, eq=False)
class Runs:
    """Distinct runs, the last cell of a row. `runs_of` builds it."""

    refs: tuple[RunRef, ...]

    def __iter__(self) -> Iterator[RunRef]:
        return iter(self.refs)

    def __len__(self) -> int:
        return len(self.refs)

    @cached_property
    def synthetic(self) -> int:
        """How many of the runs used synthetic demo data."""
        return sum(ref.is_synthetic for ref in self.refs)

    def __str__(self) -> str:
        """Return, for example, "From 4 runs (2 vanilla, 2 maml) of 2 seeds, all on synthetic demo data."."""
        if not self.refs:
            return "From no run."
        kinds = Counter(ref.objective for ref in self.refs)
        parts = ", ".join(f"{count:,} {kind}" for kind, count in kinds.items())
        seeds = {ref.seed for ref in self.refs} - {None}
        of_seeds = f" of {counted(len(seeds), 'seed')}" if seeds else ""
        some = "all" if self.synthetic == len(self) else f"{self.synthetic:,} of them"
        synthetic = f", {some} on synthetic demo data" if self.synthetic else ""
        return f"From {counted(len(self), 'run')} ({parts}){of_seeds}{synthetic}."

    def folders(self, base: Path) -> list[str]:
        """Return the path of each run's folder relative to `base`, as a link has it."""
        return [_relative(ref.path, base) for ref in self.refs]


@lru_cache(maxsize=100_000)
def _relative(path: Path, base: Path) -> str:
    return Path(os.path.relpath(path.absolute(), base.absolute())).as_posix()


def runs_of(*parts: HasRef | RunRef | Iterable[HasRef | RunRef]) -> Runs:
    """Return all of these runs, each folder once."""
    refs: dict[Path, RunRef] = {}
    for part in parts:
        is_one = isinstance(part, RunRef) or hasattr(part, "ref")
        items = [cast("HasRef | RunRef", part)] if is_one else cast("Iterable[HasRef | RunRef]", part)
        for item in items:
            ref = item if isinstance(item, RunRef) else item.ref
            refs[ref.path] = ref
    return Runs(tuple(refs.values()))


def counted(count: int, noun: str) -> str:
    """Return, for example, "1 run" or "2 runs"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def distinct(values: Iterable[T]) -> list[T]:
    """Return each value once, in order of first appearance."""
    return list(dict.fromkeys(values))
