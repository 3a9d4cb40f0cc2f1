"""What `metapt finetune` prints at its end."""

from __future__ import annotations

from typing import Any

from metapt.config import FinetuneConfig, tuning_lr
from metapt.data import DEMO_NOTICE
from metapt.evaluation.f1_text import set_lines
from metapt.runs import Run


def print_summary(run: Run, config: FinetuneConfig, result: dict[str, Any]) -> None:
    """Print the dev score, what truncation removed, test scores, where everything is, and whether the data is synthetic."""
    if result["dev_f1"] is None:
        print(
            f"{run.path}: {result['steps']} updates on {result['train_sentences']} sentences, without a dev set"
        )
    else:
        print(
            f"{run.path}: dev F1 {result['dev_f1']:.3f} in epoch {result['best_epoch']} (of {result['epochs']} epochs)"
        )
    print(
        f"{result['train_words']:,} training words; {result['train_sentences_split']} of {result['train_sentences']} sentences are "
        f"longer than a window (ner.max_len={config.ner.max_len}) and were trained in several"
    )
    print(
        f"{result['pooled_character_fraction']:.2%} of the training words are classified at a subword that holds one of "
        "their characters"
    )
    if result["sets"]:
        print("test sets:")
    for line in set_lines(result["sets"]):
        print(f"  {line}")
    if result["sets"] and not any(scores["predicted_spans"] for scores in result["sets"].values()):
        print(
            f"warning: the tagger predicts no entity in any test set. Try a higher ner.lr (it was {tuning_lr(config):g}), more "
            "epochs (ner.max_epochs), or tuning=full"
        )
    print(f"scores: {run.result_file}; predictions: {run.predictions_dir}; tagger: {run.tagger_dir}")
    if result["generated_data"]:
        print(DEMO_NOTICE)
