"""metapt describe [key=value ...] [--json]: statistics of labelled sets, or the word classes of a corpus. `--help` lists the keys."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from metapt.config import DescribeConfig, commandline
from metapt.data import DEMO_NOTICE
from metapt.data.iob2 import entity_types
from metapt.data.labelled_folders import SPLITS
from metapt.data.labelled_sets import open_collection
from metapt.data.statistics import set_statistics
from metapt.data.tokenizer_stats import read_tokenizer, subword_statistics
from metapt.errors import UserError

COMMAND = "describe"
WIDTH = 200  # characters, if the output is not a terminal
NOTES = """\
Documents: as the set marks them (data.documents); -: it does not.
% single-word: fraction of spans that are one word. Case particles: si, ni, ang,
ng, sa (case-insensitive)."""
SUBWORD_NOTES = """\
Words are tokenized with a space before them, unless it would be a subword of its
own. % split words: words of two or more subwords. % pooled: words whose pooled
subword holds one of their characters. Paper OOV rate: fraction of words that are
not in the vocabulary without that space. Paper particle recall: computed as in the
paper, whose code counts all words and misaligns words and subwords (docs/data.md)."""

Statistics = dict[str, Any]
SetStatistics = dict[str, dict[str, Statistics]]
"""Statistics by set and split."""


def main(argv: Sequence[str]) -> None:
    """Print statistics of every split of the sets, as tables or as JSON.

    Raises:
        UserError: the arguments or the data are wrong.
    """
    if argv and argv[0] == "classes":
        from metapt.data import describe_classes  # imports torch, which the other descriptions do without

        describe_classes.main(argv[1:])
        return
    if not argv:
        raise UserError(
            "metapt describe: give data=demo, data.uner_dir=DIR or data.corpora=[...]; --help lists the keys"
        )
    config: DescribeConfig = commandline.load(COMMAND, argv)
    statistics = describe(config)
    if config.json:
        print(json.dumps(statistics, ensure_ascii=False))
        return
    console = Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False)
    tables = [sentence_table(statistics), span_table(statistics), particle_table(statistics)]
    notes = [NOTES]
    if config.tokenizer:
        tables.append(subword_table(statistics))
        notes.append(SUBWORD_NOTES)
    with console.capture() as captured:  # printing to a closed pipe, rich would end the process with code 1
        for table in tables:
            console.print(table, "")
        console.print(*notes, sep="\n")
    print(captured.get(), end="")
    if config.data.name == "demo":
        print(DEMO_NOTICE)


def describe(config: DescribeConfig) -> SetStatistics:
    """Statistics by set and split (metapt/data/statistics.py), with those of subwords if a tokenizer is given.

    Prints on stderr how files were read, which splits were held out, and what was left out.
    """
    collection = open_collection(config.data, sets=config.sets)
    requested = [collection.name_of(item) for item in config.sets]
    unknown = [name for name in requested if name not in collection.splits]
    if unknown:
        raise UserError(
            f"sets: {collection.where} has no set {', '.join(unknown)}; its sets are {', '.join(collection.splits)}"
        )
    tokenizer = read_tokenizer(config.tokenizer) if config.tokenizer else None
    statistics: SetStatistics = {}
    for name in requested or collection.splits:
        statistics[name] = {}
        for split in (split for split in SPLITS if split in collection.splits[name]):
            sentences = collection.load(name, split)
            statistics[name][split] = set_statistics(sentences)
            if tokenizer is not None:
                statistics[name][split] |= subword_statistics(sentences, tokenizer)
    for note in collection.notes():
        print(note, file=sys.stderr)
    return statistics


def sentence_table(statistics: SetStatistics) -> Table:
    """Numbers of documents, sentences and words, and the lengths of entities, by set and split."""
    columns = ("documents", "sentences", "with entity", "words", "words/span", "longest span")

    def cells(split: Statistics) -> list[str]:
        counts = ["-" if split["documents"] is None else f"{split['documents']:,}"]
        counts += [f"{split[key]:,}" for key in ("sentences", "sentences_with_entity", "words")]
        spans = split["spans"]["all"]
        if not spans["count"]:
            return [*counts, "-", "-"]
        return [*counts, f"{spans['mean_words']:.2f}", str(max(map(int, spans["lengths_words"])))]

    return _table("Sentences and spans", columns, statistics, cells)


def span_table(statistics: SetStatistics) -> Table:
    """The number of entities of each type, and the percentage of these with a single word."""
    types = entity_types(
        kind
        for splits in statistics.values()
        for split in splits.values()
        for kind in split["spans"]
        if kind != "all"
    )
    columns = (*types, *(f"% single-\nword {entity_type}" for entity_type in types))

    def cells(split: Statistics) -> list[str]:
        spans = [split["spans"].get(entity_type) for entity_type in types]
        counts = ["0" if span is None else f"{span['count']:,}" for span in spans]
        return counts + [_percent(span and span["single_word_fraction"]) for span in spans]

    return _table("Spans by type", columns, statistics, cells)


def particle_table(statistics: SetStatistics) -> Table:
    """How many entities come directly after a case particle, and what percentage of persons and of all types."""
    groups = ("PER", "all")

    def cells(split: Statistics) -> list[str]:
        after = [split["after_particle"][group] for group in groups]
        return [f"{spans['spans']:,}" for spans in after] + [_percent(spans["fraction"]) for spans in after]

    return _table("Spans directly after a case particle", (*groups, "% PER", "% all"), statistics, cells)


def subword_table(statistics: SetStatistics) -> Table:
    """How a tokenizer splits and pools the words, with the two rates that the paper defines."""
    columns = ("subwords/word", "% split words", "% pooled", "paper\nOOV rate", "paper particle\nrecall")

    def cells(split: Statistics) -> list[str]:
        rates = [f"{split[key]:.3f}" for key in ("paper_oov_rate", "paper_particle_recall")]
        fractions = [_percent(split[f"{key}_fraction"]) for key in ("split_word", "pooled_character")]
        return [f"{split['subwords_per_word']:.2f}", *fractions, *rates]

    return _table("Subwords", columns, statistics, cells)


def _table(
    title: str, columns: Sequence[str], statistics: SetStatistics, cells: Callable[[Statistics], list[str]]
) -> Table:
    """A table with one row per split."""
    table = Table("set", "split", title=title, title_justify="left", box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    for name, splits in statistics.items():
        for split, values in splits.items():
            table.add_row(name, split, *cells(values))
    return table


def _percent(fraction: float | None) -> str:
    return "-" if fraction is None else f"{100 * fraction:.1f}"
