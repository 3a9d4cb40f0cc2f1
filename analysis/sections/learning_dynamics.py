"""Pretraining: held-out perplexity at matched budgets, episodes, and learning dynamics."""

from __future__ import annotations

import math

import numpy as np

from metapt.evaluation.seed_inference import MIN_SEEDS, SeedMean

from ..figures import curves
from ..load.collect import Collection
from ..load.contrasts import REFERENCE
from ..load.schema import ATTENTION, FEED_FORWARD
from ..run_refs import counted, runs_of
from ..stats.budgets import (
    BUDGETS,
    EDGE_FRACTION,
    pretraining_contrasts,
    pretraining_pairs,
    start_and_end,
)
from ..stats.dynamics_means import dynamics_means
from ..stats.pretraining_means import PretrainingPairs, losses_at_common_budget, pretraining_means
from ..tables import RUNS, Cell, Column, Table
from .base import ReportData, Section

DEFINITION = (
    "Pretraining: the next-token loss is that of next-token updates only; losses of episodes are never included. Held-out perplexity "
    "is measured on documents that are not trained on. At a matched budget, both runs are compared at the largest budget that both "
    "reached; the held-out loss of each is interpolated linearly between measurements. Episodes: losses and accuracies are means over "
    f"the first and the last {EDGE_FRACTION:.0%} of the episode updates; chance is 1 / N. Gradient cosine: between the gradients of the "
    "next-token loss and of a term beside it, such as episodes on word classes, with respect to the last hidden states."
)


def section(data: ReportData) -> Section:
    """What pretraining reached and what it changed: means over seeds, and every run."""
    collection = data.collection
    builders = (means_table, dynamics_means_table, perplexity_table, episodes_table, dynamics_table)
    tables = [table(collection) for table in builders]
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
    """Whether the classes of held-out words are learned: a sentence for each comparison with vanilla on the same episodes."""
    return [
        _sentence(pairs)
        for pairs in pretraining_means(collection)
        if [run.objective == REFERENCE for run in pairs.pairs[0]] == [False, True]
        and not math.isnan(pairs.accuracy_gain.value)
    ]


def _sentence(pairs: PretrainingPairs) -> str:
    gain, accuracies = pairs.accuracy_gain, pairs.accuracies
    low, high = gain.interval
    verdict = "learned" if low > 0 else "not learned" if high < 0 else "inconclusive"
    name = " ".join(filter(None, (f"{pairs.contrast}, {pairs.scale}", pairs.variant)))
    return (
        f"Held-out words, {name}: {verdict}. On word classes that no training sees, prototypes of the hidden states reach a "
        f"class-balanced accuracy of {accuracies[0]:.3f} (second arm {accuracies[1]:.3f}, chance {pairs.chance:.3f}); the "
        f"difference is {gain.value:+.3f}, 95 % CI [{low:+.3f}, {high:+.3f}] ({counted(gain.seeds, 'seed')})."
    )


def means_table(collection: Collection) -> Table:
    """Perplexity and accuracy on held-out words of every comparison, as means over seeds with intervals."""
    columns = [*map(Column, ("comparison", "scale", "variant", "seeds"))]
    columns += [Column("perplexity, first / second"), Column("95 % CI ratio", interval=True)]
    columns += [Column(f"held-out words, {name}") for name in ("seeds", "first", "second")]
    columns += [Column("chance")]
    columns += [Column("Δ", signed=True), Column("95 % CI Δ", signed=True, interval=True), RUNS]
    rows: list[list[Cell]] = []
    for pairs in pretraining_means(collection):
        ratio, gain = pairs.log_perplexity, pairs.accuracy_gain
        cells: list[Cell] = [pairs.contrast, pairs.scale, pairs.variant, _seeds(ratio)]
        low, high = ratio.interval_over_seeds
        cells += [math.exp(ratio.value), (math.exp(low), math.exp(high))]
        cells += [_seeds(gain), *pairs.accuracies, pairs.chance, gain.value, gain.interval]
        rows.append([*cells, runs_of(*pairs.pairs)])
    note = (
        "Perplexity on held-out text at the largest number of next-token tokens that both runs of a pair reached: geometric mean over seeds, "
        f"t-interval with at least {MIN_SEEDS} seeds. Held-out words: class-balanced accuracy of prototypes on word classes "
        "that no training sees, where both arms have the same ones; intervals over seeds and episodes, with fewer seeds over episodes only."
    )
    table = Table("pretraining_means", "Perplexity and held-out words, means over seeds", columns, rows, note)
    return table.without_constant("variant")


def _seeds(mean: SeedMean) -> int | None:
    """The number of seeds that a mean is over; None if there are none."""
    return int(np.isfinite(mean.values).sum()) or None


def dynamics_means_table(collection: Collection) -> Table:
    """Learning dynamics at the end of pretraining of every comparison, as means over seeds with intervals."""
    columns = [*map(Column, ("comparison", "scale", "variant", "seeds", "measure"))]
    for head in ("first", "second", "Δ"):
        signed = head == "Δ"
        columns += [
            Column(head, 4, signed=signed),
            Column(f"95 % CI {head}", 4, signed=signed, interval=True),
        ]
    rows: list[list[Cell]] = []
    for item in dynamics_means(collection):
        pairs, means = item.pairs, (item.first, item.second, item.difference)
        seeds = min(mean.seeds for mean in means if mean)
        cells: list[Cell] = [pairs.contrast, pairs.scale, pairs.variant, seeds, item.name]
        for mean in means:
            cells += [mean.value, mean.interval_over_seeds] if mean else [None, (math.nan, math.nan)]
        rows.append([*cells, runs_of(*pairs.pairs)])
    note = (
        f"The last measurement of each run; cosines are means over the last {EDGE_FRACTION:.0%} of the updates that have one. "
        f"t-intervals over seeds, with at least {MIN_SEEDS}; the column counts those of Δ, or of the arm that has the measure."
    )
    title = "Learning dynamics at the end of pretraining, means over seeds"
    return Table("dynamics_means", title, [*columns, RUNS], rows, note).without_constant("variant")


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
    for contrast in pretraining_contrasts(collection):
        for first, second in pretraining_pairs(collection, contrast):
            if not (len(first.eval["step"]) and len(second.eval["step"])):
                continue
            for budget in BUDGETS:
                value, losses = losses_at_common_budget(first, second, budget)
                cells: list[Cell] = [str(contrast), first.scale, first.variant, first.seed, budget, value]
                cells += [*map(float, np.exp([*losses, losses[0] - losses[1]]))]
                rows.append([*cells, runs_of(first, second)])
    note = "First and second: the arms of the comparison. A ratio below 1 means that the first has the lower perplexity."
    title = "Held-out perplexity at matched budgets"
    table = Table("perplexity_at_matched_budgets", title, columns, rows, note)
    return table.without_constant("variant", "seed")


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
    title = "Learning dynamics of each run"
    table = Table("dynamics", title, [*map(Column, heads), RUNS], rows, note, on_page=False)
    return table.without_constant("variant", "seed")
