"""Labelled sentences: the format's traps one by one, and collections."""

from pathlib import Path

import datasets
import pytest
from hypothesis import given
from hypothesis import strategies as st
from seqeval.scheme import IOB2, Entities

from metapt.config import NerDataConfig
from metapt.data.iob2 import TAGS, Sentence, read_iob2, spans, write_iob2
from metapt.data.labelled_sets import (
    ALL_SETS,
    SOURCES,
    TEST_ONLY,
    check_entities,
    open_collection,
    source_sets,
)
from metapt.errors import OperationalError, UserError

PLAIN = "1\tAna\tB-PER\t-\tx\n2\tslept\tO\t-\tx\n\n"


def read(tmp_path: Path, text: str | bytes) -> list[Sentence]:
    path = tmp_path / "set.iob2"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return read_iob2(path)


def refusal(tmp_path: Path, text: str | bytes) -> str:
    with pytest.raises(UserError) as caught:
        read(tmp_path, text)
    message = str(caught.value)
    assert "\n" not in message
    return message.removeprefix(f"{tmp_path / 'set.iob2'}:")


# --- the format -------------------------------------------------------------------------------------------------


def test_a_plain_sentence(tmp_path):
    assert read(tmp_path, "# sent_id = a-1\n# text = Ana slept\n" + PLAIN) == [
        Sentence("a-1", ("Ana", "slept"), ("B-PER", "O"))
    ]


def test_comments_with_and_without_a_space(tmp_path):
    text = "# newdoc id =\n#\n#sent_id=a-1\n" + PLAIN + "# url = http://x\n" + PLAIN
    assert [sentence.id for sentence in read(tmp_path, text)] == ["a-1", "2"]


def test_a_row_whose_form_is_or_begins_with_a_hash_is_no_comment(tmp_path):
    [sentence] = read(tmp_path, "1\t#\tO\t-\t-\n2\t#Ana\tB-PER\t-\t-\n#\t#1\tO\t-\t-\n\n")
    assert sentence.words == ("#", "#Ana", "#1")


def test_a_form_may_hold_spaces(tmp_path):
    [sentence] = read(tmp_path, "1\t10 000\tO\t-\t-\n2\tSan Juan\tB-LOC\t-\t-\n\n")
    assert sentence.words == ("10 000", "San Juan")


def test_the_third_column_is_read_not_the_fourth(tmp_path):
    [sentence] = read(tmp_path, "1\tAna\tB-ORG\tB-PER#B-LOC\t-\n\n")
    assert sentence.tags == ("B-ORG",)


def test_oth_and_b_o_are_read_as_o(tmp_path):
    tags = ("B-OTH", "I-OTH", "B-O", "O", "B-LOC")
    [sentence] = read(tmp_path, "".join(f"{i}\tw\t{tag}\t-\t-\n" for i, tag in enumerate(tags, 1)) + "\n")
    assert sentence.tags == ("O", "O", "O", "O", "B-LOC")


@pytest.mark.parametrize(
    ("written", "read_as"),
    [
        (("I-PER", "I-PER"), ("B-PER", "I-PER")),
        (("B-PER", "I-LOC", "I-LOC"), ("B-PER", "B-LOC", "I-LOC")),
        (("B-OTH", "I-PER"), ("O", "B-PER")),
        (("B-PER", "I-PER", "O", "I-PER"), ("B-PER", "I-PER", "O", "B-PER")),
    ],
)
def test_an_i_that_continues_nothing_starts_a_span(tmp_path, written, read_as):
    [sentence] = read(tmp_path, "".join(f"{i}\tw\t{tag}\t-\t-\n" for i, tag in enumerate(written, 1)))
    assert sentence.tags == read_as


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
def test_blank_lines_and_line_ends_do_not_matter(tmp_path, text):
    assert read(tmp_path, text) == [Sentence("1", ("Ana", "slept"), ("B-PER", "O"))]


