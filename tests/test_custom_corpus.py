"""Custom corpora: column layouts, tagging schemes, entity types, presets, the hub, combined collections, error lists."""

from __future__ import annotations

from pathlib import Path

import datasets
import pytest
from hypothesis import given
from hypothesis import strategies as st
from seqeval.scheme import BILOU, IOBES, Entities

from analysis.load.records import TARGETS, is_target
from metapt.config import NerDataConfig, commandline
from metapt.data import hub
from metapt.data.columns import ColumnLayout
from metapt.data.corpus_spec import read_spec
from metapt.data.custom_corpus import PRESETS, open_custom_corpora, presets
from metapt.data.iob2 import TAGS, Sentence, read_iob2, spans, to_iob2, write_iob2
from metapt.data.labelled_sets import open_collection, source_sets
from metapt.errors import UserError

NEWS = """\
name: my_news
licence: CC BY 4.0
files:
  train: {file: all.conll, sentences: 1-2}
  dev: {file: all.conll, sentences: 3-}
  test: test.conll
columns: [word, pos, tag]
separator: space
comment: "# id"
types: {person: PER, MISC: O}
"""
BLOCK = "# id 7 domain=en\nJuan N B-person\nCruz N I-person\nsings V O\nRio N B-MISC\n\n"


@pytest.fixture
def news(tmp_path: Path) -> Path:
    """A specification and its files in one folder."""
    (tmp_path / "news.yaml").write_text(NEWS + "folder: files\n")
    (tmp_path / "files").mkdir()
    (tmp_path / "files/all.conll").write_text("-DOCSTART- -X- O\n" + BLOCK * 4)
    (tmp_path / "files/test.conll").write_text(BLOCK)
    return tmp_path / "news.yaml"


# --- layouts ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "layout"),
    [
        ("Juan\tB-PER\nsings\tO\n\n", ColumnLayout(("word", "tag"))),
        ("#\tO\n\n", ColumnLayout(("word", "tag"))),
        ("B-PER Juan\nO sings\n\n", ColumnLayout(("tag", "word"), "space")),
        ("Juan  N \t B-PER\nsings V O\n \t\n", ColumnLayout(("word", "pos", "tag"), "whitespace")),
        ("-DOCSTART- -X- -X- O\n\n# O\n\n", ColumnLayout(("word", "tag"), "space")),
        ("-DOCSTART-\nJuan O\n-DOCSTART-\nsings O\n", ColumnLayout(("word", "tag"), "space")),
        ("# id 3\n# O\n", ColumnLayout(("word", "tag"), "space", comment="# id")),
        ("a\xa0b B-PER\n", ColumnLayout(("word", "tag"), "whitespace")),
    ],
)
def test_column_layouts(tmp_path: Path, text: str, layout: ColumnLayout) -> None:
    (tmp_path / "x").write_text(text)
    read = [(sentence.words, sentence.tags) for sentence in read_iob2(tmp_path / "x", layout)]
    expected = {
        "J": [(("Juan", "sings"), ("B-PER", "O"))],
        "B": [(("Juan", "sings"), ("B-PER", "O"))],
        "#": [(("#",), ("O",))],
        "a": [(("a\xa0b",), ("B-PER",))],
        "-": [(("#",), ("O",))] if "# O" in text else [(("Juan",), ("O",)), (("sings",), ("O",))],
    }
    assert read == expected[text[0]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Juan  B-PER\n", "1: 3 space-separated columns; expected 2 (word, tag)"),
        ("Juan\tB-PER\n", "1: 1 space-separated columns"),
        ("Juan B-PER x\n", "1: 3 space-separated columns"),
        (" B-PER\n", "1: the word (column 1) is empty"),
        (
            "Juan O\nCruz Z-GPE\n",
            "2: unknown tag 'Z-GPE'; allowed are O, and B- or I- (or E-, L-, M-, S-, U-) with a type",
        ),
        ("Juan X-PER\n", "1: unknown tag 'X-PER'"),
        ("Juan PER\n", "1: unknown tag 'PER'"),
        ("Juan b-per\n", "1: unknown tag 'b-per'"),
        ("-DOCSTART- O\n\n", "1: contains no sentence"),
        ("", "1: contains no sentence"),
    ],
)
def test_malformed_files_give_file_and_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "x").write_text(text)
    with pytest.raises(UserError) as caught:
        read_iob2(tmp_path / "x", ColumnLayout(("word", "tag"), "space"))
    assert str(caught.value).startswith(f"{tmp_path / 'x'}:{message}")


