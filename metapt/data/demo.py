"""Synthetic demo data (`data=demo`, the default): text for pretraining and labelled sets for fine-tuning.

All data are a function of the seed and of the word lists of the installed Faker. Two languages have train, dev and test
splits: `en_demo` (English-like, the language of the text) and `sk_demo` (Slovak-like). Two have a test split only:
`tl_demo` (Tagalog-like) and `ceb_demo` (Cebuano-like).

    python -m metapt.data.demo OUT_DIR      write corpus.txt and <set>/<split>.iob2, for inspection
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
from metapt.data.demo_english import sample_document
from metapt.data.demo_english_forms import detokenize
from metapt.data.demo_grammar import Sampler, TaggedWord
from metapt.data.demo_philippine import sample_cebuano, sample_tagalog
from metapt.data.demo_slovak import sample_sentence as sample_slovak
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
# Functions that sample the next sentences of a set: a document in the English-like language, else one sentence.
GENERATORS: dict[str, Callable[[Sampler], list[list[TaggedWord]]]] = {
    "en_demo": sample_document,
    "sk_demo": lambda sampler: [sample_slovak(sampler)],
    "tl_demo": lambda sampler: [sample_tagalog(sampler)],
    "ceb_demo": lambda sampler: [sample_cebuano(sampler)],
}
SET_SPLITS = {name: tuple(sizes) for name, sizes in SIZES.items()}


def documents(seed: int = SEED, size_bytes: int = CORPUS_BYTES) -> Iterator[str]:
    """Yield English-like documents, each with one topic, until they have at least `size_bytes` bytes of UTF-8."""
    sampler = Sampler(seed, "demo document")
    written = 0
    for number in count():
        if written >= size_bytes:
            return
        sampler.restart(number)
        text = " ".join(detokenize(words) for words in sample_document(sampler))
        written += len(text.encode())
        yield text


def fingerprint(seed: int = SEED) -> str:
    """SHA-256 of what determines all demo data: the seed, the source files of the generator, the version of Faker."""
    digest = hashlib.sha256(f"{seed}, Faker {VERSION}".encode())
    for path in sorted(Path(__file__).parent.glob("demo*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def sentences(name: str, split: str, seed: int = SEED) -> list[Sentence]:
    """One split of one set of SIZES. No two sentences of a set, even in different splits, have the same words."""
    return list(_splits(name, seed)[split])


@lru_cache(maxsize=len(SIZES))
def _splits(name: str, seed: int) -> dict[str, tuple[Sentence, ...]]:
    """All splits of a set, filled one after the other; no document is in two splits."""
    sampler = Sampler(seed, f"demo sentences, {name}")
    numbers = count()
    seen: set[tuple[str, ...]] = set()
    splits = {}
    for split, size in SIZES[name].items():
        sampled: list[Sentence] = []
        while len(sampled) < size:
            sampler.restart(next(numbers))
            for words in GENERATORS[name](sampler):
                texts, tags = tuple(word.text for word in words), tuple(word.tag for word in words)
                if texts not in seen and len(sampled) < size:
                    seen.add(texts)
                    sampled.append(Sentence(f"{name}-{split}-{len(sampled) + 1}", texts, tags))
        splits[split] = tuple(sampled)
    return splits


def write_files(folder: Path, seed: int = SEED) -> None:
    """Write corpus.txt (one document per line) and `<set>/<split>.iob2` to a folder."""
    write_atomically(folder / "corpus.txt", "".join(f"{text}\n" for text in documents(seed)))
    for name, sizes in SIZES.items():
        for split in sizes:
            write_iob2(folder / name / f"{split}.iob2", sentences(name, split, seed))


def main(arguments: Sequence[str]) -> None:
    if len(arguments) != 1 or arguments[0].startswith("-"):
        raise UserError("usage: python -m metapt.data.demo OUT_DIR")
    write_files(Path(arguments[0]))
    print(DEMO_NOTICE, file=sys.stderr)


if __name__ == "__main__":
    run_command(main)
