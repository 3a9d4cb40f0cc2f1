"""metapt describe [key=value ...] [--json]: what is in labelled sets. `--help` lists the keys."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from metapt.config import DescribeConfig, commandline
from metapt.data import DEMO_NOTICE
from metapt.data.corpus_spec import SPLITS
from metapt.data.iob2 import TYPES
from metapt.data.labelled_sets import open_collection
from metapt.data.statistics import set_statistics
from metapt.data.tokenizer_stats import read_tokenizer, subword_statistics
from metapt.errors import UserError

COMMAND = "describe"
NOTES = """\
%1: share of spans of one word. words/span: mean (longest). part PER, part all: share of spans of persons, of all spans,
directly after a case particle (si, ni, ang, ng, sa; in lower case)."""
SUBWORD_NOTES = """
subwords: per word, with a space before it. %split: words of two subwords or more. paper oov: words that are no entry of the
vocabulary without that space. paper part: the authors' "particle recall", which counts positions of all words, O too,
by misaligned numbers (docs/data.md)."""


def main(argv: Sequence[str]) -> None:
    """Prints the figures of every split of every set that is found, as a table or as JSON.

    Raises:
        UserError: a mistake in the arguments or in the data.
    """
    if not argv:
        raise UserError(
            "metapt describe: give data=demo, data.uner_dir=DIR or data.corpora=[...]; --help lists the keys"
        )
    words = ["json=true" if word == "--json" else word for word in argv]
    config: DescribeConfig = commandline.load(COMMAND, words)
    figures = describe(config)
    if config.json:
        print(json.dumps(figures, ensure_ascii=False))
        return
    Console(width=None if sys.stdout.isatty() else 200, highlight=False).print(table(figures))
    print(NOTES + (SUBWORD_NOTES if config.tokenizer else ""))
    if config.data.name == "demo":
        print(DEMO_NOTICE)


def describe(config: DescribeConfig) -> dict[str, dict[str, dict[str, Any]]]:
    """Set to split to figures (metapt/data/statistics.py), those of subwords (metapt/data/tokenizer_stats.py) too if there is a tokenizer."""
    collection = open_collection(config.data)
    unknown = [name for name in config.sets if name not in collection.splits]
    if unknown:
        raise UserError(
            f"sets: {', '.join(unknown)} not in {collection.where}; it has {', '.join(collection.splits)}"
        )
    tokenizer = read_tokenizer(config.tokenizer) if config.tokenizer else None
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for name in config.sets or collection.splits:
        for split in (split for split in SPLITS if split in collection.splits[name]):
            sentences = collection.load(name, split)
            figures = set_statistics(sentences)
            if tokenizer is not None:
                figures |= subword_statistics(sentences, tokenizer)
            found.setdefault(name, {})[split] = figures
    return found


def table(figures: dict[str, dict[str, dict[str, Any]]]) -> Table:
    """The figures for people, one line a split."""
    has_subwords = any("subwords_per_word" in each for splits in figures.values() for each in splits.values())
    heads = ["sentences", "with entity", "words"]
    heads += [head for kind in TYPES for head in (kind, "%1")]
    heads += ["words/span", "part PER", "part all"]
    heads += ["subwords", "%split", "paper oov", "paper part"] if has_subwords else []
    shown = Table("set", "split", box=None, pad_edge=False)
    for head in heads:
        shown.add_column(head, justify="right")
    for name, splits in figures.items():
        for split, each in splits.items():
            shown.add_row(name, split, *_cells(each, has_subwords))
    return shown


def _cells(each: dict[str, Any], has_subwords: bool) -> list[str]:
    every = each["spans"]["all"]
    cells = [f"{each[key]:,}" for key in ("sentences", "sentences_with_entity", "words")]
    for kind in TYPES:
        cells += [f"{each['spans'][kind]['count']:,}", _percent(each["spans"][kind]["single_word_fraction"])]
    longest = max(map(int, every["lengths_words"]), default=0)
    cells.append(f"{every['mean_words']:.2f} ({longest})" if every["count"] else "-")
    cells += [_percent(each["after_particle"][kind]["share"]) for kind in ("PER", "all")]
    if has_subwords:
        cells += [f"{each['subwords_per_word']:.2f}", _percent(each["split_word_fraction"])]
        cells += [f"{each[key]:.3f}" for key in ("paper_oov_rate", "paper_particle_recall")]
    return cells


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"
