"""The corpus: equal tokens from all formats, cache folders by content, concurrent builds."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from corpus_world import DOCUMENTS, FORMATS, GOOD, all_tokens, config, documents_of, jsonl, write
from hypothesis import given, settings
from hypothesis import strategies as st

from metapt import prepare
from metapt.data import corpus as corpus_module
from metapt.data import tokenizers
from metapt.data.corpus import Corpus, prepare_corpus
from metapt.data.shards import ShardWriter, TokenStream
from metapt.errors import UserError


@pytest.mark.parametrize("kind", FORMATS)
def test_all_formats_give_the_same_corpus(kind: str, small_corpus: Corpus, tmp_path: Path) -> None:
    source = FORMATS[kind](tmp_path / "in")
    corpus = prepare_corpus(config(tmp_path, source, txt_document="block" if "blocks" in kind else "file"))
    assert all_tokens(corpus.train) == all_tokens(small_corpus.train)
    assert all_tokens(corpus.eval) == all_tokens(small_corpus.eval)
    assert corpus.fingerprint == small_corpus.fingerprint


def test_each_document_is_in_one_split_and_counted_in_the_manifest(small_corpus: Corpus) -> None:
    train, held_out = (
        documents_of(small_corpus.train, small_corpus),
        documents_of(small_corpus.eval, small_corpus),
    )
    assert sorted(train + held_out, key=DOCUMENTS.index) == DOCUMENTS
    assert [DOCUMENTS.index(text) for text in train] == sorted(DOCUMENTS.index(text) for text in train)
    assert 1 <= len(held_out) < len(train)
    for name, stream, texts in (
        ("train", small_corpus.train, train),
        ("eval", small_corpus.eval, held_out),
    ):
        counts = small_corpus.manifest["splits"][name]
        assert counts["documents"] == len(texts)
        assert counts["tokens"] == len(stream) == sum(shard["tokens"] for shard in counts["shards"])
        assert counts["bytes"] == sum(len(text.encode()) for text in texts)
    assert small_corpus.manifest["skipped"] == {}
    assert [source["file"] for source in small_corpus.manifest["sources"]] == ["all.jsonl"]
    assert small_corpus.tokenizer.size == 300
    assert small_corpus.manifest["dtype"] == "uint16"


def test_text_is_never_encoded_as_special_tokens(tmp_path: Path) -> None:
    texts = [f"{text} <|mask|> and <|endoftext|>" for text in DOCUMENTS]
    corpus = prepare_corpus(config(tmp_path, write(tmp_path / "a.jsonl", jsonl(texts))))
    for stream, name in ((corpus.train, "train"), (corpus.eval, "eval")):
        assert corpus.tokenizer.mask_id not in all_tokens(stream)
        assert (
            all_tokens(stream).count(corpus.tokenizer.eos_id) == corpus.manifest["splits"][name]["documents"]
        )
    assert set(documents_of(corpus.train, corpus)) < set(texts)


def test_max_tokens(small_corpus: Corpus, tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", jsonl())
    corpus = prepare_corpus(config(tmp_path, source, max_tokens=300))
    total = len(corpus.train) + len(corpus.eval)
    longest = max(
        np.diff(np.flatnonzero(np.array(all_tokens(small_corpus.train)) == small_corpus.tokenizer.eos_id))
    )
    assert 300 <= total < 300 + longest + 5
    assert all_tokens(corpus.train) == all_tokens(small_corpus.train)[: len(corpus.train)]


def test_eval_fraction_and_stable_choice_of_held_out_documents(tmp_path: Path) -> None:
    texts = [f"text {number}" for number in range(4000)]
    tokenizer = tokenizers.train_tokenizer(texts, 300)
    tokenizers.save_tokenizer(tokenizer, tmp_path / "tokenizer", "bpe")
    long, short = (
        prepare_corpus(
            config(
                tmp_path,
                write(tmp_path / f"{size}.jsonl", jsonl(texts[:size])),
                eval_fraction=0.1,
                tokenizer=str(tmp_path / "tokenizer"),
            )
        )
        for size in (4000, 1500)
    )
    held_out = documents_of(long.eval, long)
    assert abs(len(held_out) - 400) < 4 * (4000 * 0.1 * 0.9) ** 0.5
    assert documents_of(short.eval, short) == [text for text in held_out if text in set(texts[:1500])]


# --- shards -------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=12),
    shard_tokens=st.integers(1, 11),
    wide=st.booleans(),
    data=st.data(),
)
def test_windows_across_shards(
    tmp_path_factory: pytest.TempPathFactory,
    sizes: list[int],
    shard_tokens: int,
    wide: bool,
    data: st.DataObject,
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
    length = data.draw(st.integers(1, len(whole)))
    starts = data.draw(st.lists(st.integers(0, len(whole) - length), max_size=8))
    windows = stream.windows(np.array(starts, dtype=np.int64), length)
    assert windows.dtype == np.int64
    assert windows.shape == (len(starts), length)
    for window, start in zip(windows, starts, strict=True):
        assert window.tolist() == whole[start : start + length].tolist()
        assert stream.tokens(start, start + length).tolist() == window.tolist()


def test_windows_outside_the_stream_raise(small_corpus: Corpus) -> None:
    stream, size = small_corpus.train, len(small_corpus.train)
    for starts in ([-1], [size - 3], [0, size]):
        with pytest.raises(IndexError):
            stream.windows(np.array(starts), 4)
    for start, stop in ((-1, 2), (0, size + 1), (3, 2)):
        with pytest.raises(IndexError):
            stream.tokens(start, stop)


def test_shard_size_does_not_change_the_content(small_corpus: Corpus, tmp_path: Path) -> None:
    corpus = prepare_corpus(config(tmp_path, write(tmp_path / "all.jsonl", jsonl())), shard_tokens=100)
    assert len(corpus.manifest["splits"]["train"]["shards"]) > 3
    assert corpus.fingerprint == small_corpus.fingerprint
    assert all_tokens(corpus.train) == all_tokens(small_corpus.train)


# --- reuse -------------------------------------------------------------------------------------------------


def test_an_unchanged_corpus_is_reused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = prepare_corpus(config(tmp_path, write(tmp_path / "one" / "a.jsonl", jsonl())))
    monkeypatch.setattr(corpus_module._CorpusBuilder, "build", lambda *_: pytest.fail("built again"))
    copy = write(tmp_path / "two" / "a.jsonl", jsonl())
    os.utime(copy, (1, 1))
    again = prepare_corpus(config(tmp_path, copy.parent))
    assert (again.folder, again.fingerprint) == (first.folder, first.fingerprint)


@pytest.mark.parametrize(
    "change", [{"vocab_size": 310}, {"eval_fraction": 0.4}, {"max_tokens": 400}, {"on_bad_input": "skip"}]
)
def test_settings_determine_the_folder(change: dict[str, Any], tmp_path: Path) -> None:
    data = config(tmp_path, write(tmp_path / "a.jsonl", jsonl()))
    assert prepare_corpus(data).folder != prepare_corpus(replace(data, **change)).folder


def test_text_and_seed_determine_folder_and_fingerprint(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", jsonl())
    data = config(tmp_path, source)
    corpora = [prepare_corpus(data), prepare_corpus(data, seed=1)]
    write(source, jsonl([*DOCUMENTS[:-1], "changed"]))
    corpora.append(prepare_corpus(data))
    assert len({corpus.folder for corpus in corpora}) == len({corpus.fingerprint for corpus in corpora}) == 3


def test_the_tokenizer_determines_the_folder(small_corpus: Corpus, tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", jsonl())
    file = small_corpus.tokenizer_dir / "tokenizer.json"
    loaded = prepare_corpus(config(tmp_path, source, tokenizer=str(file)))
    trained = prepare_corpus(config(tmp_path, source))
    assert loaded.folder != trained.folder
    assert loaded.tokenizer == replace(trained.tokenizer, name="tokenizer.json")
    assert all_tokens(loaded.train) == all_tokens(trained.train)


def test_damaged_shard(tmp_path: Path) -> None:
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
write = corpus._CorpusBuilder._write
def slow(self, *arguments):
    (folder / "builds").touch()
    time.sleep(float(sys.argv[3]))
    return write(self, *arguments)
corpus._CorpusBuilder._write = slow
data = CorpusConfig(name="text", text_dir=source, vocab_size=300, eval_fraction=0.3, cache_dir=str(folder / "cache"))
print(corpus.prepare_corpus(data).fingerprint)
"""


