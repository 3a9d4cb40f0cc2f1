"""The command `metapt prepare`: tokenize a corpus into shards before the runs that read it.

It takes the keys of `metapt pretrain`, so that the same arguments mean the same corpus. With `grid=NAME` it takes those
of `metapt submit` and prepares what the jobs of a grid read from the Hugging Face hub.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from metapt.config import commandline
from metapt.data.corpus import Corpus, prepare_corpus
from metapt.data.corpus_classes import corpus_classes
from metapt.data.word_classes import WordClasses
from metapt.errors import run_command


def main(argv: Sequence[str]) -> None:
    """Write the token shards and word classes of the corpus of these arguments, unless they exist, and print a summary.

    With `grid=NAME`: download what the jobs of the grid read from the hub.
    """
    if any(word.startswith("grid=") for word in argv):
        from metapt.launch.hub_inputs import prepare_grid  # here: the jobs of a grid do not need it

        prepare_grid(commandline.load("submit", argv))
        return
    config = commandline.load("prepare", argv)

    def log(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    corpus = prepare_corpus(config.data, progress=log)
    print(summary(corpus))
    if config.classes.sizes:
        print(classes_summary(corpus_classes(corpus, config.classes, log)))


def summary(corpus: Corpus) -> str:
    """Folder, fingerprint, tokenizer and size of a corpus, one a line."""
    info, manifest = corpus.tokenizer, corpus.manifest
    lines = [
        f"corpus      {corpus.folder}",
        f"fingerprint {corpus.fingerprint}",
        f"tokenizer   {info.name}: {info.size:,} entries, end-of-text {info.eos_id}, mask {info.mask_id}",
    ]
    for split, counts in manifest["splits"].items():
        lines.append(f"{split:11} {counts['tokens']:,} tokens, {counts['documents']:,} documents")
    skipped = [f"{count:,} x {reason}" for reason, count in manifest["skipped"].items()]
    return "\n".join([*lines, f"skipped     {', '.join(skipped) or 'nothing'}"])


def classes_summary(classes: WordClasses) -> str:
    """Number and sizes of the word classes, and the most frequent words of some."""
    lines = [
        f"classes     {len(classes.texts):,} words in partitions of {', '.join(map(str, classes.sizes))} classes; "
        f"{classes.is_held_out.sum():,} words and the last partition are held out"
    ]
    shown = [classes.members(0, label, 6) for label in range(min(6, classes.sizes[0]))]
    return "\n".join(
        [*lines, *(f"            {' '.join(text.strip() for text in words)}" for words in shown)]
    )


if __name__ == "__main__":
    run_command(main)
