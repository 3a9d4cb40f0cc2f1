"""How much of a labelled set a pretraining corpus contains: the fraction of its sentences that share a 13-gram with the text.

    python benchmarks/overlap.py TEXT UNER [length=N] [SET ...]        13 words and en_ewt by default

TEXT is a folder of text files (data.text_dir), UNER one with Universal NER (data.uner_dir). An n-gram is 13 (or N) consecutive words in
lower case within a document, as in Brown et al. 2020 (GPT-3, appendix C). A word is a run of letters and digits, so that the separated words of a
treebank (do n't, Smith 's) match running text. A sentence of fewer than 13 words shares none; the fraction of the others is
printed too. All of the text counts, the documents held out for perplexity included.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator, Sequence

from metapt.config import CorpusConfig, NerDataConfig
from metapt.data.bad_input import BadInput
from metapt.data.labelled_sets import open_collection
from metapt.data.text_files import Document
from metapt.data.text_sources import open_source

LENGTH = 13  # words of an n-gram
DEFAULT_SETS = ("en_ewt",)
SPLITS = ("train", "dev", "test")
WORD = re.compile(r"[^\W_]+")
NEGATION = re.compile(r"n['’]t\b")  # a treebank separates it: do n't
Gram = tuple[str, ...]


def words_of(text: str) -> list[str]:
    """The words of a text in lower case."""
    return WORD.findall(NEGATION.sub(" n't", text.lower()))


def grams(words: Sequence[str], length: int) -> Iterator[Gram]:
    """The n-grams of words, in order."""
    return (tuple(words[start : start + length]) for start in range(len(words) - length + 1))


def shared_grams(wanted: set[Gram], texts: Iterable[str], length: int) -> set[Gram]:
    """Those of the n-grams of this length that occur in a text."""
    first_words = {gram[0] for gram in wanted}
    found: set[Gram] = set()
    for text in texts:
        words = words_of(text)
        for start in range(len(words) - length + 1):
            if words[start] in first_words and (gram := tuple(words[start : start + length])) in wanted:
                found.add(gram)
    return found


def overlap(sentences: Sequence[Sequence[str]], found: set[Gram], length: int) -> tuple[int, int]:
    """The number of sentences that have one of the n-grams, and of those that are long enough to have any."""
    long = [words for words in sentences if len(words) >= length]
    return sum(not found.isdisjoint(grams(words, length)) for words in long), len(long)


def main(text_dir: str, uner_dir: str, names: Sequence[str], length: int = LENGTH) -> None:
    """Print a table of the splits of the sets."""
    collection = open_collection(NerDataConfig(name="uner", uner_dir=uner_dir))
    splits = {
        (name, split): [words_of(" ".join(sentence.words)) for sentence in collection.load(name, split)]
        for name in names
        for split in SPLITS
        if split in collection.splits[name]
    }
    wanted = {gram for sentences in splits.values() for words in sentences for gram in grams(words, length)}
    documents = open_source(CorpusConfig(name="text", text_dir=text_dir)).documents(BadInput("refuse"))
    texts = (document.text for document in documents if isinstance(document, Document))
    found = shared_grams(wanted, texts, length)
    print(
        f"| set | sentences | of {length} words or more | with a shared {length}-gram | of all | of the long ones |"
    )
    print("|---|---:|---:|---:|---:|---:|")
    for (name, split), sentences in splits.items():
        shared, long = overlap(sentences, found, length)
        print(
            f"| {name} {split} | {len(sentences)} | {long} | {shared} | {shared / len(sentences):.2%} | {shared / max(1, long):.2%} |"
        )


if __name__ == "__main__":
    options = dict(word.split("=") for word in sys.argv[3:] if "=" in word)
    names = [word for word in sys.argv[3:] if "=" not in word]
    main(sys.argv[1], sys.argv[2], names or DEFAULT_SETS, int(options.get("length", LENGTH)))
