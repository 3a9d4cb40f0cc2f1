"""Cross-validation: one fine-tuning run for each fold of the source, and one score over all of its sentences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from metapt.config import FinetuneConfig
from metapt.data.iob2 import Sentence
from metapt.data.labelled_sets import open_collection, source_sets
from metapt.evaluation.f1_text import set_lines
from metapt.evaluation.span_f1 import set_scores
from metapt.files import read_jsonl, write_json
from metapt.runs import Run

RESULT_FILE = "cross_validation.json"


def fold_configs(config: FinetuneConfig) -> list[FinetuneConfig]:
    """The configuration of each run: that of each fold, in folders fold-1, fold-2, ..., or the given one without `folds`.

    A fold is the test split of the source; the run is scored on it alone.
    """
    if config.folds is None:
        return [config]
    names = source_sets(open_collection(config.data, config.source), config.source, ("train",))
    numbers = range(1, config.folds + 1)
    return [
        replace(
            config,
            folds=None,
            data=replace(config.data, fold=f"{number}/{config.folds}", eval_sets=names),
            run_dir=str(Path(config.run_dir) / f"fold-{number}"),
        )
        for number in numbers
    ]


def pooled_scores(runs: Sequence[Run], names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The scores of each set over the predictions of all folds, with one interval over its documents or sentences.

    Args:
        runs: the finished runs of all folds.
        names: the sets that are divided into folds; `metapt evaluate` may have scored the runs on others.
    """
    scores = {}
    for name in names:
        lines = [line for run in runs for line in read_jsonl(run.predictions_dir / f"{name}.jsonl")]
        sentences = [
            Sentence(line["id"], tuple(line["words"]), tuple(line["gold"]), line["document"])
            for line in lines
        ]
        scores[name] = set_scores("train", sentences, [line["predicted"] for line in lines])
    return scores


def summarize(config: FinetuneConfig, folds: Sequence[FinetuneConfig]) -> None:
    """Write the pooled scores and the F1 of each fold into the folder of the cross-validation, and print them."""
    runs = [Run(fold.run_dir) for fold in folds]
    sets = pooled_scores(runs, folds[0].data.eval_sets)
    f1 = {name: [run.result()["sets"][name]["f1"] for run in runs] for name in sets}
    file = Path(config.run_dir) / RESULT_FILE
    write_json(file, {"folds": len(folds), "split_seed": config.data.split_seed, "fold_f1": f1, "sets": sets})
    print(f"{len(folds)} folds, pooled:")
    for line in set_lines(sets):
        print(f"  {line}")
    for name, values in f1.items():
        print(f"  {name} by fold: {', '.join(f'{value:.3f}' for value in values)}")
    print(f"scores: {file}")
