"""The command `metapt evaluate`: score a finished tagger on test sets, or a language model on text."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from metapt.config import EvaluateConfig, commandline
from metapt.data import DEMO_NOTICE
from metapt.errors import UserError, run_command


def main(argv: Sequence[str]) -> None:
    """Tag the sets of these arguments and keep the scores in the run folder, or score the text; print the scores.

    Raises:
        UserError: an error in the arguments, the model or the data.
    """
    config: EvaluateConfig = commandline.load("evaluate", argv)
    if config.text is not None:
        _evaluate_on_text(config, config.text)
        return
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


def _evaluate_on_text(config: EvaluateConfig, text: str) -> None:
    if config.sets:
        raise UserError("text= and sets= cannot be combined; give one of them")
    if not Path(text).expanduser().exists():  # before the slow imports
        raise UserError(f"text={text}: no such file or folder")
    from metapt.inference.text_loss import text_loss

    loss = text_loss(config.checkpoint, text, config.data.on_bad_input, config.device)
    if loss.altered:
        print(
            f"warning: the tokens of {loss.altered:,} of {loss.documents:,} documents do not decode to their text, so "
            "the loss is that of a changed text",
            file=sys.stderr,
        )
    print(loss)


if __name__ == "__main__":
    run_command(main)
