"""Documents of labelled sets: marks in files, resampling units, and which sets of Universal NER have them."""

from __future__ import annotations

import json
import os
import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from analysis_runs import write_finetuning
from hypothesis import given
from hypothesis import strategies as st

from analysis.load.cache import read_runs
from analysis.load.prediction_reader import evaluate, read_predictions
from analysis.load.records import TARGETS, FinetuneRun, gold_set
from analysis.load.schema import SetResult
from metapt.config import NerDataConfig
from metapt.data.columns import UNER_LAYOUT, ColumnLayout
from metapt.data.documents import resampling_unit, resampling_units
from metapt.data.iob2 import Sentence, read_iob2, write_iob2
from metapt.data.labelled_sets import open_collection
from metapt.errors import UserError
from metapt.evaluation.predictions import SentencePrediction, write_predictions

ROW = "1\tAna\tB-PER\t-\t-\n\n"
SPACED = ColumnLayout(("word", "tag"), "space")


def documents(
    path: Path, text: str, mode: str = "auto", layout: ColumnLayout = UNER_LAYOUT
) -> list[str | None]:
    path.write_text(text)
    return [
        sentence.document
        for sentence in read_iob2(path, ColumnLayout(layout.columns, layout.separator, documents=mode))
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"# newdoc id = a\n{ROW}{ROW}# newdoc id = b\n# sent_id = 9\n{ROW}", ["a", "a", "b"]),
        (f"# newdoc id =set.hr.11\n{ROW}#newdoc id=set.hr.12\n{ROW}", ["set.hr.11", "set.hr.12"]),
        (f"# newdoc\n{ROW}# newdoc\n{ROW}{ROW}", ["newdoc-1", "newdoc-2", "newdoc-2"]),
        (f"{ROW}# newdoc id = b\n{ROW}", ["newdoc-0", "b"]),
        (f"# newdoc id = a\n{ROW}# newdoc id = b\n{ROW}# newdoc id = a\n{ROW}", ["a", "b", "a"]),
        (f"# newdoc id = batch-0000\n{ROW}# newdoc id = batch-0001\n{ROW}", [None, None]),
        (f"# newdoc id = batch-1\n{ROW}# newdoc id = n01\n{ROW}", ["batch-1", "n01"]),
        (f"# newdoc id = only\n{ROW}{ROW}", [None, None]),
        (f"# newdocument = a\n{ROW}# newdocs\n{ROW}", [None, None]),
        (f"{ROW}{ROW}", [None, None]),
        (f"-DOCSTART-\tO\n\n{ROW}{ROW}-DOCSTART-\n{ROW}", ["docstart-1", "docstart-1", "docstart-2"]),
        (f"-DOCSTART- -X- O O\n\n{ROW}{ROW}", [None, None]),
        (
            f"-DOCSTART-\n# newdoc id = batch-1\n{ROW}-DOCSTART-\n# newdoc id = batch-2\n{ROW}",
            ["docstart-1", "docstart-2"],
        ),
    ],
)
def test_the_marks_of_a_file_are_used_if_they_divide_it_into_texts(tmp_path, text, expected):
    assert documents(tmp_path / "set.iob2", text) == expected


def test_the_key_chooses_the_mark(tmp_path):
    path = tmp_path / "set.iob2"
    text = f"-DOCSTART-\n# newdoc id = batch-1\n{ROW}# newdoc id = batch-2\n{ROW}-DOCSTART-\n{ROW}"
    assert documents(path, text, "newdoc") == ["batch-1", "batch-2", "batch-2"]
    assert documents(path, text, "docstart") == ["docstart-1", "docstart-1", "docstart-2"]
    assert documents(path, text, "sentence") == [None, None, None]


@pytest.mark.parametrize("mode", ["newdoc", "docstart"])
def test_a_mark_that_divides_nothing_is_refused_if_it_is_chosen(tmp_path, mode):
    with pytest.raises(UserError, match=rf"set\.iob2: documents={mode}, but .* does not divide"):
        documents(tmp_path / "set.iob2", f"-DOCSTART-\n# newdoc id = a\n{ROW}{ROW}", mode)


def test_marks_are_refused_for_data_that_cannot_have_them(tmp_path):
    for data in (
        NerDataConfig(name="demo", documents="newdoc"),
        NerDataConfig(name="uner", documents="docstart"),
    ):
        with pytest.raises(UserError, match="only column files have such marks"):
            open_collection(data)


def test_the_key_of_a_description_takes_precedence(tmp_path):
    spec = tmp_path / "news.yaml"
    (tmp_path / "test.conll").write_text("-DOCSTART- O\n\nAna B-PER\n\n-DOCSTART- O\n\nAna B-PER\n")
    text = "name: xx_news\nlicence: MIT\nfolder: .\nfiles: {test: test.conll}\ncolumns: [word, tag]\nseparator: space\n"
    found = {}
    for line, general in (("", "auto"), ("", "sentence"), ("documents: docstart\n", "sentence")):
        spec.write_text(text + line)
        data = NerDataConfig(name="custom", corpora=[str(spec)], documents=general)
        found[line, general] = [s.document for s in open_collection(data).load("xx_news", "test")]
    assert list(found.values()) == [
        ["docstart-1", "docstart-2"],
        [None, None],
        ["docstart-1", "docstart-2"],
    ]
    spec.write_text(text + "documents: paragraphs\n")
    with pytest.raises(
        UserError, match="documents: 'paragraphs' must be one of auto, newdoc, docstart, sentence"
    ):
        open_collection(NerDataConfig(name="custom", corpora=[str(spec)]))


def test_docstart_of_conll_files_with_spaces(tmp_path):
    text = "-DOCSTART- O\n\nAna B-PER\n\nAna B-PER\n\n-DOCSTART- O\n\nAna B-PER\n"
    found = documents(tmp_path / "x.conll", text, layout=SPACED)
    assert found == ["docstart-1", "docstart-1", "docstart-2"]


