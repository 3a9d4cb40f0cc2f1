"""Labelled sentences: the IOB2 file format and its corner cases, and collections of sets."""

from pathlib import Path

import datasets
import pytest
from hypothesis import given
from hypothesis import strategies as st
from seqeval.scheme import IOB2, Entities

from metapt.config import NerDataConfig
from metapt.data import hub
from metapt.data.iob2 import TAGS, Sentence, read_iob2, spans, write_iob2
from metapt.data.labelled_sets import (
    ALL_SETS,
    SOURCES,
    TEST_ONLY,
    open_collection,
    source_sets,
)
from metapt.errors import OperationalError, UserError

PLAIN = "1\tAna\tB-PER\t-\tx\n2\tslept\tO\t-\tx\n\n"


def read(tmp_path: Path, text: str | bytes) -> list[Sentence]:
    path = tmp_path / "set.iob2"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return read_iob2(path)


def error_message(tmp_path: Path, text: str | bytes) -> str:
    with pytest.raises(UserError) as caught:
        read(tmp_path, text)
    message = str(caught.value)
    assert "\n" not in message
    return message.removeprefix(f"{tmp_path / 'set.iob2'}:")


# --- the file format -------------------------------------------------------------------------------------------------


def test_a_plain_sentence(tmp_path):
    assert read(tmp_path, "# sent_id = a-1\n# text = Ana slept\n" + PLAIN) == [
        Sentence("a-1", ("Ana", "slept"), ("B-PER", "O"))
    ]


def test_comments_with_and_without_a_space(tmp_path):
    text = "# newdoc id =\n#\n#sent_id=a-1\n" + PLAIN + "# url = http://x\n" + PLAIN
    assert [sentence.id for sentence in read(tmp_path, text)] == ["a-1", "2"]


def test_a_word_may_begin_with_a_hash(tmp_path):
    [sentence] = read(tmp_path, "1\t#\tO\t-\t-\n2\t#Ana\tB-PER\t-\t-\n#\t#1\tO\t-\t-\n\n")
    assert sentence.words == ("#", "#Ana", "#1")


def test_a_word_may_contain_spaces(tmp_path):
    [sentence] = read(tmp_path, "1\t10 000\tO\t-\t-\n2\tSan Juan\tB-LOC\t-\t-\n\n")
    assert sentence.words == ("10 000", "San Juan")


def test_the_third_column_has_the_gold_tag(tmp_path):
    [sentence] = read(tmp_path, "1\tAna\tB-ORG\tB-PER#B-LOC\t-\n\n")
    assert sentence.tags == ("B-ORG",)


def test_oth_and_b_o_become_o(tmp_path):
    tags = ("B-OTH", "I-OTH", "B-O", "O", "B-LOC")
    [sentence] = read(tmp_path, "".join(f"{i}\tw\t{tag}\t-\t-\n" for i, tag in enumerate(tags, 1)) + "\n")
    assert sentence.tags == ("O", "O", "O", "O", "B-LOC")


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        (("I-PER", "I-PER"), ("B-PER", "I-PER")),
        (("B-PER", "I-LOC", "I-LOC"), ("B-PER", "B-LOC", "I-LOC")),
        (("B-OTH", "I-PER"), ("O", "B-PER")),
        (("B-PER", "I-PER", "O", "I-PER"), ("B-PER", "I-PER", "O", "B-PER")),
    ],
)
def test_an_i_tag_that_continues_no_span_starts_one(tmp_path, tags, expected):
    [sentence] = read(tmp_path, "".join(f"{i}\tw\t{tag}\t-\t-\n" for i, tag in enumerate(tags, 1)))
    assert sentence.tags == expected


@pytest.mark.parametrize(
    "text",
    [
        PLAIN.rstrip("\n"),
        PLAIN + "\n\n",
        "\n" + PLAIN,
        PLAIN.replace("\n", "\r\n"),
        b"\xef\xbb\xbf" + PLAIN.encode(),
    ],
)
def test_blank_lines_and_line_endings(tmp_path, text):
    assert read(tmp_path, text) == [Sentence("1", ("Ana", "slept"), ("B-PER", "O"))]


