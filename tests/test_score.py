"""`metapt score`: formats against each other, scores against seqeval and conlleval, mismatches, and run folders."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from score_formats import WRITERS, labelled, write_columns, write_uner, write_words
from seqeval.metrics.v1 import precision_recall_fscore_support
from seqeval.scheme import IOB2

from metapt.data.iob2 import Sentence
from metapt.errors import UserError
from metapt.evaluation.score_inputs import read_gold, read_predictions
from metapt.evaluation.score_system import (
    ScoredSystem,
    SetName,
    compare,
)

RECORDED = Path(__file__).parent / "recorded"
ONTONOTES = "types={PERSON: PER, GPE: LOC, DATE: O}"


def scored(gold: Path, predicted: Path, **options: dict[str, str]) -> ScoredSystem:
    renames = options.get("types", {})
    labels = read_gold(gold, [], renames)
    return ScoredSystem("x", SetName("xx", ""), labels, read_predictions(predicted, labels, [], renames))


def conlleval_counts(gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> list[int]:
    """(gold, predicted, correct) chunks as conlleval.pl of CoNLL-2000 counts them, line by line (B and I tags only)."""
    counts = [0, 0, 0]
    for pair in zip(gold, predicted, strict=True):
        last, inside = [("O", ""), ("O", "")], False
        for tags in [*zip(*pair, strict=True), ("O", "O")]:
            now = [(tag[0], tag[2:]) for tag in tags]
            ends = [
                old[0] != "O" and (new[0] in "OB" or new[1] != old[1])
                for old, new in zip(last, now, strict=True)
            ]
            starts = [
                new[0] == "B" or (new[0] == "I" and (old[0] == "O" or new[1] != old[1]))
                for old, new in zip(last, now, strict=True)
            ]
            if inside:
                if all(ends):
                    counts[2] += 1
                    inside = False
                elif any(ends) or now[0][1] != now[1][1]:
                    inside = False
            if all(starts) and now[0][1] == now[1][1]:
                inside = True
            counts[0] += starts[0]
            counts[1] += starts[1]
            last = now
    return counts


@settings(max_examples=60, deadline=None)
@given(labelled(), st.data())
def test_every_format_gives_the_same(
    tmp_path_factory: pytest.TempPathFactory, gold: list[Sentence], data: st.DataObject
):
    """The same gold labels and predictions, each in any format, give the words, tags and scores that were written."""
    folder = tmp_path_factory.mktemp("formats")
    names = st.sampled_from(sorted(WRITERS))
    gold_format, predicted_format = data.draw(names), data.draw(names)
    kinds = {tag[2:] for s in gold for tag in s.tags if tag != "O"} | {"PER", "ORG", "LOC"}
    found = [
        Sentence(
            sentence.id,
            sentence.words,
            data.draw(st.sampled_from([sentence.tags, ("O",) * len(sentence.tags)])),
        )
        for sentence in gold
    ]
    WRITERS[gold_format](folder / "gold", gold)
    WRITERS[predicted_format](folder / "predicted", found)
    system = scored(folder / "gold", folder / "predicted")
    if gold_format not in ("texts", "objects"):  # there, the text is split into words by a rule
        assert [sentence.words for sentence in system.gold.sentences] == [sentence.words for sentence in gold]
        assert [sentence.tags for sentence in system.gold.sentences] == [sentence.tags for sentence in gold]
        assert [tuple(tags) for tags in system.predictions.tags] == [sentence.tags for sentence in found]
    assert system.gold.types == kinds
    spans = [sum(tag[0] == "B" for s in side for tag in s.tags) for side in (gold, found)]
    assert [system.scores["gold_spans"], system.scores["predicted_spans"]] == spans
    assert system.scores["correct_spans"] == spans[1]
    for adjusted in (system.gold.adjustments, system.predictions.adjustments):
        assert (adjusted.extended, adjusted.dropped) == ([], [])


@settings(max_examples=150, deadline=None)
@given(labelled(), st.data())
def test_scores_equal_seqeval_and_conlleval(
    tmp_path_factory: pytest.TempPathFactory, gold: list[Sentence], data: st.DataObject
):
    """Of any predicted tags of B and I, valid or not, read from a file."""
    folder = tmp_path_factory.mktemp("scores")
    kinds = sorted({tag[2:] for sentence in gold for tag in sentence.tags if tag != "O"} | {"PER"})
    tags = st.sampled_from(["O", *(f"{prefix}-{kind}" for kind in kinds for prefix in "BI")])
    rows = [tuple(data.draw(tags) for _ in sentence.words) for sentence in gold]
    write_uner(folder / "gold", gold)
    write_columns(
        folder / "predicted", [Sentence(s.id, s.words, row) for s, row in zip(gold, rows, strict=True)]
    )
    scores = scored(folder / "gold", folder / "predicted").scores
    truth = [list(sentence.tags) for sentence in gold]
    expected = precision_recall_fscore_support(
        truth, [list(row) for row in rows], average="micro", scheme=IOB2, zero_division=0
    )
    assert (scores["precision"], scores["recall"], scores["f1"]) == pytest.approx(expected[:3])
    lax = scores["conlleval"]
    assert [lax["gold_spans"], lax["predicted_spans"], lax["correct_spans"]] == conlleval_counts(truth, rows)


def test_spacy_as_offsets() -> None:
    """Recorded output of spaCy: its names of types, and another tokenization (tests/recorded/README.md)."""
    types = {"PERSON": "PER", "GPE": "LOC", "DATE": "O"}
    system = scored(RECORDED / "news.conll", RECORDED / "spacy.jsonl", types=types)
    values = system.scores
    assert (values["gold_spans"], values["predicted_spans"], values["correct_spans"]) == (15, 13, 12)
    assert {kind: item["correct_spans"] for kind, item in values["per_type"].items()} == {
        "PER": 5,
        "ORG": 2,
        "LOC": 5,
    }
    assert len(system.predictions.adjustments.extended) == 1  # Bacolod, in the word Iloilo-Bacolod
    errors = Counter(
        dict(
            zip(
                ["correct", "type", "boundary", "missed", "spurious"],
                system.match.tally.sum(axis=0),
                strict=True,
            )
        )
    )
    assert errors == {"correct": 12, "type": 0, "boundary": 1, "missed": 2, "spurious": 0}


def test_spacy_as_columns_has_other_words() -> None:
    place = f"{RECORDED / 'spacy.conll'}:30: word 7 of sentence 3 is 'Iloilo', but 'Iloilo-Bacolod' in"
    with pytest.raises(UserError) as error:
        scored(
            RECORDED / "news.conll",
            RECORDED / "spacy.conll",
            types={"PERSON": "PER", "GPE": "LOC", "DATE": "O"},
        )
    assert str(error.value).startswith(place)
    with pytest.raises(UserError, match=r"spacy\.jsonl:1: .*'types=\{PERSON: O, GPE: O, DATE: O\}'"):
        scored(RECORDED / "news.conll", RECORDED / "spacy.jsonl")


TEXT = {"text": "Ana Cruz of Cebu-Davao.", "entities": [[0, 3, "PER"], [12, 16, "LOC"]]}


@pytest.mark.parametrize(
    ("entities", "tags", "extended", "dropped"),
    [
        ([[0, 8, "PER"]], "B-PER I-PER O O O", 0, 0),
        ([[0, 9, "PER"]], "B-PER I-PER O O O", 0, 0),  # with the space after it
        ([[1, 6, "PER"]], "B-PER I-PER O O O", 1, 0),
        ([[0, 3, "PER"], [0, 8, "PER"]], "B-PER I-PER O O O", 0, 1),
        ([[12, 16, "LOC"], [17, 22, "LOC"]], "O O O B-LOC O", 2, 1),
        ([[12, 23, "LOC"]], "O O O B-LOC I-LOC", 0, 0),
        ([{"start": 0, "end": 3, "label": "PER"}], "B-PER O O O O", 0, 0),
        ([], "O O O O O", 0, 0),
    ],
)
def test_offsets_on_words(
    tmp_path: Path, entities: list[object], tags: str, extended: int, dropped: int
) -> None:
    words = ("Ana", "Cruz", "of", "Cebu-Davao", ".")
    write_uner(tmp_path / "gold.iob2", [Sentence("1", words, ("O",) * 5)])
    (tmp_path / "found.jsonl").write_text(json.dumps({"text": TEXT["text"], "entities": entities}))
    predictions = scored(tmp_path / "gold.iob2", tmp_path / "found.jsonl").predictions
    assert predictions.tags == [tuple(tags.split())]
    changed = predictions.adjustments
    assert (len(changed.extended), len(changed.dropped)) == (extended, dropped)


def test_gold_text_is_cut_where_its_entities_end(tmp_path: Path) -> None:
    (tmp_path / "gold.jsonl").write_text(json.dumps(TEXT | {"id": 7, "document": "d"}))
    (tmp_path / "found.jsonl").write_text(
        json.dumps({"words": ["Ana", "Cruz", "of", "Cebu-Davao."], "tags": ["B-PER", "O", "O", "B-LOC"]})
    )
    system = scored(tmp_path / "gold.jsonl", tmp_path / "found.jsonl")
    (gold,) = system.gold.sentences
    assert gold.words == ("Ana", "Cruz", "of", "Cebu", "-Davao", ".")
    assert (gold.id, gold.document) == ("7", "d")
    assert gold.tags == ("B-PER", "O", "O", "B-LOC", "O", "O")
    assert system.predictions.tags == [("B-PER", "O", "O", "B-LOC", "I-LOC", "I-LOC")]
    assert system.scores["correct_spans"] == 1


GOLD = "1\tSi\tO\t-\t-\n2\tAna\tB-PER\t-\t-\n\n1\tCebu\tB-LOC\t-\t-\n\n"


@pytest.mark.parametrize(
    ("predicted", "message"),
    [
        ("Si O\nAnna B-PER\n\nCebu O\n", r"found:2: word 2 of sentence 1 is 'Anna', but 'Ana' in .*gold:2"),
        ("Si O\n\nCebu O\n", r"found:1: sentence 1 has 1 words, but 2 in .*gold:2"),
        ("Si O\nAna O\n. O\n\nCebu O\n", r"found:3: sentence 1 has 3 words, but 2 in .*gold:2"),
        ("Si O\nAna B-PER\n", r"found:2: ends after 1 of 2 sentences; the next is at .*gold:4"),
        ("Si O\nAna O\n\nCebu O\n\nBago O\n", r"found:6: sentence 3 of 3, but .*gold has 2 sentences"),
        ("Cebu O\n\nSi O\n", r"found:1: word 1 of sentence 1 is 'Cebu', but 'Si'"),
        ("Cebu O\n", r"found:1: word 1 .* \(1 sentences here, 2 in GOLD\)"),
        (
            "Si O\nAna B-MISC\n\nCebu I-X\n",
            r"found:2: .* not MISC \(first at .*found:2\), X \(first at .*found:4\)",
        ),
        ("Si O\nAna per\n\nCebu O\n", r"found:2: unknown tag 'per'"),
        ("Si O\nAna\n\nCebu O\n", r"found:2: 1 whitespace-separated columns; expected 2"),
        ("Si\nAna\n", r"found:1: neither JSON lines nor columns"),
        ("\n\n", r"found:1: contains no sentence"),
        ('{"words": ["Si", "Ana"], "tags": ["O"]}', r"found:1: 2 words, but 1 tags"),
        ('{"words": ["Si", ""], "tags": ["O", "O"]}', r"found:1: words must be a list of texts"),
        ('{"words": [], "tags": []}', r"found:1: words is empty"),
        ('{"words": ["Si"]}', r"found:1: has the entries words; expected words"),
        ('{"text": "Si Ana", "entities": []}\nCebu', r"found:2: not a JSON object"),
        (
            '{"text": "Si Anna", "entities": []}',
            r"found:1: the characters of sentence 1 differ .* 'SiAn': 'na', but 'a'",
        ),
        (
            '{"text": "Si Ana", "entities": [[3, 9, "PER"]]}',
            r"found:1: entities\[0\]: .* 0 <= start < end <= 6",
        ),
        ('{"text": "Si Ana", "entities": [[2, 3, "PER"]]}', r"entities\[0\]: .* only white space"),
        ('{"text": "Si Ana", "entities": [["Ana", "PER"]]}', r"must be \[start, end, type\]"),
        ('{"text": " ", "entities": []}', r"found:1: text must be a text"),
    ],
)
def test_mismatches_are_located(tmp_path: Path, predicted: str, message: str) -> None:
    (tmp_path / "gold").write_text(GOLD)
    (tmp_path / "found").write_text(predicted)
    with pytest.raises(UserError, match=message):
        scored(tmp_path / "gold", tmp_path / "found")


def test_universal_ner_reads_oth_as_o(tmp_path: Path) -> None:
    (tmp_path / "gold").write_text("1\tAna\tB-PER\t-\t-\n2\tx\tB-OTH\t-\t-\n3\ty\tB-O\t-\t-\n")
    write_words(tmp_path / "found", [Sentence("1", ("Ana", "x", "y"), ("B-PER", "O", "O"))])
    assert scored(tmp_path / "gold", tmp_path / "found").scores["f1"] == 1


def test_renamed_types_do_not_merge_entities(tmp_path: Path) -> None:
    write_words(tmp_path / "gold", [Sentence("1", ("a", "b"), ("B-LOC", "B-LOC"))])
    write_words(tmp_path / "found", [Sentence("1", ("a", "b"), ("B-GPE", "I-LOC"))])
    system = scored(tmp_path / "gold", tmp_path / "found", types={"GPE": "LOC"})
    assert system.predictions.tags == [("B-LOC", "B-LOC")]


@settings(max_examples=30, deadline=None)
@given(labelled(), st.randoms(use_true_random=False))
def test_comparison_is_antisymmetric(
    tmp_path_factory: pytest.TempPathFactory, gold: list[Sentence], random: object
):
    folder = tmp_path_factory.mktemp("pair")
    write_words(folder / "gold", gold)
    write_words(folder / "a", gold)
    write_words(folder / "b", [Sentence(s.id, s.words, ("O",) * len(s.words)) for s in gold])
    first, second = scored(folder / "gold", folder / "a"), scored(folder / "gold", folder / "b")
    there, back = compare(first, second), compare(second, first)
    assert there.difference == pytest.approx(-back.difference)
    assert there.p == back.p
    if first.scores["gold_spans"]:
        assert there.interval == pytest.approx((-back.interval[1], -back.interval[0]))
        assert there.difference == 1
    same = compare(first, first)
    assert (same.difference, same.p, same.excludes_zero) == (0, 1, False)


def test_p_of_documents_is_that_of_whole_documents(tmp_path: Path) -> None:
    """Two documents of ten sentences each: four arrangements, of which two have the observed difference."""
    gold = [Sentence(str(n), ("Ana",), ("B-PER",), f"d{n // 10}") for n in range(20)]
    write_uner(tmp_path / "gold", gold)
    write_uner(tmp_path / "a", gold)
    write_words(tmp_path / "b", [Sentence(s.id, s.words, ("O",)) for s in gold])
    first, second = scored(tmp_path / "gold", tmp_path / "a"), scored(tmp_path / "gold", tmp_path / "b")
    assert list(first.units) == [0] * 10 + [1] * 10
    assert compare(first, second).p == pytest.approx(0.5, abs=0.02)
    wide, narrow = (
        system.scores["f1_interval"] for system in (first, scored(tmp_path / "b", tmp_path / "b"))
    )
    assert wide[0] < 0.9
    assert wide != narrow


def test_predictions_of_our_own_runs_are_read(tmp_path: Path) -> None:
    """predictions/SET.jsonl is gold and prediction at once."""
    line = {
        "id": "1",
        "document": "d",
        "words": ["Ana", "Cruz"],
        "gold": ["B-PER", "I-PER"],
        "predicted": ["B-PER", "O"],
        "gold_logprob": None,
    }
    (tmp_path / "tl.jsonl").write_text(json.dumps(line))
    system = scored(tmp_path / "tl.jsonl", tmp_path / "tl.jsonl")
    assert system.gold.sentences == [Sentence("1", ("Ana", "Cruz"), ("B-PER", "I-PER"), "d")]
    assert system.predictions.tags == [("B-PER", "O")]


def test_columns_are_recognized_by_more_than_the_first_sentence(tmp_path: Path) -> None:
    """A first sentence of the word `1` looks like a counter."""
    (tmp_path / "gold").write_text("1 NN O\n\nAna NN B-PER\n")
    system = scored(tmp_path / "gold", tmp_path / "gold")
    assert [sentence.words for sentence in system.gold.sentences] == [("1",), ("Ana",)]
