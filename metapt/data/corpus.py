"""The pretraining corpus: text to memory-mapped token shards, made once and re-used while nothing changes.

    CACHE_DIR/NAME-KEY/
      train_00000.bin ...       token ids, uint16 if they fit and uint32 else, in the byte order of the machine
      heldout_00000.bin ...     the documents kept for perplexity
      tokenizer/                what AutoTokenizer.from_pretrained reads
      manifest.json             what it was made from, what is in it, and its fingerprint

KEY is a hash of everything that decides the content: input files, tokenizer, settings. The folder gets its name
only when it is complete, and one process at a time builds it, under a file lock.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from transformers import PreTrainedTokenizerFast

from metapt import files, randomness
from metapt.config import CorpusConfig
from metapt.data import tokenizers
from metapt.data.shards import SHARD_TOKENS, ShardWriter, TokenStream
from metapt.data.text_files import EMPTY, Document, Faults
from metapt.data.text_sources import Item, Source, Tokenised, open_source
from metapt.data.tokenizers import TokenizerInfo
from metapt.errors import UserError

__all__ = ["Corpus", "TokenStream", "TokenizerInfo", "prepare_corpus"]

FORMAT = 2
SPLITS = ("train", "eval")
MANIFEST = "manifest.json"
TOKENIZER = "tokenizer"
BPE_TRAINING_BYTES = 100_000_000
BATCH_DOCUMENTS, BATCH_BYTES = 1000, 8_000_000
PROGRESS_SECONDS = 5.0

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Corpus:
    """A finished corpus. `fingerprint` is a hash of the tokens of both splits and of the tokenizer."""

    folder: Path
    fingerprint: str
    tokenizer: TokenizerInfo
    train: TokenStream
    eval: TokenStream
    manifest: dict[str, Any]

    @property
    def tokenizer_dir(self) -> Path:
        return self.folder / TOKENIZER

    @classmethod
    def open(cls, folder: Path) -> Corpus:
        """Opens a corpus folder; reads the manifest and the sizes of the shards, nothing else.

        Raises:
            UserError: a shard is missing or has another size than the manifest says.
        """
        try:
            manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        except ValueError:
            raise UserError(
                f"{folder / MANIFEST} is damaged: delete {folder}, and it is made again"
            ) from None
        dtype = np.dtype(manifest["dtype"])
        streams = {}
        for split in SPLITS:
            shards = manifest["splits"][split]["shards"]
            for shard in shards:
                path, size = folder / shard["file"], shard["tokens"] * dtype.itemsize
                if not path.is_file() or path.stat().st_size != size:
                    raise UserError(
                        f"{path}: damaged (not {size} bytes); delete {folder} and it is made again"
                    )
            streams[split] = TokenStream([folder / shard["file"] for shard in shards], dtype)
        info = TokenizerInfo(**manifest["tokenizer"])
        return cls(folder, manifest["fingerprint"], info, streams["train"], streams["eval"], manifest)


def prepare_corpus(
    data: CorpusConfig, seed: int = 0, progress: Progress | None = None, shard_tokens: int = SHARD_TOKENS
) -> Corpus:
    """The corpus that a configuration means: opened if it is there, built otherwise.

    Args:
        data: the `data` section of a pretraining configuration.
        seed: of the draw of held-out documents.
        progress: is told, every few seconds, how far the building is.
        shard_tokens: largest number of tokens in one file.
    Raises:
        UserError: bad or missing input, or too few documents for a held-out split.
        OperationalError: the hub cannot be reached.
    """
    source = open_source(data)
    recipe = _recipe(data, source, seed, shard_tokens)
    key = _sha256(recipe)
    folder = Path(data.cache_dir).expanduser() / f"{data.name}-{key[:16]}"
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(folder.name + ".lock")):
            if not folder.is_dir():
                _Build(data, source, seed, shard_tokens, progress or (lambda line: None)).run(
                    folder, key, recipe
                )
    return Corpus.open(folder)


def _recipe(data: CorpusConfig, source: Source, seed: int, shard_tokens: int) -> dict[str, Any]:
    """Everything that decides the content of the folder."""
    if data.tokenizer == "train":
        tokenizer: dict[str, Any] = {"train": "byte-level BPE", "vocab_size": int(data.vocab_size)}
        tokenizer["training_bytes"] = BPE_TRAINING_BYTES
    else:
        tokenizer = {"sha256": tokenizers.content_sha256(tokenizers.read_tokenizer(data.tokenizer))}
    settings = ("max_tokens", "eval_fraction", "on_bad_input", "txt_document")
    return {
        "format": FORMAT,
        "sources": source.identity(),
        "tokenizer": tokenizer,
        "seed": seed,
        "shard_tokens": shard_tokens,
        **{name: getattr(data, name) for name in settings},
    }


class _Build:
    """One building of a corpus folder."""

    def __init__(self, data: CorpusConfig, source: Source, seed: int, shard_tokens: int, progress: Progress):
        self._data, self._source, self._seed, self._shard_tokens = data, source, seed, shard_tokens
        self._progress = progress
        self._faults = Faults(data.on_bad_input)

    def run(self, folder: Path, key: str, recipe: dict[str, Any]) -> None:
        """Makes `folder`; whatever happens, it is there either complete or not at all."""
        building = folder.with_name(f".{folder.name}.building")
        shutil.rmtree(building, ignore_errors=True)  # of a builder that was killed: we hold the lock
        building.mkdir()
        try:
            tokenizer = self._tokenizer()
            info = tokenizers.save_tokenizer(tokenizer, building / TOKENIZER, self._tokenizer_name())
            dtype = np.dtype(np.uint16 if info.size <= 2**16 else np.uint32)
            splits = self._write(building, tokenizer, info, dtype)
            content = {split: splits[split]["sha256"] for split in SPLITS}
            manifest = {
                "fingerprint": _sha256({**content, "dtype": dtype.name, "tokenizer": info.sha256}),
                "key": key,
                "dtype": dtype.name,
                "splits": splits,
                "tokenizer": asdict(info),
                "skipped": dict(sorted(self._faults.skipped.items())),
                "sources": recipe["sources"],
                "settings": {name: value for name, value in recipe.items() if name != "sources"},
            }
            files.write_json(building / MANIFEST, manifest)
            building.rename(folder)
        finally:
            shutil.rmtree(building, ignore_errors=True)

    def _tokenizer(self) -> PreTrainedTokenizerFast:
        if self._data.tokenizer != "train":
            return tokenizers.read_tokenizer(self._data.tokenizer)
        self._progress(f"training a byte-level BPE of {self._data.vocab_size} entries")
        return tokenizers.train_tokenizer(self._training_texts(), int(self._data.vocab_size))

    def _tokenizer_name(self) -> str:
        given = self._data.tokenizer
        if given == "train":
            return f"bpe-{self._data.vocab_size}"
        return Path(given).name if Path(given).expanduser().exists() else given

    def _training_texts(self) -> Iterator[str]:
        """The first BPE_TRAINING_BYTES of the documents, without the held-out ones."""
        taken = 0
        for index, document in enumerate(self._source.documents(Faults(self._data.on_bad_input))):
            if isinstance(document, Tokenised):
                raise UserError(
                    f"{document.place}: already tokenised; data.tokenizer must name its tokenizer"
                )
            if self._is_eval(index):
                continue
            yield document.text
            taken += document.bytes
            if taken >= BPE_TRAINING_BYTES:
                return

    def _is_eval(self, index: int) -> bool:
        return randomness.key(self._seed, "heldout document", index) < self._data.eval_fraction * 2**63

    def _write(
        self, building: Path, tokenizer: PreTrainedTokenizerFast, info: TokenizerInfo, dtype: np.dtype
    ) -> dict[str, dict[str, Any]]:
        """Writes the shards of both splits; returns their manifest entries."""
        writers = {split: ShardWriter(building, split, dtype, self._shard_tokens) for split in SPLITS}
        limit = self._data.max_tokens
        began = told = time.monotonic()
        total = 0
        for index, (ids, size) in enumerate(self._encoded(tokenizer, info)):
            if limit is not None and total >= limit:
                break
            writers["eval" if self._is_eval(index) else "train"].add(ids, size)
            total += len(ids)
            if (now := time.monotonic()) - told >= PROGRESS_SECONDS:
                told = now
                self._progress(
                    f"{index + 1:,} documents, {total:,} tokens, {total / (now - began):,.0f} tokens/s"
                )
        self._check_counts(writers["train"].documents, writers["eval"].documents)
        return {split: writer.finish() for split, writer in writers.items()}

    def _check_counts(self, train: int, held_out: int) -> None:
        if not train + held_out:
            skipped = f" ({sum(self._faults.skipped.values())} skipped)" if self._faults.skipped else ""
            raise UserError(f"data={self._data.name}: the corpus is empty{skipped}")
        if not (train and held_out):
            raise UserError(
                f"data.eval_fraction={self._data.eval_fraction} of {train + held_out} document(s) gives {train} for "
                f"training and {held_out} held out, and each side needs one: give more documents (is a .txt one "
                "document a file? see data.txt_document) or another share"
            )

    def _encoded(
        self, tokenizer: PreTrainedTokenizerFast, info: TokenizerInfo
    ) -> Iterator[tuple[np.ndarray, int]]:
        """The ids of each document, and its size as text (0 if it came tokenised).

        Text is closed by end-of-text. Rows that came tokenised are taken as they are: they are chunks of packed
        documents, which hold theirs already.
        """
        for batch in self._batches():
            for document, ids in zip(batch, _ids(batch, tokenizer), strict=True):
                if len(ids) == 0:
                    self._faults.add(document.place, EMPTY)
                elif ids.min() < 0 or ids.max() >= info.size or (ids == info.mask_id).any():
                    self._faults.add(document.place, f"token id outside of {info.name}")
                elif isinstance(document, Tokenised):
                    yield ids, 0
                else:
                    yield np.append(ids, info.eos_id), document.bytes

    def _batches(self) -> Iterator[list[Item]]:
        batch: list[Item] = []
        size = 0
        for document in self._source.documents(self._faults):
            batch.append(document)
            size += document.bytes if isinstance(document, Document) else 0
            if len(batch) == BATCH_DOCUMENTS or size >= BATCH_BYTES:
                yield batch
                batch, size = [], 0
        if batch:
            yield batch


def _ids(batch: list[Item], tokenizer: PreTrainedTokenizerFast) -> Iterator[np.ndarray]:
    """The ids of each document of a batch, those of the texts made in one go."""
    encoded = iter(tokenizers.encode(tokenizer, [item.text for item in batch if isinstance(item, Document)]))
    for item in batch:
        yield np.asarray(item.ids if isinstance(item, Tokenised) else next(encoded), dtype=np.int64)


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
