"""Effective rank of the last hidden states after pretraining: in how many directions do the states of tokens vary?

    python benchmarks/state_ranks.py measure GRID FILE    score the finished pretraining runs that FILE (JSON) lacks
    python benchmarks/state_ranks.py results FILE         print means over seeds, and differences of all arms

GRID is the folder of a grid, such as runs/study2. The states that a frozen decoder gives to taggers are those of the last
checkpoint of each run, here of the tokens of TOKENS / T sequences of T held-out tokens. Their proportional effective rank is
exp(H(s / sum s)) / d, where H is the Shannon entropy and s are the singular values of the states [n, d] less their mean (Roy and
Vetterli 2007, "The effective rank"): 1 if they vary equally in all d directions, 1 / d if in one.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from metapt.config import PretrainConfig, commandline
from metapt.data.batches import eval_sequences
from metapt.data.corpus import prepare_corpus
from metapt.evaluation.seed_inference import SeedMean
from metapt.files import write_json
from metapt.launch.grid_dir import GridDir
from metapt.models.causal_lm import load_causal_lm
from metapt.models.pretrained import model_folder
from metapt.training.dynamics import effective_rank

TOKENS = 32_768
Ranks = dict[str, dict[str, float]]
"""effective rank by arm (objective/variant, or size/objective/variant) and seed"""
SIZE = "laptop"
"""of the second study, whose arms are named without it"""


@torch.no_grad()
def state_rank(decoder: PreTrainedModel, sequences: Tensor) -> float:
    """The proportional effective rank of the last hidden states, after the final norm, of tokens [n, T]."""
    states = [decoder.model(row[None], use_cache=False).last_hidden_state[0].double() for row in sequences]
    together = torch.cat(states)
    return effective_rank(together - together.mean(dim=0))


def measure(grid: GridDir, found: Ranks) -> None:
    """Add the finished pretraining runs of a grid that are not among those found."""
    for job in grid.read_plan().jobs:
        run, seed = grid.run(job), str(job.seed)
        size = "" if job.size == SIZE else job.size
        arm = "/".join(filter(None, (size, job.objective, job.variant)))
        if job.kind != "pretrain" or not run.is_done or seed in found.get(arm, {}):
            continue
        config: PretrainConfig = commandline.load("pretrain", job.argv)
        length = config.train.seq_len
        rows = eval_sequences(prepare_corpus(config.data).eval, length, TOKENS // length)
        decoder = load_causal_lm(model_folder(str(run.path)))
        found.setdefault(arm, {})[seed] = state_rank(decoder, torch.from_numpy(rows[:, :-1]))


def table(found: Mapping[str, Mapping[str, float]]) -> str:
    """Means over seeds, and differences over the seeds that both arms have, with 95 % CI, as Markdown."""
    lines = ["| arm | seeds | effective rank | 95 % CI |", "|---|---:|---:|---:|"]
    lines += [_row(arm, list(by_seed.values()), "") for arm, by_seed in found.items()]
    for first, second in combinations([*found][::-1], 2):
        shared = [seed for seed in found[first] if seed in found[second]]
        if shared:
            gains = [found[first][seed] - found[second][seed] for seed in shared]
            lines.append(_row(f"{first} − {second}", gains, "+"))
    return "\n".join(lines)


def _row(name: str, values: Sequence[float], sign: str) -> str:
    mean = SeedMean.of_seeds(values)
    low, high = mean.interval_over_seeds
    interval = "-" if np.isnan(low) else f"[{low:{sign}.3f}, {high:{sign}.3f}]"
    return f"| {name} | {mean.seeds} | {mean.value:{sign}.3f} | {interval} |"


def main(arguments: Sequence[str]) -> None:
    """See the module's docstring."""
    command, *paths = arguments
    file = Path(paths[-1])
    found: Ranks = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    if command == "measure":
        measure(GridDir(Path(paths[0])), found)
        write_json(file, found)
    else:
        print(table(found))


if __name__ == "__main__":
    main(sys.argv[1:])