# --- tagging schemes ----------------------------------------------------------------------------------------------------


@st.composite
def segments(draw: st.DrawFn) -> list[tuple[str | None, int]]:
    """Non-entities and entities (type, length), from left to right."""
    return draw(st.lists(st.tuples(st.sampled_from([None, "PER", "LOC"]), st.integers(1, 4)), max_size=6))


def encode(parts: list[tuple[str | None, int]], scheme: str) -> list[str]:
    """The tags of the segments in a scheme, by its definition."""
    single, last = {"iobes": ("S", "E"), "bilou": ("U", "L"), "bmes": ("S", "E")}.get(scheme, ("B", "I"))
    inside = "M" if scheme == "bmes" else "I"
    tags: list[str] = []
    for index, (kind, length) in enumerate(parts):
        if kind is None:
            tags += ["O"] * length
        elif scheme == "iob1":
            touches = index > 0 and parts[index - 1][0] == kind
            tags += [f"{'B' if touches else 'I'}-{kind}"] + [f"I-{kind}"] * (length - 1)
        elif length == 1:
            tags.append(f"{single}-{kind}")
        else:
            tags += [f"B-{kind}", *[f"{inside}-{kind}"] * (length - 2), f"{last}-{kind}"]
    return tags


@given(segments(), st.sampled_from(["iob1", "iob2", "iobes", "bilou", "bmes"]))
def test_all_schemes_give_the_same_spans(parts: list[tuple[str | None, int]], scheme: str) -> None:
    expected, position = [], 0
    for kind, length in parts:
        if kind:
            expected.append((kind, position, position + length))
        position += length
    assert spans(to_iob2(encode(parts, scheme))) == expected


@given(segments(), st.sampled_from([("iobes", IOBES), ("bilou", BILOU)]))
def test_schemes_agree_with_seqeval(parts: list[tuple[str | None, int]], scheme: tuple[str, type]) -> None:
    tags = encode(parts, scheme[0])
    entities = [(entity.tag, entity.start, entity.end) for entity in Entities([tags], scheme[1]).entities[0]]
    assert spans(to_iob2(tags)) == entities


def test_two_source_types_of_one_target_type_are_not_merged() -> None:
    types = {"GPE": "LOC"}
    assert to_iob2(["B-LOC", "I-GPE", "I-GPE"], types) == ("B-LOC", "B-LOC", "I-LOC")


# --- specifications -----------------------------------------------------------------------------------------------


def test_splits_of_a_specification(news: Path) -> None:
    (one,) = open_custom_corpora([str(news)])
    assert (one.name, one.splits) == ("my_news", ("train", "dev", "test"))
    train, dev, test = (one.read(split) for split in one.splits)
    assert [sentence.id for sentence in train + dev] == ["1", "2", "3", "4"]
    assert test == [Sentence("1", ("Juan", "Cruz", "sings", "Rio"), ("B-PER", "I-PER", "O", "O"))]


def test_a_given_folder_overrides_that_of_the_specification(news: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    for file in ("all.conll", "test.conll"):
        (tmp_path / "other" / file).write_text(BLOCK.replace("Juan", "Ana") * 3)
    (one,) = open_custom_corpora([f"{news}:{tmp_path / 'other'}"])
    assert one.read("test")[0].words[0] == "Ana"


def test_all_errors_of_a_specification_are_listed(tmp_path: Path) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(
        "name: a b\nlicense: x\nnotes: 3\nfiles: {train: {file: x, sentences: 5-3}, valid: y, dev: 3}\n"
        'columns: [word, word, tag]\nseparator: comma\ntypes: {MISC: [PER]}\nword_prefix: "("\nlabels: O\nhub: {revision: main, labels: O}\n'
    )
    with pytest.raises(UserError) as caught:
        read_spec(path)
    lines = str(caught.value).splitlines()
    assert all(line.startswith(f"{path}: ") for line in lines)
    messages = [line.removeprefix(f"{path}: ") for line in lines]
    expected = [
        "license: no such key; did you mean licence?",
        "licence is required",
        "notes: must be text, not 3",
        "name: 'a b' must consist of letters",
        "types.MISC: ['PER'] must be an entity type, or O",
        "word_prefix: '(' is no regular expression",
        "labels: must be a list of tags",
        "files.valid: no such key",
        "files.train.sentences: '5-3' must be a range such as 1-500",
        "files.dev: must be a non-empty mapping",
        "columns: must be a list of names with `word` once and `tag` once",
        "separator: 'comma' must be one of tab, space, whitespace",
        "hub.name is required",
        "hub.labels: must be a list of tags",
    ]
    assert len(messages) == len(expected)
    for prefix in expected:
        assert any(message.startswith(prefix) for message in messages), prefix


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"name: [", "not YAML"),
        (b"name: a\nname: b\n", "not YAML.*duplicate key name"),
        (b"- a\n", "must be a mapping with the keys name, licence"),
        (b"", "name is required"),
        (b"name: \xff\n", "not UTF-8 at byte 7"),
        (b"name: all\nlicence: x\nhub: {name: y}\n", "must not be `all`"),
        (b"name: x\nlicence: x\nseparator: tab\n", "separator: has no effect without `columns`"),
    ],
)
def test_invalid_specifications(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "x.yaml").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_spec(tmp_path / "x.yaml")


