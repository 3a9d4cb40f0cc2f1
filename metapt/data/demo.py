"""The embedded default (`data=demo`): generated text for pretraining and generated labelled sets for fine-tuning.

Everything is a function of the seed and of the installed Faker's lists. Two source languages have train, dev and
test: `en_demo` (the language of the text) and `sk_demo` (Slovak-like); two are only tested on: `tl_demo`
(Tagalog-like) and `ceb_demo` (Cebuano-like).

    python -m metapt.data.demo OUT_DIR      writes corpus.txt and <set>/<split>.iob2, to look at
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import count
from pathlib import Path

from faker import VERSION

from metapt.data import DEMO_NOTICE
from metapt.data.demo_english import document
from metapt.data.demo_english_forms import as_text
from metapt.data.demo_grammar import Draws, Word
from metapt.data.demo_philippine import cebuano_sentence, tagalog_sentence
from metapt.data.demo_slovak import sentence as slovak_sentence
from metapt.data.iob2 import Sentence, write_iob2
from metapt.errors import UserError, run_command
from metapt.files import write_atomically

SEED = 0
CORPUS_BYTES = 1_200_000
SIZES = {
    "en_demo": {"train": 1200, "dev": 200, "test": 300},
    "sk_demo": {"train": 1200, "dev": 200, "test": 300},
    "tl_demo": {"test": 150},
    "ceb_demo": {"test": 150},
}
# What makes the next sentences of a set, those that belong together: a document of the English-like language, else one.
MAKERS: dict[str, Callable[[Draws], list[list[Word]]]] = {
    "en_demo": document,
    "sk_demo": lambda draws: [slovak_sentence(draws)],
    "tl_demo": lambda draws: [tagalog_sentence(draws)],
    "ceb_demo": lambda draws: [cebuano_sentence(draws)],
}
SET_SPLITS = {name: tuple(sizes) for name, sizes in SIZES.items()}


def documents(seed: int = SEED, size_bytes: int = CORPUS_BYTES) -> Iterator[str]:
    """English-like documents, one topic each, until they hold `size_bytes` bytes of UTF-8 or a little more."""
    draws = Draws(seed, "demo document")
    written = 0
    for number in count():
        if written >= size_bytes:
            return
        draws.restart(number)
        text = " ".join(as_text(words) for words in document(draws))
        written += len(text.encode())
        yield text


def fingerprint(seed: int = SEED) -> str:
    """SHA-256 of what decides every generated text and set: the seed, the generator's own files, Faker's version."""
    digest = hashlib.sha256(f"{seed}, Faker {VERSION}".encode())
    for path in sorted(Path(__file__).parent.glob("demo*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def sentences(name: str, split: str, seed: int = SEED) -> list[Sentence]:
    """One split of one set of SIZES. No two sentences of a set, in whatever splits, have the same words."""
    return list(_splits(name, seed)[split])


@lru_cache(maxsize=len(SIZES))
def _splits(name: str, seed: int) -> dict[str, tuple[Sentence, ...]]:
    """Every split of a set, filled one after the other; no document is in two splits."""
    draws = Draws(seed, f"demo sentences, {name}")
    numbers = count()
    seen: set[tuple[str, ...]] = set()
    splits = {}
    for split, size in SIZES[name].items():
        found: list[Sentence] = []
        while len(found) < size:
            draws.restart(next(numbers))
            for words in MAKERS[name](draws):
                form = tuple(word.text for word in words)
                if form not in seen and len(found) < size:
                    seen.add(form)
                    found.append(
                        Sentence(f"{name}-{split}-{len(found) + 1}", form, tuple(word.tag for word in words))
                    )
        splits[split] = tuple(found)
    return splits


def write(folder: Path, seed: int = SEED) -> None:
    """Writes corpus.txt (one document a line) and `<set>/<split>.iob2` into a folder."""
    write_atomically(folder / "corpus.txt", "".join(f"{text}\n" for text in documents(seed)))
    for name, sizes in SIZES.items():
        for split in sizes:
            write_iob2(folder / name / f"{split}.iob2", sentences(name, split, seed))


def main(arguments: Sequence[str]) -> None:
    if len(arguments) != 1 or arguments[0].startswith("-"):
        raise UserError("usage: python -m metapt.data.demo OUT_DIR")
    write(Path(arguments[0]))
    print(DEMO_NOTICE, file=sys.stderr)


if __name__ == "__main__":
    run_command(main)
