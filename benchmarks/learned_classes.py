"""Accuracy on held-out words after pretraining, in more episodes than runs measure: are word classes learned?

    python benchmarks/learned_classes.py GRID [EPISODES [TOKENS]]

GRID is the folder of a grid, such as runs/episodes. The last checkpoint of each finished pretraining run is scored with class
prototypes in EPISODES (default 256) episodes of held-out words and the held-out partition, on TOKENS (default 131,072) tokens of
held-out text; runs themselves measure 16 episodes on 32,768 tokens. The table has the mean over seeds of each objective, and the
difference to vanilla with its 95 % CI, as the report computes it.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from metapt.analysis.stats.pretraining_means import mean_gain  # type: ignore[import-not-found]

from metapt.config import commandline
from metapt.launch.grid_dir import GridDir
from metapt.probe import probe

REFERENCE, MEASURE = "vanilla", "held_out_words_prototype_accuracy"


def accuracies(grid: GridDir, episodes: int, tokens: int) -> dict[str, dict[int, np.ndarray]]:
    """Accuracy in each episode of the finished pretraining runs, fp64 [episodes], by objective and seed."""
    found: dict[str, dict[int, np.ndarray]] = defaultdict(dict)
    for job in grid.read_plan().jobs:
        run = grid.run(job)
        if job.kind != "pretrain" or job.seed is None or not run.is_done:
            continue
        words = [f"checkpoint={run.path}", f"probe_episodes={episodes}", f"probe_tokens={tokens}"]
        found[job.objective][job.seed] = np.array(
            probe(commandline.load("probe", [*job.argv, *words]))[MEASURE]
        )
        print(f"{job.id}: {found[job.objective][job.seed].mean():.4f}", file=sys.stderr, flush=True)
    return found


def table(found: dict[str, dict[int, np.ndarray]]) -> str:
    """Means over seeds, and differences to vanilla over the seeds that both have, as Markdown; accuracies in percent."""
    lines = ["| objective | seeds | accuracy | minus vanilla | 95 % CI |", "|---|---:|---:|---:|---:|"]
    for objective, by_seed in found.items():
        mean = 100 * np.mean([values.mean() for values in by_seed.values()])
        shared = [seed for seed in by_seed if seed in found.get(REFERENCE, {})]
        cells = f"| {objective} | {len(by_seed)} | {mean:.1f} |"
        if objective != REFERENCE and shared:
            gain = mean_gain(np.array([[by_seed[seed], found[REFERENCE][seed]] for seed in shared]))
            low, high = gain.interval
            cells += f" {100 * gain.value:+.1f} | [{100 * low:+.1f}, {100 * high:+.1f}] |"
        else:
            cells += " - | - |"
        lines.append(cells)
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> None:
    """See the module's docstring."""
    folder, *numbers = arguments
    episodes, tokens = (*map(int, numbers), *(256, 131_072)[len(numbers) :])
    print(table(accuracies(GridDir(Path(folder)), episodes, tokens)))


if __name__ == "__main__":
    main(sys.argv[1:])