def test_a_specification_may_have_a_byte_order_mark_and_windows_line_endings(news: Path) -> None:
    text = news.read_text()
    news.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    assert open_custom_corpora([str(news)])[0].name == "my_news"


def test_all_wrong_entries_are_listed(news: Path, tmp_path: Path) -> None:
    (tmp_path / "files/test.conll").unlink()
    with pytest.raises(UserError) as caught:
        open_custom_corpora(
            ["cebuano", "ceb_cebuaner", f"ceb_cebuaner:{tmp_path}/gone", str(news), "a b", "gone.yaml"]
        )
    text = str(caught.value)
    for message in (
        "6 error(s)",
        "'cebuano': no such preset, file or folder; the presets are ceb_cebuaner, de_germeval14",
        "ceb_cebuaner: no folder is known for its files; give the folder of its files after its name or YAML file",
        "gone: no such folder",
        "has no test.conll; it contains all.conll",
        "'a b': no such preset, file or folder",
        "gone.yaml: no such file",
    ):
        assert message in text


def test_a_range_beyond_the_end_of_the_file(news: Path, tmp_path: Path) -> None:
    (tmp_path / "files/all.conll").write_text(BLOCK)
    (one,) = open_custom_corpora([str(news)])
    with pytest.raises(UserError, match="has 1 sentences, but the train split of my_news ranges from 1 to 2"):
        one.read("train")
    with pytest.raises(UserError, match="ranges from 3 to the end"):
        one.read("dev")


# --- presets ----------------------------------------------------------------------------------------------------


def test_presets_are_valid_and_state_licence_and_what_was_not_verified() -> None:
    targets = {"ceb_cebuaner", "tl_tlunified"}
    for name in presets():
        assert is_target(name, TARGETS) == (name in targets)  # so that the report averages over the targets
        path = PRESETS / f"{name}.yaml"
        spec = read_spec(path)
        assert spec.name in (name, f"{{folder}}_{name}")
        assert spec.licence
        assert "never" in path.read_text() or name == "id_news2k"


def test_cebuaner_in_the_layout_of_its_repository(tmp_path: Path) -> None:
    """A file in the published layout with enough sentences for the splits."""
    file = tmp_path / "data/annotated_data/final-1.txt"
    file.parent.mkdir(parents=True)
    block = "si -X- _ O\nRoel -X- _ B-PER\nDegamo. -X- _ I-PER\nASF -X- _ B-OTHER\n\n"
    file.write_text("-DOCSTART- -X- O\n" + block * 4000)
    (one,) = open_custom_corpora([f"ceb_cebuaner:{tmp_path}"])
    assert {split: len(one.read(split)) for split in one.splits} == {"train": 2980, "dev": 169, "test": 851}
    assert one.read("test")[0].tags == ("O", "B-PER", "I-PER", "O")


def hub_rows(tags: list[object], feature: object) -> datasets.Dataset:
    features = datasets.Features(
        {
            "id": datasets.Value("string"),
            "tokens": datasets.Sequence(datasets.Value("string")),
            "ner_tags": datasets.Sequence(feature),
        }
    )
    rows = [
        {"id": "0", "tokens": ["Si", "Juan"], "ner_tags": tags},
        {"id": "1", "tokens": [], "ner_tags": []},
    ]
    return datasets.Dataset.from_list(rows, features=features)


