"""Malformed input: an error with its location, or skipped and counted."""

from __future__ import annotations

import bz2
import errno
import gzip
import lzma
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from corpus_world import DOCUMENTS, GOOD, config, documents_of, jsonl, write
from hypothesis import given, settings
from hypothesis import strategies as st

from metapt.data import corpus as corpus_module
from metapt.data import text_files
from metapt.data.bad_input import BadInput
from metapt.data.corpus import Corpus, prepare_corpus
from metapt.errors import UserError

MALFORMED = {
    "not json": ("a.jsonl", GOOD + b"{oops\n", ":25", "not JSON"),
    "not an object": ("a.jsonl", GOOD + b"[1]\n", ":25", "not a JSON object with a string field 'text'"),
    "no text": ("a.jsonl", b'{"title": "x"}\n' + GOOD, ":1", "not a JSON object with a string field 'text'"),
    "text is not a string": (
        "a.jsonl",
        GOOD + b'{"text": 3}',
        ":25",
        "not a JSON object with a string field 'text'",
    ),
    "nested too deeply": ("a.jsonl", GOOD + b"[" * 200_000, ":25", "not JSON"),
    "blank text": ("a.jsonl", GOOD + b'{"text": " \\n"}\n', ":25", "empty document"),
    "latin-1": ("a.jsonl", GOOD + '{"text": "café"}\n'.encode("latin-1"), ":25", "not UTF-8"),
    "lone surrogate": ("a.jsonl", GOOD + b'{"text": "\\ud800"}\n', ":25", "not UTF-8"),
    "empty file": ("b.txt", b"", "", "empty file"),
    "blank file": ("b.txt", b"\n \n", "", "empty document"),
    "latin-1 txt": ("b.txt", "one\ntwo\ncafé".encode("latin-1"), ":3", "not UTF-8"),
    "truncated txt.gz": ("b.txt.gz", gzip.compress(b"one\n" * 99)[:-4], "", "truncated or damaged .gz"),
    "truncated txt.zst": (
        "b.txt.zst",
        zstandard.compress(os.urandom(999))[:-4],
        "",
        "truncated or damaged .zst",
    ),
    "not gz": ("b.jsonl.gz", b"plain text", "", "truncated or damaged .gz"),
}


@pytest.mark.parametrize("kind", MALFORMED)
def test_malformed_input(kind: str, small_corpus: Corpus, tmp_path: Path) -> None:
    name, content, line, reason = MALFORMED[kind]
    write(tmp_path / "in" / "a.jsonl", GOOD)
    bad = write(tmp_path / "in" / name, content)
    with pytest.raises(UserError) as raised:
        prepare_corpus(config(tmp_path, tmp_path / "in"))
    assert str(raised.value).startswith(f"{bad}{line}: {reason}; ")
    corpus = prepare_corpus(config(tmp_path, tmp_path / "in", on_bad_input="skip"))
    assert corpus.manifest["skipped"] == {reason: 1}
    assert corpus.fingerprint == small_corpus.fingerprint


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt", "a.jsonl.gz", "a.txt.zst"])
@pytest.mark.parametrize("txt_document", ["file", "block"])
@settings(deadline=None)
@given(
    st.binary(max_size=200)
    | st.lists(st.sampled_from([b'{"text": ', b'"a"', b"}", b"\n", b"\xff", b" "])).map(b"".join)
)
def test_arbitrary_bytes_are_documents_or_counted(
    tmp_path_factory: pytest.TempPathFactory, name: str, txt_document: str, content: bytes
) -> None:
    packed = content
    if name.endswith(".gz") and not content.startswith(b"\xff"):
        packed = gzip.compress(content)
    path = write(tmp_path_factory.mktemp("fuzz") / name, packed)
    bad_input = BadInput("skip")
    documents = list(text_files.read_file(path, txt_document, bad_input))
    assert all(
        document.text.strip() and len(document.text.encode()) == document.bytes for document in documents
    )
    if name == "a.txt" and txt_document == "file":
        assert len(documents) + bad_input.skipped.total() == 1


