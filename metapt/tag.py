"""The command `metapt tag`: tag the named entities of sentences, a file, or stdin.

Input from a file or stdin is streamed: each line is tagged as soon as it arrives.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import BinaryIO

from rich.console import Console

from metapt import load_tagger
from metapt.config import TagConfig, commandline
from metapt.errors import UserError, run_command
from metapt.inference.formatting import as_iob2, as_json, as_jsonl, colour_text, with_brackets, with_colours
from metapt.inference.streams import (
    COLUMN_SUFFIXES,
    JSON_SUFFIXES,
    ColumnReader,
    InputSentence,
    available_lines,
    json_sentences,
    text_sentences,
)

STDIN = "-"


def main(argv: Sequence[str]) -> None:
    """Tag the sentences of the command line, of a file, or of stdin, and print them.

    Raises:
        UserError: an error in the arguments, no tagger, or bad input. The input before it has been tagged and printed.
    """
    settings, sentences = commandline.split_settings_and_texts(argv)
    config: TagConfig = commandline.load("tag", settings)
    if sentences and config.input is not None:
        raise UserError(f"input={config.input}: give either sentences or input=, not both")
    if (
        config.input not in (None, STDIN) and not Path(config.input).exists()
    ):  # checked before the slow imports
        raise UserError(f"input={config.input}: no such file")
    tagger = load_tagger(
        config.checkpoint, precision=config.precision, device=config.device, batch_size=config.batch_size
    )
    console = Console()
    in_colour = config.format == "text" and console.color_system is not None and not console.no_color
    if in_colour:
        types = dict.fromkeys(tag[2:] for tag in tagger.tags if tag != "O")
        print(" ".join(colour_text(name, f" {name} ") for name in types), file=sys.stderr)
    with _input_batches(config, sentences) as batches:
        for batch in batches:
            tagged = tagger.tag([sentence.content for sentence in batch])
            for source, result in zip(batch, tagged, strict=True):
                if config.format == "json":
                    print(as_json(result))
                elif config.format == "jsonl":
                    print(as_jsonl(result, source.values))
                elif config.format == "iob2":
                    print(as_iob2(result, source.comments), end="")
                else:
                    print(with_colours(result) if in_colour else with_brackets(result))
            sys.stdout.flush()


@contextmanager
def _input_batches(config: TagConfig, sentences: Sequence[str]) -> Iterator[Iterator[list[InputSentence]]]:
    """The sentences to tag, in lists of those that arrived at the same time."""
    if sentences:
        yield iter([[InputSentence.of_text(sentence) for sentence in sentences]])
    elif config.input in (None, STDIN):
        if sys.stdin.isatty():
            print("Type one sentence per line; Ctrl-D ends.", file=sys.stderr)
        yield _read(config, sys.stdin.buffer, "stdin")
    else:
        with Path(config.input).open("rb") as file:
            yield _read(config, file, config.input)


def _read(config: TagConfig, stream: BinaryIO, name: str) -> Iterator[list[InputSentence]]:
    """The sentences of a stream in the configured input format; `name` is that of the file, for error messages."""
    lines = available_lines(stream, name)
    input_format = config.input_format
    if input_format == "auto":
        formats = {"iob2": COLUMN_SUFFIXES, "jsonl": JSON_SUFFIXES}
        input_format = next((each for each, ends in formats.items() if name.endswith(ends)), "text")
    if input_format == "iob2":
        return ColumnReader(name, config.word_column, partial(print, file=sys.stderr)).read(lines)
    if input_format == "jsonl":
        return json_sentences(lines, name)
    return text_sentences(lines)


if __name__ == "__main__":
    run_command(main)
