"""The corpus: every format gives the same tokens, bad input is refused or counted, one builder at a time."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from metapt import prepare
from metapt.config import CorpusConfig
from metapt.data import corpus as corpus_module
from metapt.data import reading, tokenizers
from metapt.data.corpus import Corpus, prepare_corpus
from metapt.data.shards import ShardWriter, TokenStream
from metapt.errors import OperationalError, UserError

DOCUMENTS = [
    f"Document {number}: the river near Malmö was café-brown.\nIts second line, {number * 7}."
    for number in range(24)
]


def config(tmp_path: Path, source: Path, **changes: Any) -> CorpusConfig:
    given: dict[str, Any] = {
        "name": "text",
        "text_dir": str(source),
        "vocab_size": 300,
        "heldout_share": 0.3,
        "cache_dir": str(tmp_path / "cache"),
    }
    return CorpusConfig(**{**given, **changes})


def jsonl(texts: list[str] = DOCUMENTS) -> bytes:
    return b"".join(
        json.dumps({"text": text, "title": "x"}, ensure_ascii=False).encode() + b"\n" for text in texts
    )


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def everything(stream: TokenStream) -> list[int]:
    return stream.tokens(0, len(stream)).tolist()


def documents_of(stream: TokenStream, corpus: Corpus) -> list[str]:
    """The texts of a split, from its tokens."""
    tokenizer = AutoTokenizer.from_pretrained(corpus.tokenizer_dir)
    texts: list[list[int]] = [[]]
    for token in everything(stream):
        if token == corpus.tokenizer.eos_id:
            texts.append([])
        else:
            texts[-1].append(token)
    assert texts.pop() == [], "the split ends with end-of-text"
    return [tokenizer.decode(ids, clean_up_tokenization_spaces=False) for ids in texts]


def as_txt_folder(folder: Path) -> Path:
    for number, text in enumerate(DOCUMENTS):
        line_end = "\r\n" if number % 2 else "\n"
        bom = b"\xef\xbb\xbf" if number == 3 else b""
        name = f"{'deep/er' if number > 20 else 'deep'}/{number:03d}.txt"
        write(folder / name, bom + (text + "\n").replace("\n", line_end).encode())
    return folder


def as_parquet(folder: Path) -> Path:
    folder.mkdir()
    table = pa.table({"other": list(range(len(DOCUMENTS))), "text": DOCUMENTS})
    pq.write_table(table, folder / "a.parquet", row_group_size=7)
    return folder


def as_two_zst_frames(folder: Path) -> Path:
    compress = zstandard.ZstdCompressor().compress
    return write(folder / "a.jsonl.zst", compress(jsonl(DOCUMENTS[:9])) + compress(jsonl(DOCUMENTS[9:])))


def as_two_files(folder: Path) -> Path:
    write(folder / "b" / "a.jsonl", jsonl(DOCUMENTS[11:]))
    write(folder / "a.jsonl", jsonl(DOCUMENTS[:11]))
    return folder


FORMATS = {
    "jsonl": lambda folder: write(folder / "a.jsonl", b"\xef\xbb\xbf" + jsonl() + b"\n \n"),
    "jsonl without a last line end": lambda folder: write(folder / "a.jsonl", jsonl()[:-1]),
    "jsonl.gz": lambda folder: write(folder / "a.jsonl.gz", gzip.compress(jsonl())),
    "jsonl.gz, two members": lambda folder: write(
        folder / "a.jsonl.gz", gzip.compress(jsonl(DOCUMENTS[:5])) + gzip.compress(jsonl(DOCUMENTS[5:]))
    ),
    "jsonl.zst, two frames": as_two_zst_frames,
    "parquet": as_parquet,
    "txt, one a file": as_txt_folder,
    "two files": as_two_files,
    "txt blocks": lambda folder: write(
        folder / "a.txt.zst", zstandard.compress(b"\n" + b"\n\r\n \n".join(map(str.encode, DOCUMENTS)))
    ),
}


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder = tmp_path_factory.mktemp("expected")
    return prepare_corpus(config(folder, write(folder / "all.jsonl", jsonl())))


@pytest.mark.parametrize("kind", FORMATS)
def test_each_format_gives_the_same_corpus(kind: str, expected: Corpus, tmp_path: Path) -> None:
    source = FORMATS[kind](tmp_path / "in")
    corpus = prepare_corpus(config(tmp_path, source, txt_document="block" if "blocks" in kind else "file"))
    assert everything(corpus.train) == everything(expected.train)
    assert everything(corpus.heldout) == everything(expected.heldout)
    assert corpus.fingerprint == expected.fingerprint


def test_splits_hold_every_document_once_in_order_and_the_manifest_counts_them(expected: Corpus) -> None:
    train, heldout = documents_of(expected.train, expected), documents_of(expected.heldout, expected)
    assert sorted(train + heldout, key=DOCUMENTS.index) == DOCUMENTS
    assert [DOCUMENTS.index(text) for text in train] == sorted(DOCUMENTS.index(text) for text in train)
    assert 1 <= len(heldout) < len(train)
    for name, stream, texts in (("train", expected.train, train), ("heldout", expected.heldout, heldout)):
        counts = expected.manifest["splits"][name]
        assert counts["documents"] == len(texts)
        assert counts["tokens"] == len(stream) == sum(shard["tokens"] for shard in counts["shards"])
        assert counts["bytes"] == sum(len(text.encode()) for text in texts)
    assert expected.manifest["skipped"] == {}
    assert [source["file"] for source in expected.manifest["sources"]] == ["all.jsonl"]
    assert expected.tokenizer.size == 300
    assert expected.manifest["dtype"] == "uint16"


def test_text_that_spells_special_tokens_makes_none(tmp_path: Path) -> None:
    texts = [f"{text} <|mask|> and <|endoftext|>" for text in DOCUMENTS]
    corpus = prepare_corpus(config(tmp_path, write(tmp_path / "a.jsonl", jsonl(texts))))
    for stream, name in ((corpus.train, "train"), (corpus.heldout, "heldout")):
        assert corpus.tokenizer.mask_id not in everything(stream)
        assert (
            everything(stream).count(corpus.tokenizer.eos_id) == corpus.manifest["splits"][name]["documents"]
        )
    assert set(documents_of(corpus.train, corpus)) < set(texts)


def test_max_tokens_ends_after_the_document_that_reaches_it(expected: Corpus, tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", jsonl())
    corpus = prepare_corpus(config(tmp_path, source, max_tokens=300))
    total = len(corpus.train) + len(corpus.heldout)
    longest = max(np.diff(np.flatnonzero(np.array(everything(expected.train)) == expected.tokenizer.eos_id)))
    assert 300 <= total < 300 + longest + 5
    assert everything(corpus.train) == everything(expected.train)[: len(corpus.train)]


def test_the_held_out_share_is_met_and_a_longer_corpus_holds_out_the_same(tmp_path: Path) -> None:
    texts = [f"text {number}" for number in range(4000)]
    tokenizer = tokenizers.train_tokenizer(texts, 300)
    tokenizers.save_tokenizer(tokenizer, tmp_path / "tokenizer", "bpe")
    long, short = (
        prepare_corpus(
            config(
                tmp_path,
                write(tmp_path / f"{size}.jsonl", jsonl(texts[:size])),
                heldout_share=0.1,
                tokenizer=str(tmp_path / "tokenizer"),
            )
        )
        for size in (4000, 1500)
    )
    heldout = documents_of(long.heldout, long)
    assert abs(len(heldout) - 400) < 4 * (4000 * 0.1 * 0.9) ** 0.5
    assert documents_of(short.heldout, short) == [text for text in heldout if text in set(texts[:1500])]


# --- shards -------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=12),
    shard_tokens=st.integers(1, 11),
    wide=st.booleans(),
    draws=st.data(),
)
def test_windows_equal_slices_of_the_whole(
    tmp_path_factory: pytest.TempPathFactory,
    sizes: list[int],
    shard_tokens: int,
    wide: bool,
    draws: st.DataObject,
) -> None:
    dtype = np.dtype(np.uint32 if wide else np.uint16)
    whole = np.random.default_rng(sum(sizes)).integers(0, 2**16 * (9 if wide else 1), sum(sizes))
    folder = tmp_path_factory.mktemp("shards")
    writer = ShardWriter(folder, "train", dtype, shard_tokens)
    for ids in np.split(whole, np.cumsum(sizes)[:-1]):
        writer.add(ids, 0)
    entry: Any = writer.finish()
    files = [folder / shard["file"] for shard in entry["shards"]]
    assert [shard["tokens"] for shard in entry["shards"][:-1]] == [shard_tokens] * (len(files) - 1)
    stream = TokenStream(files, dtype)
    assert len(stream) == len(whole) == entry["tokens"]
    length = draws.draw(st.integers(1, len(whole)))
    starts = draws.draw(st.lists(st.integers(0, len(whole) - length), max_size=8))
    windows = stream.windows(np.array(starts, dtype=np.int64), length)
    assert windows.dtype == np.int64
    assert windows.shape == (len(starts), length)
    for window, start in zip(windows, starts, strict=True):
        assert window.tolist() == whole[start : start + length].tolist()
        assert stream.tokens(start, start + length).tolist() == window.tolist()


def test_windows_and_tokens_outside_of_the_stream_are_refused(expected: Corpus) -> None:
    stream, size = expected.train, len(expected.train)
    for starts in ([-1], [size - 3], [0, size]):
        with pytest.raises(IndexError):
            stream.windows(np.array(starts), 4)
    for start, stop in ((-1, 2), (0, size + 1), (3, 2)):
        with pytest.raises(IndexError):
            stream.tokens(start, stop)


def test_the_size_of_shards_does_not_change_the_content(expected: Corpus, tmp_path: Path) -> None:
    corpus = prepare_corpus(config(tmp_path, write(tmp_path / "all.jsonl", jsonl())), shard_tokens=100)
    assert len(corpus.manifest["splits"]["train"]["shards"]) > 3
    assert corpus.fingerprint == expected.fingerprint
    assert everything(corpus.train) == everything(expected.train)


# --- re-use -------------------------------------------------------------------------------------------------


def test_an_unchanged_corpus_is_reused_wherever_the_text_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = prepare_corpus(config(tmp_path, write(tmp_path / "one" / "a.jsonl", jsonl())))
    monkeypatch.setattr(corpus_module._Build, "run", lambda *_: pytest.fail("built again"))
    copy = write(tmp_path / "two" / "a.jsonl", jsonl())
    os.utime(copy, (1, 1))
    again = prepare_corpus(config(tmp_path, copy.parent))
    assert (again.folder, again.fingerprint) == (first.folder, first.fingerprint)


@pytest.mark.parametrize(
    "change", [{"vocab_size": 310}, {"heldout_share": 0.4}, {"max_tokens": 400}, {"on_bad_input": "skip"}]
)
def test_another_setting_gives_another_folder(change: dict[str, Any], tmp_path: Path) -> None:
    data = config(tmp_path, write(tmp_path / "a.jsonl", jsonl()))
    assert prepare_corpus(data).folder != prepare_corpus(replace(data, **change)).folder


def test_another_text_or_seed_gives_another_folder_and_fingerprint(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", jsonl())
    data = config(tmp_path, source)
    corpora = [prepare_corpus(data), prepare_corpus(data, seed=1)]
    write(source, jsonl([*DOCUMENTS[:-1], "changed"]))
    corpora.append(prepare_corpus(data))
    assert len({corpus.folder for corpus in corpora}) == len({corpus.fingerprint for corpus in corpora}) == 3


def test_another_tokenizer_gives_another_folder(expected: Corpus, tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", jsonl())
    file = expected.tokenizer_dir / "tokenizer.json"
    given = prepare_corpus(config(tmp_path, source, tokenizer=str(file)))
    trained = prepare_corpus(config(tmp_path, source))
    assert given.folder != trained.folder
    assert given.tokenizer == replace(trained.tokenizer, name="tokenizer.json")
    assert everything(given.train) == everything(trained.train)


def test_a_damaged_shard_is_noticed(tmp_path: Path) -> None:
    data = config(tmp_path, write(tmp_path / "a.jsonl", jsonl()))
    shard = prepare_corpus(data).folder / "train_00000.bin"
    shard.write_bytes(shard.read_bytes()[:-2])
    with pytest.raises(UserError, match=r"train_00000\.bin: damaged"):
        prepare_corpus(data)


BUILDER = """
import sys, time
from pathlib import Path
from metapt.config import CorpusConfig
from metapt.data import corpus
folder, source = Path(sys.argv[1]), sys.argv[2]
write = corpus._Build._write
def slow(self, *arguments):
    (folder / "builds").touch()
    time.sleep(float(sys.argv[3]))
    return write(self, *arguments)