def test_unicode_line_separators_do_not_end_a_line(tmp_path):
    [sentence] = read(tmp_path, "1\ta\u2028b\x85c\tO\t-\t-\n")
    assert sentence.words == ("a\u2028b\x85c",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (PLAIN + "1\tAna\n\n", "4: 2 tab-separated columns; expected 5 (index, word"),
        (PLAIN + "1 Ana B-PER - -\n\n", "4: 1 tab-separated columns"),
        (PLAIN + "1\tAna\tB-PER\t-\t-\t-\n\n", "4: 6 tab-separated columns"),
        (PLAIN + "1\t\tB-PER\t-\t-\n\n", "4: the word (column 2) is empty"),
        (
            PLAIN + "1\tAna\tX-PER\t-\t-\n\n",
            "4: unknown tag 'X-PER'; allowed are O, and B- or I- (or E-, L-, M-, S-, U-) with a type",
        ),
        (PLAIN + "1\tAna\tPER\t-\t-\n\n", "4: unknown tag 'PER'"),
        (PLAIN.encode() + "1\tAn\xe9\tO\t-\t-\n".encode("latin-1"), "4: not UTF-8 at byte 5"),
        ("", "1: contains no sentence"),
        ("# text = nothing else\n\n", "1: contains no sentence"),
    ],
)
def test_malformed_files_give_file_and_line(tmp_path, text, message):
    assert error_message(tmp_path, text).startswith(message)


def test_repeated_ids_are_made_unique(tmp_path):
    named = "# sent_id = 2\n" + PLAIN
    text = named + named + PLAIN + "# sent_id = 2~2\n" + PLAIN + "# sent_id = 4\n" + PLAIN
    assert [sentence.id for sentence in read(tmp_path, text)] == ["2", "2~2", "3", "2~2~2", "4"]


def test_missing_file(tmp_path):
    with pytest.raises(UserError, match=r"gone\.iob2: no such file"):
        read_iob2(tmp_path / "gone.iob2")


LINES = st.lists(
    st.sampled_from(["", " ", "#", "# sent_id = x", "#\tx", "1\t#\tI-PER\t-\t-", "2\ta b\tI-LOC\tI-PER\t-"])
    | st.builds(
        lambda word, tag: f"1\t{word}\t{tag}\t-\t-",
        st.text(max_size=3),
        st.sampled_from([*TAGS, "B-OTH", "X"]),
    )
    | st.text(max_size=8),
    max_size=8,
)


@given(LINES, st.binary(max_size=3))
def test_any_content_gives_sentences_or_an_error(tmp_path_factory, lines, tail):
    path = tmp_path_factory.getbasetemp() / "anything.iob2"
    path.write_bytes("\n".join(lines).encode("utf-8", "surrogatepass") + tail)
    sentences: list[Sentence] = []
    message = None
    try:
        sentences = read_iob2(path)
    except UserError as error:
        message = str(error)
    assert bool(sentences) != bool(message and message.startswith(f"{path}:"))
    for sentence in sentences:
        assert len(sentence.words) == len(sentence.tags) > 0
        assert sum(end - start for _, start, end in spans(sentence.tags)) == sum(
            tag != "O" for tag in sentence.tags
        )


# --- spans ------------------------------------------------------------------------------------------------------


@given(st.lists(st.sampled_from(TAGS), max_size=12))
def test_spans_agree_with_seqeval_in_strict_mode(tags):
    expected = [(entity.tag, entity.start, entity.end) for entity in Entities([tags], IOB2).entities[0]]
    assert spans(tags) == expected


# --- round trip -------------------------------------------------------------------------------------------------

WORDS = st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=6).filter(str.strip)


@st.composite
def labelled(draw) -> Sentence:
    words = draw(st.lists(WORDS | st.sampled_from(["#", "# sent_id = 3", "10 000"]), min_size=1, max_size=6))
    tags: list[str] = []
    for _ in words:
        continuation = [f"I-{tags[-1][2:]}"] if tags and tags[-1] != "O" else []
        tags.append(draw(st.sampled_from(["O", "B-PER", "B-ORG", "B-LOC", *continuation])))
    return Sentence(draw(st.from_regex(r"[a-z0-9-]{1,8}", fullmatch=True)), tuple(words), tuple(tags))


@given(st.lists(labelled(), min_size=1, max_size=4, unique_by=lambda sentence: sentence.id))
def test_round_trip(tmp_path_factory, sentences):
    path = tmp_path_factory.getbasetemp() / "round_trip.iob2"
    write_iob2(path, sentences)
    assert read_iob2(path) == sentences


