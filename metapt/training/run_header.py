"""What a pretraining run prints before its first update: where it runs, what it trains on what, where it writes."""

from __future__ import annotations

import torch

from metapt.config import PretrainConfig
from metapt.data.corpus import Corpus
from metapt.estimate.flops import parameter_count, passes_over
from metapt.runs import Run
from metapt.training.progress_line import device_name, quantity, resumption


def run_header(
    config: PretrainConfig, run: Run, corpus: Corpus, device: torch.device, ranks: int, updates_done: int
) -> str:
    """The lines of the header.

    Args:
        updates_done: updates of the checkpoint from which the run resumes; 0 for a new run.
    """
    train = config.train
    passes = passes_over(config, len(corpus.train))
    seen, available = quantity(round(passes * len(corpus.train))), quantity(len(corpus.train))
    return "\n".join(
        [
            f"device     {device_name(device)}, {ranks} rank{'s' if ranks > 1 else ''}, {train.precision}",
            f"model      {config.model.name}: {quantity(parameter_count(config.model))} parameters, objective {config.meta.objective}",
            *([f"init       {config.init}"] if config.init else []),
            f"corpus     {available} tokens, {quantity(len(corpus.eval))} held out; tokenizer {corpus.tokenizer.name}",
            f"training   {train.max_steps} updates, next-token prediction on {seen} tokens: "
            f"{passes:.2g} passes over the corpus",
            f"run        {run.path}{resumption('update', updates_done)}",
        ]
    )
