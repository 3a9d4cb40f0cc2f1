"""The word classes of a corpus on disk, made once and kept beside its shards.

    CORPUS/classes_KEY/
      arrays.npz       keys uint64 [W], counts int64 [W], partitions int16 [P, W]
      words.json       the word types as text, in the order of the keys
      manifest.json    sizes and checksums of both files

KEY is a hash of the settings. The folder gets its name only when it is complete, and one process at a time makes it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from metapt import atomic_folders, files
from metapt.config import ClassesConfig
from metapt.data.corpus import Corpus
from metapt.data.corpus_words import token_kinds, token_texts
from metapt.data.tokenizers import FILE as TOKENIZER_FILE
from metapt.data.word_classes import ClassSettings, WordClasses, make_word_classes
from metapt.leases import Lease

FORMAT = 2  # part of every key: raise it when the same settings give other classes
ARRAYS = ("keys", "counts", "partitions")


def corpus_classes(
    corpus: Corpus, config: ClassesConfig, log: Callable[[str], None] = lambda line: None
) -> WordClasses:
    """The word classes of a corpus' training split: loaded if they are there, made otherwise.

    Raises:
        UserError: the corpus is too small for them.
    """
    settings, folder = _settings(config), classes_folder(corpus, config)
    if atomic_folders.problem(folder) is not None:
        with Lease(folder.with_name(f"{folder.name}.lock")).held(timeout=None):
            if atomic_folders.problem(folder) is not None:
                log(f"word classes: counting {min(settings.tokens, len(corpus.train)):,} tokens")
                save_classes(make_word_classes(corpus.train, corpus_token_texts(corpus), settings), folder)
    return _load(folder)


def classes_folder(corpus: Corpus, config: ClassesConfig) -> Path:
    """Where the classes of these settings are kept."""
    entries = json.dumps({"format": FORMAT, **asdict(_settings(config))}, sort_keys=True)
    return corpus.folder / f"classes_{hashlib.sha256(entries.encode()).hexdigest()[:12]}"


def _settings(config: ClassesConfig) -> ClassSettings:
    return ClassSettings(
        tokens=config.tokens,
        words=config.words,
        contexts=config.contexts,
        dimensions=config.dimensions,
        sizes=tuple(config.partitions),
        scales=(config.scale_low, config.scale_high),
        shuffle_band=config.shuffle_band,
    )


def corpus_token_texts(corpus: Corpus) -> list[str]:
    """The text of each token id of the corpus' tokenizer."""
    return token_texts(Tokenizer.from_file(str(corpus.tokenizer_dir / TOKENIZER_FILE)))


def corpus_token_kinds(corpus: Corpus) -> np.ndarray:
    """`corpus_words.TokenKind` of each token id. uint8 [V]."""
    return token_kinds(corpus_token_texts(corpus))


def save_classes(classes: WordClasses, folder: Path) -> None:
    """Write word classes; the folder gets its name only when it is complete."""
    staging = atomic_folders.staging(folder)
    np.savez(staging / "arrays.npz", **{name: getattr(classes, name) for name in ARRAYS})
    files.write_json(staging / "words.json", list(classes.texts))
    atomic_folders.commit(staging, folder)


def _load(folder: Path) -> WordClasses:
    with np.load(folder / "arrays.npz") as arrays:
        texts = json.loads((folder / "words.json").read_text(encoding="utf-8"))
        return WordClasses(texts=tuple(texts), **{name: arrays[name] for name in ARRAYS})
