"""F1 after fine-tuning in fp32 and in bf16: `python benchmarks/precision.py DECODER FOLDER` writes benchmarks/precision.md.

DECODER is a pretraining run; METAPT_UNER_DIR is Universal NER. A frozen and a fully tuned decoder are trained on 500
sentences of en_ewt with both precisions and two seeds, and scored on two test sets. Finished runs in FOLDER are kept, so that
the script goes on where it was stopped.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from machine import machine

from metapt.config.commandline import quote_override

FILE = Path(__file__).with_name("precision.md")
SETS = ("da_ddt", "hr_set")
TUNINGS = {"head_only": ["ner.lr=3e-3", "ner.max_epochs=4"], "full": ["ner.lr=1e-3", "ner.max_epochs=2"]}
SEEDS, PRECISIONS = (0, 1), ("fp32", "bf16")


def run_folder(folder: Path, tuning: str, precision: str, seed: int) -> Path:
    return folder / f"{tuning}-{precision}-{seed}"


def finetune_all(decoder: str, folder: Path, precision: str) -> None:
    """Make all runs of a precision, unless they are finished."""
    from metapt import finetune_command

    for tuning, words in TUNINGS.items():
        for seed in SEEDS:
            finetune_command.main(
                [
                    quote_override("checkpoint", decoder),
                    quote_override("run_dir", run_folder(folder, tuning, precision, seed)),
                    quote_override("data.uner_dir", os.environ["METAPT_UNER_DIR"]),
                    "source=en_ewt",
                    f"tuning={tuning}",
                    f"ner.precision={precision}",
                    f"train.seed={seed}",
                    "data.max_train_sentences=500",
                    f"data.eval_sets=[{','.join(SETS)}]",
                    *words,
                ]
            )


def scores(folder: Path, tuning: str, precision: str, seed: int) -> dict[str, float]:
    """Test F1 by set of a finished run, in points."""
    result = json.loads((run_folder(folder, tuning, precision, seed) / "result.json").read_text())
    return {name: 100 * result["sets"][name]["f1"] for name in SETS}


def main(argv: Sequence[str]) -> None:
    """Tune in both precisions what is missing, and write the table."""
    decoder, folder = argv[0], Path(argv[1])
    if len(argv) > 2:
        finetune_all(decoder, folder, argv[2])
        return
    for precision in PRECISIONS:  # each in its own process, since accelerate has one precision
        subprocess.run([sys.executable, __file__, decoder, str(folder), precision], check=True)
    lines = [
        "# F1 after fine-tuning in fp32 and in bf16",
        "",
        "`python benchmarks/precision.py DECODER FOLDER` measured this and describes it: a decoder of 2.2 M parameters (`laptop`), 500",
        f"sentences of en_ewt, means over seeds {' and '.join(map(str, SEEDS))}, F1 in points. No GPU: {machine()}.",
        "",
        "| tuning | set | fp32 | bf16 | bf16 minus fp32, by seed |",
        "|---|---|---:|---:|---|",
    ]
    for tuning in TUNINGS:
        found = {
            precision: [scores(folder, tuning, precision, seed) for seed in SEEDS] for precision in PRECISIONS
        }
        for name in SETS:
            fp32, bf16 = ([run[name] for run in found[precision]] for precision in PRECISIONS)
            differences = ", ".join(f"{b - a:+.2f}" for a, b in zip(fp32, bf16, strict=True))
            lines.append(f"| {tuning} | {name} | {mean(fp32):.2f} | {mean(bf16):.2f} | {differences} |")
    FILE.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main(sys.argv[1:])
