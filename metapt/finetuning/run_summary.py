"""What `metapt finetune` prints at its end."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from metapt.config import FinetuneConfig
from metapt.data import DEMO_NOTICE
from metapt.evaluation.f1_text import set_lines
from metapt.runs import Run


def print_summary(run: Run, config: FinetuneConfig, result: dict[str, Any]) -> None:
    """Print the dev score, what truncation removed, test scores beside the best baseline, what to try if they are low, where everything is, and whether the data is synthetic."""
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
    baselines = result["baselines"]
    if result["sets"]:
        learned = (
            f" (baselines learn from {baselines['train_words']:,} of the training words)" if baselines else ""
        )
        print(f"test sets{learned}:")
    for line in set_lines(result["sets"], baselines and baselines["sets"]):
        print(f"  {line}")
    for warning in _warnings(config, result):
        print(f"warning: {warning}")
    print(f"scores: {run.result_file}; predictions: {run.predictions_dir}; tagger: {run.tagger_dir}")
    if result["generated_data"]:
        print(DEMO_NOTICE)


def _warnings(config: FinetuneConfig, result: dict[str, Any]) -> Iterator[str]:
    """Signs that the tagger has learned little, with what to try."""
    advice = f"Try another ner.lr (it was {result['lr']:g}), more epochs (ner.max_epochs)"
    advice += ", or tuning=full" if config.tuning != "full" else ", or a larger model"
    if result["sets"] and not any(scores["predicted_spans"] for scores in result["sets"].values()):
        yield f"the tagger predicts no entity in any test set. {advice}"
    crf = (result["baselines"] or {}).get("dev_f1")
    if crf is not None and result["dev_f1"] < crf:
        yield (
            f"dev F1 {result['dev_f1']:.3f} is below the {crf:.3f} of a CRF on the forms of the words (baseline crf) that learned "
            f"from {result['baselines']['train_words']:,} of the {result['train_words']:,} training words. {advice}"
        )
