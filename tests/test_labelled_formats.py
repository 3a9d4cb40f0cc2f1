"""Labelled files as they are published and as annotation tools write them, without a description."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import REPO

from metapt.config import NerDataConfig
from metapt.data.bad_input import BadInput
from metapt.data.columns import recognized_layout
from metapt.data.custom_corpus import ReadReport, open_custom_corpora, open_path
from metapt.data.iob2 import Sentence, spans, types_of
from metapt.data.labelled_files import FileOptions, read_sentences
from metapt.data.labelled_folders import set_name, split_of
from metapt.data.labelled_sets import evaluated_sets, open_collection, source_sets
from metapt.errors import UserError

MARIA = (("Si", "Maria"), ("O", "B-PER"))


def read(path: Path, policy: str = "refuse", **options: Any) -> tuple[list[Sentence], ReadReport]:
    report = ReadReport(BadInput(policy))
    found = read_sentences(path, FileOptions(**options), report.bad_input, report.remarks.append)
    return found, report


def pairs(sentences: list[Sentence]) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    return [(sentence.words, sentence.tags) for sentence in sentences]


# --- lines that are not quite regular ---------------------------------------------------------------------------------

ODD_LINES = {
    "a blank line is a tab": ("Si\tO\nMaria\tB-PER\n\t\nCebu\tB-LOC\n\t\n", [MARIA, (("Cebu",), ("B-LOC",))]),
    "a blank line is U+3000": ("Si\tO\nMaria\tB-PER\n\u3000\n", [MARIA]),
    "a tab at the end": ("Si\tO\t\nMaria\tB-PER\t\n", [MARIA]),
    "a space at the end": ("Si\tO \nMaria\tB-PER \n", [MARIA]),
    "a space at the end, by spaces": ("Si O \nMaria B-PER \n", [MARIA]),
    "U+3000 is a word": ("日本\tB-LOC\n\u3000\tO\n", [(("日本", "\u3000"), ("B-LOC", "O"))]),
    "a header": ("TOKEN\tNE\nSi\tO\nMaria\tB-PER\n", [MARIA]),
    "a header of HIPE": (
        "TOKEN\tNE-COARSE-LIT\tNE-COARSE-METO\tMISC\n# language = de\nSi\tO\tO\t_\nMaria\tB-PER\tO\tNoSpaceAfter\n",
        [MARIA],
    ),
    "rows of Universal NER's first commit": ("# sent_id = a\n1\tSi\tO\n2\tMaria\tB-PER\t-\tann\n", [MARIA]),
    "a byte order mark inside": ("Si\tO\nMaria\tB-PER\n\n\ufeffSi\tO\nMaria\tB-PER\n", [MARIA, MARIA]),
    "CRLF": ("Si O\r\nMaria B-PER\r\n\r\n", [MARIA]),
    "-DOCSTART-": ("-DOCSTART- -X- -X- O\n\nSi NN B-NP O\nMaria NNP I-NP B-PER\n", [MARIA]),
    "CoNLL-U": ("1\tSi\t_\tO\n2-3\tMarias\t_\t_\n2\tMaria\t_\tB-PER\n", [MARIA]),
}


@pytest.mark.parametrize("kind", ODD_LINES)
def test_odd_lines_are_read(kind: str, tmp_path: Path) -> None:
    text, expected = ODD_LINES[kind]
    (tmp_path / "x.conll").write_text(text, encoding="utf-8", newline="")
    found, report = read(tmp_path / "x.conll")
    assert pairs(found) == expected
    assert not report.bad_input.skipped


MALFORMED = {
    "no word": (" O\n", "the word (column 1) is empty"),
    "no tag": ("Pasko \n", "the tag (column 2) is empty"),
    "one column": ("Pasko\n", "1 whitespace-separated columns; expected 2 (word, tag)"),
    "too many columns": ("a b B-PER\n", "3 whitespace-separated columns; expected 2 (word, tag)"),
    "no such tag": ("Cebu X-LOC\n", "unknown tag 'X-LOC'"),
    "not UTF-8": ("caf\udce9 O\n", "not UTF-8 at byte 4"),
}


@pytest.mark.parametrize("kind", MALFORMED)
def test_malformed_sentences_are_refused_or_left_out(kind: str, tmp_path: Path) -> None:
    line, reason = MALFORMED[kind]
    separator = "space" if kind in ("no word", "no tag") else "whitespace"
    good = "Si O\nMaria B-PER\n\n"
    path = tmp_path / "x.conll"
    path.write_text(good * 30 + "Si O\n" + line + "Ana B-PER\n\n" + good, errors="surrogateescape")
    layout = recognized_layout(path)
    options = {"layout": type(layout)(layout.columns, separator)}
    with pytest.raises(UserError) as refused:
        read(path, **options)
    assert str(refused.value).startswith(f"{path}:92: ")
    assert reason in str(refused.value)
    assert str(refused.value).endswith("skip malformed input with data.on_bad_input=skip")
    found, report = read(path, "skip", **options)
    assert pairs(found) == [MARIA] * 31
    assert [sentence.id for sentence in found] == [str(number) for number in range(1, 33) if number != 31]
    assert report.bad_input.skipped.total() == 1
    assert f"{path}:92" in report.bad_input.summary()


@pytest.mark.parametrize(
    ("text", "layout"),
    [
        ("Maria\tB-PER\n", "word in column 1, tag in column 2 of 2"),
        ("EU NNP B-NP B-ORG\nrejects VBZ B-VP O\n", "word in column 1, tag in column 4 of 4"),
        ("1 EU NNP O\n2 . . O\n", "word in column 2, tag in column 4 of 4"),
        ("Maria\tB-PER\t0.9\t_\n", "word in column 1, tag in column 2 of 4"),
        ("1\tMaria\tB-PER\t-\tx\n", "word in column 2, tag in column 3 of 5"),
        ("word\tner\tother\nMaria\tB-PER\tO\n", "word in column 1, tag in column 2 of 3"),
        ("0\tSi\tO\n1\tMaria\tB-PER\n", "word in column 2, tag in column 3 of 3"),
        ("ID\tFORM\tNER\n1\tSi\tO\n2\tMaria\tB-PER\n", "word in column 2, tag in column 3 of 3"),
        ("# id 7\tdomain=en\nMaria _ _ B-PER\n", "word in column 1, tag in column 4 of 4"),
    ],
)
def test_columns_are_recognized_and_shown(text: str, layout: str, tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text(text)
    assert str(recognized_layout(path)) == layout
    _, report = read(path)
    assert report.remarks == ([] if "of 5" in layout else [f"{path}: {layout}"])


def test_a_sentence_with_other_numbers_does_not_make_words_of_them(tmp_path: Path) -> None:
    """A blank line is missing in one of 30 sentences; in half of them, nothing says which column has the words."""
    sentence, path = "1\tSi\tO\t-\t-\n2\tMaria\tB-PER\t-\t-\n", tmp_path / "x"
    path.write_text(f"{sentence}\n" * 28 + sentence * 2)
    found, _ = read(path)
    assert pairs(found)[:28] == [MARIA] * 28
    assert found[28].words == ("Si", "Maria", "Si", "Maria")
    path.write_text(f"{sentence}\n{sentence}{sentence}\n" * 15)
    with pytest.raises(UserError, match="do not count the words of 15 of 30 sentences; describe its columns"):
        read(path)


# --- JSON -------------------------------------------------------------------------------------------------------------

TEXT = "Si Ana Cruz sa Cebu."
WORDS = ("Si", "Ana", "Cruz", "sa", "Cebu", ".")
TAGS = ("O", "B-PER", "I-PER", "O", "B-LOC", "O")
SPANS = [(3, 11, "PER"), (15, 19, "LOC")]


def label_studio(**more: Any) -> dict[str, Any]:
    values = [{"start": s, "end": e, "text": TEXT[s:e], "labels": [kind]} for s, e, kind in SPANS]
    results = [{"type": "labels", "from_name": "label", "value": value} for value in values]
    return {"id": 7, "data": {"text": TEXT}, "annotations": [{"result": results, **more}]}


JSON_FILES: dict[str, Any] = {
    "doccano": [{"id": 1, "text": TEXT, "label": [list(span) for span in SPANS]}],
    "doccano with relations": [
        {"text": TEXT, "entities": [{"label": k, "start_offset": s, "end_offset": e} for s, e, k in SPANS]}
    ],
    "Prodigy": [
        {
            "text": TEXT,
            "tokens": [{"text": "Si", "start": 0, "end": 2, "id": 0}],
            "spans": [{"start": s, "end": e, "label": k, "token_start": 1} for s, e, k in SPANS],
            "answer": "accept",
        }
    ],
    "Label Studio": [label_studio()],
    "Label Studio, JSON_MIN": [
        {"text": TEXT, "label": [{"start": s, "end": e, "text": "", "labels": [k]} for s, e, k in SPANS]}
    ],
    "run_ner": [{"tokens": list(WORDS), "ner_tags": list(TAGS)}],
    "spaCy": [{"text": TEXT, "ents": [{"start": s, "end": e, "label": k} for s, e, k in SPANS]}],
}


@pytest.mark.parametrize("is_list", [False, True])
@pytest.mark.parametrize("tool", JSON_FILES)
def test_files_of_annotation_tools(tool: str, is_list: bool, tmp_path: Path) -> None:
    values = JSON_FILES[tool] * 3
    content = json.dumps(values, indent=2) if is_list else "".join(json.dumps(item) + "\n" for item in values)
    (tmp_path / "x.json").write_text(content, encoding="utf-8")
    found, report = read(tmp_path / "x.json")
    assert pairs(found) == [(WORDS, TAGS)] * 3
    assert report.remarks == []


def test_unfinished_annotations_are_left_out_and_counted(tmp_path: Path) -> None:
    rejected = [{**JSON_FILES["Prodigy"][0], "answer": answer} for answer in ("reject", "ignore")]
    unfinished = [label_studio(was_cancelled=True), {"data": {"text": TEXT}, "annotations": []}]
    lines = [*rejected, *unfinished, label_studio()]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(item) + "\n" for item in lines))
    found, report = read(tmp_path / "x.jsonl")
    assert pairs(found) == [(WORDS, TAGS)]
    assert report.bad_input.skipped == {
        "not accepted by its annotator": 2,
        "a task without a finished annotation": 2,
    }


def test_spans_that_words_cannot_express_are_counted_and_named(tmp_path: Path) -> None:
    entities = [[3, 11, "PER"], [3, 6, "GIVEN"], [7, 14, "ORG"], [15, 17, "LOC"]]
    (tmp_path / "x.jsonl").write_text(json.dumps({"text": TEXT, "spans": entities}))
    (found,), report = read(tmp_path / "x.jsonl")
    assert spans(found.tags) == [("PER", 1, 3), ("LOC", 4, 5)]  # the longest of three, and a whole word
    assert report.remarks == [
        f"entities that begin or end inside a word, extended to whole words: 1 ({tmp_path / 'x.jsonl'}:1 Cebu)",
        "entities that overlap a longer or earlier one, left out: 2 "
        f"({tmp_path / 'x.jsonl'}:1 Cruz sa, {tmp_path / 'x.jsonl'}:1 Ana)",
    ]


def test_malformed_json_is_refused_or_left_out(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(f'{json.dumps(JSON_FILES["doccano"][0])}\n{{"text": 3, "label": []}}\nno JSON\n')
    with pytest.raises(UserError, match=r"x\.jsonl:2: text must be a text.*on_bad_input=skip"):
        read(path)
    found, report = read(path, "skip")
    assert (len(found), report.bad_input.skipped.total()) == (1, 2)


def test_class_ids_need_labels(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"tokens": ["Si", "Ana"], "ner_tags": [0, 1]}))
    assert pairs(read(path, labels=["O", "B-PER"])[0]) == [(("Si", "Ana"), ("O", "B-PER"))]
    with pytest.raises(UserError, match=r"class ids .* but 0 labels are known"):
        read(path)


def test_a_recorded_file_of_spacy() -> None:
    """The same texts as columns, which the same pipeline wrote (tests/recorded/README.md)."""
    pytest.importorskip("spacy")
    found, report = read(REPO / "tests" / "recorded" / "spacy.spacy")
    expected, _ = read(REPO / "tests" / "recorded" / "spacy.conll")
    assert pairs(found) == pairs(expected)
    assert [sentence.document for sentence in found] == [str(number) for number in range(1, 9)]
    assert report.remarks == []


def test_a_file_of_spacy(tmp_path: Path) -> None:
    spacy = pytest.importorskip("spacy")
    text = spacy.blank("xx")(TEXT)
    text.ents = [text.char_span(start, end, label=kind) for start, end, kind in SPANS]
    spacy.tokens.DocBin(docs=[text, text]).to_disk(tmp_path / "x.spacy")
    found, _ = read(tmp_path / "x.spacy")
    assert pairs(found) == [(WORDS, TAGS)] * 2
    (tmp_path / "x.spacy").write_bytes(b"not of spaCy")
    with pytest.raises(UserError, match=r"x\.spacy: not a file of spaCy"):
        read(tmp_path / "x.spacy")


# --- paths ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "split"),
    [
        ("train.txt", "train"),
        ("en_ewt-ud-dev.iob2", "dev"),
        ("eng.testa", "dev"),
        ("eng.testb", "test"),
        ("valid_preprocess.txt", "dev"),
        ("wnut17train.conll", "train"),
        ("constraint.txt", None),
        ("contest.conll", None),
        ("extra", None),
    ],
)
def test_splits_by_names_of_files(file: str, split: str | None) -> None:
    assert split_of(file) == split


@pytest.mark.parametrize(
    ("file", "name"),
    [("tl_news/train.conll", "tl_news"), ("tl_news_train.conll", "tl_news"), ("my news.conll", "my_news")],
)
def test_names_of_sets_by_their_paths(file: str, name: str, tmp_path: Path) -> None:
    assert set_name(tmp_path / file) == name


def write_articles(path: Path, count: int) -> Path:
    """Sentences of three each in articles that -DOCSTART- marks."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sentence = "Si NN O\nMaria{} NN B-GENE\n\n"
    articles = ["-DOCSTART- -X- O\n\n" + sentence.format(number) * 3 for number in range(count)]
    path.write_text("".join(articles))
    return path


