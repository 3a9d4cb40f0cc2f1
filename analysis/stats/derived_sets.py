"""Evaluations derived from those of whole sets: several sets pooled into one, and one entity type of a set."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np

from metapt.evaluation.bootstrap import micro_f1

from ..load.records import Evaluation, FinetuneRun, GoldSet

NONE = np.empty(0)


def with_pooled(run: FinetuneRun, names: Sequence[str], label: str) -> FinetuneRun:
    """Return the run with one set more, which holds the sentences of some of its sets.

    Its F1 is the pooled micro-F1: that of the summed span counts, in which large sets weigh more.
    """
    parts = [run.sets[name] for name in names]
    gold = _pooled_gold(tuple(part.gold for part in parts), label)
    return _with_set(run, gold, np.concatenate([part.counts for part in parts]))


def with_type(run: FinetuneRun, name: str, entity_type: str) -> FinetuneRun:
    """Return the run with one set more, which holds the spans of one type of one of its sets.

    The set is called "NAME TYPE". The run's type counts of the set must be known.
    """
    evaluation = run.sets[name]
    gold = _gold_of_type(evaluation.gold, entity_type)
    none = np.zeros_like(evaluation.counts)
    return _with_set(run, gold, evaluation.type_counts.get(entity_type, none))


def _with_set(run: FinetuneRun, gold: GoldSet, counts: np.ndarray) -> FinetuneRun:
    totals = counts.sum(axis=0, dtype=np.int64)
    f1 = float(micro_f1(totals))
    derived = Evaluation(gold, NONE, NONE, counts, tuple(totals.tolist()), f1, f1, {}, NONE, {})
    return run.with_sets({gold.name: derived})


@cache
def _pooled_gold(golds: tuple[GoldSet, ...], label: str) -> GoldSet:
    """Return the sentences of several sets as one, whose units are those of the sets."""
    return GoldSet(
        label,
        tuple(f"{gold.name} {sentence}" for gold in golds for sentence in gold.ids),
        tuple(words for gold in golds for words in gold.words),
        tuple(spans for gold in golds for spans in gold.spans),
        tuple(f"{gold.name} {unit}" for gold in golds for unit in gold.units),
    )


@cache
def _gold_of_type(gold: GoldSet, entity_type: str) -> GoldSet:
    spans = tuple(tuple(span for span in sentence if span[0] == entity_type) for sentence in gold.spans)
    return GoldSet(f"{gold.name} {entity_type}", gold.ids, gold.words, spans, gold.documents)
