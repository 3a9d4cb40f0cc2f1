"""Windows of an episode for one forward pass: each cut behind the state that is read, all laid end to end.

A causal decoder's state does not depend on what follows it, so that nothing behind it needs computing: the states,
and all gradients through them, are those of whole windows up to rounding. The windows are sorted by length and put
into a few groups of equal lengths. Whatever acts on single tokens sees one long row of them; attention alone goes
group by group (metapt/models/attention.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

GROUPS = 8  # at most: the more, the less is computed in vain, and the more calls of attention there are
SMALLEST = 8  # windows of a group


@dataclass(frozen=True)
class Windows:
    """n windows, cut.

    tokens: int64 [1, total]; places: int64 [1, total], where each token stands in its window; reads: int64 [n],
    where in `tokens` the state of each window stands; groups: number of windows and their length, in order.
    """

    tokens: Tensor
    places: Tensor
    reads: Tensor
    groups: tuple[tuple[int, int], ...]

    @classmethod
    def cut(cls, tokens: np.ndarray, positions: np.ndarray, device: torch.device) -> Windows:
        """Windows int64 [n, W], cut behind the positions int64 [n] that are read."""
        count = max(1, min(GROUPS, len(tokens) // SMALLEST))
        shares = np.array_split(np.argsort(positions, kind="stable"), count)
        by_length: dict[int, list[np.ndarray]] = {}
        for share in shares:
            by_length.setdefault(int(positions[share[-1]]) + 1, []).append(share)
        rows, places, groups = [], [], []
        reads, total = np.empty_like(positions), 0
        for length, parts in by_length.items():
            chosen = np.concatenate(parts)
            rows.append(tokens[chosen, :length].ravel())
            places.append(np.tile(np.arange(length), len(chosen)))
            groups.append((len(chosen), length))
            reads[chosen] = total + length * np.arange(len(chosen)) + positions[chosen]
            total += length * len(chosen)
        laid, stand, read = (
            torch.from_numpy(array).to(device)
            for array in (np.concatenate(rows)[None], np.concatenate(places)[None], reads)
        )
        return cls(laid, stand, read, tuple(groups))
