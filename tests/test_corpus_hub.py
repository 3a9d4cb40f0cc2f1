"""Data sets of the hub as a corpus: through a fake, and through the real loader on a local one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pytest
from corpus_world import DOCUMENTS, GOOD, config, everything, write

from metapt.config import CorpusConfig
from metapt.data import tokenizers
from metapt.data.corpus import Corpus, prepare_corpus
from metapt.errors import OperationalError, UserError


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A stand-in for the hub: `rows` is what load_dataset streams, `asked` what it was asked for."""
    state = SimpleNamespace(rows=[], asked=[])

    def load_dataset(name: str, **arguments: Any) -> Any:
        state.asked.append((name, arguments))
        return datasets.Dataset.from_list(state.rows).to_iterable_dataset()

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return state


def hub_config(tmp_path: Path, small_corpus: Corpus, **changes: Any) -> CorpusConfig:
    given = {
        "name": "hub",
        "tokenizer": str(small_corpus.tokenizer_dir),
        "text_dir": None,
        "hub_name": "some/corpus",
    }
    return config(tmp_path, tmp_path, **{**given, **changes})


def test_a_text_column_of_the_hub(hub: SimpleNamespace, small_corpus: Corpus, tmp_path: Path) -> None:
    hub.rows = [{"id": 1, "body": text} for text in DOCUMENTS]
    data = hub_config(
        tmp_path, small_corpus, tokenizer="train", hub_column="body", hub_split="part", hub_revision="abc"
    )
    corpus = prepare_corpus(data)
    assert corpus.fingerprint == small_corpus.fingerprint
    assert hub.asked[0] == ("some/corpus", {"split": "part", "revision": "abc", "streaming": True})
    assert corpus.manifest["sources"] == [
        {"hub": "some/corpus", "revision": "abc", "split": "part", "column": "body"}
    ]
    asked = len(hub.asked)
    assert prepare_corpus(data).folder == corpus.folder
    assert len(hub.asked) == asked, "a corpus that is there needs no hub"


def test_a_tokenised_column_of_the_hub(hub: SimpleNamespace, small_corpus: Corpus, tmp_path: Path) -> None:
    eos = small_corpus.tokenizer.eos_id
    encoded = tokenizers.encode(tokenizers.load_tokenizer(small_corpus.tokenizer_dir), DOCUMENTS)
    hub.rows = [{"input_ids": [*ids, eos]} for ids in encoded]
    corpus = prepare_corpus(hub_config(tmp_path, small_corpus))
    assert corpus.fingerprint == small_corpus.fingerprint
    assert {counts["bytes"] for counts in corpus.manifest["splits"].values()} == {0}


def test_tokenised_rows_are_taken_as_they_are(
    hub: SimpleNamespace, small_corpus: Corpus, tmp_path: Path
) -> None:
    """They are chunks of packed documents: an end-of-text of ours would stand in the middle of a sentence."""
    encoded = tokenizers.encode(tokenizers.load_tokenizer(small_corpus.tokenizer_dir), DOCUMENTS)
    hub.rows = [{"input_ids": ids} for ids in encoded]
    corpus = prepare_corpus(hub_config(tmp_path, small_corpus))
    stored = everything(corpus.train) + everything(corpus.eval)
    assert sorted(stored) == sorted(token for ids in encoded for token in ids)


@pytest.mark.parametrize("value", [7, ["a"], [1.5], {"x": 1}])
def test_a_column_of_something_else_is_refused(
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
def test_bad_rows_of_a_tokenised_column(
    row: Any, reason: str, hub: SimpleNamespace, small_corpus: Corpus, tmp_path: Path
) -> None:
    encoded = tokenizers.encode(tokenizers.load_tokenizer(small_corpus.tokenizer_dir), DOCUMENTS)
    closed = [[*ids, small_corpus.tokenizer.eos_id] for ids in encoded]
    hub.rows = [{"input_ids": ids} for ids in [*closed, row]]
    with pytest.raises(UserError) as raised:
        prepare_corpus(hub_config(tmp_path, small_corpus))
    assert str(raised.value).startswith(f"some/corpus[train] row 25: {reason};")
    corpus = prepare_corpus(hub_config(tmp_path, small_corpus, on_bad_input="skip"))
    assert corpus.manifest["skipped"] == {reason: 1}
    assert corpus.fingerprint == small_corpus.fingerprint


def test_mistakes_about_the_hub(
    hub: SimpleNamespace, small_corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.rows = [{"input_ids": [1, 2]}]
    with pytest.raises(UserError, match=r"no column 'text' \(data.hub_column\); it has input_ids"):
        prepare_corpus(hub_config(tmp_path, small_corpus, hub_column="text"))
    with pytest.raises(UserError, match=r"row 1: already tokenised; data\.tokenizer must name its tokenizer"):
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


def test_a_local_data_set_is_read_by_the_real_loader(small_corpus: Corpus, tmp_path: Path) -> None:
    write(tmp_path / "set" / "train.jsonl", GOOD)
    corpus = prepare_corpus(
        hub_config(
            tmp_path, small_corpus, tokenizer="train", hub_name=str(tmp_path / "set"), hub_column="text"
        )
    )
    assert corpus.fingerprint == small_corpus.fingerprint


# --- as a whole ---------------------------------------------------------------------------------------------
