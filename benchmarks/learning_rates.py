"""Dev F1 of fine-tuning by learning rate, width of the decoder and tuning: the table behind `ner.lr=auto`.

usage: python benchmarks/learning_rates.py UNER PRETRAINED OUT

Each run trains on 276 of the first 320 training sentences of en_ewt (the others are held out as a test split) for six epochs of 18
updates, and is scored on the first 150 dev sentences. PRETRAINED is the model folder of a pretrained decoder; decoders of other widths are random, with its tokenizer.
OUT/learning_rates.jsonl keeps finished runs, so that the command can be repeated; the table is printed.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from transformers import AutoConfig, AutoTokenizer

from metapt.config import ModelConfig, commandline
from metapt.data.iob2 import read_iob2, write_iob2
from metapt.finetuning.inputs import find_inputs
from metapt.finetuning.resume import FinetuneCheckpoints
from metapt.finetuning.setup import build_setup
from metapt.finetuning.tuner import Tuner
from metapt.models.decoder import build_decoder
from metapt.runs import Run
from metapt.training.signals import StopRequest

SENTENCES = {"train": 320, "dev": 150}
EPOCHS = 6
PRETRAINED = 96  # width of the pretrained decoder
HEADS = {192: 6, 48: 3}  # attention heads of random decoders, by width
RATES: tuple[tuple[int, str, tuple[float, ...]], ...] = (  # width, tuning, rates: in the order of measurement
    (PRETRAINED, "full", (1e-3, 3e-3, 3e-4, 1e-2, 3e-5)),
    (PRETRAINED, "head_only", (1e-2, 3e-3, 3e-2, 1e-3, 1e-1)),
    (PRETRAINED, "lora", (3e-3, 1e-2, 1e-3, 3e-2)),
    (192, "full", (1e-3, 3e-4, 3e-3)),
    (192, "head_only", (3e-2, 1e-2, 1e-1)),
    (48, "full", (3e-3, 1e-3, 1e-2)),
    (48, "head_only", (3e-2, 1e-2, 1e-1)),
)


@dataclass(frozen=True)
class Case:
    """One run: a decoder, what is trained of it, the learning rate."""

    width: int
    pretrained: bool
    tuning: str
    rate: float


def cases() -> Iterator[Case]:
    """All runs, in the order of measurement."""
    for width, tuning, rates in RATES:
        for rate in rates:
            yield Case(width, width == PRETRAINED, tuning, rate)


def excerpt(uner: Path, folder: Path) -> Path:
    """Write the first sentences of en_ewt as a collection of their own."""
    for split, count in SENTENCES.items():
        file = folder / "en_first" / f"{split}.iob2"
        file.parent.mkdir(parents=True, exist_ok=True)
        write_iob2(file, islice(read_iob2(uner / "en_ewt" / f"{split}.iob2"), count))
    return folder


def random_decoder(folder: Path, like: Path, width: int) -> Path:
    """Write a random decoder with the depth and the tokenizer of another model."""
    if not (folder / "config.json").exists():
        config = AutoConfig.from_pretrained(like)
        shape = ModelConfig(
            name="random",
            hidden_size=width,
            intermediate_size=4 * width,
            num_layers=config.num_hidden_layers,
            num_heads=HEADS[width],
            num_kv_heads=HEADS[width],
            vocab_size=config.vocab_size,
            max_positions=config.max_position_embeddings,
        )
        build_decoder(shape, 0).save_pretrained(folder)
        AutoTokenizer.from_pretrained(like).save_pretrained(folder)
    return folder


def dev_f1(case: Case, model: Path, uner: Path, run_dir: Path) -> float:
    """Train, and return the best dev F1 of any epoch."""
    words = [f"checkpoint={model}", "source=en_first", f"tuning={case.tuning}", f"ner.lr={case.rate}"]
    words += [f"data.uner_dir={uner}", f"ner.max_epochs={EPOCHS}", f"ner.patience={EPOCHS}", "device=cpu"]
    config = commandline.load("finetune", [*words, "data=uner", f"run_dir={run_dir}"])
    run = Run(run_dir)
    run.path.mkdir(parents=True, exist_ok=True)
    setup = build_setup(config, find_inputs(config), run, StopRequest())
    checkpoints = FinetuneCheckpoints(run, setup.processes, setup.trained, setup.optimizer)
    Tuner(setup, checkpoints).train()
    return checkpoints.state.dev_f1


def table(results: dict[Case, float]) -> str:
    """Dev F1 by width and tuning (rows) and learning rate (columns), in Markdown."""
    rates = sorted({case.rate for case in results})
    lines = ["| width | decoder | tuning | " + " | ".join(f"{rate:g}" for rate in rates) + " |"]
    lines.append("|---:|---|---|" + "---:|" * len(rates))
    for row in sorted(
        {replace(case, rate=0.0) for case in results}, key=lambda case: (case.tuning, case.width)
    ):
        found = [results.get(replace(row, rate=rate)) for rate in rates]
        best = max(value for value in found if value is not None)
        cells = [
            "" if value is None else f"**{value:.3f}**" if value == best else f"{value:.3f}"
            for value in found
        ]
        decoder = "pretrained" if row.pretrained else "random"
        lines.append(f"| {row.width} | {decoder} | {row.tuning} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(uner: Path, pretrained: Path, out: Path) -> None:
    """Make the runs that are missing, and print the table."""
    out.mkdir(parents=True, exist_ok=True)
    file = out / "learning_rates.jsonl"
    sets = excerpt(uner, out / "uner")
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    results = {Case(**line["case"]): line["dev_f1"] for line in lines}
    for number, case in enumerate(cases()):
        if case in results:
            continue
        model = (
            pretrained
            if case.pretrained
            else random_decoder(out / f"width{case.width}", pretrained, case.width)
        )
        started = time.process_time()
        results[case] = dev_f1(case, model, sets, out / "runs" / str(number))
        line = {"case": vars(case), "dev_f1": results[case], "cpu_seconds": time.process_time() - started}
        with file.open("a") as target:
            target.write(json.dumps(line) + "\n")
    print(table(results))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
