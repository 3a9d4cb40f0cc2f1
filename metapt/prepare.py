"""The command `metapt prepare`: tokenize a corpus into shards before the runs that read it.

It takes the keys of `metapt pretrain`, so that the same arguments mean the same corpus.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from metapt.config import commandline
from metapt.data.corpus import Corpus, prepare_corpus
from metapt.errors import run_command


def main(argv: Sequence[str]) -> None:
    """Write the token shards of the corpus of these arguments, unless they exist, and print a summary."""
    config = commandline.load("prepare", argv)
    corpus = prepare_corpus(config.data, progress=lambda line: print(line, file=sys.stderr, flush=True))
    print(summary(corpus))


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


if __name__ == "__main__":
    run_command(main)