corpus._Build._write = slow
data = CorpusConfig(name="text", text_dir=source, vocab_size=300, heldout_share=0.3, cache_dir=str(folder / "cache"))
print(corpus.prepare_corpus(data).fingerprint)
"""


def start_builder(tmp_path: Path, source: Path, seconds: float) -> subprocess.Popen[str]:
    """Another process that builds the corpus; it makes a file `builds` and then sleeps before it writes shards."""
    arguments = [sys.executable, "-c", BUILDER, str(tmp_path), str(source), str(seconds)]
    return subprocess.Popen(
        arguments, stdout=subprocess.PIPE, text=True, cwd=Path(corpus_module.__file__).parents[2]
    )


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline, path
        time.sleep(0.01)


def test_two_processes_at_once_build_one(
    expected: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write(tmp_path / "all.jsonl", jsonl())
    builder = start_builder(tmp_path, source, 1.0)
    wait_for(tmp_path / "builds")
    monkeypatch.setattr(corpus_module._Build, "run", lambda *_: pytest.fail("built a second time"))
    corpus = prepare_corpus(config(tmp_path, source))
    assert builder.communicate(timeout=60)[0].strip() == corpus.fingerprint == expected.fingerprint


def test_a_killed_builder_leaves_nothing_that_is_taken_for_a_corpus(expected: Corpus, tmp_path: Path) -> None:
    source = write(tmp_path / "all.jsonl", jsonl())
    builder = start_builder(tmp_path, source, 60)
    wait_for(tmp_path / "builds")
    builder.kill()
    builder.communicate(timeout=60)
    left = sorted(path.name for path in (tmp_path / "cache").iterdir())
    assert [name.endswith(".building") for name in left] == [True, False], left
    assert left[1].endswith(".lock")
    corpus = prepare_corpus(config(tmp_path, source))
    assert corpus.fingerprint == expected.fingerprint
    assert not list((tmp_path / "cache").glob(".*"))


def test_a_failed_build_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError):
        prepare_corpus(config(tmp_path, write(tmp_path / "a.jsonl", jsonl() + b"{}\n")))
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".lock"]


# --- bad input ----------------------------------------------------------------------------------------------

GOOD = jsonl()
BAD = {
    "no json": ("a.jsonl", GOOD + b"{oops\n", ":25", "not JSON"),
    "no object": ("a.jsonl", GOOD + b"[1]\n", ":25", "not a JSON object with a string field 'text'"),
    "no text": ("a.jsonl", b'{"title": "x"}\n' + GOOD, ":1", "not a JSON object with a string field 'text'"),
    "text no string": (
        "a.jsonl",
        GOOD + b'{"text": 3}',
        ":25",
        "not a JSON object with a string field 'text'",
    ),
    "nested too deep": ("a.jsonl", GOOD + b"[" * 200_000, ":25", "not JSON"),
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
    "no gz": ("b.jsonl.gz", b"plain text", "", "truncated or damaged .gz"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_input_is_refused_with_its_place_or_counted(kind: str, expected: Corpus, tmp_path: Path) -> None:
    name, content, line, reason = BAD[kind]
    write(tmp_path / "in" / "a.jsonl", GOOD)
    bad = write(tmp_path / "in" / name, content)
    with pytest.raises(UserError) as raised:
        prepare_corpus(config(tmp_path, tmp_path / "in"))
    assert str(raised.value).startswith(f"{bad}{line}: {reason}; ")
    corpus = prepare_corpus(config(tmp_path, tmp_path / "in", on_bad_input="skip"))
    assert corpus.manifest["skipped"] == {reason: 1}
    assert corpus.fingerprint == expected.fingerprint


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt", "a.jsonl.gz", "a.txt.zst"])
@pytest.mark.parametrize("txt_document", ["file", "block"])
@settings(deadline=None)
@given(
    st.binary(max_size=200)
    | st.lists(st.sampled_from([b'{"text": ', b'"a"', b"}", b"\n", b"\xff", b" "])).map(b"".join)
)
def test_any_bytes_are_read_or_counted(
    tmp_path_factory: pytest.TempPathFactory, name: str, txt_document: str, content: bytes
) -> None:
    packed = content
    if name.endswith(".gz") and not content.startswith(b"\xff"):
        packed = gzip.compress(content)
    path = write(tmp_path_factory.mktemp("fuzz") / name, packed)
    faults = reading.Faults("skip")
    found = list(reading.read_file(path, txt_document, faults))
    assert all(document.text.strip() and len(document.text.encode()) == document.bytes for document in found)
    if name == "a.txt" and txt_document == "file":
        assert len(found) + faults.skipped.total() == 1


def test_the_whole_lines_of_a_truncated_archive_are_kept(tmp_path: Path) -> None:
    texts = [f"{number} {os.urandom(40).hex()}" for number in range(2000)]
    packed = gzip.compress(jsonl(texts))
    bad = write(tmp_path / "in" / "a.jsonl.gz", packed[: len(packed) * 3 // 4])
    with pytest.raises(UserError, match=r"a\.jsonl\.gz: truncated or damaged \.gz"):
        prepare_corpus(config(tmp_path, bad))
    corpus = prepare_corpus(config(tmp_path, bad, on_bad_input="skip"))
    kept = documents_of(corpus.train, corpus) + documents_of(corpus.heldout, corpus)
    assert 1000 < len(kept) < 2000
    assert sorted(kept, key=texts.index) == texts[: len(kept)]
    assert corpus.manifest["skipped"] == {"truncated or damaged .gz": 1}


def test_a_block_that_a_truncation_cuts_is_no_document(tmp_path: Path) -> None:
    text = b"".join(b"%d %s\n\n" % (number, os.urandom(2000).hex().encode()) for number in range(100))
    packed = gzip.compress(text)
    source = write(tmp_path / "a.txt.gz", packed[: len(packed) // 2])
    data = config(tmp_path, source, on_bad_input="skip", txt_document="block")
    corpus = prepare_corpus(data)
    lines = set(text.decode().split("\n\n"))
    assert set(documents_of(corpus.heldout, corpus)) | set(documents_of(corpus.train, corpus)) < lines


def test_blocks_tell_the_line_where_they_start(tmp_path: Path) -> None:
    source = write(tmp_path / "a.txt", b"one\n\n\ntwo\ntwo\n\n" + "café\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"a\.txt:7: not UTF-8"):
        prepare_corpus(config(tmp_path, source, txt_document="block"))


@pytest.mark.parametrize("policy", ["refuse", "skip"])
@pytest.mark.parametrize(
    ("table", "complaint"),
    [
        ({"body": ["a"]}, "no column 'text'; it has body"),
        ({"text": [1]}, "column 'text' holds int64, not strings"),
        (None, "cannot be read"),
    ],
)
def test_an_unusable_parquet_is_always_refused(
    table: Any, complaint: str, policy: str, tmp_path: Path
) -> None:
    write(tmp_path / "in" / "a.jsonl", GOOD)
    bad = write(tmp_path / "in" / "b.parquet", b"PAR1 but no parquet")
    if table is not None:
        pq.write_table(pa.table(table), bad)
    with pytest.raises(UserError) as raised:
        prepare_corpus(config(tmp_path, tmp_path / "in", on_bad_input=policy))
    assert str(raised.value).startswith(f"{bad}: {complaint}")


def test_bad_cells_of_a_parquet(expected: Corpus, tmp_path: Path) -> None:
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
    assert corpus.fingerprint == expected.fingerprint


def test_files_of_other_types_and_hidden_ones_are_counted_and_not_refused(
    expected: Corpus, tmp_path: Path
) -> None:
    write(tmp_path / "in" / "a.jsonl", GOOD)
    for name in ("README.md", "b.json", "c.parquet.gz", ".d.txt", ".hidden/e.txt", "f.gz"):
        write(tmp_path / "in" / name, b"anything")
    corpus = prepare_corpus(config(tmp_path, tmp_path / "in"))
    assert corpus.manifest["skipped"] == {"file of another type": 6}
    assert corpus.fingerprint == expected.fingerprint


@pytest.mark.parametrize("policy", ["refuse", "skip"])
def test_what_is_always_refused(policy: str, tmp_path: Path) -> None:
    def complaint(source: Path, **changes: Any) -> str:
        with pytest.raises(UserError) as raised:
            prepare_corpus(config(tmp_path, source, on_bad_input=policy, **changes))
        return str(raised.value)

    assert "no such file or folder" in complaint(tmp_path / "missing")
    assert "unknown type of file" in complaint(write(tmp_path / "a.doc", b"x"))
    (tmp_path / "empty").mkdir()
    assert "no file to read" in complaint(tmp_path / "empty")
    assert "the corpus is empty" in complaint(write(tmp_path / "blank.jsonl", b"\n\n"))
    one = complaint(write(tmp_path / "one.txt", b"one document"))
    assert "0.3 of 1 document(s) gives" in one
    assert "txt_document" in one
    assert "of 24 document(s) gives 24 for training and 0 held out" in complaint(
        write(tmp_path / "a.jsonl", GOOD), heldout_share=1e-9
    )
    write(tmp_path / "in" / "a.jsonl", GOOD)
    (tmp_path / "in" / "b.jsonl").symlink_to(tmp_path / "gone.jsonl")
    assert "b.jsonl: cannot be read" in complaint(tmp_path / "in")


def test_a_corpus_of_nothing_but_bad_input_is_empty(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", b"{}\n{}\n")
    with pytest.raises(UserError, match=r"the corpus is empty \(2 skipped\)"):
        prepare_corpus(config(tmp_path, source, on_bad_input="skip"))


# --- hub ----------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A stand-in for the hub: `rows` is what load_dataset streams, `asked` what it was asked for."""
    state = SimpleNamespace(rows=[], asked=[])

    def load_dataset(name: str, **arguments: Any) -> Any:
        state.asked.append((name, arguments))
        return datasets.Dataset.from_list(state.rows).to_iterable_dataset()

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return state


