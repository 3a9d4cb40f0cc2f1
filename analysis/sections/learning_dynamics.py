"""What happened during pretraining: curves over four budgets, and MAML against vanilla at equal budgets."""

from __future__ import annotations

import numpy as np

from ..load.collect import Collection, pretraining_key
from ..load.records import PretrainRun
from ..stats.run_refs import runs_of
from ..tables import RUNS, Cell, Column, Table

BUDGETS = {"updates": "step", "tokens": "tokens_total", "FLOPs": "flops_total", "seconds": "seconds_total"}
EDGE_SHARE = 0.10
ATTENTION = ("q", "k", "v", "o")
FEED_FORWARD = ("gate", "up", "down")

DEFINITION = (
    "Pretraining: the language-model loss is that of autoregressive steps alone (an episode's loss is another quantity and "
    "is never mixed in); held-out perplexity is measured on text kept apart. A comparison at an equal budget takes the "
    "largest budget that both runs reached and interpolates each run's held-out loss linearly between its measurements. "
    f"Episodes: support loss over the inner steps and accuracies, means over the first and the last {EDGE_SHARE:.0%} of the "
    "episode steps; chance is 1 / N."
)


def eval_losses_of(run: PretrainRun) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """(budget name to its value, loss in nats per token) at every held-out measurement, both [measurements]."""
    totals = budgets(run)
    steps = run.eval["step"]
    at = np.searchsorted(totals["updates"], steps)
    known = np.isin(steps, totals["updates"])
    axes = {name: values[at[known]] for name, values in totals.items()}
    return axes, run.eval["eval_loss_nats"][known]


def budgets(run: PretrainRun) -> dict[str, np.ndarray]:
    """What had been spent, by budget name, after each update [1 + updates]; before the first one nothing."""
    kinds = (run.lm, run.episodes, run.skipped)
    steps = np.concatenate([[0.0], *(kind["step"] for kind in kinds)])
    order = np.argsort(steps, kind="stable")
    return {
        name: np.concatenate([[0.0], *(kind[field] for kind in kinds)])[order]
        for name, field in BUDGETS.items()
    }


def language_model_loss(run: PretrainRun) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """(budget name to its value, loss in nats per token) at every autoregressive step, both [steps]."""
    axes = {name: run.lm[field] for name, field in BUDGETS.items()}
    return axes, run.lm["lm_loss_nats"]


def pretraining_pairs(collection: Collection) -> list[tuple[PretrainRun, PretrainRun]]:
    """(MAML, vanilla) of equal scale, variant, seed and corpus."""
    vanilla = {pretraining_key(run): run for run in collection.pretraining if run.objective == "vanilla"}
    maml = (run for run in collection.pretraining if run.objective == "maml")
    return [(run, vanilla[pretraining_key(run)]) for run in maml if pretraining_key(run) in vanilla]


def budgets_table(collection: Collection) -> Table:
    """Held-out perplexity of each pair at the largest common number of updates, tokens, FLOPs and seconds."""
    columns = [
        Column("scale"),
        Column("variant"),
        Column("seed"),
        Column("at equal"),
        Column("budget", 3, significant=True),
    ]
    columns += [Column("perplexity vanilla", 2), Column("perplexity MAML", 2), Column("ratio", 4), RUNS]
    rows: list[list[Cell]] = []
    for maml, vanilla in pretraining_pairs(collection):
        (new_axes, new), (old_axes, old) = eval_losses_of(maml), eval_losses_of(vanilla)
        if not (len(new) and len(old)):
            continue
        for name in BUDGETS:
            budget = min(new_axes[name][-1], old_axes[name][-1])
            losses = [
                float(np.interp(budget, axes[name], loss))
                for axes, loss in ((old_axes, old), (new_axes, new))
            ]
            cells: list[Cell] = [maml.scale, maml.variant, maml.seed, name, float(budget)]
            cells += [*(float(np.exp(loss)) for loss in losses), float(np.exp(losses[1] - losses[0]))]
            rows.append([*cells, runs_of(vanilla, maml)])
    note = "Ratio below 1: MAML's held-out perplexity is the lower one."
    title = "Held-out perplexity at equal budgets"
    return Table("equal_budgets", title, columns, rows, note).without_constant("variant", "seed")


def edges(count: int) -> dict[str, slice]:
    """The first and the last tenth of `count` lines (at least one each)."""
    size = max(1, int(EDGE_SHARE * count))
    return {"start": slice(0, size), "end": slice(count - size, count)}


def episodes_table(collection: Collection) -> Table:
    """What the inner loop achieved, at the start and at the end of pretraining."""
    heads = ("scale", "variant", "seed", "part of training", "episodes")
    columns = [Column(head) for head in heads]
    columns += [Column("support loss before"), Column("support loss after")]
    columns += [Column("support accuracy before"), Column("support accuracy after")]
    columns += [Column("query loss"), Column("query accuracy"), Column("chance"), RUNS]
    rows: list[list[Cell]] = []
    for run in collection.pretraining:
        count = len(run.episodes["step"])
        for part, chosen in edges(count).items() if count else ():
            means = {field: values[chosen].mean(axis=0) for field, values in run.episodes.items()}
            cells: list[Cell] = [run.scale, run.variant, run.seed, part, len(range(count)[chosen])]
            for field in ("support_loss_nats", "support_accuracy"):
                cells += [float(means[field][0]), float(means[field][-1])]
            cells += [float(means["query_loss_nats"]), float(means["query_accuracy"]), 1 / run.n_way]
            rows.append([*cells, runs_of(run)])
    note = "Before and after the inner loop; losses in nats."
    return Table("episodes", "Episodes", columns, rows, note).without_constant("variant", "seed")


def measurements_table(collection: Collection) -> Table:
    """Effective ranks, attention entropy and the probe episode at the first and the last measurement of each run."""
    columns = [Column("scale"), Column("variant"), Column("objective"), Column("seed"), Column("step")]
    columns += [Column("effective rank, attention"), Column("effective rank, feed-forward")]
    columns += [Column("attention entropy"), Column("probe support accuracy"), Column("probe query accuracy")]
    columns += [RUNS]
    rows: list[list[Cell]] = []
    for run in collection.pretraining:
        lines = run.dynamics
        for line in (lines[0], lines[-1]) if lines else ():
            cells: list[Cell] = [run.scale, run.variant, run.objective, run.seed, line.step]
            cells += [line.rank(ATTENTION), line.rank(FEED_FORWARD), line.entropy]
            rows.append([*cells, line.adapted("support"), line.adapted("query"), runs_of(run)])
    note = (
        "Means over blocks, heads and kinds of matrix. The proportional effective rank is 1 where all directions count alike; "
        "the entropy is a share of that of uniform attention; the probe is one episode, never trained on, after adaptation."
    )
    return Table("dynamics", "Learning dynamics", columns, rows, note).without_constant("variant", "seed")
