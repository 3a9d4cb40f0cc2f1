"""The rule baseline and the particle counts: on handwritten sentences, and against published results."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from analysis_runs import evaluation

from analysis.load.records import GoldSet
from analysis.sections.particle_recall import person_recall, rule_f1, rule_spans
from metapt.data.iob2 import read_iob2, spans


def gold_set(*sentences: tuple[str, str]) -> GoldSet:
    """Build a set from sentences (words, tags), both separated by spaces."""
    words = tuple(tuple(text.split()) for text, _ in sentences)
    found = tuple(tuple(spans(tags.split())) for _, tags in sentences)
    return GoldSet("x", tuple(str(index) for index in range(len(sentences))), words, found)


HANDWRITTEN = gold_set(
    ("Inahit ni John ang sarili niya .", "O O B-PER O O O O"),
    ("Malapit kay Maria si Juan .", "O O B-PER O B-PER O"),
    ("Si Ana Cruz sa Maynila .", "O B-PER I-PER O B-LOC O"),
    ("Pedro", "B-PER"),
    ("ang ni", "O O"),
)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("Inahit ni John", [("PER", 2, 3)]),
        ("SI Juan ni Pedro", [("PER", 1, 2), ("PER", 3, 4)]),
        ("si", []),
        ("kay Maria sa Cebu", []),
        ("si si Juan", [("PER", 2, 3)]),
    ],
)
def test_rule_spans(words: str, expected: list[tuple[str, int, int]]) -> None:
    assert list(rule_spans(words.split())) == expected


def test_rule_f1() -> None:
    """The rule predicts John, Juan and Ana (gold: Ana Cruz): two of three are right, two of six are found."""
    assert rule_f1(HANDWRITTEN) == pytest.approx(2 * 2 / (3 + 6))


def test_person_recall_after_a_particle_and_elsewhere() -> None:
    predicted = [
        spans(tags.split())
        for tags in ("O O B-PER O O O O", "O O O O B-LOC O", "O O O O O O", "B-PER", "O B-PER")
    ]
    assert person_recall(evaluation(HANDWRITTEN, predicted)) == {
        True: (1, 3),
        False: (1, 2),
    }


UGNAYAN = """\
# sent_id = made-up-1
# text = Nasa Lungsod ng Iloilo ang bagong tulay.
1	Nasa	O	-	ann
2	Lungsod	B-LOC	-	ann
3	ng	I-LOC	-	ann
4	Iloilo	I-LOC	-	ann
5	ang	O	-	ann
6	bago	O	-	ann
7	-ng	O	-	ann
8	tulay	O	-	ann
9	.	O	-	ann

# sent_id = made-up-2
# text = Bumisita kay Tandang Basyo, na taga-Bohol, ang manggagamot.
1	Bumisita	O	-	ann
2	kay	O	-	ann
3	Tandang	O	-	ann
4	Basyo	B-PER	-	ann
5	,	O	-	ann
6	na	O	-	ann
7	taga	O	-	ann
8	-	O	-	ann
9	Bohol	B-LOC	-	ann
10	,	O	-	ann
11	ang	O	-	ann
12	manggagamot	O	-	ann
13	si	O	-	ann
14	ya	O	-	ann
15	.	O	-	ann
"""
"""Sentences made up in the format of tl_ugnayan (which is not redistributed): clitics are words, persons follow no particle."""


def test_a_set_like_tl_ugnayan(tmp_path: Path) -> None:
    (tmp_path / "test.iob2").write_text(UGNAYAN, encoding="utf-8")
    sentences = read_iob2(tmp_path / "test.iob2")
    assert [sentence.id for sentence in sentences] == ["made-up-1", "made-up-2"]
    found = gold_set(*((" ".join(sentence.words), " ".join(sentence.tags)) for sentence in sentences))
    assert found.spans == ((("LOC", 1, 4),), (("PER", 3, 4), ("LOC", 8, 9)))
    assert list(rule_spans(sentences[1].words)) == [("PER", 13, 14)]
    assert rule_f1(found) == 0
    assert person_recall(evaluation(found, [()] * 2)) == {True: (0, 0), False: (0, 1)}


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("name", "f1", "after", "total"), [("tl_trg", 0.789, 17, 19), ("ceb_gja", 0.809, 37, 42)]
)
def test_published_results(name: str, f1: float, after: int, total: int) -> None:
    folder = os.environ.get("METAPT_UNER_DIR")
    if not folder:
        pytest.skip("METAPT_UNER_DIR is not set")
    path = Path(folder) / name / "test.iob2"
    if not path.exists():
        pytest.skip(f"{path} does not exist")
    blocks = [
        [line.split("\t") for line in block.splitlines() if "\t" in line]
        for block in path.read_text(encoding="utf-8").split("\n\n")
    ]
    found = gold_set(
        *((" ".join(row[1] for row in rows), " ".join(row[2] for row in rows)) for rows in blocks if rows)
    )
    assert rule_f1(found) == pytest.approx(f1, abs=5e-4)
    recall = person_recall(evaluation(found, [()] * len(found.ids)))
    assert {follows: gold for follows, (_, gold) in recall.items()} == {True: after, False: total - after}