def hub_config(tmp_path: Path, expected: Corpus, **changes: Any) -> CorpusConfig:
    given = {
        "name": "hub",
        "tokenizer": str(expected.tokenizer_dir),
        "text_dir": None,
        "hub_name": "some/corpus",
    }
    return config(tmp_path, tmp_path, **{**given, **changes})


def test_a_text_column_of_the_hub(hub: SimpleNamespace, expected: Corpus, tmp_path: Path) -> None:
    hub.rows = [{"id": 1, "body": text} for text in DOCUMENTS]
    data = hub_config(
        tmp_path, expected, tokenizer="train", hub_column="body", hub_split="part", hub_revision="abc"
    )
    corpus = prepare_corpus(data)
    assert corpus.fingerprint == expected.fingerprint
    assert hub.asked[0] == ("some/corpus", {"split": "part", "revision": "abc", "streaming": True})
    assert corpus.manifest["sources"] == [
        {"hub": "some/corpus", "revision": "abc", "split": "part", "column": "body"}
    ]
    asked = len(hub.asked)
    assert prepare_corpus(data).folder == corpus.folder
    assert len(hub.asked) == asked, "a corpus that is there needs no hub"


def test_a_tokenised_column_of_the_hub(hub: SimpleNamespace, expected: Corpus, tmp_path: Path) -> None:
    eos = expected.tokenizer.eos_id
    encoded = tokenizers.encode(tokenizers.load_tokenizer(expected.tokenizer_dir), DOCUMENTS)
    hub.rows = [{"input_ids": [*ids, eos]} for ids in encoded]
    corpus = prepare_corpus(hub_config(tmp_path, expected))
    assert corpus.fingerprint == expected.fingerprint
    assert {counts["bytes"] for counts in corpus.manifest["splits"].values()} == {0}


