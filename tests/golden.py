"""The golden losses: a few updates of each objective at nano, recorded once and compared exactly ever after.

`make golden` records them anew, which a commit that means to change the numbers does and says why.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import torch

from metapt.pretrain import main
from metapt.runs import Run

FILE = Path(__file__).parent / "golden" / "nano.json"
STEPS = 50
KEPT = (
    "kind",
    "step",
    "lm_loss_nats",
    "support_loss_nats",
    "query_loss_nats",
    "heldout_loss_nats",
    "grad_norm",
)


def machine() -> dict[str, str]:
    """What decides how sums are rounded; on another machine the losses agree to rounding only."""
    return {
        "torch": torch.__version__,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": str(torch.get_num_threads()),
    }


def losses(objective: str, folder: Path, cache: Path) -> list[dict[str, Any]]:
    """The losses of a fresh run of STEPS updates."""
    schedule = [
        f"train.max_steps={STEPS}",
        "train.warmup_steps=5",
        "train.heldout_every=10",
        "train.heldout_batches=2",
    ]
    main([f"objective={objective}", *schedule, f"run_dir={folder}", f"data.cache_dir={cache}"])
    lines = (line for line in Run(folder).metrics() if line["kind"] != "dynamics")
    return [{name: line[name] for name in KEPT if name in line} for line in lines]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        recorded = {name: losses(name, root / name, root / "corpus") for name in ("vanilla", "maml")}
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text(json.dumps({"machine": machine(), "losses": recorded}, indent=1) + "\n")
    print(f"recorded in {FILE}")
