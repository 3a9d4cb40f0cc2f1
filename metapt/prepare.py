"""python -m metapt.prepare: makes the token shards of a corpus before the runs that need them.

Takes the keys of metapt.pretrain, so that the same words mean the same corpus; does nothing if it is there.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from metapt.config import commandline
from metapt.data.corpus import Corpus, prepare_corpus
from metapt.errors import run_command


def main(arguments: Sequence[str]) -> None:
    config = commandline.load("pretrain", arguments)
    corpus = prepare_corpus(config.data, progress=lambda line: print(line, file=sys.stderr, flush=True))
    print(summary(corpus))


def summary(corpus: Corpus) -> str:
    """What is in a corpus, for people."""
    info, manifest = corpus.tokenizer, corpus.manifest
    lines = [f"corpus      {corpus.folder}", f"fingerprint {corpus.fingerprint}"]
    lines.append(
        f"tokenizer   {info.name}: {info.size:,} entries, end-of-text {info.eos_id}, mask {info.mask_id}"
    )
    for split, counts in manifest["splits"].items():
        lines.append(f"{split:11} {counts['tokens']:,} tokens, {counts['documents']:,} documents")
    skipped = [f"{count:,} x {reason}" for reason, count in manifest["skipped"].items()]
    return "\n".join([*lines, f"skipped     {', '.join(skipped) or 'nothing'}"])


if __name__ == "__main__":
    run_command(main)