def test_tokenised_rows_are_taken_as_they_are(hub: SimpleNamespace, expected: Corpus, tmp_path: Path) -> None:
    """They are chunks of packed documents: an end-of-text of ours would stand in the middle of a sentence."""
    encoded = tokenizers.encode(tokenizers.load_tokenizer(expected.tokenizer_dir), DOCUMENTS)
    hub.rows = [{"input_ids": ids} for ids in encoded]
    corpus = prepare_corpus(hub_config(tmp_path, expected))
    stored = everything(corpus.train) + everything(corpus.heldout)
    assert sorted(stored) == sorted(token for ids in encoded for token in ids)


@pytest.mark.parametrize("value", [7, ["a"], [1.5], {"x": 1}])
def test_a_column_of_something_else_is_refused(
    value: Any, hub: SimpleNamespace, expected: Corpus, tmp_path: Path
) -> None:
    hub.rows = [{"input_ids": value}]
    with pytest.raises(UserError, match=r"row 1: column 'input_ids'.*neither text nor lists of token ids"):
        prepare_corpus(hub_config(tmp_path, expected))


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ([], "empty document"),
        (None, "empty document"),
        ([1, 300], "token id outside of tokenizer"),
        ([-1], "token id outside of tokenizer"),
        ([299], "token id outside of tokenizer"),  # the mask
    ],
)
def test_bad_rows_of_a_tokenised_column(
    row: Any, reason: str, hub: SimpleNamespace, expected: Corpus, tmp_path: Path
) -> None:
    encoded = tokenizers.encode(tokenizers.load_tokenizer(expected.tokenizer_dir), DOCUMENTS)
    closed = [[*ids, expected.tokenizer.eos_id] for ids in encoded]
    hub.rows = [{"input_ids": ids} for ids in [*closed, row]]
    with pytest.raises(UserError) as raised:
        prepare_corpus(hub_config(tmp_path, expected))
    assert str(raised.value).startswith(f"some/corpus[train] row 25: {reason};")
    corpus = prepare_corpus(hub_config(tmp_path, expected, on_bad_input="skip"))
    assert corpus.manifest["skipped"] == {reason: 1}
    assert corpus.fingerprint == expected.fingerprint