# --- collections ------------------------------------------------------------------------------------------------


def write_sets(root: Path, sets: dict[str, list[str]]) -> NerDataConfig:
    for name, splits in sets.items():
        for split in splits:
            write_iob2(
                root / name / f"{split}.iob2",
                [Sentence(f"{name}/{split}", ("Ana", name, split), ("B-PER", "O", "O"))],
            )
    return NerDataConfig(name="uner", uner_dir=str(root), dev_fraction=0, test_fraction=0)


@pytest.fixture
def collection(tmp_path):
    sets = {
        "xx_one": ["train", "dev", "test"],
        "xx_two": ["train", "dev"],
        "xx_odd": ["train", "test"],
        "yy_test": ["test"],
    }
    return open_collection(write_sets(tmp_path, sets))


def test_sets_of_a_folder(collection):
    assert collection.sets("train") == ["xx_odd", "xx_one", "xx_two"]
    assert collection.sets("dev") == ["xx_one", "xx_two"]
    assert collection.sets("test") == ["xx_odd", "xx_one", "yy_test"]
    assert collection.load("yy_test", "test")[0].words == ("Ana", "yy_test", "test")


@pytest.mark.parametrize(
    ("source", "expected"),
    [("xx_two", ["xx_two"]), ("xx_two+xx_one", ["xx_two", "xx_one"]), ("all", ["xx_one", "xx_two"])],
)
def test_source_is_one_set_several_or_all(collection, source, expected):
    assert source_sets(collection, source) == expected


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("en_ewt", "'en_ewt' does not exist.*sources are xx_one, xx_two, or all"),
        ("xx_one+typo", "'typo' does not exist"),
        ("xx_odd", r"'xx_odd' has no dev split.*data\.dev_fraction"),
        ("yy_test", "'yy_test' has no train split"),
        ("xx_one+xx_one", "duplicate set 'xx_one'"),
        ("all+xx_one", "duplicate set 'xx_one'"),
        ("", "'' does not exist"),
    ],
)
def test_wrong_source_gives_an_error_that_lists_the_sources(collection, source, message):
    with pytest.raises(UserError, match=message):
        source_sets(collection, source)


@pytest.mark.parametrize(
    ("name", "split", "message"),
    [
        ("zz", "test", "has no set 'zz'; its sets are xx_odd, xx_one"),
        ("yy_test", "dev", "yy_test has no dev split; its splits are test"),
    ],
)
def test_wrong_set_or_split(collection, name, split, message):
    with pytest.raises(UserError, match=message):
        collection.load(name, split)


