"""Contrasts: which two arms the report compares, what may differ between them, and whether the comparison is primary.

An arm is the runs of one objective (`maml`), or of one variant of it (`maml/rate_0.01`). A grid declares its contrasts
(`grid.comparisons`); otherwise every objective is compared with vanilla, and every variant with the variant `base`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from metapt.errors import UserError
from metapt.launch.detectability import REFERENCE

from .distinction import variant_of
from .records import BASELINE, FinetuneRun, PretrainRun

BASE = "base"
NO_ARMS = (BASELINE, "other")
"""the objective of baselines, and of models that were not pretrained here"""
PRETRAINING_KEYS = ("model.*", "data.*", "train.*", "init_sha256")
"""patterns of the keys of pretraining that do not belong to the objective"""


class Contrast(msgspec.Struct, frozen=True):
    """A comparison of two arms: first minus second.

    Attributes:
        first, second: OBJECTIVE or OBJECTIVE/VARIANT.
        primary: whether it gets a verdict, and belongs to the family whose p values are corrected together.
        tunings: compare only these ways of fine-tuning; empty: all.
        may_differ: patterns of keys that may differ although they are no keys of the objective, such as `ner.lr`.
    """

    first: str
    second: str
    primary: bool = True
    tunings: tuple[str, ...] = ()
    may_differ: tuple[str, ...] = ()

    def __str__(self) -> str:
        tunings = f" ({', '.join(self.tunings)})" if self.tunings else ""
        return f"{self.first} minus {self.second}{tunings}"


def default_contrasts(runs: Iterable[PretrainRun | FinetuneRun]) -> list[Contrast]:
    """Return the contrasts of runs for which none is declared: primary ones of objectives, others of variants.

    There is at least one, so that a report without pairs of runs can say which ones are missing.
    A variant is a set of overrides of pretraining, so that any key of pretraining may differ from the base variant.
    """
    variants: dict[str, dict[str, None]] = {}
    for run in runs:
        if run.objective not in NO_ARMS:
            variants.setdefault(run.objective, {})[variant_of(run).partition(", ")[0]] = None
    objectives = [name for name in variants if name != REFERENCE]
    contrasts = [Contrast(name, REFERENCE) for name in objectives or ("maml",)]
    for objective, names in variants.items():
        if BASE in names:
            contrasts += [
                Contrast(f"{objective}/{name}", f"{objective}/{BASE}", False, (), PRETRAINING_KEYS)
                for name in names
                if name != BASE
            ]
    return contrasts


def declared_contrasts(declarations: Iterable[Sequence[Mapping[str, Any]]]) -> list[Contrast]:
    """Return the contrasts that grids declare, each name once: primary if one grid says so.

    Args:
        declarations: the comparisons in the plan of each grid.
    Raises:
        UserError: two grids let different keys differ in one comparison, so that one name would mean two things.
    """
    found: dict[str, Contrast] = {}
    for contrast in (msgspec.convert(entry, Contrast) for of_grid in declarations for entry in of_grid):
        known = found.setdefault(str(contrast), contrast)
        if {*known.may_differ} != {*contrast.may_differ}:
            allowed = (f"[{', '.join(keys)}]" for keys in (known.may_differ, contrast.may_differ))
            raise UserError(
                f"the grids declare {contrast} with may_differ={' and with may_differ='.join(allowed)}; report them "
                f"separately, or with --compare {contrast.first} {contrast.second}"
            )
        if contrast.primary:
            found[str(contrast)] = contrast
    return list(found.values())
