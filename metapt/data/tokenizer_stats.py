"""How a tokenizer cuts the words of a labelled set. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Encoding, Tokenizer

from metapt.data.iob2 import Sentence
from metapt.data.particles import CASE_PARTICLES
from metapt.errors import OperationalError, UserError

FILE = "tokenizer.json"


def subword_statistics(sentences: Sequence[Sentence], tokenizer: Tokenizer) -> dict[str, Any]:
    """How a tokenizer cuts the words of a set.

    A byte-level BPE knows every word in some subwords, so no word is out of its vocabulary in the strict sense. What comes
    nearest are words that it has no subword of their own for, read as the tagger reads them, with a space before.

    Returns: subwords_per_word, split_word_fraction (words of two subwords or more), and two figures as the paper's authors count:
        paper_oov_rate (words that are no entry of the vocabulary as they are spelled, without the space that most entries
        begin with) and paper_particle_recall (see `paper_particle_hits`).
    """
    words = [word for sentence in sentences for word in sentence.words]
    alone = tokenizer.encode_batch([f" {word}" for word in words], add_special_tokens=False)
    counts = [len(one.ids) for one in alone]
    vocabulary = tokenizer.get_vocab()
    as_lists = tokenizer.encode_batch(
        [list(sentence.words) for sentence in sentences], is_pretokenized=True, add_special_tokens=False
    )
    hits = sum(
        paper_particle_hits(sentence.words, one) for sentence, one in zip(sentences, as_lists, strict=True)
    )
    return {
        "subwords_per_word": sum(counts) / len(words),
        "split_word_fraction": sum(count > 1 for count in counts) / len(words),
        "paper_oov_rate": sum(word not in vocabulary for word in words) / len(words),
        "paper_particle_recall": hits / len(words),
    }


def paper_particle_hits(words: Sequence[str], encoded: Encoding) -> int:
    """What the authors count as persons after a particle, for one sentence; to be compared with, not to be believed.

    Each word has its label at its first subword, O or not. The number of that *subword* in the sentence, less one, is taken for
    the number of the *word* before; a number beyond the last word is a miss. So no label and no span is looked at.
    """
    places = encoded.word_ids
    firsts = [place for place, word in enumerate(places) if place == 0 or word != places[place - 1]]
    return sum(0 < place <= len(words) and words[place - 1].lower() in CASE_PARTICLES for place in firsts)


def read_tokenizer(name: str) -> Tokenizer:
    """The tokenizer of a tokenizer.json, of a folder that holds one, or of a hub repository; without transformers.

    Raises:
        UserError: there is no such file, or it is no tokenizer.
        OperationalError: the hub has none, or cannot be reached.
    """
    path = Path(name).expanduser()
    path = path / FILE if path.is_dir() else path
    if not path.is_file() and (path.suffix == ".json" or path.is_absolute() or name.startswith((".", "~"))):
        raise UserError(f"tokenizer={name}: {path}: no such file")
    try:
        return Tokenizer.from_file(str(path)) if path.is_file() else Tokenizer.from_pretrained(name)
    except Exception as error:  # the Rust library raises plain Exception
        problem = f"tokenizer={name}: cannot be loaded: {str(error).splitlines()[0]}"
        raise (UserError if path.is_file() else OperationalError)(problem) from error
