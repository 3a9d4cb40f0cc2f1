"""The pretraining corpus: memory-mapped token shards, built from text once and reused while nothing changes.

    CACHE_DIR/NAME-KEY/
      train_00000.bin ...       token ids of the training split: uint16 if they fit, else uint32; native byte order
      eval_00000.bin ...        token ids of the held-out documents, for perplexity
      tokenizer/                loads with AutoTokenizer.from_pretrained
      manifest.json             sources, settings, counts and fingerprint

KEY is a hash of everything that determines the content: input files, tokenizer and settings. The folder has this name
only when it is complete. A lease (metapt.leases) ensures that one process builds it at a time.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerFast

from metapt import files, randomness
from metapt.config import CorpusConfig
from metapt.data import tokenizers
from metapt.data.bad_input import BadInput
from metapt.data.shards import SHARD_TOKENS, ShardWriter, TokenStream
from metapt.data.text_files import EMPTY, Document
from metapt.data.text_sources import CorpusDocument, Source, TokenizedDocument, open_source
from metapt.data.tokenizers import TokenizerInfo
from metapt.errors import UserError
from metapt.leases import Lease

__all__ = ["Corpus", "TokenStream", "TokenizerInfo", "prepare_corpus"]

FORMAT = 2
SPLITS = ("train", "eval")
SETTINGS = ("max_tokens", "eval_fraction", "on_bad_input", "txt_document")  # that determine the content
MANIFEST = "manifest.json"
TOKENIZER = "tokenizer"
BPE_TRAINING_BYTES = 100_000_000
BATCH_DOCUMENTS, BATCH_BYTES = 1000, 8_000_000
PROGRESS_SECONDS, SAVE_SECONDS = 5.0, 60.0
TRAINED, PROGRESS = ".tokenizer_done", ".progress.json"

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Corpus:
    """A complete corpus. `fingerprint` is a hash of the tokens of both splits and of the tokenizer."""

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
        """Open a corpus folder. Reads only the manifest and the sizes of the shards.

        Raises:
            UserError: the manifest is damaged, or a shard is missing or has a wrong size.
        """
        try:
            manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        except ValueError:
            raise UserError(
                f"{folder / MANIFEST} is damaged; delete {folder} to build the corpus again"
            ) from None
        dtype = np.dtype(manifest["dtype"])
        streams = {}
        for split in SPLITS:
            shards = manifest["splits"][split]["shards"]
            for shard in shards:
                path, size = folder / shard["file"], shard["tokens"] * dtype.itemsize
                if not path.is_file() or path.stat().st_size != size:
                    raise UserError(
                        f"{path}: damaged (not {size} bytes); delete {folder} to build the corpus again"
                    )
            streams[split] = TokenStream([folder / shard["file"] for shard in shards], dtype)
        info = TokenizerInfo(**manifest["tokenizer"])
        return cls(folder, manifest["fingerprint"], info, streams["train"], streams["eval"], manifest)


def prepare_corpus(
    data: CorpusConfig, seed: int = 0, progress: Progress | None = None, shard_tokens: int = SHARD_TOKENS
) -> Corpus:
    """Open the corpus that a configuration specifies; build it first if it does not exist.

    Args:
        data: the `data` section of a pretraining configuration.
        seed: random seed of the choice of held-out documents.
        progress: called with a line of text every few seconds during the build.
        shard_tokens: maximum number of tokens in one file.
    Raises:
        UserError: the input is malformed or missing, or has too few documents for a held-out split.
        OperationalError: the hub is not available.
    """
    source = open_source(data)
    spec = _build_spec(data, source, seed, shard_tokens)
    key = _sha256(spec)
    folder = Path(data.cache_dir).expanduser() / f"{data.name}-{key[:16]}"
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with Lease(folder.with_name(folder.name + ".lock")).held(timeout=None):
            if not folder.is_dir():
                builder = _CorpusBuilder(data, source, seed, shard_tokens, progress or (lambda line: None))
                builder.build(folder, key, spec)
    return Corpus.open(folder)


def is_in_cache(data: CorpusConfig) -> bool:
    """Whether the cache has a corpus of the same source and settings. The content of the tokenizer is not compared."""
    sources, name = open_source(data).identity(), _tokenizer_name(data)
    for file in Path(data.cache_dir).expanduser().glob(f"{data.name}-*/{MANIFEST}"):
        found = files.parsed_object(file.read_bytes()) or {}
        settings, tokenizer = found.get("settings", {}), found.get("tokenizer", {})
        same = all(settings.get(key) == getattr(data, key) for key in SETTINGS)
        if same and found.get("sources") == sources and tokenizer.get("name") == name:
            return True
    return False


def _tokenizer_name(data: CorpusConfig) -> str:
    """The name of a tokenizer in the manifest."""
    name = data.tokenizer
    if name == "train":
        return f"bpe-{data.vocab_size}"
    return Path(name).name if Path(name).expanduser().exists() else name


def _build_spec(data: CorpusConfig, source: Source, seed: int, shard_tokens: int) -> dict[str, Any]:
    """Everything that determines the content of the corpus folder."""
    if data.tokenizer == "train":
        tokenizer: dict[str, Any] = {"train": "byte-level BPE", "vocab_size": int(data.vocab_size)}
        tokenizer["training_bytes"] = BPE_TRAINING_BYTES
    else:
        tokenizer = {"sha256": tokenizers.content_sha256(tokenizers.read_tokenizer(data.tokenizer))}
    return {
        "format": FORMAT,
        "sources": source.identity(),
        "tokenizer": tokenizer,
        "seed": seed,
        "shard_tokens": shard_tokens,
        **{name: getattr(data, name) for name in SETTINGS},
    }


class _CorpusBuilder:
    """Builds one corpus folder."""

    def __init__(self, data: CorpusConfig, source: Source, seed: int, shard_tokens: int, progress: Progress):
        self._data, self._source, self._seed, self._shard_tokens = data, source, seed, shard_tokens
        self._progress = progress
        self._bad_input, self._bad_ids = BadInput(data.on_bad_input), BadInput(data.on_bad_input)

    def build(self, folder: Path, key: str, spec: dict[str, Any]) -> None:
        """Build `folder`. Whatever happens, it is either complete or does not exist.

        A builder that is interrupted leaves a folder beside it, where the next one goes on (`_restore`): this process holds
        the lock, and the name of the folder says that it has the same content. After an error nothing is left.
        """
        building = folder.with_name(f".{folder.name}.building")
        building.mkdir(exist_ok=True)
        size = sum(entry.get("bytes", 0) for entry in spec["sources"])
        of_size = f" of {size / 1e6:,.1f} MB of text files" if size else ""
        self._progress(f"building the corpus{of_size} in {folder}")
        try:
            tokenizer = self._tokenizer(building)
            info = tokenizers.save_tokenizer(tokenizer, building / TOKENIZER, _tokenizer_name(self._data))
            (building / TRAINED).write_text(self._source.commit or "", encoding="utf-8")
            dtype = np.dtype(np.uint16 if info.size <= 2**16 else np.uint32)
            splits = self._write(building, tokenizer, info, dtype)
            content = {split: splits[split]["sha256"] for split in SPLITS}
            manifest = {
                "fingerprint": _sha256({**content, "dtype": dtype.name, "tokenizer": info.sha256}),
                "key": key,
                "dtype": dtype.name,
                "splits": splits,
                "tokenizer": asdict(info),
                "skipped": dict(sorted((self._bad_input.skipped + self._bad_ids.skipped).items())),
                "sources": spec["sources"],
                **({"hub_commit": self._source.commit} if self._source.commit else {}),
                "settings": {name: value for name, value in spec.items() if name != "sources"},
            }
            files.write_json(building / MANIFEST, manifest)
            for name in (TRAINED, PROGRESS):
                (building / name).unlink(missing_ok=True)
            building.rename(folder)
        except UserError:
            shutil.rmtree(building, ignore_errors=True)
            raise

    def _tokenizer(self, building: Path) -> PreTrainedTokenizerFast:
        if self._data.tokenizer != "train":
            return tokenizers.read_tokenizer(self._data.tokenizer)
        if (building / TRAINED).exists():
            self._source.commit = (building / TRAINED).read_text(encoding="utf-8") or None
            return tokenizers.load_tokenizer(building / TOKENIZER)
        self._progress(f"training a byte-level BPE tokenizer with {self._data.vocab_size} entries")
        return tokenizers.train_tokenizer(self._training_texts(), int(self._data.vocab_size))

    def _training_texts(self) -> Iterator[str]:
        """Yield documents that are not held out, until they have BPE_TRAINING_BYTES bytes."""
        size = 0
        for index, document in enumerate(self._source.documents(BadInput(self._data.on_bad_input))):
            if isinstance(document, TokenizedDocument):
                raise UserError(
                    f"{document.location}: already tokenized; set data.tokenizer to the tokenizer that was used"
                )
            if self._is_eval(index):
                continue
            yield document.text
            size += document.bytes
            if size >= BPE_TRAINING_BYTES:
                return

    def _is_eval(self, index: int) -> bool:
        return randomness.key(self._seed, "heldout document", index) < self._data.eval_fraction * 2**63

    def _write(
        self, building: Path, tokenizer: PreTrainedTokenizerFast, info: TokenizerInfo, dtype: np.dtype
    ) -> dict[str, dict[str, Any]]:
        """Write the shards of both splits; return their manifest entries."""
        writers = {split: ShardWriter(building, split, dtype, self._shard_tokens) for split in SPLITS}
        limit = self._data.max_tokens
        started = reported = saved = time.monotonic()
        first = self._restore(building, writers)
        total = begun = sum(writer.tokens for writer in writers.values())
        for index, ids, size in self._encoded(tokenizer, info, first):
            if limit is not None and total >= limit:
                break
            if time.monotonic() - saved >= SAVE_SECONDS:
                self._save(building, writers, index)
                saved = time.monotonic()
            writers["eval" if self._is_eval(index) else "train"].add(ids, size)
            total += len(ids)
            if (now := time.monotonic()) - reported >= PROGRESS_SECONDS:
                reported = now
                text = sum(writer.bytes for writer in writers.values())
                self._progress(
                    f"{index + 1:,} documents, {text / 1e6:,.1f} MB, {total:,} tokens, "
                    f"{(total - begun) / (now - started):,.0f} tokens/s"
                )
        self._check_counts(writers["train"].documents, writers["eval"].documents)
        return {split: writer.finish() for split, writer in writers.items()}

    def _save(self, building: Path, writers: Mapping[str, ShardWriter], document: int) -> None:
        """Record that all documents before a number have been written, and the commit that they are of."""
        positions = {split: writer.position() for split, writer in writers.items()}
        progress = {
            "document": document,
            "commit": self._source.commit,
            "splits": positions,
            "skipped": dict(self._bad_ids.skipped),
        }
        files.write_json(building / PROGRESS, progress)

    def _restore(self, building: Path, writers: Mapping[str, ShardWriter]) -> int:
        """Let the writers go on where an interrupted builder was; return the number of the next document."""
        try:
            progress = json.loads((building / PROGRESS).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            for path in building.glob("*.bin"):
                path.unlink()
            return 0
        written = {shard["file"] for position in progress["splits"].values() for shard in position["shards"]}
        for path in building.glob("*.bin"):
            if path.name not in written:
                path.unlink()
        for split, writer in writers.items():
            writer.restore(progress["splits"][split])
        self._bad_ids.skipped.update(progress["skipped"])
        self._source.commit = progress["commit"]
        self._progress(f"resuming after {progress['document']:,} documents of an interrupted preparation")
        return int(progress["document"])

    def _check_counts(self, train: int, held_out: int) -> None:
        if not train + held_out:
            left_out = (self._bad_input.skipped + self._bad_ids.skipped).total()
            skipped = f" ({left_out} skipped)" if left_out else ""
            raise UserError(f"data={self._data.name}: the corpus is empty{skipped}")
        if not (train and held_out):
            raise UserError(
                f"data.eval_fraction={self._data.eval_fraction} of {train + held_out} document(s) leaves {train} for "
                f"training and {held_out} held out, but each split needs at least one: give more documents, change "
                "the fraction, or split .txt files at blank lines (data.txt_document=block)"
            )

    def _encoded(
        self, tokenizer: PreTrainedTokenizerFast, info: TokenizerInfo, first: int
    ) -> Iterator[tuple[int, np.ndarray, int]]:
        """From document `first` on, yield the number of each document, its token ids, and its size as text in bytes (0 if it is already tokenized).

        Documents that the tokenizer does not fit are left out but counted, so that the choice of held-out documents
        is the same for every tokenizer, and for the texts that a tokenizer is trained on. An end-of-text token is appended to text. Tokenized rows are used unchanged: they are chunks of packed documents,
        which contain their own end-of-text tokens.
        """
        number = first - 1
        for batch in self._batches(first):
            for document, ids in zip(batch, _ids(batch, tokenizer), strict=True):
                number += 1
                if len(ids) == 0:
                    self._bad_ids.report(document.location, EMPTY)
                elif ids.min() < 0 or ids.max() >= info.size or (ids == info.mask_id).any():
                    self._bad_ids.report(document.location, f"token id outside of {info.name}")
                elif isinstance(document, TokenizedDocument):
                    yield number, ids, 0
                else:
                    yield number, np.append(ids, info.eos_id), document.bytes

    def _batches(self, first: int) -> Iterator[list[CorpusDocument]]:
        """Documents from number `first` on; the source reads those before it again, and counts what it leaves out."""
        batch: list[CorpusDocument] = []
        size = 0
        for document in islice(self._source.documents(self._bad_input), first, None):
            batch.append(document)
            size += document.bytes if isinstance(document, Document) else 0
            if len(batch) == BATCH_DOCUMENTS or size >= BATCH_BYTES:
                yield batch
                batch, size = [], 0
        if batch:
            yield batch


def _ids(batch: list[CorpusDocument], tokenizer: PreTrainedTokenizerFast) -> Iterator[np.ndarray]:
    """Yield the token ids of each document of a batch; the texts are encoded together."""
    encoded = iter(tokenizers.encode(tokenizer, [item.text for item in batch if isinstance(item, Document)]))
    for item in batch:
        yield np.asarray(item.ids if isinstance(item, TokenizedDocument) else next(encoded), dtype=np.int64)


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
