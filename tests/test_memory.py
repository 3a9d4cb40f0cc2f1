"""Estimated memory against the tensors that autograd saves and against the measured peak of processes."""

from __future__ import annotations

import pytest
import torch

from benchmarks import memory as measuring
from metapt.config import commandline
from metapt.estimate import memory
from metapt.estimate.memory import Ranks, all_parameters, memory_by_phase, peak, saved_activations
from metapt.models import attention
from metapt.models.meta_lm import build_meta_lm

TOLERANCE = 0.15


@pytest.mark.parametrize(
    ("precision", "device"), [("fp32", "cpu"), ("bf16", "cpu"), ("fp32", "cuda")], ids=str
)
@pytest.mark.parametrize("size", ["nano", "tiny"])
def test_saved_activations_equal_those_of_autograd(
    monkeypatch: pytest.MonkeyPatch, size: str, precision: str, device: str
):
    """Compare bytes of storage without parameters, for two input shapes; in fp32 on a GPU with repeated key heads."""
    if device == "cuda":
        monkeypatch.setattr(attention, "_repeats_heads", lambda *_: True)
    words = [f"model={size}", f"train.precision={precision}", "model.vocab_size=512", "data.vocab_size=512"]
    config = commandline.load("pretrain", words)
    meta_lm = build_meta_lm(config)
    own = {value.untyped_storage().data_ptr() for value in meta_lm.parameters()}
    for windows, length in ((2, 64), (3, 33)):
        saved: dict[int, torch.Tensor] = {}

        def keep(tensor: torch.Tensor, saved: dict[int, torch.Tensor] = saved) -> torch.Tensor:
            return saved.setdefault(tensor.untyped_storage().data_ptr(), tensor)

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            states = meta_lm.hidden_states(torch.zeros((windows, length), dtype=torch.long))
        counted = sum(value.untyped_storage().nbytes() for key, value in saved.items() if key not in own)
        assert states.requires_grad
        estimate = saved_activations(config.model, windows, length, precision, device)
        assert estimate == pytest.approx(counted, rel=0.01)


def test_parameter_count_includes_the_episode_head():
    config = commandline.load("pretrain", ["objective=maml_paper"])
    assert all_parameters(config) == sum(value.numel() for value in build_meta_lm(config).parameters())


ORDINARY = [case for case in measuring.CASES if case[0] in ("tiny", "laptop") and "ds=zero2" in case[2]]
CASES = [
    pytest.param(
        *case, id=" ".join([*case[:2], *case[2]]), marks=() if case in ORDINARY else pytest.mark.nightly
    )
    for case in measuring.CASES
]


@pytest.mark.commands
@pytest.mark.parametrize(("size", "kind", "words"), CASES)
def test_estimated_peak_matches_the_measured_peak(size: str, kind: str, words: list[str]):
    phase, estimated = measuring.estimate(size, kind, words)
    assert estimated == pytest.approx(measuring.measure(size, kind, words), rel=TOLERANCE), phase


def largest(*words: str, ranks: int = 4, kind: str = "lm", device: str = "cuda") -> int:
    config = commandline.load("pretrain", ["model=large", "objective=maml_paper", *words])
    return peak(config, kind, Ranks(ranks, device))[1].total


def test_sharding_divides_the_optimizer_state():
    parameters = 4 * all_parameters(commandline.load("pretrain", ["model=large", "objective=maml_paper"]))
    in_step = {
        ds: memory_by_phase(
            commandline.load("pretrain", ["model=large", "objective=maml_paper", f"ds={ds}"]),
            "episode",
            Ranks(4, "cuda"),
        )["optimizer step"]
        for ds in ("zero0", "zero2", "zero2_offload")
    }
    assert in_step["zero0"].optimizer == 2 * parameters  # two AdamW moments
    assert in_step["zero2"].optimizer == 3 * parameters // 4  # with the master copy, of a quarter
    assert in_step["zero2"].gradients == parameters // 4
    assert in_step["zero2_offload"].optimizer == 0 < in_step["zero2_offload"].host


def test_peak_grows_with_batch_precision_and_scope():
    assert largest("train.micro_batch=16") > largest("train.micro_batch=8")
    assert largest("train.precision=fp32") > largest()
    full, last = (["ds=zero2", f"meta.scope={scope}"] for scope in ("full", "last_n"))
    assert largest(*full, kind="episode") > largest(*last, kind="episode")
    assert largest("ds=zero2", ranks=8) < largest("ds=zero2", ranks=2)


def test_stage_3_shards_everything_except_gathered_parameters(monkeypatch: pytest.MonkeyPatch):
    config = commandline.load("pretrain", ["model=large", "objective=maml_paper", "meta.scope=full"])
    parameters = 4 * all_parameters(config)
    zero = {"stage": 3, "stage3_max_live_parameters": 100_000_000}
    monkeypatch.setattr(memory, "deepspeed_settings", lambda name: {"zero_optimization": zero})
    phases = memory_by_phase(config, "episode", Ranks(8, "cuda"))
    assert phases["optimizer step"].parameters == parameters // 8 + 4 * 100_000_000
    assert phases["query"].adapted < parameters // 4  # the accumulated gradient shard