def test_mistakes_about_the_hub(
    hub: SimpleNamespace, expected: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.rows = [{"input_ids": [1, 2]}]
    with pytest.raises(UserError, match=r"no column 'text' \(data.hub_column\); it has input_ids"):
        prepare_corpus(hub_config(tmp_path, expected, hub_column="text"))
    with pytest.raises(UserError, match=r"row 1: already tokenised; data\.tokenizer must name its tokenizer"):
        prepare_corpus(hub_config(tmp_path, expected, tokenizer="train"))

    def failing(error: Exception) -> Any:
        def load_dataset(*_: Any, **__: Any) -> Iterator[Any]:
            raise error

        return load_dataset

    for error, kind in (
        (datasets.exceptions.DatasetNotFoundError("no such set\nmore"), UserError),
        (ValueError("Bad split"), UserError),
        (ConnectionError("no network"), OperationalError),
    ):
        monkeypatch.setattr(datasets, "load_dataset", failing(error))
        with pytest.raises(kind, match=str(error).splitlines()[0]):
            prepare_corpus(hub_config(tmp_path, expected))


def test_a_local_data_set_is_read_by_the_real_loader(expected: Corpus, tmp_path: Path) -> None:
    write(tmp_path / "set" / "train.jsonl", GOOD)
    corpus = prepare_corpus(
        hub_config(tmp_path, expected, tokenizer="train", hub_name=str(tmp_path / "set"), hub_column="text")
    )
    assert corpus.fingerprint == expected.fingerprint


# --- as a whole ---------------------------------------------------------------------------------------------


def test_prepare_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write(tmp_path / "a.jsonl", GOOD + b"{}\n")
    arguments = [
        "data=text",
        f"data.text_dir={source}",
        f"data.cache_dir={tmp_path}/cache",
        "data.vocab_size=300",
    ]
    arguments += ["data.heldout_share=0.3", "data.on_bad_input=skip"]
    prepare.main(arguments)
    printed, progress = capsys.readouterr()
    assert progress.startswith("training a byte-level BPE of 300 entries")
    (folder,) = (path for path in (tmp_path / "cache").iterdir() if path.is_dir())
    corpus = Corpus.open(folder)
    assert str(folder) in printed
    assert f"{len(corpus.train):,} tokens" in printed
    assert "1 x not a JSON object" in printed
    prepare.main(arguments)
    assert capsys.readouterr().out == printed


def test_the_demo_corpus(tmp_path: Path) -> None:
    data = config(tmp_path, tmp_path, name="demo", text_dir=None, vocab_size=1000, heldout_share=0.05)
    corpus = prepare_corpus(data)
    assert len(corpus.train) > 100_000
    assert corpus.tokenizer.size == 1000
    assert 0.03 < len(corpus.heldout) / len(corpus.train) < 0.08
    assert corpus.manifest["skipped"] == {}


@pytest.mark.real_data
def test_real_text_with_the_olmo_tokenizer(tmp_path: Path) -> None:
    texts, tokenizer = os.environ.get("METAPT_TEXT_DIR"), os.environ.get("METAPT_TOKENIZER")
    if not (texts and tokenizer):
        pytest.skip("METAPT_TEXT_DIR or METAPT_TOKENIZER is not set")
    source = Path(texts) / "gum_open_en.jsonl.gz"
    corpus = prepare_corpus(config(tmp_path, source, tokenizer=tokenizer, heldout_share=0.1))
    with gzip.open(source, "rt", encoding="utf-8") as lines:
        originals = {json.loads(line)["text"] for line in lines}
    assert len(originals) == 108
    assert set(documents_of(corpus.train, corpus) + documents_of(corpus.heldout, corpus)) == originals
    assert (corpus.tokenizer.eos_id, corpus.tokenizer.mask_id) == (50_279, 50_280)
    assert 80_000 < len(corpus.train) + len(corpus.heldout) < 120_000
