"""Case studies: how MAML changes the log-probability of each word's gold tag, on chosen sentences and on the extremes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from ..load.records import FinetuneRun, GoldSet, Setting
from ..stats.comparison import pairs
from ..stats.run_refs import Runs, counted, runs_of
from ..tables import RUNS, Cell, Column, Table
from .base import Section, Study

CHOSEN = ("Inahit ni John ang sarili niya .", "Malapit kay Maria si Juan .")  # those of the paper
EXTREMES = 5
FULL_COLOUR_NATS = 1.0

DEFINITION = (
    "Cases: for every word, the natural logarithm of the model's probability of the gold tag, MAML minus vanilla, mean over the "
    "pairs of the largest scale at their last common pretraining step. A sentence's gain is the mean over its words. The sentences with "
    "the largest gains and losses are extremes, picked for being so, and say nothing about the average; words "
    f"are fully coloured at {FULL_COLOUR_NATS:g} nat."
)


@dataclass(frozen=True)
class Case:
    gold: GoldSet
    index: int
    why: str
    change: np.ndarray
    runs: Runs

    @property
    def words(self) -> tuple[str, ...]:
        return self.gold.words[self.index]

    def classes(self) -> list[str]:
        """The type of the span that each word is part of, or O."""
        found = ["O"] * len(self.words)
        for kind, start, end in self.gold.spans[self.index]:
            found[start:end] = [kind] * (end - start)
        return found


def section(study: Study) -> Section:
    both = _largest(pairs(study.collection))
    found = [case for name in study.collection.target_sets() for case in _cases(both, name)]
    if not found:
        need = "Needed: a pair of a MAML and a vanilla run, scored on a Tagalog or Cebuano set, with log-probabilities in predictions/."
        return Section("cases", "Case studies", [need])
    used = runs_of(*(case.runs for case in found))
    text = [
        f"Change of the log-probability of the gold tag from vanilla to MAML, word by word, mean over {counted(len(used) // 2, 'pair')} of runs "
        f"({both[0][0].setting.scale}). {used} Words in vermilion gained under MAML, in blue lost; entities are underlined, with their type.",
        _missing(study),
    ]
    return Section("cases", "Case studies", [part for part in text if part], tables=[_table(found)], blocks=[_markup(found)])  # fmt: skip


def _largest(found: dict[Setting, list[tuple[FinetuneRun, FinetuneRun]]]) -> list[tuple[FinetuneRun, FinetuneRun]]:  # fmt: skip
    """The pairs of the largest scale at its last step."""
    size = max((pair[0].parameters or 0 for both in found.values() for pair in both), default=0)
    chosen = {setting: both for setting, both in found.items() if (both[0][0].parameters or 0) == size}
    step = max((setting.step or 0 for setting in chosen), default=0)
    return [pair for setting, both in chosen.items() if (setting.step or 0) == step for pair in both]


def _cases(both: Sequence[tuple[FinetuneRun, FinetuneRun]], name: str) -> list[Case]:
    """Chosen sentences of a set, then the largest gains, then the largest losses."""
    told = [pair for pair in both if all(name in run.sets and len(run.sets[name].logprobs) for run in pair)]
    golds = [{run.sets[name].gold for run in pair} for pair in told]
    same = [pair for pair, gold in zip(told, golds, strict=True) if len(gold) == 1 and gold == golds[0]]
    if not same:
        return []
    gold, runs = same[0][0].sets[name].gold, runs_of(*same)
    changes = [maml.sets[name].logprobs - vanilla.sets[name].logprobs for maml, vanilla in same]
    parts = np.split(np.mean(changes, axis=0), gold.starts[1:-1])
    gains = np.array([part.mean() if len(part) else 0.0 for part in parts])
    order = np.argsort(gains, kind="stable")
    texts = [" ".join(words) for words in gold.words]
    cases = [
        Case(gold, index, "chosen", parts[index], runs) for index, text in enumerate(texts) if text in CHOSEN
    ]
    cases += [Case(gold, i, "largest gain", parts[i], runs) for i in order[::-1][:EXTREMES] if gains[i] > 0]
    return cases + [Case(gold, i, "largest loss", parts[i], runs) for i in order[:EXTREMES] if gains[i] < 0]


def _missing(study: Study) -> str:
    """Which chosen sentences no set holds."""
    names = study.collection.target_sets()
    texts = {" ".join(words) for name in names for gold in study.collection.gold_sets(name) for words in gold.words}  # fmt: skip
    absent = [f"“{text}”" for text in CHOSEN if text not in texts]
    return f"Not in any evaluated set: {' and '.join(absent)}." if absent else ""


def _table(found: Sequence[Case]) -> Table:
    columns = [Column("set"), Column("sentence"), Column("why"), Column("word"), Column("class")]
    columns += [Column("change (nats)", signed=True), RUNS]
    rows: list[list[Cell]] = [
        [case.gold.name, case.gold.ids[case.index], case.why, word, kind, float(change), case.runs]
        for case in found
        for word, kind, change in zip(case.words, case.classes(), case.change, strict=True)
    ]
    return Table("cases", "Case studies word by word", columns, rows, on_page=False)


def _markup(found: Sequence[Case]) -> Markup:
    """The sentences; every word is escaped, and its change stands in its title, for who cannot see the colour."""
    lines = [
        Markup('<li><span class="why">{}, {}, {} nats a word</span><br>{}</li>').format(
            case.why,
            case.gold.name,
            f"{case.change.mean():+.2f}".replace("-", "−"),
            Markup(" ").join(
                _word(*parts) for parts in zip(case.words, case.classes(), case.change, strict=True)
            ),
        )
        for case in found
    ]
    return Markup('<ol class="cases">{}</ol>').format(Markup("").join(lines))


def _word(word: str, kind: str, change: float) -> Markup:
    share = min(1.0, abs(change) / FULL_COLOUR_NATS)
    colour = "--maml" if change > 0 else "--vanilla"
    inner = Markup("<u>{}</u><sub>{}</sub>").format(word, kind) if kind != "O" else Markup("{}").format(word)
    style = f"background:color-mix(in srgb, var({colour}) {100 * share * 0.55:.0f}%, transparent)"
    return Markup('<span class="word" style="{}" title="{} nats">{}</span>').format(style, f"{change:+.2f}", inner)  # fmt: skip
