"""F1 after fine-tuning in fp32 and in bf16: `python benchmarks/precision.py DECODER FOLDER` writes benchmarks/precision.md.

DECODER is a pretraining run; METAPT_UNER_DIR is Universal NER. A frozen and a fully tuned decoder are trained on 1,000
sentences of en_ewt with both precisions and two seeds, and scored on three test sets. Finished runs in FOLDER are kept, so that
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
SETS = ("en_ewt", "da_ddt", "hr_set")
TUNINGS = {"head_only": ["ner.lr=3e-3", "ner.max_epochs=6"], "full": ["ner.lr=1e-3", "ner.max_epochs=3"]}
SEEDS, PRECISIONS = (0, 1), ("fp32", "bf16")


def scores(decoder: str, folder: Path, tuning: str, precision: str, seed: int) -> dict[str, float]:
    """Test F1 by set of a fine-tuning run, in points; it is made unless it is finished."""
    run = folder / f"{tuning}-{precision}-{seed}"
    words = [
        quote_override("checkpoint", decoder),
        quote_override("run_dir", run),
        quote_override("data.uner_dir", os.environ["METAPT_UNER_DIR"]),
        "source=en_ewt",
        f"tuning={tuning}",
        f"ner.precision={precision}",
        f"train.seed={seed}",
        "data.max_train_sentences=1000",
        f"data.eval_sets=[{','.join(SETS)}]",
        *TUNINGS[tuning],
    ]
    subprocess.run(
        [sys.executable, "-m", "metapt", "finetune", *words], check=True, stdout=subprocess.DEVNULL
    )
    sets = json.loads((run / "result.json").read_text())["sets"]
    return {name: 100 * sets[name]["f1"] for name in SETS}


def main(argv: Sequence[str]) -> None:
    decoder, folder = argv[0], Path(argv[1])
    lines = [
        "# F1 after fine-tuning in fp32 and in bf16",
        "",
        "`python benchmarks/precision.py DECODER FOLDER` measured this and describes it: a decoder of 2.2 M parameters (`laptop`), 1,000",
        f"sentences of en_ewt, means over seeds {' and '.join(map(str, SEEDS))}, F1 in points. No GPU: {machine()}.",
        "",
        "| tuning | set | fp32 | bf16 | bf16 minus fp32, by seed |",
        "|---|---|---:|---:|---|",
    ]
    for tuning in TUNINGS:
        found = {
            precision: [scores(decoder, folder, tuning, precision, seed) for seed in SEEDS]
            for precision in PRECISIONS
        }
        for name in SETS:
            fp32, bf16 = ([run[name] for run in found[precision]] for precision in PRECISIONS)
            differences = ", ".join(f"{b - a:+.1f}" for a, b in zip(fp32, bf16, strict=True))
            lines.append(f"| {tuning} | {name} | {mean(fp32):.1f} | {mean(bf16):.1f} | {differences} |")
    FILE.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main(sys.argv[1:])
