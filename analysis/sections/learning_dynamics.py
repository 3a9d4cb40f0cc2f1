"""Pretraining: held-out perplexity at matched budgets, episodes, and learning dynamics."""

from __future__ import annotations

import numpy as np

from ..figures import curves
from ..load.collect import Collection
from ..load.records import PretrainRun
from ..load.schema import ATTENTION, FEED_FORWARD
from ..run_refs import runs_of
from ..stats.budgets import BUDGETS, EDGE_FRACTION, eval_losses, pretraining_pairs, start_and_end
from ..tables import RUNS, Cell, Column, Table
from .base import ReportData, Section

RESAMPLES = 2000  # of the episodes on held-out words

DEFINITION = (
    "Pretraining: the next-token loss is that of next-token updates only; losses of episodes are never included. Held-out perplexity "
    "is measured on documents that are not trained on. At a matched budget, both runs are compared at the largest budget that both "
    "reached; the held-out loss of each is interpolated linearly between measurements. Episodes: losses and accuracies are means over "
    f"the first and the last {EDGE_FRACTION:.0%} of the episode updates; chance is 1 / N."
)


def section(data: ReportData) -> Section:
    collection = data.collection
    tables = [perplexity_table(collection), episodes_table(collection), dynamics_table(collection)]
    figures = [
        *curves.pretraining(collection),
        *curves.episodes(collection),
        *curves.dynamics(collection),
    ]
    text = [_skipped_updates(collection) if collection.pretraining else "Needed: a finished pretraining run."]
    if not any(len(run.dynamics) > 1 for run in collection.pretraining):
        text.append(
            "Needed for learning dynamics: runs with `train.dynamics_every` and at least two measurements."
        )
    text += learned_episodes(collection)
    return Section("pretraining", "Pretraining and learning dynamics", text, figures, tables)


def learned_episodes(collection: Collection) -> list[str]:
    """Whether the classes of held-out words are learned, one sentence for each pair of runs that measured them on the same episodes."""
    sentences = []
    pairs = [pair for contrast in collection.contrasts for pair in pretraining_pairs(collection, contrast)]
    for first, second in pairs:
        lines = [run.dynamics[-1] if run.dynamics else None for run in (first, second)]
        found = [
            np.array(line.held_out_words_prototype_accuracy or (), float) if line else None for line in lines
        ]
        if found[0] is None or found[1] is None or len(found[0]) < 2 or len(found[0]) != len(found[1]):
            continue
        low, high = _interval(found[0] - found[1])
        verdict = "learned" if low > 0 else "not learned" if high < 0 else "inconclusive"
        assert lines[0] is not None
        chance = lines[0].held_out_words_chance
        sentences.append(
            f"Episodes of {first.path.name}: {verdict}. On word classes that no training sees, prototypes of its states reach a "
            f"class-balanced accuracy of {found[0].mean():.3f} ({second.path.name} {found[1].mean():.3f}, chance {chance:.3f}) over the same "
            f"{len(found[0])} episodes; the difference is {found[0].mean() - found[1].mean():+.3f}, "
            f"95 % CI over episodes [{low:+.3f}, {high:+.3f}]."
        )
    return sentences


def _interval(differences: np.ndarray) -> tuple[float, float]:
    """Percentile bootstrap interval, 95 %, of a mean."""
    chosen = np.random.default_rng(0).integers(0, len(differences), (RESAMPLES, len(differences)))
    low, high = np.percentile(differences[chosen].mean(axis=1), [2.5, 97.5])
    return float(low), float(high)


def _skipped_updates(collection: Collection) -> str:
    counts = {run.path.name: len(run.skipped["step"]) for run in collection.pretraining}
    parts = [f"{count} in {name}" for name, count in counts.items() if count]
    return f"Updates skipped because of a non-finite loss or gradient: {', '.join(parts) or 'none'}."


