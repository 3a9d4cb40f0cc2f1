"""Memory told in advance, against what autograd saves and against the peak of fresh processes."""

from __future__ import annotations

import pytest
import torch

from benchmarks import memory as measuring
from metapt.config import commandline
from metapt.estimate import memory
from metapt.estimate.memory import Ranks, all_parameters, moments, peak, saved_activations
from metapt.models.meta_lm import build_meta_lm

TOLERANCE = 0.15


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("scale", ["nano", "tiny"])
def test_saved_activations_are_what_autograd_saves(
    monkeypatch: pytest.MonkeyPatch, scale: str, precision: str
):
    """Counted by storage, parameters left out, over two shapes of the input."""
    # an engine of ZeRO 3 in another test of this process has put DeepSpeed's in its place, for good
    monkeypatch.setattr(torch.nn.functional, "linear", torch._C._nn.linear)
    words = [f"model={scale}", f"train.precision={precision}", "model.vocab_size=512", "data.vocab_size=512"]
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
        assert saved_activations(config.model, windows, length, precision) == pytest.approx(counted, rel=0.01)


def test_parameters_are_counted_with_the_head():
    config = commandline.load("pretrain", ["objective=maml"])
    assert all_parameters(config) == sum(value.numel() for value in build_meta_lm(config).parameters())


ORDINARY = [case for case in measuring.CASES if case[0] == "tiny" and "ds=zero2" in case[2]]
CASES = [
    pytest.param(
        *case, id=" ".join([*case[:2], *case[2]]), marks=() if case in ORDINARY else pytest.mark.nightly
    )
    for case in measuring.CASES
]


@pytest.mark.commands
@pytest.mark.parametrize(("size", "kind", "words"), CASES)
def test_the_peak_is_as_told(size: str, kind: str, words: list[str]):
    moment, told = measuring.predicted(size, kind, words)
    assert told == pytest.approx(measuring.measured(size, kind, words), rel=TOLERANCE), moment


def largest(*words: str, ranks: int = 4, kind: str = "lm", device: str = "cuda") -> int:
    config = commandline.load("pretrain", ["model=large", "objective=maml", *words])
    return peak(config, kind, Ranks(ranks, device))[1].total


def test_sharding_saves_what_it_shards():
    parameters = 4 * all_parameters(commandline.load("pretrain", ["model=large", "objective=maml"]))
    at_step = {
        ds: moments(
            commandline.load("pretrain", ["model=large", "objective=maml", f"ds={ds}"]),
            "episode",
            Ranks(4, "cuda"),
        )["step"]
        for ds in ("zero0", "zero2", "zero2_offload")
    }
    assert at_step["zero0"].optimizer == 2 * parameters  # two moments
    assert at_step["zero2"].optimizer == 3 * parameters // 4  # and the master copy, of a quarter
    assert at_step["zero2"].gradients == parameters // 4
    assert at_step["zero2_offload"].optimizer == 0 < at_step["zero2_offload"].host


def test_the_peak_grows_with_what_must_be_kept():
    assert largest("train.micro_batch=16") > largest("train.micro_batch=8")
    assert largest("train.precision=fp32") > largest()
    full, last = (["ds=zero2", f"meta.scope={scope}"] for scope in ("full", "last_n"))
    assert largest(*full, kind="episode") > largest(*last, kind="episode")
    assert largest("ds=zero2", ranks=8) < largest("ds=zero2", ranks=2)


def test_stage_3_keeps_shards_of_everything_but_what_it_gathers(monkeypatch: pytest.MonkeyPatch):
    config = commandline.load("pretrain", ["model=large", "objective=maml", "meta.scope=full"])
    parameters = 4 * all_parameters(config)
    zero = {"stage": 3, "stage3_max_live_parameters": 100_000_000}
    monkeypatch.setattr(memory, "deepspeed_settings", lambda name: {"zero_optimization": zero})
    told = moments(config, "episode", Ranks(8, "cuda"))
    assert told["step"].parameters == parameters // 8 + 4 * 100_000_000
    assert told["query"].adapted < parameters // 4  # the accumulated shard
