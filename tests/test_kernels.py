"""The closed form of kernels and memory traffic against counts on fake tensors and by PyTorch's compiler."""

from __future__ import annotations

import kernel_counts
import pytest
import torch
from steps import configuration, random_task

from metapt.config import PretrainConfig, commandline
from metapt.estimate.kernels import COMPILED, episode_work, micro_batch_work
from metapt.models.losses import replace_by_gradient

SCALES = {"tiny": 4, "small": 8, "medium": 8, "large": 8}
"""Micro-batch by scale, as shipped."""


def scale(size: str, *words: str) -> PretrainConfig:
    return commandline.load("pretrain", [f"model={size}", "objective=vanilla", *words])


@pytest.mark.parametrize(
    ("size", "precision"),
    [("tiny", "bf16"), ("small", "bf16"), ("medium", "bf16"), ("large", "bf16"), ("tiny", "fp32")],
)
def test_closed_form_of_a_micro_batch_equals_the_count(size: str, precision: str):
    """Two blocks at the width of each scale; both are linear in the number of blocks."""
    config = scale(
        size, f"train.precision={precision}", "model.num_layers=2", f"train.micro_batch={SCALES[size]}"
    )
    counted, work = kernel_counts.micro_batch(config), micro_batch_work(config, compiled=False)
    assert work.kernels == counted.kernels
    assert work.bytes == pytest.approx(counted.elementwise_bytes, rel=0.01)


@pytest.mark.nightly
@pytest.mark.parametrize("scope", ["head", "full"])
def test_closed_form_of_an_episode_is_near_the_count(scope: str):
    """Traffic is that of whole windows, of which the random prediction positions leave a part."""
    words = (f"meta.scope={scope}", "model.num_layers=2", "meta.inner_steps=2")
    config = configuration("tiny", 64, "bf16", *words, "model.vocab_size=1024", "data.vocab_size=1024")
    counted, work = kernel_counts.episode(config, random_task(config)), episode_work(config, compiled=False)
    assert work.kernels == pytest.approx(counted.kernels, rel=0.03)
    assert 0.5 * work.bytes < counted.elementwise_bytes < work.bytes


@pytest.mark.parametrize("size", SCALES)
def test_compiled_micro_batches_have_half_of_the_traffic_and_of_the_kernels(size: str):
    config = scale(size, f"train.micro_batch={SCALES[size]}")
    eager, compiled = (micro_batch_work(config, flag) for flag in (False, True))
    assert compiled.bytes < 0.35 * eager.bytes
    assert compiled.kernels < 0.45 * eager.kernels


@pytest.mark.parametrize(("dtype", "per_logit"), [(torch.bfloat16, 8), (torch.float32, 16)])
def test_compiled_loss_reads_logits_twice_and_writes_them_once(dtype: torch.dtype, per_logit: int):
    """On a CPU the maximum and the sum of exponentials are two reads; a GPU may need one."""
    logits, targets = torch.zeros(64, 5000, dtype=dtype), torch.zeros(64, 1, dtype=torch.int64)
    with torch.no_grad():
        counts = kernel_counts.compiled(replace_by_gradient, logits, targets)
    assert counts.kernels == 3
    assert counts.elementwise_bytes == pytest.approx(per_logit * logits.numel(), rel=0.01)


@pytest.mark.nightly
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_closed_form_of_a_compiled_block_equals_the_count(precision: str):
    config = scale("tiny", f"train.precision={precision}", "model.num_layers=1")
    counts, block = kernel_counts.compiled_block(config, 256), COMPILED[precision]
    accumulation = 12 * 135_168 + 24 * 96  # not part of the compiled graph: gradients that are added up
    assert counts.kernels == block.kernels - 9
    assert counts.elementwise_bytes == pytest.approx(
        block.of(config.model, 1, 256).bytes - accumulation, rel=0.001
    )