def test_a_file_is_a_source_by_its_path(tmp_path: Path) -> None:
    path = write_articles(tmp_path / "bio" / "train.conll", 20)
    collection = open_collection(NerDataConfig(name="custom"), str(path))
    assert source_sets(collection, str(path)) == ["bio"]
    parts = {split: collection.load("bio", split) for split in ("train", "dev", "test")}
    assert {split: len(part) for split, part in parts.items()} == {"train": 48, "dev": 6, "test": 6}
    documents = [{sentence.document for sentence in part} for part in parts.values()]
    assert sum(map(len, documents)) == len(set.union(*documents)) == 20  # whole articles
    assert types_of(parts["train"]) == ("GENE",)
    assert collection.notes() == [
        f"{path}: word in column 1, tag in column 3 of 3",
        "bio: test 6 and dev 6 sentences held out of its train split by document (data.split_seed=0); train 48",
    ]


def test_a_folder_is_a_source_and_a_file_is_a_test_set(tmp_path: Path) -> None:
    for split in ("train", "valid", "test"):
        write_articles(tmp_path / "bio" / f"{split}.conll", 3)
    other = write_articles(tmp_path / "other.conll", 2)
    collection = open_collection(NerDataConfig(name="custom"), f"{tmp_path / 'bio'}", [str(other)])
    assert collection.splits == {"bio": ("train", "dev", "test"), "other": ("test",)}
    assert evaluated_sets(collection, [str(other), "bio"]) == ["bio", "other"]
    assert len(collection.load("other", "test")) == 6


