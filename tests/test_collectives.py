"""What ranks send to one another in an update, by count: a promise about clusters that CPUs can check."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPO
from engine_cases import STAGES

UNITS = 4
SENT = {  # elements that a rank sends, per element of the whole tensor and (N - 1) / N
    "all_reduce": 2.0,
    "reduce": 1.0,
    "all_gather": 1.0,
    "all_gather_into_tensor": 1.0,
    "reduce_scatter_tensor": 1.0,
    "broadcast": 1.0,
}
SENT_PER_PARAMETER = {
    # gradients and weights that a rank sends in an update of four micro-batches, in units of P (N - 1) / N
    "zero0": 2.0,  # one all-reduce
    "zero1": 1.0 + 1.0,  # gradients to their owners once; the new weights to all
    "zero2": UNITS + 1.0,  # gradients to their owners after every micro-batch, which need not keep the others
    "zero2_offload": UNITS + 1.0,
    "zero3": UNITS * (1.0 + 2.0),  # gradients likewise; weights for every forward and backward pass
}


@pytest.mark.commands
@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.nightly)])
def test_what_a_rank_sends(tmp_path: Path, ranks: int) -> None:
    script = [str(REPO / "tests" / "collective_counts.py"), str(tmp_path / "counts.json"), ",".join(STAGES)]
    torchrun = ["-m", "torch.distributed.run", f"--nproc-per-node={ranks}", "--standalone"]
    ended = subprocess.run(
        [sys.executable, *torchrun, *script], cwd=REPO, capture_output=True, text=True, timeout=600
    )
    assert ended.returncode == 0, ended.stderr
    found = json.loads((tmp_path / "counts.json").read_text())
    for ds, counted in found.items():
        sent = sum(SENT[kind] * number for kind, number in counted["elements"].items())
        per_parameter = sent / counted["parameters"]
        assert per_parameter == pytest.approx(SENT_PER_PARAMETER[ds], rel=1e-3), (ds, counted)