def test_line_separators_of_unicode_end_no_line(tmp_path):
    [sentence] = read(tmp_path, "1\ta\u2028b\x85c\tO\t-\t-\n")
    assert sentence.words == ("a\u2028b\x85c",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (PLAIN + "1\tAna\tB-PER\n\n", "4: 3 tab-separated columns; 5 are expected"),
        (PLAIN + "1 Ana B-PER - -\n\n", "4: 1 tab-separated columns"),
        (PLAIN + "1\tAna\tB-PER\t-\t-\t-\n\n", "4: 6 tab-separated columns"),
        (PLAIN + "1\t\tB-PER\t-\t-\n\n", "4: the form (column 2) is empty"),
        (
            PLAIN + "1\tAna\tB-MISC\t-\t-\n\n",
            "4: unknown tag 'B-MISC'; tags are O, and B- or I- (or E-, L-, M-, S-, U-) with PER, ORG, LOC, OTH (read as O)",
        ),
        (PLAIN + "1\tAna\tPER\t-\t-\n\n", "4: unknown tag 'PER'"),
        (PLAIN.encode() + "1\tAn\xe9\tO\t-\t-\n".encode("latin-1"), "4: not UTF-8 at byte 5"),
        ("", "1: holds no sentence"),
        ("# text = nothing else\n\n", "1: holds no sentence"),
    ],
)
def test_bad_files_are_refused_with_file_and_line(tmp_path, text, message):
    assert refusal(tmp_path, text).startswith(message)


def test_of_equal_ids_the_later_are_changed(tmp_path):
    named = "# sent_id = 2\n" + PLAIN
    text = named + named + PLAIN + "# sent_id = 2~2\n" + PLAIN + "# sent_id = 4\n" + PLAIN
    assert [sentence.id for sentence in read(tmp_path, text)] == ["2", "2~2", "3", "2~2~2", "4"]


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"gone\.iob2: no such file"):
        read_iob2(tmp_path / "gone.iob2")


LINES = st.lists(
    st.sampled_from(["", " ", "#", "# sent_id = x", "#\tx", "1\t#\tI-PER\t-\t-", "2\ta b\tI-LOC\tI-PER\t-"])
    | st.builds(
        lambda form, tag: f"1\t{form}\t{tag}\t-\t-",
        st.text(max_size=3),
        st.sampled_from([*TAGS, "B-OTH", "X"]),
    )
    | st.text(max_size=8),
    max_size=8,
)


@given(LINES, st.binary(max_size=3))
def test_whatever_a_file_holds_it_is_read_or_refused(tmp_path_factory, lines, tail):
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

FORMS = st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=6).filter(str.strip)


@st.composite
def labelled(draw) -> Sentence:
    words = draw(st.lists(FORMS | st.sampled_from(["#", "# sent_id = 3", "10 000"]), min_size=1, max_size=6))
    tags: list[str] = []
    for _ in words:
        goes_on = [f"I-{tags[-1][2:]}"] if tags and tags[-1] != "O" else []
        tags.append(draw(st.sampled_from(["O", "B-PER", "B-ORG", "B-LOC", *goes_on])))
    return Sentence(draw(st.from_regex(r"[a-z0-9-]{1,8}", fullmatch=True)), tuple(words), tuple(tags))


@given(st.lists(labelled(), min_size=1, max_size=4, unique_by=lambda sentence: sentence.id))
def test_what_is_written_is_read_back(tmp_path_factory, sentences):
    path = tmp_path_factory.getbasetemp() / "round_trip.iob2"
    write_iob2(path, sentences)
    assert read_iob2(path) == sentences


# --- collections ------------------------------------------------------------------------------------------------


