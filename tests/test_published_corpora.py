"""Corpora in the layouts of their publications, by the presets of metapt/data/corpora."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from conftest import extra_set

from metapt.data.custom_corpus import open_custom_corpora
from metapt.data.iob2 import spans
from metapt.errors import UserError

CONLL2003 = "-DOCSTART- -X- -X- O\n\nEU NNP B-NP B-ORG\nrejects VBZ B-VP O\nBritish JJ I-NP B-MISC\n\n"
GERMEVAL = (
    "#\thttp://de.wikipedia.org/wiki/X [2010-01-01]\n1\tDeutsche\tB-LOCderiv\tO\n2\tMaria\tB-PER\tO\n\n"
)
PUBLISHED: dict[str, tuple[list[str], str, dict[str, tuple[str, ...]]]] = {
    # preset: its files, their content, and the tags of its sets
    "masakhaner": (
        [f"data/{code}/{split}.txt" for code in ("hau", "yor") for split in ("train", "dev", "test")],
        "Maria B-PER\nyau B-DATE\n. O\n\n",
        dict.fromkeys(("hau_masakhaner", "yor_masakhaner"), ("B-PER", "B-DATE", "O")),
    ),
    "wikiann": (
        [f"{code}/{split}" for code in ("tl", "ceb") for split in ("train", "dev", "test", "extra")],
        "tl:Maria\tB-PER\ntl:sa\tO\n\n",
        dict.fromkeys(("ceb_wikiann", "tl_wikiann"), ("B-PER", "O")),
    ),
    "en_conll2003": (
        ["eng.train", "eng.testa", "eng.testb"],
        CONLL2003,
        {"en_conll2003": ("B-ORG", "O", "B-MISC")},
    ),
    "en_wnut17": (
        ["wnut17train.conll", "emerging.dev.conll", "emerging.test.annotated"],
        "Maria\tB-person\nparty\tB-creative-work\n\t\n",
        {"en_wnut17": ("B-person", "B-creative-work")},
    ),
    "de_germeval14": (
        ["NER-de-train.tsv", "NER-de-dev.tsv", "NER-de-test.tsv"],
        GERMEVAL,
        {"de_germeval14": ("O", "B-PER")},
    ),
    "id_nergrit": (
        ["train_preprocess.txt", "valid_preprocess.txt", "test_preprocess.txt"],
        "Maria\tB-PERSON\nDepok\tB-PLACE\nPSSI\tB-ORGANISATION\n\n",
        {"id_nergrit": ("B-PER", "B-LOC", "B-ORG")},
    ),
    "id_news2k": (
        ["train.txt", "dev.txt", "test.txt"],
        "Berikut PROPN O\r\nDepok PROPN B-LOC\r\n\r\n",
        {"id_news2k": ("O", "B-LOC")},
    ),
    "tl_tlunified": (
        ["train.iob", "dev.iob", "test.iob"],
        "-DOCSTART-\tO\n\nSi\tO\nMaria\tB-PER\n\n",
        {"tl_tlunified": ("O", "B-PER")},
    ),
}


@pytest.mark.parametrize("preset", PUBLISHED)
def test_corpora_as_they_are_published(preset: str, tmp_path: Path) -> None:
    """On excerpts in the layout of the publications."""
    files, content, expected = PUBLISHED[preset]
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(content, encoding="utf-8", newline="")
    corpora = open_custom_corpora([f"{preset}:{tmp_path}"])
    assert [corpus.name for corpus in corpora] == list(expected)
    for corpus in corpora:
        assert corpus.splits == ("train", "dev", "test")
        for split in corpus.splits:
            (sentence,) = corpus.read(split)
            assert sentence.tags == expected[corpus.name]
            assert not any(":" in word for word in sentence.words)


def test_one_language_of_several(tmp_path: Path) -> None:
    for split in ("train", "dev", "test"):
        (tmp_path / "hau").mkdir(exist_ok=True)
        (tmp_path / "hau" / f"{split}.txt").write_text("Maria B-PER\n")
    (corpus,) = open_custom_corpora([f"masakhaner:{tmp_path / 'hau'}"])
    assert corpus.name == "hau_masakhaner"
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no folder in .*empty has train\.txt"):
        open_custom_corpora([f"masakhaner:{tmp_path / 'empty'}"])


ID_NEWS2K = {
    "train": (1464, 30248, {"PER": 896, "LOC": 579, "ORG": 721}),
    "dev": (367, 7863, {"PER": 221, "LOC": 152, "ORG": 189}),
    "test": (509, 10588, {"PER": 515, "LOC": 103, "ORG": 401}),
}
"""Sentences, words and entities of IDNER-News-2k, commit 625ff40, counted with awk"""


@pytest.mark.real_data
def test_the_whole_of_id_news2k_is_read() -> None:
    (corpus,) = open_custom_corpora([f"id_news2k:{extra_set('id_news2k')}"])
    for split, expected in ID_NEWS2K.items():
        sentences = corpus.read(split)
        entities = Counter(kind for sentence in sentences for kind, _, _ in spans(sentence.tags))
        assert (len(sentences), sum(len(each.words) for each in sentences), entities) == expected
        file = (extra_set("id_news2k") / f"{split}.txt").read_text(encoding="utf-8")
        rows = [line.split(" ") for line in file.split("\n") if line]
        assert [word for each in sentences for word in each.words] == [row[0] for row in rows]