def test_wrong_folder(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        open_collection(NerDataConfig(name="uner", uner_dir=str(tmp_path / "gone")))
    with pytest.raises(
        UserError, match=r"contains neither SET/SPLIT\.iob2 nor UNER_.* it contains no folder"
    ):
        open_collection(NerDataConfig(name="uner", uner_dir=str(tmp_path)))


def test_a_collection_without_any_source(tmp_path):
    tests_only = open_collection(write_sets(tmp_path, {"yy_test": ["test"]}))
    with pytest.raises(UserError, match="no set with a train and a dev split"):
        source_sets(tests_only, "all")


def test_the_fingerprint_depends_on_the_content_alone(tmp_path):
    sets = {"xx": ["train", "dev"]}
    first, second = (open_collection(write_sets(tmp_path / part, sets)) for part in "ab")
    parts = [("xx", "train"), ("xx", "dev")]
    assert first.fingerprint(parts) == second.fingerprint(parts[::-1]) != first.fingerprint(parts[:1])
    write_iob2(tmp_path / "b/xx/dev.iob2", [Sentence("1", ("Ana", "xx", "dev"), ("B-ORG", "O", "O"))])
    changed = open_collection(NerDataConfig(name="uner", uner_dir=str(tmp_path / "b"), test_fraction=0))
    assert changed.fingerprint(parts) != first.fingerprint(parts)
    assert changed.fingerprint(parts[:1]) == first.fingerprint(parts[:1])


# --- the hub -------------------------------------------------------------


@pytest.fixture(params=["conversion branch", "plain Parquet with a card"])
def hub_copy(request, tmp_path, monkeypatch) -> NerDataConfig:
    """A local folder in one of the two layouts of the hub; `datasets` loads it like a repository."""
    root = tmp_path / "copy"
    features = datasets.Features(
        {
            "idx": datasets.Value("string"),
            "text": datasets.Value("string"),
            "tokens": datasets.Sequence(datasets.Value("string")),
            "ner_tags": datasets.Sequence(datasets.ClassLabel(names=list(TAGS))),
            "annotator": datasets.Sequence(datasets.Value("string")),
        }
    )
    card = ["---", "configs:"]
    for name, splits in {"en_ewt": ["train", "validation"], "tl_trg": ["test"]}.items():
        card += [f"- config_name: {name}", "  data_files:"]
        for split in splits:
            branch = request.param == "conversion branch"
            path = root / name / (f"{split}/0000.parquet" if branch else f"{split}-00000-of-00001.parquet")
            path.parent.mkdir(parents=True, exist_ok=True)
            row = {
                "idx": f"{name}/{split}",
                "text": "",
                "tokens": ["si", "Juan", "sa"],
                "ner_tags": [0, 2, 5],
                "annotator": ["-"] * 3,
            }
            datasets.Dataset.from_list([row], features=features).to_parquet(path)
            card += [f"  - split: {split}", f"    path: {name}/{split}-*"]
    if request.param == "plain Parquet with a card":
        (root / "README.md").write_text("\n".join([*card, "---"]))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return NerDataConfig(name="uner", hub_name=str(root))


def test_hub_sets_are_loaded_by_folder(hub_copy):
    collection = open_collection(hub_copy)
    for name, split, hub_split in [
        ("en_ewt", "train", "train"),
        ("en_ewt", "dev", "validation"),
        ("tl_trg", "test", "test"),
    ]:
        [sentence] = collection.load(name, split)
        assert sentence == Sentence(f"{name}/{hub_split}", ("si", "Juan", "sa"), ("O", "B-PER", "B-LOC"))


def test_hub_sets_are_those_of_universal_ner(hub_copy):
    collection = open_collection(hub_copy)
    assert collection.sets("train") == collection.sets("dev") == sorted(SOURCES)
    assert collection.sets("test") == sorted(ALL_SETS)
    assert len(SOURCES) == len(TEST_ONLY) == 9


def test_hub_request_names_the_parquet_branch(monkeypatch):
    calls = []

    def download(files):
        calls.append(files)
        raise OperationalError("no network")

    monkeypatch.setattr(hub, "download", download)
    data = NerDataConfig(name="uner")
    with pytest.raises(OperationalError, match=r"no network.*data\.uner_dir"):
        open_collection(data).load("da_ddt", "dev")
    assert [(files.name, files.revision) for files in calls] == [(data.hub_name, "refs/convert/parquet")]


@pytest.mark.parametrize(
    ("words", "tags", "problem"),
    [
        (["Ana", "", "ran"], ["B-PER", "O", "O"], "a word is empty, or no text"),
        (["Ana", None], ["B-PER", "O"], "a word is empty, or no text"),
        (["Ana", "ran"], ["B-PER"], "2 words, but 1 tags"),
        (["Ana"], ["X-PER"], "unknown tag 'X-PER'"),
    ],
)
def test_malformed_rows_of_the_hub_are_refused_or_left_out(monkeypatch, words, tags, problem):
    rows = {"idx": ["a", "b"], "tokens": [["Si"], words], "ner_tags": [["O"], tags]}
    monkeypatch.setattr(hub, "download", lambda files: Path("nowhere"))
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **keywords: datasets.Dataset.from_dict(rows))
    with pytest.raises(UserError, match=f"validation, idx b: {problem}"):
        open_collection(NerDataConfig(name="uner")).load("da_ddt", "dev")
    collection = open_collection(NerDataConfig(name="uner", on_bad_input="skip"))
    assert [sentence.words for sentence in collection.load("da_ddt", "dev")] == [("Si",)]
    assert collection.report.bad_input.skipped.total() == 1


def test_hub_data_set_without_the_columns(monkeypatch):
    other = datasets.Dataset.from_dict({"text": ["a"]})
    monkeypatch.setattr(hub, "download", lambda files: Path("nowhere"))
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **keywords: other)
    with pytest.raises(UserError, match="no column idx, ner_tags, tokens; the columns are text"):
        open_collection(NerDataConfig(name="uner")).load("da_ddt", "dev")
