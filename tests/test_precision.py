"""ner.precision=auto on each kind of device, TF32, and runs that go on in another precision."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from metapt.config import FinetuneConfig, commandline
from metapt.errors import UserError
from metapt.finetuning.distributed import Distributed
from metapt.finetuning.setup import require_precision
from metapt.models.precision import fix_fp32_products, resolved_precision
from metapt.runs import Run


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), "fp32"), ((8, 0), "bf16"), ((9, 0), "bf16")])
def test_auto_is_bf16_where_the_gpu_has_it(
    capability: tuple[int, int], expected: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert resolved_precision("auto", torch.device("cuda")) == expected
    assert resolved_precision("auto", torch.device("cpu")) == "fp32"
    for name in ("fp32", "bf16"):
        assert resolved_precision(name, torch.device("cuda")) == name


def test_fp32_products_do_not_use_tf32():
    torch.set_float32_matmul_precision("high")
    assert fix_fp32_products() == "highest"
    assert torch.backends.cuda.matmul.allow_tf32 is False


def test_precision_of_a_start_is_recorded():
    config: FinetuneConfig = commandline.load(
        "finetune", ["checkpoint=x", "source=en_demo", "data=demo", "run_dir=x"]
    )
    assert config.ner.precision == "auto"
    places = Distributed(config.ner.precision, "cpu").places()
    assert (places["precision"], places["fp32_products"]) == ("fp32", "highest")


def test_a_run_does_not_go_on_in_another_precision(tmp_path: Path):
    run = Run(tmp_path / "run")
    run.start({"seed": 0}, {}, circumstances={"precision": "bf16"})
    require_precision(run, "fp32")  # nothing was trained
    run.checkpoint(5).mkdir(parents=True)
    require_precision(run, "bf16")
    with pytest.raises(UserError, match="trained in bf16 so far"):
        require_precision(run, "fp32")
