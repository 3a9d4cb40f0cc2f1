"""Case studies: how the log-probability of each word's gold tag differs between two arms in selected sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from ..load.records import FinetuneRun, GoldSet, Setting
from ..run_refs import Runs, counted, runs_of
from ..tables import RUNS, Cell, Column, Table
from .base import ReportData, Section, needed_pair

PAPER_SENTENCES = ("Inahit ni John ang sarili niya .", "Malapit kay Maria si Juan .")
EXTREMES = 5
FULL_COLOUR_NATS = 1.0
MAX_OPACITY = 55  # percent

DEFINITION = (
    "Case studies: for every word, the natural logarithm of the model's probability of the gold tag, first arm minus second, averaged "
    "over the pairs of runs of the largest scale at their last common pretraining step. The gain of a sentence is the mean over its "
    "words. The sentences with the largest gains and losses are selected for being extreme, so they say nothing about the average. "
    f"The background colour saturates at {FULL_COLOUR_NATS:g} nat."
)

Pair = tuple[FinetuneRun, FinetuneRun]


@dataclass(frozen=True)
class Case:
    """A sentence and the change of the log-probability of each gold tag.

    Attributes:
        index: position of the sentence in `gold`.
        reason: why the sentence was selected.
        change: [words], in nats, first arm minus second.
    """

    gold: GoldSet
    index: int
    reason: str
    change: np.ndarray
    runs: Runs

    @property
    def words(self) -> tuple[str, ...]:
        return self.gold.words[self.index]

    def entity_types(self) -> list[str]:
        """The entity type of each word, or O."""
        types = ["O"] * len(self.words)
        for entity_type, start, end in self.gold.spans[self.index]:
            types[start:end] = [entity_type] * (end - start)
        return types


def section(data: ReportData) -> Section:
    """The sentences of the paper, and those in which two arms differ most."""
    if not data.sentences:
        text = ["Omitted (--no-sentences): this section quotes sentences of the evaluation sets."]
        return Section("cases", "Case studies", text)
    largest = _largest_pairs(data.pairs)
    cases = [case for name in data.collection.target_sets() for case in _cases(largest, name)]
    if not cases:
        needed = f"Needed: {needed_pair(data)}, evaluated on a target set, with log-probabilities in `predictions/`."
        return Section("cases", "Case studies", [needed])
    runs = runs_of(*(case.runs for case in cases))
    pairs = len({first.path for first, _ in largest} & {run.path for run in runs})
    first, second = data.contrast.first, data.contrast.second
    text = [
        f"Change of the log-probability of each word's gold tag from {second} to {first}, averaged over "
        f"{counted(pairs, 'pair')} of runs ({largest[0][0].setting.scale}). {runs} Orange words gained under {first}, "
        "blue words lost. Entities are underlined and labelled with their type.",
        _absent_sentences(data),
    ]
    return Section(
        "cases",
        "Case studies",
        [paragraph for paragraph in text if paragraph],
        tables=[_table(cases)],
        blocks=[_markup(cases)],
    )


def _largest_pairs(by_setting: Mapping[Setting, Sequence[Pair]]) -> list[Pair]:
    """The pairs of the largest scale at its last step."""
    size = max((found[0][0].parameters or 0 for found in by_setting.values()), default=0)
    largest = {
        setting: found for setting, found in by_setting.items() if (found[0][0].parameters or 0) == size
    }
    last = max((setting.step or 0 for setting in largest), default=0)
    return [pair for setting, found in largest.items() if (setting.step or 0) == last for pair in found]


def _cases(candidates: Sequence[Pair], name: str) -> list[Case]:
    """The paper's sentences of a set, then the largest gains, then the largest losses."""
    scored = [
        pair for pair in candidates if all(name in run.sets and len(run.sets[name].logprobs) for run in pair)
    ]
    golds = [{run.sets[name].gold for run in pair} for pair in scored]
    same = [pair for pair, gold in zip(scored, golds, strict=True) if len(gold) == 1 and gold == golds[0]]
    if not same:
        return []
    gold, runs = same[0][0].sets[name].gold, runs_of(*same)
    changes = [first.sets[name].logprobs - second.sets[name].logprobs for first, second in same]
    by_sentence = np.split(np.mean(changes, axis=0), gold.starts[1:-1])
    gains = np.array([change.mean() if len(change) else 0.0 for change in by_sentence])
    order = np.argsort(gains, kind="stable")
    selected = [(i, "paper") for i, words in enumerate(gold.words) if " ".join(words) in PAPER_SENTENCES]
    selected += [(int(i), "largest gain") for i in order[::-1][:EXTREMES] if gains[i] > 0]
    selected += [(int(i), "largest loss") for i in order[:EXTREMES] if gains[i] < 0]
    return [Case(gold, i, reason, by_sentence[i], runs) for i, reason in selected]


def _absent_sentences(data: ReportData) -> str:
    """A sentence on which of the paper's sentences occur in no evaluated set, or an empty string."""
    texts = {
        " ".join(words)
        for name in data.collection.target_sets()
        for gold in data.collection.gold_sets(name)
        for words in gold.words
    }
    absent = [f"“{text}”" for text in PAPER_SENTENCES if text not in texts]
    return f"Sentences of the paper that occur in no target set: {' and '.join(absent)}." if absent else ""


def _table(cases: Sequence[Case]) -> Table:
    columns = [Column("set"), Column("sentence"), Column("selection"), Column("word"), Column("type")]
    columns += [Column("change (nats)", signed=True), RUNS]
    rows: list[list[Cell]] = [
        [case.gold.name, case.gold.ids[case.index], case.reason, word, entity_type, float(change), case.runs]
        for case in cases
        for word, entity_type, change in zip(case.words, case.entity_types(), case.change, strict=True)
    ]
    return Table("cases", "Case studies by word", columns, rows, on_page=False)


def _markup(cases: Sequence[Case]) -> Markup:
    """The sentences as HTML. Words are escaped; the change is also the tooltip, for readers who cannot see the colour."""
    return Markup('<ol class="cases">{}</ol>').format(Markup("").join(map(_sentence, cases)))


def _sentence(case: Case) -> Markup:
    gain = f"{case.change.mean():+.2f}".replace("-", "−")
    words = zip(case.words, case.entity_types(), case.change, strict=True)
    return Markup('<li><span class="reason">{}, {}, {} nats/word</span><br>{}</li>').format(
        case.reason, case.gold.name, gain, Markup(" ").join(_word(*parts) for parts in words)
    )


def _word(word: str, entity_type: str, change: float) -> Markup:
    opacity = MAX_OPACITY * min(1.0, abs(change) / FULL_COLOUR_NATS)
    colour = "--first" if change > 0 else "--second"
    style = f"background:color-mix(in srgb, var({colour}) {opacity:.0f}%, transparent)"
    text = Markup("<u>{}</u><sub>{}</sub>").format(word, entity_type)
    return Markup('<span class="word" style="{}" title="{} nats">{}</span>').format(
        style, f"{change:+.2f}", Markup("{}").format(word) if entity_type == "O" else text
    )
