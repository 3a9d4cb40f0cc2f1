"""The overlap of a labelled set with a corpus (benchmarks/overlap.py)."""

from __future__ import annotations

import json
from pathlib import Path

import overlap
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metapt.data.iob2 import Sentence, write_iob2

WORDS = st.lists(st.sampled_from("abc"), max_size=40)


@given(st.lists(WORDS, max_size=4), st.lists(WORDS, max_size=4), st.integers(1, 8))
def test_shared_n_grams_are_the_intersection(
    sentences: list[list[str]], texts: list[list[str]], length: int
) -> None:
    wanted = {gram for words in sentences for gram in overlap.grams(words, length)}
    present = {gram for words in texts for gram in overlap.grams(words, length)}
    assert overlap.shared_grams(wanted, map(" ".join, texts), length) == wanted & present


def test_separated_words_of_a_treebank_match_running_text() -> None:
    text = "“Don’t go,” she said: Mr. Smith's U.S. dogs couldn't swim_well."
    separated = "“ Do n’t go , ” she said : Mr. Smith 's U.S. dogs could n't swim_well ."
    assert overlap.words_of(text) == overlap.words_of(separated)


def test_table_of_a_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One sentence is in a document, one spans two documents, one differs in a word, one is short."""
    words = [f"w{number}" for number in range(40)]
    changed = [*words[:12], "x", *words[13:20]]
    sentences = [words[5:20], words[20:34], changed, words[:12]]
    (tmp_path / "uner" / "en_ewt").mkdir(parents=True)
    rows = [Sentence(f"s{index}", tuple(each), ("O",) * len(each)) for index, each in enumerate(sentences)]
    for split, kept in (("train", rows[:2]), ("dev", rows[3:]), ("test", rows)):
        write_iob2(tmp_path / "uner" / "en_ewt" / f"{split}.iob2", kept)
    (tmp_path / "text").mkdir()
    documents = ["Before, " + " ".join(words[:27]).upper() + "!", " ".join(words[27:]) + " after"]
    lines = (json.dumps({"text": document}) for document in documents)
    (tmp_path / "text" / "a.jsonl").write_text("\n".join(lines))
    overlap.main(str(tmp_path / "text"), str(tmp_path / "uner"), ["en_ewt"])
    assert capsys.readouterr().out.splitlines()[2:] == [
        "| en_ewt train | 2 | 2 | 1 | 50.00% | 50.00% |",
        "| en_ewt dev | 1 | 0 | 0 | 0.00% | 0.00% |",
        "| en_ewt test | 4 | 3 | 1 | 25.00% | 33.33% |",
    ]
