"""Data sets of the hub as a corpus: through a fake, and through the real loader on a local one."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pytest
from corpus_world import DOCUMENTS, GOOD, all_tokens, config, write

from metapt.config import CorpusConfig
from metapt.data import corpus as corpus_module
from metapt.data import text_sources, tokenizers
from metapt.data.corpus import Corpus, prepare_corpus
from metapt.errors import OperationalError, UserError


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A fake hub: `rows` is the data set that load_dataset streams, `calls` its arguments."""
    state = SimpleNamespace(rows=[], calls=[])

    def load_dataset(name: str, **arguments: Any) -> Any:
        state.calls.append((name, arguments))
        return datasets.Dataset.from_list(state.rows).to_iterable_dataset()

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(text_sources, "current_commit", lambda files: f"commit of {files.revision}")
    return state


def hub_config(tmp_path: Path, small_corpus: Corpus, **changes: Any) -> CorpusConfig:
    defaults = {
        "name": "hub",
        "tokenizer": str(small_corpus.tokenizer_dir),
        "text_dir": None,
        "hub_name": "some/corpus",
    }
    return config(tmp_path, tmp_path, **{**defaults, **changes})


def test_text_column(hub: SimpleNamespace, small_corpus: Corpus, tmp_path: Path) -> None:
    hub.rows = [{"id": 1, "body": text} for text in DOCUMENTS]
    data = hub_config(
        tmp_path, small_corpus, tokenizer="train", hub_column="body", hub_split="part", hub_revision="abc"
    )
    corpus = prepare_corpus(data)
    assert corpus.fingerprint == small_corpus.fingerprint
    assert hub.calls[0] == ("some/corpus", {"split": "part", "revision": "commit of abc", "streaming": True})
    assert corpus.manifest["sources"] == [
        {"hub": "some/corpus", "revision": "abc", "split": "part", "column": "body"}
    ]
    assert corpus.manifest["hub_commit"] == "commit of abc"
    calls = len(hub.calls)
    assert prepare_corpus(data).folder == corpus.folder
    assert len(hub.calls) == calls, "an existing corpus is opened without the hub"


def test_token_column(hub: SimpleNamespace, small_corpus: Corpus, tmp_path: Path) -> None:
    eos = small_corpus.tokenizer.eos_id
    encoded = tokenizers.encode(tokenizers.load_tokenizer(small_corpus.tokenizer_dir), DOCUMENTS)
    hub.rows = [{"input_ids": [*ids, eos]} for ids in encoded]
    corpus = prepare_corpus(hub_config(tmp_path, small_corpus))
    assert corpus.fingerprint == small_corpus.fingerprint
    assert {counts["bytes"] for counts in corpus.manifest["splits"].values()} == {0}


@pytest.mark.parametrize("after", ["tokenizer", "documents"])
def test_an_interrupted_preparation_goes_on_with_the_same_commit(
    after: str, hub: SimpleNamespace, small_corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The branch moves between the two commands."""
    hub.rows = [{"text": text} for text in DOCUMENTS]
    data = hub_config(tmp_path, small_corpus, tokenizer="train", hub_column="text", hub_revision="abc")
    builder = corpus_module._CorpusBuilder
    with monkeypatch.context() as stopping:
        if after == "tokenizer":
            stopping.setattr(builder, "_write", interrupt)
        else:
            stopping.setattr(corpus_module, "SAVE_SECONDS", 0)
            stopping.setattr(builder, "_check_counts", interrupt)
        with pytest.raises(KeyboardInterrupt):
            prepare_corpus(data)
    monkeypatch.setattr(text_sources, "current_commit", lambda files: "a later commit")
    assert prepare_corpus(data).manifest["hub_commit"] == "commit of abc"
    assert {arguments["revision"] for _, arguments in hub.calls} == {"commit of abc"}


def interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def test_token_rows_are_used_unchanged(hub: SimpleNamespace, small_corpus: Corpus, tmp_path: Path) -> None:
    """They are chunks of packed documents: an added end-of-text token would be inside a sentence."""
    encoded = tokenizers.encode(tokenizers.load_tokenizer(small_corpus.tokenizer_dir), DOCUMENTS)
    hub.rows = [{"input_ids": ids} for ids in encoded]
    corpus = prepare_corpus(hub_config(tmp_path, small_corpus))
    stored = all_tokens(corpus.train) + all_tokens(corpus.eval)
    assert sorted(stored) == sorted(token for ids in encoded for token in ids)


@pytest.mark.parametrize("value", [7, ["a"], [1.5], {"x": 1}])
def test_columns_of_other_types(
    value: Any, hub: SimpleNamespace, small_corpus: Corpus, tmp_path: Path
) -> None:
    hub.rows = [{"input_ids": value}]
    with pytest.raises(UserError, match=r"row 1: column 'input_ids'.*neither text nor lists of token ids"):
        prepare_corpus(hub_config(tmp_path, small_corpus))


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
def test_malformed_token_rows(
    row: Any, reason: str, hub: SimpleNamespace, small_corpus: Corpus, tmp_path: Path
) -> None:
    encoded = tokenizers.encode(tokenizers.load_tokenizer(small_corpus.tokenizer_dir), DOCUMENTS)
    documents = [[*ids, small_corpus.tokenizer.eos_id] for ids in encoded]
    hub.rows = [{"input_ids": ids} for ids in [*documents, row]]
    with pytest.raises(UserError) as raised:
        prepare_corpus(hub_config(tmp_path, small_corpus))
    assert str(raised.value).startswith(f"some/corpus[train] row 25: {reason};")
    corpus = prepare_corpus(hub_config(tmp_path, small_corpus, on_bad_input="skip"))
    assert corpus.manifest["skipped"] == {reason: 1}
    assert corpus.fingerprint == small_corpus.fingerprint


def test_hub_errors(
    hub: SimpleNamespace, small_corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.rows = [{"input_ids": [1, 2]}]
    with pytest.raises(UserError, match=r"no column 'text' \(data.hub_column\); the columns are input_ids"):
        prepare_corpus(hub_config(tmp_path, small_corpus, hub_column="text"))
    with pytest.raises(UserError, match=r"row 1: already tokenized; set data\.tokenizer to the tokenizer"):
        prepare_corpus(hub_config(tmp_path, small_corpus, tokenizer="train"))

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
            prepare_corpus(hub_config(tmp_path, small_corpus))


def test_local_data_set_with_the_real_loader(small_corpus: Corpus, tmp_path: Path) -> None:
    write(tmp_path / "set" / "train.jsonl", GOOD)
    config = hub_config(
        tmp_path, small_corpus, tokenizer="train", hub_name=str(tmp_path / "set"), hub_column="text"
    )
    assert prepare_corpus(config).fingerprint == small_corpus.fingerprint
    shutil.move(tmp_path / "set", tmp_path / "moved")
    moved = prepare_corpus(replace(config, hub_name=str(tmp_path / "moved")))
    assert moved.fingerprint == small_corpus.fingerprint
    write(tmp_path / "moved" / "train.jsonl", b"\n".join(GOOD.splitlines()[::-1]))
    changed = prepare_corpus(replace(config, hub_name=str(tmp_path / "moved")))
    assert changed.fingerprint != small_corpus.fingerprint
