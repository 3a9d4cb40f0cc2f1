"""What a run produces after training: predictions and scores of the test sets, and the saved tagger."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from metapt import atomic_folders
from metapt.data.iob2 import Sentence
from metapt.evaluation.predictions import SentencePrediction, write_predictions
from metapt.evaluation.span_f1 import set_scores
from metapt.files import write_json
from metapt.finetuning.inputs import TUNINGS
from metapt.finetuning.model_card import model_card
from metapt.finetuning.setup import FinetuneSetup
from metapt.runs import ORIGIN_FILE
from metapt.tagger.encoding import EncodedSet, encode
from metapt.tagger.predict import predict
from metapt.tagger.serialization import CARD_FILE, loads_in_transformers, save_tagger
from metapt.training.progress_line import log
from metapt.training.signals import StopRequested

TUNING_KEYS = (
    "source",
    "source_sets",
    "source_sha256",
    "custom_sets",
    "tuning",
    "seed",
    "train_sentences",
    "steps",
    "settings",
    "inputs",
)
WARN_BELOW = 0.99  # fraction of words with a subword that holds one of their characters


def score_sets(setup: FinetuneSetup) -> dict[str, dict[str, Any]]:
    """Tag all test sets with the tagger of a run, write the predictions, and score them; distributed over the ranks.

    Returns: the scores of all sets, on every rank.
    Raises:
        Interrupted: a signal arrived; the checkpoint of the last epoch is kept.
    """
    processes, stop, names = setup.processes, setup.stop, setup.inputs.sets.evaluated
    scores: dict[str, dict[str, Any]] = {}
    for start in range(0, len(names), processes.world_size):
        with suppress(StopRequested), stop.at_once():
            for name in names[start : start + processes.world_size][processes.rank :][:1]:
                scores[name] = _score_set(setup, name)
        if processes.any(bool(stop)):
            raise stop.interruption(setup.run.path, "while test sets were tagged")
    gathered = {name: value for part in processes.gather(scores) for name, value in part.items()}
    return {name: gathered[name] for name in names}


def _score_set(setup: FinetuneSetup, name: str) -> dict[str, Any]:
    """Tag a test set, write its predictions, and return its entry in result.json."""
    ner, tags = setup.config.ner, setup.tagger.layer.tags
    sentences = setup.inputs.sets.collection.load(name, "test")
    log(f"tagging {name} test, {len(sentences)} sentences")
    encoded = encode(sentences, setup.word_tokenizer, ner.max_len, tags, split=False)
    features = setup.extract_features(encoded)
    predictions = predict(setup.tagger.layer, features, encoded, ner.eval_batch_size)
    write_predictions(setup.run.predictions_dir / f"{name}.jsonl", sentences, predictions)
    return tagger_scores(name, sentences, predictions, encoded, tags)


def tagger_scores(
    name: str,
    sentences: Sequence[Sentence],
    predictions: Sequence[SentencePrediction],
    encoded: EncodedSet,
    tags: Sequence[str],
) -> dict[str, Any]:
    """The entry in result.json of a test set that a tagger has tagged. Logs what makes its scores doubtful.

    Args:
        encoded: the sentences in subwords.
        tags: all tags of the tagger.
    """
    scores = set_scores("test", sentences, [prediction.predicted for prediction in predictions])
    scores["pooled_character_fraction"] = encoded.pooled_character_fraction
    if encoded.pooled_character_fraction < WARN_BELOW:
        log(
            f"warning: {encoded.words_without_character} of {len(encoded.tags)} words of {name} test have no "
            "subword with one of their characters; the tokenizer does not know their script"
        )
    unknown = {
        kind: of_type["gold_spans"]
        for kind, of_type in scores["per_type"].items()
        if of_type["gold_spans"] and f"B-{kind}" not in tags
    }
    if unknown:
        counts = ", ".join(f"{kind} ({count})" for kind, count in unknown.items())
        log(
            f"warning: {name} test has spans of types that the tagger does not know, which count as missed: {counts}; "
            "`types` in a description (data.corpora) renames them or reads them as O"
        )
    if not scores["gold_spans"]:
        log(f"warning: {name} test has no entities, so its F1 is meaningless")
    return scores


def tagger_origin(result: Mapping[str, Any]) -> dict[str, Any]:
    """The metapt.json of a tagger: how its decoder was pretrained, and each fine-tuning since, this one last."""
    this = {name: result[name] for name in TUNING_KEYS}
    return {**result["origin"], TUNINGS: [*result["earlier_tunings"], this]}


def write_tagger(setup: FinetuneSetup, result: Mapping[str, Any]) -> None:
    """Write the tagger with its tokenizer and model card into the run folder; a partial folder is never left.

    Args:
        result: what result.json will contain.
    """

    def write() -> None:
        staging = atomic_folders.staging(setup.run.tagger_dir)
        save_tagger(staging, setup.tagger, setup.tokenizer, setup.encoding)
        card = model_card(
            result,
            asdict(setup.config.ner),
            is_causal=setup.tagger.is_causal,
            in_transformers=loads_in_transformers(staging, setup.tagger),
        )
        (staging / CARD_FILE).write_text(card, encoding="utf-8")
        write_json(staging / ORIGIN_FILE, tagger_origin(result))
        atomic_folders.commit(staging, setup.run.tagger_dir)

    setup.processes.run_on_main(write)
