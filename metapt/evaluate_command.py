"""The command `metapt evaluate`: score a finished tagger on test sets."""

from __future__ import annotations

from collections.abc import Sequence

from metapt.config import EvaluateConfig, commandline
from metapt.data import DEMO_NOTICE
from metapt.errors import run_command


def main(argv: Sequence[str]) -> None:
    """Tag the sets of these arguments, keep the scores in the run folder, and print them.

    Raises:
        UserError: an error in the arguments, the tagger or the data.
    """
    config: EvaluateConfig = commandline.load("evaluate", argv)
    from metapt.evaluation.f1_text import set_lines
    from metapt.inference.evaluate_tagger import evaluate_tagger  # imports torch

    evaluated = evaluate_tagger(config)
    for line in set_lines(evaluated.sets):
        print(line)
    if evaluated.run is None:
        print(
            f"{config.checkpoint} is a tagger without its run folder: scores and predictions are not stored"
        )
    else:
        print(f"scores: {evaluated.run.result_file}; predictions: {evaluated.run.predictions_dir}")
    if config.data.name == "demo":
        print(DEMO_NOTICE)


if __name__ == "__main__":
    run_command(main)
