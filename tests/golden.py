"""The golden losses: a few updates of each objective at nano, recorded once and compared exactly ever after.

Products are rounded in another order on another kind of processor, so that each kind has a recording. `make golden` records that of
this one anew, which a commit that means to change the numbers does and says why; recordings that no longer agree go.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from machine import kind, processor

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
    "eval_loss_nats",
    "grad_norm",
)


def machine() -> dict[str, str]:
    """What decides how sums are rounded; on another machine the losses agree to rounding only."""
    return {
        "processor": f"{processor()} ({kind()})",
        "torch": torch.__version__,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": str(torch.get_num_threads()),
    }


def recordings() -> list[dict[str, Any]]:
    """`machine` and `losses` (by objective) of each kind of machine."""
    found: list[dict[str, Any]] = json.loads(FILE.read_text())
    return found


def agree(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> bool:
    """Whether the losses of the first updates are equal to rounding; later ones part, as Adam amplifies it."""
    return all(
        left[name] == (value if isinstance(value, str) else pytest.approx(value, rel=1e-2))
        for left, right in zip(found[:5], expected[:5], strict=True)
        for name, value in right.items()
    )


def losses(objective: str, folder: Path, cache: Path) -> list[dict[str, Any]]:
    """The losses of a fresh run of STEPS updates."""
    schedule = [
        f"train.max_steps={STEPS}",
        "train.warmup_steps=5",
        "train.eval_every=10",
        "train.eval_batches=2",
    ]
    main([f"objective={objective}", *schedule, f"run_dir={folder}", f"data.cache_dir={cache}"])
    lines = (line for line in Run(folder).metrics() if line["kind"] != "dynamics")
    return [{name: line[name] for name in KEPT if name in line} for line in lines]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        found = {name: losses(name, root / name, root / "corpus") for name in ("vanilla", "maml")}
    kept = [
        other
        for other in recordings()
        if other["machine"] != machine() and all(agree(found[name], other["losses"][name]) for name in found)
    ]
    FILE.write_text(json.dumps([*kept, {"machine": machine(), "losses": found}], indent=1) + "\n")
    print(f"recorded in {FILE}, beside {len(kept)} of other machines")
