"""Reads predictions/SET.jsonl, and compares the predicted spans with the gold ones."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import msgspec
import numpy as np

from metapt.evaluation.bootstrap import micro_f1
from metapt.evaluation.span_f1 import Span, span_counts
from metapt.evaluation.span_matching import Spans, match_set, spans_of_tags

from .records import Evaluation, gold_set
from .schema import SetResult

F1_TOLERANCE = 1e-4


class Line(msgspec.Struct):
    """A sentence of an evaluation set with the predicted tags; `gold_logprob` is in nats.

    `document` is the text that the sentence is from; without it, texts are not known.
    """

    id: str | int
    words: tuple[str, ...]
    gold: tuple[str, ...]
    predicted: tuple[str, ...]
    gold_logprob: tuple[float, ...] | None
    document: str | None = None


LINES = msgspec.json.Decoder(Line)


def complete_lines(content: bytes) -> bytes:
    """Return the content of a JSON-lines file without a last line that was cut off when its writer was killed."""
    return content[: content.rfind(b"\n") + 1]


def read_predictions(path: Path) -> list[Line]:
    """Read the complete lines of a file of predictions.

    Raises:
        ValueError: the file is missing, a line is not valid, its lists differ in length, or only some lines have a
            document.
    """
    name = f"predictions/{path.name}"
    if not path.is_file():
        raise ValueError(f"{name} is missing")
    try:
        lines = LINES.decode_lines(complete_lines(path.read_bytes()))
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ValueError(f"{name}: {error}") from None
    for number, line in enumerate(lines, 1):
        logprobs = line.words if line.gold_logprob is None else line.gold_logprob
        if not len(line.words) == len(line.gold) == len(line.predicted) == len(logprobs):
            raise ValueError(f"{name}, line {number}: words, tags and probabilities differ in number")
    if len({line.document is None for line in lines}) > 1:
        raise ValueError(f"{name}: only some of the sentences have a document")
    return lines


def evaluate(path: Path, result: SetResult, is_target: bool) -> Evaluation:
    """Evaluate the predictions of a run on one set.

    Args:
        path: the file of predictions.
        result: the set's entry in result.json, whose F1 must agree.
        is_target: whether to keep the log-probability of each word's gold tag and the counts by entity type, which take memory.
    Raises:
        ValueError: the file is damaged, or gives another F1 than the result.
    """
    name, lines = path.stem, read_predictions(path)
    gold_spans = [spans_of_tags(line.gold) for line in lines]
    predicted = [spans_of_tags(line.predicted) for line in lines]
    gold = gold_set(
        name,
        tuple(str(line.id) for line in lines),
        tuple(line.words for line in lines),
        tuple(spans.strict for spans in gold_spans),
        tuple(line.document for line in lines if line.document is not None),
    )
    match = match_set(gold.spans, [spans.strict for spans in predicted])
    totals = match.counts.sum(axis=0)
    f1 = conlleval_f1 = float(micro_f1(totals))
    if abs(f1 - result.f1) > F1_TOLERANCE:
        raise ValueError(f"F1 is {f1:.4f} by predictions/{name}.jsonl and {result.f1:.4f} by result.json")
    if any(spans.strict != spans.conlleval for spans in (*gold_spans, *predicted)):
        counts = span_counts(
            [spans.conlleval for spans in predicted], [spans.conlleval for spans in gold_spans]
        )
        conlleval_f1 = float(micro_f1(counts.sum(axis=0)))
    logprobs = [line.gold_logprob or () for line in lines] if is_target else ()
    return Evaluation(
        gold,
        match.outcomes,
        match.tally,
        match.counts,
        tuple(totals.tolist()),
        f1,
        conlleval_f1,
        {entity_type: scores.f1 for entity_type, scores in result.per_type.items()},
        np.fromiter(chain.from_iterable(logprobs), dtype=np.float32),
        counts_by_type(gold.spans, [spans.strict for spans in predicted]) if is_target else {},
    )


def counts_by_type(gold: Sequence[Spans], predicted: Sequence[Spans]) -> dict[str, np.ndarray]:
    """Count the spans of each entity type in each sentence: int16 [sentences, (correct, predicted, gold)] by type."""
    types = sorted({span[0] for spans in (*gold, *predicted) for span in spans})

    def of_type(sentences: Sequence[Spans], kind: str) -> list[list[Span]]:
        return [[span for span in sentence if span[0] == kind] for sentence in sentences]

    return {
        kind: span_counts(of_type(predicted, kind), of_type(gold, kind)).astype(np.int16) for kind in types
    }
