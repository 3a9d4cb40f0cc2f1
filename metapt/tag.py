"""python -m metapt.tag checkpoint=PATH ["a sentence" ...]: sentences with their named entities. `--help` lists the keys.

Without sentences a file or stdin is tagged as it comes: a line is answered as soon as it is there.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from rich.console import Console

from metapt import load_tagger
from metapt.config import TagConfig, commandline
from metapt.errors import UserError, run_command
from metapt.inference.formatting import as_iob2, as_json, bracketed, coloured, paint
from metapt.inference.streams import (
    COLUMN_SUFFIXES,
    InputSentence,
    column_sentences,
    lines_as_they_come,
    text_sentences,
)

STDIN = "-"


def main(argv: Sequence[str]) -> None:
    """Tags the sentences of the command line, of a file, or of stdin; ends quietly when nobody reads on.

    Raises:
        UserError: a mistake in the arguments, no tagger, or bad input; what stands before it has been tagged.
    """
    settings, sentences = commandline.parted(argv)
    config: TagConfig = commandline.load("tag", settings)
    if sentences and config.input is not None:
        raise UserError("give sentences or input=, not both")
    if config.input not in (None, STDIN) and not Path(config.input).exists():  # told before the slow imports
        raise UserError(f"input={config.input}: no such file")
    tagger = load_tagger(
        config.checkpoint, precision=config.precision, device=config.device, batch_size=config.batch_size
    )
    console = Console()
    in_colour = config.format == "text" and console.color_system is not None and not console.no_color
    if in_colour:
        kinds = dict.fromkeys(tag[2:] for tag in tagger.tags if tag != "O")
        print(" ".join(paint(kind, f" {kind} ") for kind in kinds), file=sys.stderr)
    try:
        with _arriving(config, sentences) as arriving:
            for batch in arriving:
                tagged = tagger.tag([each.content for each in batch])
                for given, found in zip(batch, tagged, strict=True):
                    if config.format == "json":
                        print(as_json(found))
                    elif config.format == "iob2":
                        print(as_iob2(found, given.comments), end="")
                    else:
                        print(coloured(found) if in_colour else bracketed(found))
                sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nothing to complain of at exit


@contextmanager
def _arriving(config: TagConfig, sentences: Sequence[str]) -> Iterator[Iterator[list[InputSentence]]]:
    """What is to be tagged, in lists of what is there at the same time."""
    if sentences:
        yield iter([[InputSentence.of_text(sentence) for sentence in sentences]])
    elif config.input in (None, STDIN):
        if sys.stdin.isatty():
            print("a sentence a line; Ctrl-D ends", file=sys.stderr)
        yield _sentences(config, sys.stdin.buffer, "stdin")
    else:
        with Path(config.input).open("rb") as file:
            yield _sentences(config, file, config.input)


def _sentences(config: TagConfig, stream: BinaryIO, name: str) -> Iterator[list[InputSentence]]:
    lines = lines_as_they_come(stream, name)
    auto = "iob2" if name.endswith(COLUMN_SUFFIXES) else "text"
    if (auto if config.input_format == "auto" else config.input_format) == "iob2":
        return column_sentences(lines, name, config.word_column)
    return text_sentences(lines)


if __name__ == "__main__":
    run_command(main)