def perplexity_table(collection: Collection) -> Table:
    """Held-out perplexity of each pair of runs at the largest common amount of every budget."""
    columns = [*map(Column, ("comparison", "scale", "variant", "seed", "matched budget"))]
    columns += [Column("value", 3, significant=True), Column("perplexity of the first", 2)]
    columns += [Column("perplexity of the second", 2), Column("first / second", 4), RUNS]
    rows: list[list[Cell]] = []
    for contrast in collection.contrasts:
        for first, second in pretraining_pairs(collection, contrast):
            if not (len(first.eval["step"]) and len(second.eval["step"])):
                continue
            for budget in BUDGETS:
                value, losses = _losses_at_common_budget(first, second, budget)
                cells: list[Cell] = [str(contrast), first.scale, first.variant, first.seed, budget, value]
                cells += [*map(float, np.exp([*losses, losses[0] - losses[1]]))]
                rows.append([*cells, runs_of(first, second)])
    note = "First and second: the arms of the comparison. A ratio below 1 means that the first has the lower perplexity."
    title = "Held-out perplexity at matched budgets"
    table = Table("perplexity_at_matched_budgets", title, columns, rows, note)
    return table.without_constant("variant", "seed")


def _losses_at_common_budget(
    first: PretrainRun, second: PretrainRun, budget: str
) -> tuple[float, tuple[float, float]]:
    """The largest value of a budget that both runs reached, and their losses in nats at it."""
    curves = [(spent[budget], losses) for spent, losses in (eval_losses(first), eval_losses(second))]
    value = min(float(spent[-1]) for spent, _ in curves)
    first_loss, second_loss = (float(np.interp(value, *curve)) for curve in curves)
    return value, (first_loss, second_loss)


def episodes_table(collection: Collection) -> Table:
    """Losses and accuracies of the episodes at the start and at the end of pretraining."""
    heads = (
        "scale",
        "variant",
        "seed",
        "part of training",
        "episodes",
        "support loss before",
        "support loss after",
        "support accuracy before",
        "support accuracy after",
        "query loss",
        "query accuracy",
        "chance",
    )
    rows: list[list[Cell]] = []
    for run in collection.pretraining:
        count = len(run.episodes["step"])
        for part, chosen in start_and_end(count).items() if count else ():
            means = {field: values[chosen].mean(axis=0) for field, values in run.episodes.items()}
            cells: list[Cell] = [run.scale, run.variant, run.seed, part, len(range(count)[chosen])]
            for field in ("support_loss_nats", "support_accuracy"):
                cells += [float(means[field][0]), float(means[field][-1])]
            cells += [float(means["query_loss_nats"]), float(means["query_accuracy"]), 1 / run.n_way]
            rows.append([*cells, runs_of(run)])
    note = "Before and after the inner loop; losses in nats."
    table = Table("episodes", "Episodes", [*map(Column, heads), RUNS], rows, note)
    return table.without_constant("variant", "seed")


def dynamics_table(collection: Collection) -> Table:
    """Effective ranks, attention entropy and the probe episode at the first and the last measurement of each run."""
    heads = (
        "scale",
        "variant",
        "objective",
        "seed",
        "step",
        "effective rank, attention",
        "effective rank, feed-forward",
        "attention entropy",
        "probe support accuracy",
        "probe query accuracy",
    )
    rows: list[list[Cell]] = []
    for run in collection.pretraining:
        for line in (run.dynamics[0], run.dynamics[-1]) if run.dynamics else ():
            cells: list[Cell] = [run.scale, run.variant, run.objective, run.seed, line.step]
            cells += [line.rank(ATTENTION), line.rank(FEED_FORWARD), line.entropy]
            rows.append([*cells, line.adapted("support"), line.adapted("query"), runs_of(run)])
    note = (
        "Means over blocks, attention heads and kinds of matrix. The proportional effective rank is 1 if all directions are used "
        "equally; the entropy is relative to uniform attention; the probe is a fixed episode that is never trained on, after adaptation."
    )
    table = Table("dynamics", "Learning dynamics", [*map(Column, heads), RUNS], rows, note)
    return table.without_constant("variant", "seed")