def start_builder(tmp_path: Path, source: Path, seconds: float) -> subprocess.Popen[str]:
    """Start a process that builds the corpus: it creates the file `builds`, then sleeps before it writes shards."""
    arguments = [sys.executable, "-c", BUILDER, str(tmp_path), str(source), str(seconds)]
    return subprocess.Popen(
        arguments, stdout=subprocess.PIPE, text=True, cwd=Path(corpus_module.__file__).parents[2]
    )


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline, path
        time.sleep(0.01)


def test_two_processes_build_the_corpus_once(
    small_corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write(tmp_path / "all.jsonl", jsonl())
    builder = start_builder(tmp_path, source, 1.0)
    wait_for(tmp_path / "builds")
    monkeypatch.setattr(corpus_module._CorpusBuilder, "build", lambda *_: pytest.fail("built a second time"))
    corpus = prepare_corpus(config(tmp_path, source))
    assert builder.communicate(timeout=60)[0].strip() == corpus.fingerprint == small_corpus.fingerprint


def test_a_killed_builder_leaves_no_incomplete_corpus(small_corpus: Corpus, tmp_path: Path) -> None:
    source = write(tmp_path / "all.jsonl", jsonl())
    builder = start_builder(tmp_path, source, 60)
    wait_for(tmp_path / "builds")
    builder.kill()
    builder.communicate(timeout=60)
    names = sorted(path.name for path in (tmp_path / "cache").iterdir())
    assert [name.endswith(".building") for name in names] == [True, False], names
    assert names[1].endswith(".lock")
    corpus = prepare_corpus(config(tmp_path, source))
    assert corpus.fingerprint == small_corpus.fingerprint
    assert not list((tmp_path / "cache").glob(".*"))


class Interrupted(Exception):
    """A stop that is no error of the user: TERM, a time limit, a full disk."""


@pytest.mark.parametrize("interval", [1, 2, 5])
@pytest.mark.parametrize("shard_tokens", [50, 10**6])
def test_an_interrupted_build_goes_on(
    interval: int, shard_tokens: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Progress is saved every few documents, and the build is interrupted after each document in turn."""
    source = write(tmp_path / "all.jsonl", jsonl())
    expected = prepare_corpus(config(tmp_path / "whole", source), shard_tokens=shard_tokens)
    builder = corpus_module._CorpusBuilder
    save, encoded, begun = builder._save, builder._encoded, []

    def save_some(self: Any, building: Path, writers: Any, document: int) -> None:
        if document % interval == 0:
            save(self, building, writers, document)

    def encode_some(self: Any, tokenizer: Any, info: Any, first: int) -> Any:
        begun.append(first)
        for count, item in enumerate(encoded(self, tokenizer, info, first)):
            if count > interval:
                raise Interrupted
            yield item

    monkeypatch.setattr(corpus_module, "SAVE_SECONDS", 0)
    monkeypatch.setattr(builder, "_save", save_some)
    monkeypatch.setattr(builder, "_encoded", encode_some)
    data = config(tmp_path / "parts", source)
    for _ in range(len(DOCUMENTS)):
        try:
            corpus = prepare_corpus(data, shard_tokens=shard_tokens)
            break
        except Interrupted:
            continue
    assert begun == sorted(begun)
    assert begun[-1] > 0
    assert corpus.fingerprint == expected.fingerprint
    assert corpus.manifest["splits"] == expected.manifest["splits"]
    assert {path.name for path in corpus.folder.iterdir()} == {
        path.name for path in expected.folder.iterdir()
    }


def test_a_failed_build_leaves_no_files(tmp_path: Path) -> None:
    with pytest.raises(UserError):
        prepare_corpus(config(tmp_path, write(tmp_path / "a.jsonl", jsonl() + b"{}\n")))
    assert not list((tmp_path / "cache").iterdir())


# --- prepare, demo data, real text ----------------------------------------------------------------------------------------------


def test_prepare_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write(tmp_path / "a.jsonl", GOOD + b"{}\n")
    arguments = [
        "data=text",
        f"data.text_dir={source}",
        f"data.cache_dir={tmp_path}/cache",
        "data.vocab_size=300",
    ]
    arguments += ["data.eval_fraction=0.3", "data.on_bad_input=skip"]
    prepare.main(arguments)
    printed, progress = capsys.readouterr()
    assert progress.startswith("building the corpus of 0.0 MB of text files")
    assert "\ntraining a byte-level BPE tokenizer with 300 entries" in progress
    (folder,) = (path for path in (tmp_path / "cache").iterdir() if path.is_dir())
    corpus = Corpus.open(folder)
    assert str(folder) in printed
    assert f"{len(corpus.train):,} tokens" in printed
    assert "1 x not a JSON object" in printed
    prepare.main(arguments)
    assert capsys.readouterr().out == printed


def test_the_demo_corpus(tmp_path: Path) -> None:
    data = config(tmp_path, tmp_path, name="demo", text_dir=None, vocab_size=1000, eval_fraction=0.05)
    corpus = prepare_corpus(data)
    assert len(corpus.train) > 100_000
    assert corpus.tokenizer.size == 1000
    assert 0.03 < len(corpus.eval) / len(corpus.train) < 0.08
    assert corpus.manifest["skipped"] == {}


@pytest.mark.real_data
def test_real_text_with_the_olmo_tokenizer(tmp_path: Path) -> None:
    texts, tokenizer = os.environ.get("METAPT_TEXT_DIR"), os.environ.get("METAPT_TOKENIZER")
    if not (texts and tokenizer):
        pytest.skip("METAPT_TEXT_DIR or METAPT_TOKENIZER is not set")
    source = Path(texts) / "gum_open_en.jsonl.gz"
    corpus = prepare_corpus(config(tmp_path, source, tokenizer=tokenizer, eval_fraction=0.1))
    with gzip.open(source, "rt", encoding="utf-8") as lines:
        originals = {json.loads(line)["text"] for line in lines}
    assert len(originals) == 108
    assert set(documents_of(corpus.train, corpus) + documents_of(corpus.eval, corpus)) == originals
    assert (corpus.tokenizer.eos_id, corpus.tokenizer.mask_id) == (50_279, 50_280)
    assert 80_000 < len(corpus.train) + len(corpus.eval) < 120_000
