"""Statistics of how a tokenizer splits the words of a labelled set. Does not import torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tokenizers import Encoding, Tokenizer

from metapt.data.iob2 import Sentence
from metapt.data.particles import CASE_PARTICLES
from metapt.data.word_subwords import Offsets, split_words
from metapt.errors import OperationalError, UserError, first_line

FILE = "tokenizer.json"


def subword_statistics(sentences: Sequence[Sentence], tokenizer: Tokenizer) -> dict[str, Any]:
    """Count subwords and split words of a set.

    With a byte-level BPE no word is out of vocabulary in the strict sense. The closest notion is a split word: a word
    that has no subword of its own. Words are tokenized as the tagger does it (metapt/data/word_subwords.py), with a space
    before the word where it becomes a part of the word's first subword.

    Returns:
        subwords_per_word: mean number of subwords.
        split_word_fraction: fraction of the words that have two or more subwords.
        pooled_character_fraction: fraction of the words whose pooled subword holds a character of the word.
        paper_oov_rate: the paper's OOV rate: the fraction of the words that are not in the vocabulary if they are looked
            up without the preceding space, with which most entries begin.
        paper_particle_recall: the paper's "particle recall" (see `paper_particle_hits`).
    """
    words = [word for sentence in sentences for word in sentence.words]
    split = split_words(words, partial(_encode, tokenizer), prefix_space=True)
    counts = [len(word.ids) for word in split]
    vocabulary = tokenizer.get_vocab()
    encoded_sentences = tokenizer.encode_batch(
        [list(sentence.words) for sentence in sentences], is_pretokenized=True, add_special_tokens=False
    )
    hits = sum(
        paper_particle_hits(sentence.words, encoded)
        for sentence, encoded in zip(sentences, encoded_sentences, strict=True)
    )
    return {
        "subwords_per_word": sum(counts) / len(words),
        "split_word_fraction": sum(count > 1 for count in counts) / len(words),
        "pooled_character_fraction": sum(word.holds_character for word in split) / len(words),
        "paper_oov_rate": sum(word not in vocabulary for word in words) / len(words),
        "paper_particle_recall": hits / len(words),
    }


def _encode(tokenizer: Tokenizer, texts: list[str]) -> Iterator[tuple[list[int], Offsets]]:
    """Subwords and their characters; the text of a special token (`</s>`) is plain text, as for the tagger."""
    tokenizer.encode_special_tokens = True
    for encoded in tokenizer.encode_batch(texts, add_special_tokens=False):
        yield encoded.ids, encoded.offsets


def paper_particle_hits(words: Sequence[str], encoded: Encoding) -> int:
    """Count the hits of the paper's "particle recall" in one sentence, to reproduce its numbers; it measures no recall.

    The authors' code visits the first subword of every word, whatever its label. It uses the index of that *subword*
    minus one as the index of the preceding *word*; an index beyond the last word is a miss. So neither labels nor spans
    play a role.
    """
    word_ids = encoded.word_ids
    firsts = [index for index, word in enumerate(word_ids) if index == 0 or word != word_ids[index - 1]]
    return sum(0 < index <= len(words) and words[index - 1].lower() in CASE_PARTICLES for index in firsts)


def read_tokenizer(name: str) -> Tokenizer:
    """Load a tokenizer.json, the one in a folder, or that of a hub repository; does not import transformers.

    Raises:
        UserError: the file does not exist, or is not a tokenizer.
        OperationalError: the hub has no such tokenizer, or is not available.
    """
    path = Path(name).expanduser()
    path = path / FILE if path.is_dir() else path
    if not path.is_file() and (path.suffix == ".json" or path.is_absolute() or name.startswith((".", "~"))):
        raise UserError(f"tokenizer={name}: {path}: no such file")
    try:
        tokenizer = Tokenizer.from_file(str(path)) if path.is_file() else Tokenizer.from_pretrained(name)
    except Exception as error:  # the Rust library raises plain Exception
        problem = f"tokenizer={name}: cannot be loaded: {first_line(error)}"
        raise (UserError if path.is_file() else OperationalError)(problem) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