def folder_of(root: Path, layout: dict[str, list[str]]) -> NerDataConfig:
    for name, splits in layout.items():
        for split in splits:
            write_iob2(
                root / name / f"{split}.iob2",
                [Sentence(f"{name}/{split}", ("Ana", name, split), ("B-PER", "O", "O"))],
            )
    return NerDataConfig(name="uner", uner_dir=str(root))


@pytest.fixture
def collection(tmp_path):
    layout = {
        "xx_one": ["train", "dev", "test"],
        "xx_two": ["train", "dev"],
        "xx_odd": ["train", "test"],
        "yy_test": ["test"],
    }
    return open_collection(folder_of(tmp_path, layout))


def test_a_folder_lists_what_is_there(collection):
    assert collection.sets("train") == ["xx_odd", "xx_one", "xx_two"]
    assert collection.sets("dev") == ["xx_one", "xx_two"]
    assert collection.sets("test") == ["xx_odd", "xx_one", "yy_test"]
    assert collection.load("yy_test", "test")[0].words == ("Ana", "yy_test", "test")


@pytest.mark.parametrize(
    ("source", "expected"),
    [("xx_two", ["xx_two"]), ("xx_two+xx_one", ["xx_two", "xx_one"]), ("all", ["xx_one", "xx_two"])],
)
def test_sources_are_one_set_several_or_all(collection, source, expected):
    assert source_sets(collection, source) == expected


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("en_ewt", "'en_ewt' does not exist.*sources are xx_one, xx_two, or all"),
        ("xx_one+typo", "'typo' does not exist"),
        ("xx_odd", r"'xx_odd' has no dev split.*data\.dev_fraction"),
        ("yy_test", "'yy_test' has no train split"),
        ("xx_one+xx_one", "named twice"),
        ("all+xx_one", "named twice"),
        ("", "'' does not exist"),
    ],
)
def test_a_wrong_source_is_refused_and_what_exists_is_listed(collection, source, message):
    with pytest.raises(UserError, match=message):
        source_sets(collection, source)


@pytest.mark.parametrize(
    ("name", "split", "message"),
    [
        ("zz", "test", "has no set 'zz'; it has xx_odd, xx_one"),
        ("yy_test", "dev", "yy_test has no dev split; it has test"),
    ],
)
def test_a_wrong_set_or_split_is_refused(collection, name, split, message):
    with pytest.raises(UserError, match=message):
        collection.load(name, split)


def test_a_dev_split_is_held_out_where_there_is_none(tmp_path):
    sentences = [Sentence(str(number), ("Ana",), ("B-PER",)) for number in range(400)]
    write_iob2(tmp_path / "xx_odd" / "train.iob2", sentences)
    write_iob2(tmp_path / "xx_one" / "train.iob2", sentences[:2])
    write_iob2(tmp_path / "xx_one" / "dev.iob2", sentences[2:4])
    data = NerDataConfig(name="uner", uner_dir=str(tmp_path), dev_fraction=0.1)
    parts = [open_collection(data).load("xx_odd", split) for split in ("train", "dev")]
    assert 20 < len(parts[1]) < 60
    assert sorted(parts[0] + parts[1], key=lambda each: int(each.id)) == sentences
    assert parts[1] == open_collection(data).load("xx_odd", "dev")
    assert source_sets(open_collection(data), "all") == ["xx_odd", "xx_one"]
    assert open_collection(data).load("xx_one", "dev") == sentences[2:4]
    write_iob2(tmp_path / "xx_odd" / "train.iob2", sentences[:1])
    with pytest.raises(
        UserError, match=r"data\.dev_fraction=0\.1 of the 1 train sentences of xx_odd leaves none"
    ):
        [open_collection(data).load("xx_odd", split) for split in ("train", "dev")]