def test_complete_lines_of_a_truncated_archive_are_kept(tmp_path: Path) -> None:
    texts = [f"{number} {os.urandom(40).hex()}" for number in range(2000)]
    packed = gzip.compress(jsonl(texts))
    bad = write(tmp_path / "in" / "a.jsonl.gz", packed[: len(packed) * 3 // 4])
    with pytest.raises(UserError, match=r"a\.jsonl\.gz: truncated or damaged \.gz"):
        prepare_corpus(config(tmp_path, bad))
    corpus = prepare_corpus(config(tmp_path, bad, on_bad_input="skip"))
    kept = documents_of(corpus.train, corpus) + documents_of(corpus.eval, corpus)
    assert 1000 < len(kept) < 2000
    assert sorted(kept, key=texts.index) == texts[: len(kept)]
    assert corpus.manifest["skipped"] == {"truncated or damaged .gz": 1}


def test_a_truncated_block_is_not_a_document(tmp_path: Path) -> None:
    text = b"".join(b"%d %s\n\n" % (number, os.urandom(2000).hex().encode()) for number in range(100))
    packed = gzip.compress(text)
    source = write(tmp_path / "a.txt.gz", packed[: len(packed) // 2])
    data = config(tmp_path, source, on_bad_input="skip", txt_document="block")
    corpus = prepare_corpus(data)
    lines = set(text.decode().split("\n\n"))
    assert set(documents_of(corpus.eval, corpus)) | set(documents_of(corpus.train, corpus)) < lines


def test_errors_in_blocks_name_the_first_line(tmp_path: Path) -> None:
    source = write(tmp_path / "a.txt", b"one\n\n\ntwo\ntwo\n\n" + "café\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"a\.txt:7: not UTF-8"):
        prepare_corpus(config(tmp_path, source, txt_document="block"))


@pytest.mark.parametrize("policy", ["refuse", "skip"])
@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"body": ["a"]}, "no column 'text'; the columns are body"),
        ({"text": [1]}, "column 'text' contains int64, not strings"),
        (None, "cannot be read"),
    ],
)
def test_an_unusable_parquet_is_an_error_with_any_policy(
    table: Any, message: str, policy: str, tmp_path: Path
) -> None:
    write(tmp_path / "in" / "a.jsonl", GOOD)
    bad = write(tmp_path / "in" / "b.parquet", b"PAR1 but no parquet")
    if table is not None:
        pq.write_table(pa.table(table), bad)
    with pytest.raises(UserError) as raised:
        prepare_corpus(config(tmp_path, tmp_path / "in", on_bad_input=policy))
    assert str(raised.value).startswith(f"{bad}: {message}")


def test_malformed_cells_of_a_parquet(small_corpus: Corpus, tmp_path: Path) -> None:
    latin = pa.StringArray.from_buffers(1, pa.py_buffer(np.array([0, 4], np.int32)), pa.py_buffer(b"caf\xe9"))
    column = pa.chunked_array([pa.array(DOCUMENTS), pa.array([None, " "], pa.string()), latin])
    source = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": column}), source)
    with pytest.raises(UserError, match=r"a\.parquet: row 25: no string in column 'text'"):
        prepare_corpus(config(tmp_path, source))
    corpus = prepare_corpus(config(tmp_path, source, on_bad_input="skip"))
    assert corpus.manifest["skipped"] == {
        "no string in column 'text'": 1,
        "empty document": 1,
        "not UTF-8": 1,
    }
    assert corpus.fingerprint == small_corpus.fingerprint


def test_files_of_other_types_are_named_or_counted(small_corpus: Corpus, tmp_path: Path) -> None:
    write(tmp_path / "in" / "a.jsonl", GOOD)
    for name in ("README.md", "LICENSE", ".d.txt", ".hidden/e.txt"):
        write(tmp_path / "in" / name, b"anything")
    corpus = prepare_corpus(config(tmp_path, tmp_path / "in"))
    assert corpus.manifest["skipped"] == {"hidden or documentation file": 4}
    assert corpus.fingerprint == small_corpus.fingerprint
    for name in ("b.doc", "c.parquet.gz", "f.gz", "readmes.doc"):
        write(tmp_path / "in" / name, b"anything")
    with pytest.raises(UserError, match=r"other types: b\.doc, c\.parquet\.gz, f\.gz, readmes\.doc; known"):
        prepare_corpus(config(tmp_path, tmp_path / "in"))
    corpus = prepare_corpus(config(tmp_path, tmp_path / "in", on_bad_input="skip"))
    assert corpus.manifest["skipped"] == {"hidden or documentation file": 4, "file of another type": 4}
    assert corpus.fingerprint == small_corpus.fingerprint


PACKED = {
    "c4-train.00000-of-01024.json.gz": gzip.compress,  # also the names of Dolma's shards
    "a.json": bytes,
    "A.JSONL": bytes,
    "a.jsonl.xz": lzma.compress,
    "a.jsonl.bz2": bz2.compress,
    "A.JSON.ZST": zstandard.compress,
    "padded.jsonl.gz": lambda content: gzip.compress(content) + bytes(512),
    "two.jsonl.gz": lambda content: gzip.compress(content[:300]) + gzip.compress(content[300:]),
    "two.jsonl.zst": lambda content: zstandard.compress(content[:300]) + zstandard.compress(content[300:]),
}


@pytest.mark.parametrize("name", PACKED)
def test_every_packing_gives_the_same_documents(name: str, tmp_path: Path) -> None:
    source = write(tmp_path / "in" / name, PACKED[name](GOOD))
    bad_input = BadInput("refuse")
    (found,) = text_files.find_files(source.parent, bad_input)
    assert [document.text for document in text_files.read_file(found, "file", bad_input)] == DOCUMENTS


@pytest.mark.parametrize("suffix", [".gz", ".xz", ".bz2"])
def test_a_truncated_archive_is_damaged(suffix: str, tmp_path: Path) -> None:
    pack = {".gz": gzip.compress, ".xz": lzma.compress, ".bz2": bz2.compress}[suffix]
    path = write(tmp_path / f"a.jsonl{suffix}", pack(jsonl([os.urandom(999).hex() for _ in range(50)]))[:-9])
    with pytest.raises(UserError, match=f"truncated or damaged \\{suffix}"):
        list(text_files.read_file(path, "file", BadInput("refuse")))


@pytest.mark.parametrize("kind", [pa.string_view(), pa.binary(), pa.large_binary(), "dictionary"], ids=str)
def test_every_representation_of_text_in_parquet(kind: Any, tmp_path: Path) -> None:
    values = pa.array(DOCUMENTS)
    column = values.dictionary_encode() if kind == "dictionary" else values.cast(kind)
    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
    found = text_files.read_file(tmp_path / "a.parquet", "file", BadInput("refuse"))
    assert [document.text for document in found] == DOCUMENTS


def test_suffixes_in_upper_case_are_known(small_corpus: Corpus, tmp_path: Path) -> None:
    source = write(tmp_path / "A.JSONL.GZ", gzip.compress(GOOD))
    assert prepare_corpus(config(tmp_path, source)).fingerprint == small_corpus.fingerprint


def test_linked_folders_are_read_once(small_corpus: Corpus, tmp_path: Path) -> None:
    """Also if a link leads back to a folder above it, or two links lead to the same folder."""
    write(tmp_path / "scratch" / "deep" / "a.jsonl", GOOD)
    folder = tmp_path / "text"
    folder.mkdir()
    (folder / "part").symlink_to(tmp_path / "scratch")
    (folder / "same").symlink_to(tmp_path / "scratch" / "deep")
    (tmp_path / "scratch" / "loop").symlink_to(folder)
    corpus = prepare_corpus(config(tmp_path, folder))
    assert corpus.fingerprint == small_corpus.fingerprint
    assert [entry["file"] for entry in corpus.manifest["sources"]] == ["part/deep/a.jsonl"]


@pytest.mark.parametrize("policy", ["refuse", "skip"])
def test_folders_that_cannot_be_read_are_refused(
    tmp_path: Path, policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Simulated, because the superuser can read every folder."""
    write(tmp_path / "in" / "a.jsonl", GOOD)
    (tmp_path / "in" / "locked").mkdir()
    real = os.scandir

    def scandir(path: Any) -> Any:
        if str(path).endswith("locked"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(UserError, match=r"in/locked: cannot be read: Permission denied"):
        prepare_corpus(config(tmp_path, tmp_path / "in", on_bad_input=policy))


@pytest.mark.parametrize("policy", ["refuse", "skip"])
def test_errors_with_any_policy(policy: str, tmp_path: Path) -> None:
    def error_message(source: Path, **changes: Any) -> str:
        with pytest.raises(UserError) as raised:
            prepare_corpus(config(tmp_path, source, on_bad_input=policy, **changes))
        return str(raised.value)

    assert "no such file or folder" in error_message(tmp_path / "missing")
    assert "unknown file type" in error_message(write(tmp_path / "a.doc", b"x"))
    (tmp_path / "empty").mkdir()
    assert "contains no text file" in error_message(tmp_path / "empty")
    assert "the corpus is empty" in error_message(write(tmp_path / "blank.jsonl", b"\n\n"))
    one = error_message(write(tmp_path / "one.txt", b"one document"))
    assert "0.3 of 1 document(s) leaves" in one
    assert "txt_document" in one
    assert "of 24 document(s) leaves 24 for training and 0 held out" in error_message(
        write(tmp_path / "a.jsonl", GOOD), eval_fraction=1e-9
    )
    write(tmp_path / "in" / "a.jsonl", GOOD)
    (tmp_path / "in" / "b.jsonl").symlink_to(tmp_path / "gone.jsonl")
    assert "b.jsonl: cannot be read" in error_message(tmp_path / "in")


def test_the_choice_of_held_out_documents_is_the_same_for_every_tokenizer(tmp_path: Path, monkeypatch):
    """Also for one that leaves documents out: the others keep their numbers, and with them their split."""
    source = write(tmp_path / "all.jsonl", jsonl())
    whole = prepare_corpus(config(tmp_path, source))
    real = corpus_module._ids
    monkeypatch.setattr(
        corpus_module, "BATCH_DOCUMENTS", 5
    )  # also where documents are encoded in several batches

    def ids(batch: list[Any], tokenizer: Any) -> Any:
        for document, tokens in zip(batch, real(batch, tokenizer), strict=True):
            yield tokens[:0] if "Document 3:" in document.text else tokens

    monkeypatch.setattr(corpus_module, "_ids", ids)
    less = prepare_corpus(config(tmp_path / "less", source, on_bad_input="skip"))
    assert less.manifest["skipped"] == {"empty document": 1}
    kept = {split: documents_of(getattr(less, split), less) for split in ("train", "eval")}
    for split, texts in kept.items():
        expected = documents_of(getattr(whole, split), whole)
        assert texts == [text for text in expected if not text.startswith("Document 3:")]
    assert sum(map(len, kept.values())) == len(DOCUMENTS) - 1


def test_a_corpus_of_malformed_input_alone(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", b"{}\n{}\n")
    with pytest.raises(UserError, match=r"the corpus is empty \(2 skipped\)"):
        prepare_corpus(config(tmp_path, source, on_bad_input="skip"))
