"""Input of `metapt tag`: lines as they arrive, sentences of text, and sentences in columns."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from metapt.data.bad_input import refusing
from metapt.data.columns import ColumnLayout
from metapt.data.iob2 import read_iob2
from metapt.data.labelled_files import FileOptions, read_sentences
from metapt.errors import UserError
from metapt.inference.streams import ColumnReader, available_lines, text_sentences


class ChunkedStream(io.BytesIO):
    """A stream that returns one part per read, like a pipe."""

    def __init__(self, *parts: bytes):
        super().__init__()
        self.parts = iter(parts)

    def read1(self, size: int | None = -1) -> bytes:
        return next(self.parts, b"")


def test_lines_are_yielded_as_they_arrive() -> None:
    stream = ChunkedStream("\ufeffa\r\nMar".encode(), b"ia\n\nx", b"\xc3", b"\xb1\n", b"end")
    assert list(available_lines(stream, "f")) == [
        [(1, "a")],
        [(2, "Maria"), (3, "")],
        [],
        [(4, "xñ")],
        [],
        [(5, "end")],
    ]
    arriving = text_sentences(available_lines(ChunkedStream(b"a  b\n", b"c"), "f"))
    assert [[each.content for each in batch] for batch in arriving] == [["a  b"], [], ["c"]]
    with pytest.raises(UserError, match="f:2: not UTF-8 at byte 3"):
        list(available_lines(ChunkedStream(b"ok\nab\xff\n"), "f"))


def test_column_sentences_are_yielded_when_they_end() -> None:
    data = [b"# sent_id = 1\n1\tMaria\tO\n2\t#\t", b"O\n\n\n# x\n# y\n", b"1\ta b\tO\n"]
    arriving = list(ColumnReader("f", None).read(available_lines(ChunkedStream(*data), "f")))
    assert [[each.content for each in batch] for batch in arriving] == [[], [["Maria", "#"]], [], [["a b"]]]
    assert [each.comments for batch in arriving for each in batch] == [("# sent_id = 1",), ("# x", "# y")]
    with pytest.raises(UserError, match=r"f:2: no word in column 2 \(the line has 1 columns\)"):
        read_columns("\nEU\n", word_column=2)


def read_columns(text: str, word_column: int | None = None) -> list[str | list[str]]:
    lines = available_lines(ChunkedStream(text.encode()), "f")
    return [each.content for batch in ColumnReader("f", word_column).read(lines) for each in batch]


def test_a_hashtag_that_begins_a_sentence_is_a_word() -> None:
    assert read_columns("#Cebu\nis\n#1\n\n# a comment\n#id=2\n####\n#Davao\n") == [
        ["#Cebu", "is", "#1"],
        ["#Davao"],
    ]
    assert read_columns("#Cebu\tB-LOC\nis\tO\n") == [["#Cebu", "is"]]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("#Cebu B-LOC\nis O\n\n# O\n1 O\n", [["#Cebu", "is"], ["#", "1"]]),
        (
            "is VBZ\n\n#Cebu NNP\n\n# 3\n# text = x y\n#Davao NNP\n#Cebu NNP\nis VBZ\n",
            [["is"], ["#Cebu"], ["#Davao", "#Cebu", "is"]],
        ),
        ("# id 7f\tdomain=en\nAna _ _ B-PER\n\n# id 8\tdomain=en\nis _ _ O\n", [["Ana"], ["is"]]),
        ("10\u00a0000 B-PER\n\u3000 O\n\nis\u2003not O\n", [["10\u00a0000", "\u3000"], ["is\u2003not"]]),
        ("1\t\u3000\tO\n2\tAna\tB-PER\n", [["\u3000", "Ana"]]),
    ],
)
def test_words_are_those_of_labelled_files(text: str, expected: list[list[str]], tmp_path: Path) -> None:
    """Words that begin with #, and white space other than spaces and tabs."""
    assert read_columns(text) == expected
    file = tmp_path / "test.conll"
    file.write_text(text.replace("VBZ", "O").replace("NNP", "B-LOC").replace("# 3\n", ""), encoding="utf-8")
    read = read_sentences(file, FileOptions(types={}), refusing(), lambda remark: None)
    assert [list(sentence.words) for sentence in read] == expected


CONLL_U = """\
# text = Vivo del mar.
1\tVivo\tvivir\tVERB
2-3\tdel\t_\t_
2\tde\tde\tADP
3\tel\tel\tDET
3.1\tvive\tvivir\tVERB
4\tmar\tmar\tNOUN

1\tSí\tsí\tINTJ
"""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("EU NNP B-NP B-ORG\nrejects VBZ B-VP O\n", [["EU", "rejects"]]),
        ("Maria\tB-PER\nlives\tO\n", [["Maria", "lives"]]),
        ("Maria\nlives\n", [["Maria", "lives"]]),
        ("-DOCSTART- -X- -X- O\n\nEU NNP\n-DOCSTART- -X-\nMaria NNP\n", [["EU"], ["Maria"]]),
        ("1\tMaria\tB-PER\t-\t-\n", [["Maria"]]),
        ("1\tO\n\n2\tO\n", [["1"], ["2"]]),  # sentences of one numeral
        ("1990\tO\nMaria\tB-PER\n", [["1990", "Maria"]]),
        (CONLL_U, [["Vivo", "de", "el", "mar"], ["Sí"]]),
        ("2-3 O\nMaria O\n", [["2-3", "Maria"]]),  # a score, not a range: no column counts the words
    ],
)
def test_column_of_the_words_is_recognised(text: str, expected: list[list[str]]) -> None:
    assert read_columns(text) == expected


def test_word_column_overrides_what_is_recognised() -> None:
    assert read_columns("EU NNP\n", word_column=2) == [["NNP"]]
    assert read_columns(CONLL_U, word_column=3) == [["vivir", "de", "el", "mar"], ["sí"]]


def test_ranges_and_empty_nodes_of_labelled_files_are_left_out(tmp_path: Path) -> None:
    rows = ["1\tVivo\tO", "2-3\tdel\t_", "2\tde\tO", "3\tel\tO", "3.1\tvive\t_", "4\tMar\tB-LOC"]
    file = tmp_path / "test.iob2"
    file.write_text("".join(f"{row}\t-\t-\n" for row in rows), encoding="utf-8")
    (found,) = read_iob2(file)
    assert (found.words, found.tags) == (("Vivo", "de", "el", "Mar"), ("O", "O", "O", "B-LOC"))
    file.write_text("2-3 O\nMaria B-PER\n", encoding="utf-8")
    (found,) = read_iob2(file, ColumnLayout(("word", "tag"), "space"))
    assert found.words == ("2-3", "Maria")