@pytest.mark.parametrize("empty", ["train", "dev"])
def test_a_source_without_an_entity_is_refused(tmp_path, empty):
    for split in ("train", "dev", "test"):
        tag = "O" if split in (empty, "test") else "B-PER"
        write_iob2(tmp_path / "xx" / f"{split}.iob2", [Sentence("1", ("Ana",), (tag,))])
    with pytest.raises(UserError, match=f"source=xx: its {empty} split has no entity"):
        check_entities(open_collection(NerDataConfig(name="uner", uner_dir=str(tmp_path))), ["xx"])
    write_iob2(tmp_path / "xx" / f"{empty}.iob2", [Sentence("1", ("Ana",), ("B-PER",))])
    check_entities(open_collection(NerDataConfig(name="uner", uner_dir=str(tmp_path))), ["xx"])


def test_a_wrong_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        open_collection(NerDataConfig(name="uner", uner_dir=str(tmp_path / "gone")))
    with pytest.raises(UserError, match=r"holds no <set>/<split>\.iob2"):
        open_collection(NerDataConfig(name="uner", uner_dir=str(tmp_path)))


def test_no_tunable_set_at_all_is_refused(tmp_path):
    tests_only = open_collection(folder_of(tmp_path, {"yy_test": ["test"]}))
    with pytest.raises(UserError, match="no set with both a train and a dev split"):
        source_sets(tests_only, "all")


def test_the_fingerprint_is_of_the_content(tmp_path):
    layout = {"xx": ["train", "dev"]}
    first, second = (open_collection(folder_of(tmp_path / part, layout)) for part in "ab")
    parts = [("xx", "train"), ("xx", "dev")]
    assert first.fingerprint(parts) == second.fingerprint(parts[::-1]) != first.fingerprint(parts[:1])
    write_iob2(tmp_path / "b/xx/dev.iob2", [Sentence("1", ("Ana", "xx", "dev"), ("B-ORG", "O", "O"))])
    changed = open_collection(NerDataConfig(name="uner", uner_dir=str(tmp_path / "b")))
    assert changed.fingerprint(parts) != first.fingerprint(parts)
    assert changed.fingerprint(parts[:1]) == first.fingerprint(parts[:1])


# --- the hub ----------------------------------------------------------------------------------------------------


@pytest.fixture(params=["conversion branch", "plain Parquet with a card"])
def hub_copy(request, tmp_path, monkeypatch) -> NerDataConfig:
    """A local folder in one of the two layouts of the hub, which `datasets` loads as it would from there."""
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


def test_the_hub_is_read_by_folder_and_class_names(hub_copy):
    collection = open_collection(hub_copy)
    for name, split, hub_split in [
        ("en_ewt", "train", "train"),
        ("en_ewt", "dev", "validation"),
        ("tl_trg", "test", "test"),
    ]:
        [sentence] = collection.load(name, split)
        assert sentence == Sentence(f"{name}/{hub_split}", ("si", "Juan", "sa"), ("O", "B-PER", "B-LOC"))


def test_the_hub_offers_universal_ner(hub_copy):
    collection = open_collection(hub_copy)
    assert collection.sets("train") == collection.sets("dev") == sorted(SOURCES)
    assert collection.sets("test") == sorted(ALL_SETS)
    assert len(SOURCES) == len(TEST_ONLY) == 9


def test_the_hub_is_asked_for_the_conversion_branch(monkeypatch):
    asked = []

    def load_dataset(*args, **keywords):
        asked.append((args, keywords))
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(OperationalError, match=r"no network.*data\.uner_dir"):
        open_collection(NerDataConfig(name="uner")).load("da_ddt", "dev")
    keywords = {"data_dir": "da_ddt", "split": "validation", "revision": "refs/convert/parquet"}
    assert asked == [(("universalner/universal_ner", None), keywords)]


def test_a_data_set_of_another_shape_is_refused(monkeypatch):
    other = datasets.Dataset.from_dict({"text": ["a"]})
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **keywords: other)
    with pytest.raises(UserError, match="no column idx, ner_tags, tokens; it has text"):
        open_collection(NerDataConfig(name="uner")).load("da_ddt", "dev")
