"""The command `metapt score`: score the predictions of any program against gold labels, or compare two programs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from metapt.config import SYSTEMS_DIR, ScoreConfig, commandline
from metapt.errors import UserError, run_command
from metapt.evaluation.score_inputs import read_gold, read_predictions
from metapt.evaluation.score_system import (
    ScoredSystem,
    SetName,
    check_names,
    compare,
    default_set_name,
    default_system_name,
    write_run,
)
from metapt.evaluation.score_text import comparison_text, notices, system_text


def main(argv: Sequence[str]) -> None:
    """Score PREDICTED, or compare A and B; write the run folders; print the scores.

    Raises:
        UserError: an error in the arguments or files, or a folder that holds something else.
    """
    settings, words = commandline.split_settings_and_texts(argv)
    config: ScoreConfig = commandline.load("score", settings)
    if len(words) not in (2, 3):
        raise UserError(
            f"metapt score: {len(words)} file names; give GOLD and PREDICTED, or GOLD, A and B (--help)"
        )
    systems = read_systems(config, *map(Path, words))
    out = config.out or (SYSTEMS_DIR if len(systems) == 1 else None)
    runs = [write_run(system, Path(out)) for system in systems] if out else []
    for notice in notices(systems):
        print(notice, file=sys.stderr)
    print("\n\n".join(map(system_text, systems)))
    if len(systems) == 2:
        first, second = systems
        print(f"\n{comparison_text(first, second, compare(first, second))}")
    for run in runs:
        print(
            f"\nrun folder: {run.path}; `metapt report {run.path.parent}` shows it, also with folders of other runs"
        )


def read_systems(config: ScoreConfig, gold_file: Path, *files: Path) -> list[ScoredSystem]:
    """Read the gold labels and the predictions of each system.

    Raises:
        UserError: with file and line; or both systems have the same name.
    """
    named = zip(files, (config.name, config.name_b), strict=False)
    names = [name or default_system_name(file) for file, name in named]
    set_name = default_set_name(gold_file)
    if config.set_name:
        set_name = SetName(config.set_name, set_name.split)
    check_names(set_name.name, names)
    gold = read_gold(gold_file, config.columns, config.types, config.documents)
    columns = config.predicted_columns or config.columns
    return [
        ScoredSystem(name, set_name, gold, read_predictions(file, gold, columns, config.types))
        for name, file in zip(names, files, strict=True)
    ]


if __name__ == "__main__":
    run_command(main)