@given(st.lists(st.sampled_from(["a", "b 2", "n-3"]), min_size=2, max_size=6))
def test_written_documents_are_read_back(tmp_path_factory, names):
    """Except a single one: it divides nothing."""
    documents = names if len(set(names)) > 1 else [None] * len(names)
    sentences = [Sentence(str(number), ("Ana",), ("B-PER",), name) for number, name in enumerate(names)]
    path = tmp_path_factory.getbasetemp() / "documents.iob2"
    write_iob2(path, sentences)
    assert [sentence.document for sentence in read_iob2(path)] == documents


@given(st.lists(st.sampled_from("abcde"), max_size=12).filter(lambda ids: len(set(ids)) != 1))
def test_units_are_the_partition_by_document_numbered_by_appearance(ids):
    units = resampling_units(ids)
    assert units.dtype == np.int64
    assert all((units[i] == units[j]) == (ids[i] == ids[j]) for i in range(len(ids)) for j in range(len(ids)))
    assert list(dict.fromkeys(units.tolist())) == list(range(len(set(ids))))


@given(st.integers(1, 9))
def test_without_documents_each_sentence_is_a_unit(count):
    assert resampling_units([None] * count).tolist() == list(range(count))


@given(st.integers(1, 9))
def test_a_single_document_says_as_little_as_none(count):
    """Resamples of one unit are all equal: F1 would have no uncertainty."""
    assert resampling_units(["only"] * count).tolist() == list(range(count))
    assert resampling_unit(["only"] * count) == "sentence"
    assert resampling_unit(["only", "other"]) == "document"


def test_a_held_out_dev_split_has_whole_documents(tmp_path):
    sentences = [Sentence(str(number), ("Ana",), ("B-PER",), f"text {number // 4}") for number in range(400)]
    write_iob2(tmp_path / "xx" / "train.iob2", sentences)
    collection = open_collection(NerDataConfig(name="uner", uner_dir=str(tmp_path), dev_fraction=0.2))
    train, dev = (
        Counter(sentence.document for sentence in collection.load("xx", split)) for split in ("train", "dev")
    )
    assert set((train + dev).values()) == {4}
    assert not train.keys() & dev.keys()
    assert 8 < len(dev) < 35


def test_documents_pass_from_predictions_to_the_gold_set(tmp_path):
    sentences = [
        Sentence(str(number), ("Ana",), ("B-PER",), document) for number, document in enumerate("abba")
    ]
    path = tmp_path / "xx.jsonl"
    write_predictions(path, sentences, [SentencePrediction(["O"], None)] * 4)
    assert [json.loads(line)["document"] for line in path.read_text().splitlines()] == list("abba")
    gold = evaluate(path, SetResult(0.0, {}), True).gold
    assert (gold.unit, gold.units.tolist()) == ("document", [0, 1, 1, 0])
    assert pickle.loads(pickle.dumps(gold)) is gold
    plain = gold_set(gold.name, gold.ids, gold.words, gold.spans)
    assert plain is not gold, "the same sentences in other documents are another gold set"
    assert (plain.unit, plain.units.tolist()) == ("sentence", [0, 1, 2, 3])


def test_a_file_with_documents_for_some_sentences_is_damaged(tmp_path):
    line = {"id": "1", "words": ["a"], "gold": ["O"], "predicted": ["O"], "gold_logprob": None}
    path = tmp_path / "xx.jsonl"
    path.write_text("".join(json.dumps({**line, "document": document}) + "\n" for document in ("a", None)))
    with pytest.raises(ValueError, match="only some of the sentences have a document"):
        read_predictions(path)


def test_the_cache_keeps_documents(tmp_path):
    folder = write_finetuning(tmp_path, {"model": "nano", "objective": "maml"}, sets=["tl_trg"])
    file = folder / "predictions" / "tl_trg.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    file.write_text(
        "".join(
            json.dumps({**line, "document": f"d{number // 5}"}) + "\n" for number, line in enumerate(lines)
        )
    )
    for _ in range(2):  # read from the files, then from the cache
        [run] = read_runs({folder: os.path.realpath(folder)}, TARGETS, tmp_path / "cache")
        assert isinstance(run, FinetuneRun)
        gold = run.sets["tl_trg"].gold
        assert (gold.unit, gold.units.tolist()) == ("document", [number // 5 for number in range(24)])


DOCUMENTS = {
    "en_ewt": 316,
    "en_pud": 397,
    "pt_pud": 397,
    "sv_pud": 397,
    "hr_set": 31,
    "sr_set": 22,
    "sv_talbanken": 15,
}
"""documents of the test sets of Universal NER that mark texts, counted with grep"""
SENTENCES = {
    "ceb_gja": 188,
    "da_ddt": 565,
    "pt_bosque": 1167,
    "sk_snk": 1061,
    "tl_trg": 128,
    "zh_gsd": 500,
    "zh_gsdsimp": 500,
    "zh_pud": 1000,
}
"""sentences of those that mark none: their `# newdoc` ids are batches, or absent"""


@pytest.mark.real_data
def test_which_sets_of_universal_ner_mark_documents():
    folder = os.environ.get("METAPT_UNER_DIR")
    if not folder:
        pytest.skip("METAPT_UNER_DIR is not set")
    units = {}
    for name in DOCUMENTS | SENTENCES:
        sentences = read_iob2(Path(folder) / name / "test.iob2")
        documents = [sentence.document for sentence in sentences]
        assert (None in documents) == (name in SENTENCES)
        units[name] = int(resampling_units(documents).max()) + 1
    assert units == DOCUMENTS | SENTENCES