def test_tlunified_from_the_hub_and_from_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls = []

    def load_dataset(*args: object, **keywords: object) -> datasets.Dataset:
        calls.append((args, keywords))
        return hub_rows([0, 1], datasets.ClassLabel(names=list(TAGS)))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(hub, "download", lambda files: Path(f"{files.name}@{files.revision}"))
    (one,) = open_custom_corpora(["tl_tlunified"])
    assert one.read("dev") == [Sentence("0", ("Si", "Juan"), ("O", "B-PER"))]
    keywords = {"data_dir": None, "split": "validation"}
    assert calls == [(("ljvmiranda921/tlunified-ner@main", "default"), keywords)]
    for split in ("train", "dev", "test"):
        (tmp_path / f"{split}.iob").write_text("-DOCSTART-\tO\n\nSi\tO\nJuan\tB-PER\n\n")
    (files,) = open_custom_corpora([f"tl_tlunified:{tmp_path}"])
    assert files.read("dev") == [Sentence("1", ("Si", "Juan"), ("O", "B-PER"))]


@pytest.mark.parametrize(
    ("tags", "feature", "labels", "message"),
    [
        (["O", "B-person"], datasets.Value("string"), "", ""),
        ([0, 1], datasets.Value("int64"), "labels: [O, B-person]", ""),
        (
            [0, 2],
            datasets.Value("int64"),
            "labels: [O, B-person]",
            "id 0: class id 2, but 2 labels are known",
        ),
        ([0, 1], datasets.Value("int64"), "", "class id 0, but 0 labels"),
        (["O"], datasets.Value("string"), "", "2 words, but 1 tags"),
        (["O", "Z-GPE"], datasets.Value("string"), "", "unknown tag 'Z-GPE'"),
    ],
)
def test_hub_tags_as_text_and_as_class_ids(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    tags: list[object],
    feature: object,
    labels: str,
    message: str,
) -> None:
    monkeypatch.setattr(hub, "download", lambda files: Path("nowhere"))
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: hub_rows(tags, feature))
    path = tmp_path / "x.yaml"
    path.write_text(f"name: x\nlicence: x\ntypes: {{person: PER}}\nhub:\n  name: a/b\n  id: id\n  {labels}\n")
    (one,) = open_custom_corpora([str(path)])
    if not message:
        assert one.read("train") == [Sentence("0", ("Si", "Juan"), ("O", "B-PER"))]
        return
    with pytest.raises(UserError, match=message):
        one.read("train")


# --- combined collections --------------------------------------------------------------------------------------------------


def test_custom_sets_are_added_to_the_others_but_not_part_of_all(news: Path) -> None:
    combined = open_collection(NerDataConfig(name="demo", corpora=[str(news)]))
    assert combined.sets("test") == ["ceb_demo", "en_demo", "my_news", "sk_demo", "tl_demo"]
    assert source_sets(combined, "all") == ["en_demo", "sk_demo"]
    assert source_sets(combined, "all+my_news") == ["en_demo", "sk_demo", "my_news"]
    assert combined.load("my_news", "test")[0].words[0] == "Juan"
    assert combined.load("tl_demo", "test")
    alone = open_collection(NerDataConfig(name="custom", corpora=[str(news)]))
    assert alone.sets("test") == source_sets(alone, "all") == ["my_news"]


def test_two_sets_with_the_same_name(news: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="two sets called my_news"):
        open_collection(NerDataConfig(name="demo", corpora=[str(news), str(news)]))
    write_iob2(tmp_path / "uner/my_news/test.iob2", [Sentence("1", ("Ana",), ("O",))])
    with pytest.raises(UserError, match="two sets called my_news"):
        open_collection(NerDataConfig(name="uner", uner_dir=str(tmp_path / "uner"), corpora=[str(news)]))


def test_corpora_on_the_command_line() -> None:
    words = [
        "checkpoint=x",
        "source=en_ewt",
        "run_dir=r",
        "data.corpora=[tl_tlunified,ceb_cebuaner:/data/Cebua-NER,./a.yaml:b]",
    ]
    assert commandline.load("finetune", words).data.corpora == [
        "tl_tlunified",
        "ceb_cebuaner:/data/Cebua-NER",
        "./a.yaml:b",
    ]
    with pytest.raises(UserError, match=r"data\.corpora is required with data=custom"):
        commandline.load("finetune", [*words[:3], "data=custom"])
