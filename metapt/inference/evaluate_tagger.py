"""Score a finished tagger on test sets, and keep the scores in its run folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metapt.config import EvaluateConfig
from metapt.data.collection import Collection
from metapt.data.iob2 import Sentence
from metapt.data.labelled_sets import evaluated_sets, open_collection
from metapt.data.shared_sentences import shared_with_sources
from metapt.errors import UserError
from metapt.evaluation.predictions import write_predictions
from metapt.files import read_jsonl
from metapt.finetuning.score_sets import tagger_scores
from metapt.inference.entity_tagger import EntityTagger
from metapt.runs import Run
from metapt.tagger.encoding import encode, word_features
from metapt.tagger.predict import predict
from metapt.tagger.serialization import find_tagger_dir
from metapt.training.progress_line import log


@dataclass(frozen=True)
class EvaluatedSets:
    """The scores of a tagger.

    Attributes:
        run: the run whose tagger it is, which now holds them; None for a tagger folder by itself.
        sets: the entry in result.json of each set, by name.
    """

    run: Run | None
    sets: dict[str, dict[str, Any]]


def evaluate_tagger(config: EvaluateConfig) -> EvaluatedSets:
    """Tag test sets with a finished tagger and score them.

    The scores are added to result.json of the run, and the predictions to its folder, so that the report shows them in
    the row of the run. A set that the run has been scored on is not tagged again.

    Raises:
        UserError: there is no such tagger or set, or the run holds predictions of other sentences under the same name.
    """
    folder = find_tagger_dir(config.checkpoint)
    run = _run_of(folder)
    collection = open_collection(config.data, sets=config.sets)
    names = evaluated_sets(collection, config.sets, "sets")
    sentences = {name: collection.load(name, "test") for name in names}
    for note in collection.notes():
        log(note)
    if run is None:
        return EvaluatedSets(None, _score(config, folder, sentences, None))
    with run.locked():
        result = run.result()
        done = [name for name in names if name in result["sets"]]
        for name in done:
            _check_same_sentences(run.predictions_dir / f"{name}.jsonl", sentences[name])
            log(f"{name}: {run.path} has been scored on it; it is not tagged again")
        rest = {name: sentences[name] for name in names if name not in done}
        if rest:
            result = _with_sets(result, _score(config, folder, rest, run), collection)
            run.finish(result)
    return EvaluatedSets(run, {name: result["sets"][name] for name in names})


def _run_of(folder: Path) -> Run | None:
    """The finished run that a tagger folder belongs to."""
    run = Run(folder.absolute().parent)
    return run if run.is_done and run.tagger_dir == folder.absolute() else None


def _score(
    config: EvaluateConfig, folder: Path, sets: dict[str, list[Sentence]], run: Run | None
) -> dict[str, dict[str, Any]]:
    """Tag sets; write the predictions into the run folder, if there is one; return their entries in result.json."""
    tagger = EntityTagger.load(
        folder, precision=config.precision, device=config.device, batch_size=config.batch_size
    )
    scores = {}
    for name, sentences in sets.items():
        log(f"tagging {name}, {len(sentences)} sentences")
        encoded = encode(sentences, tagger.word_tokenizer, tagger.max_len, tagger.tags, split=False)
        features = word_features(tagger.tagger, encoded, config.batch_size)
        predictions = predict(tagger.tagger.layer, features, encoded, config.batch_size)
        if run is not None:
            write_predictions(run.predictions_dir / f"{name}.jsonl", sentences, predictions)
        scores[name] = tagger_scores(name, sentences, predictions, encoded, tagger.tags)
    return scores


def _check_same_sentences(file: Path, sentences: list[Sentence]) -> None:
    """Check that a file of predictions is about these sentences.

    Raises:
        UserError: it is not.
    """
    recorded = [(tuple(line["words"]), tuple(line["gold"])) for line in read_jsonl(file)]
    if recorded != [(sentence.words, sentence.tags) for sentence in sentences]:
        raise UserError(
            f"{file}: holds predictions of other sentences; give these another name, with data.corpora=[NAME:FILE] sets=[NAME]"
        )


def _with_sets(
    result: dict[str, Any], new: dict[str, dict[str, Any]], collection: Collection
) -> dict[str, Any]:
    """The content of result.json with further sets.

    Which of their sentences the tagger was fine-tuned on is unknown if the collection has not the sentences of the run's sources.
    """
    tunings = [*result["earlier_tunings"], result]
    shared, counted = result["shared_sentences"], shared_with_sources(collection, tunings, list(new))
    hashes = {f"sentences of {name}": collection.fingerprint([(name, "test")]) for name in new}
    return result | {
        "sets": result["sets"] | new,
        "custom_sets": result["custom_sets"] | collection.custom_sets,
        "shared_sentences": None if shared is None or counted is None else shared | counted,
        "inputs": result["inputs"] | hashes,
    }