def test_paths_in_data_corpora(tmp_path: Path) -> None:
    path = write_articles(tmp_path / "news.conll", 9)
    names = [open_custom_corpora([entry])[0].name for entry in (f"{path}", f"tl_mine:{path}")]
    assert names == ["news", "tl_mine"]
    with pytest.raises(UserError, match="two sets called news; NAME:PATH gives a path another name"):
        open_collection(NerDataConfig(name="custom", corpora=[str(path), str(path)]))
    (tmp_path / "nothing").mkdir()
    with pytest.raises(UserError, match="no file has the name of a split"):
        open_path(tmp_path / "nothing", "auto", ReadReport(BadInput("refuse")))
    write_articles(tmp_path / "two" / "train.conll", 1)
    write_articles(tmp_path / "two" / "train.txt", 1)
    with pytest.raises(UserError, match=r"several files .* train split: train\.conll, train\.txt"):
        open_custom_corpora([str(tmp_path / "two")])
    with pytest.raises(UserError, match="no such file or folder"):
        open_collection(NerDataConfig(name="custom"), str(tmp_path / "gone" / "train.conll"))


def test_left_out_sentences_of_a_collection_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "news.conll"
    path.write_text("Si O\nMaria B-PER\n\n" * 30 + "Ana B-PER\nCruz\n\n")
    data = NerDataConfig(name="custom", corpora=[str(path)], on_bad_input="skip")
    collection = open_collection(data)
    assert sum(len(collection.load("news", split)) for split in ("train", "dev", "test")) == 30
    assert collection.notes()[-1].startswith("sentences left out 1: 1 whitespace-separated columns")
    assert f"{path}:92" in collection.notes()[-1]
