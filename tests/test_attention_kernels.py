"""Grouped-query attention on GPUs without a fused kernel for it: when key and value heads are repeated, and that it is exact."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from metapt.models import attention
from metapt.models.attention import attention_forward, needs_repeated_heads

FP32, BF16 = torch.float32, torch.bfloat16
Kernel = Callable[[torch.dtype, bool], bool]


def never(dtype: torch.dtype, is_grouped: bool) -> bool:
    return False


def flash(dtype: torch.dtype, is_grouped: bool) -> bool:
    return dtype is BF16


def efficient(dtype: torch.dtype, is_grouped: bool) -> bool:
    return not is_grouped


def efficient_fp32(dtype: torch.dtype, is_grouped: bool) -> bool:
    return not is_grouped and dtype is FP32


DEVICES: dict[str, tuple[Kernel, Kernel]] = {  # flash and memory-efficient attention
    "capability 8.0 and later": (flash, efficient),
    "capability 7.5, without flash attention": (never, efficient_fp32),
    "no fused kernel": (never, never),
}


@pytest.mark.parametrize(
    ("name", "dtype", "expected"),
    [
        ("capability 8.0 and later", FP32, True),
        ("capability 8.0 and later", BF16, False),
        ("capability 7.5, without flash attention", FP32, True),
        ("capability 7.5, without flash attention", BF16, False),
        ("no fused kernel", FP32, False),
    ],
)
def test_heads_are_repeated_where_only_that_gives_a_fused_kernel(
    name: str, dtype: torch.dtype, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asks(kernel: Kernel) -> Callable[[torch.backends.cuda.SDPAParams], bool]:
        return lambda params: kernel(params.query.dtype, params.query.shape[1] != params.key.shape[1])

    can_flash, can_efficient = DEVICES[name]
    monkeypatch.setattr(torch.backends.cuda, "can_use_flash_attention", asks(can_flash))
    monkeypatch.setattr(torch.backends.cuda, "can_use_efficient_attention", asks(can_efficient))
    monkeypatch.setattr(torch.backends.cuda, "can_use_cudnn_attention", lambda params: False)
    needs_repeated_heads.cache_clear()
    assert needs_repeated_heads("cpu", dtype, 12, 4, 32, 8) == expected
    needs_repeated_heads.cache_clear()


@pytest.mark.parametrize(("rows", "groups"), [(2, ()), (1, ((3, 4), (2, 9)))])
def test_repeated_heads_have_the_outputs_and_gradients_of_grouped_ones(
    rows: int, groups: tuple[tuple[int, int], ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(0)
    length = sum(windows * length for windows, length in groups) or 17
    module = nn.Module()
    module.num_key_value_groups, module.is_causal = 3, True
    inputs = [torch.randn(rows, heads, length, 8, generator=generator) for heads in (6, 2, 2)]
    results = []
    for is_repeated in (False, True):
        monkeypatch.setattr(attention, "_repeats_heads", lambda *_, answer=is_repeated: answer)
        leaves = [value.clone().requires_grad_() for value in inputs]
        out, _ = attention_forward(module, *leaves, None, groups=groups, scaling=0.3)
        results.append([out, *torch.autograd.grad(out.square().sum(), leaves)])
    for grouped, repeated in zip(*results, strict=True):
        torch.testing.assert_close(repeated, grouped)


def test_no_scores_are_kept_with_repeated_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice as many tokens keep twice the bytes; with scores [heads, T, T] they would keep almost four times as many."""
    monkeypatch.setattr(attention, "_repeats_heads", lambda *_: True)
    module, kept = nn.Module(), []
    module.num_key_value_groups = 3
    for length in (128, 256):
        saved: dict[int, int] = {}

        def keep(tensor: torch.Tensor, saved: dict[int, int] = saved) -> torch.Tensor:
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        query, key = (torch.randn(1, heads, length, 8, requires_grad=True) for heads in (6, 2))
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            attention_forward(module, query, key, key * 2, None, scaling=0.3)
        kept.append(sum(saved.values()))
    assert kept[1] == pytest.approx(2 * kept[0], rel=0.05)
