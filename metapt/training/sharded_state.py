"""Where this rank's optimizer state of each parameter is stored, and checkpoints that do not depend on it.

ZeRO flattens parameters and distributes the flat tensors over ranks. A checkpoint holds whole parameters and whole
moments by name. Its files are the same up to rounding for any number of ranks and any ZeRO stage, and any number of
ranks can resume from them. The format is safetensors: nothing is unpickled.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch import distributed as dist

from metapt.errors import OperationalError

MOMENTS = ("exp_avg", "exp_avg_sq")
UPDATES = "updates"
"""Metadata key: AdamW's step count, for its bias correction."""
FILE_BYTES = 2**27
"""Bytes of parameters after which a new file begins; a rank holds its content in memory twice to write it."""


@dataclass(frozen=True)
class Fragment:
    """Elements [start, start + numel) of a flattened parameter are [offset, offset + numel) of `owner`."""

    start: int
    numel: int
    owner: Tensor
    """The fp32 tensor that AdamW updates on this rank, and the key of its moments."""
    offset: int
    padded_numel: int
    """numel with padding."""

    def select(self, flat: Tensor) -> Tensor:
        """The fragment in a tensor with the layout of `owner`."""
        return flat.detach().view(-1).narrow(0, self.offset, self.numel)


def fragments_of_rank(
    parameters: Mapping[str, Tensor], stage: int, optimizer: Any, rank: int
) -> dict[str, Fragment]:
    """The fragment of each parameter that this rank owns; parameters of which it owns nothing are absent.

    Args:
        parameters: the model's, by name.
        stage: ZeRO stage.
        optimizer: DeepSpeed's, for stages above 0.
        rank: this rank.
    """
    if stage == 0:
        return {name: Fragment(0, p.numel(), p, 0, p.numel()) for name, p in parameters.items()}
    if stage == 3:
        by_id = dict(_stage_3_fragments(optimizer, rank))
        return {name: by_id[id(p)] for name, p in parameters.items()}
    mappings = {name: getattr(p, "_hp_mapping", None) for name, p in parameters.items()}
    return {
        name: Fragment(
            mapping.lp_fragment_address.start,
            mapping.lp_fragment_address.numel,
            optimizer.single_partition_of_fp32_groups[mapping.param_group_index],
            mapping.hp_fragment_address.start,
            mapping.hp_fragment_address.numel,
        )
        for name, mapping in mappings.items()
        if mapping is not None
    }


def _stage_3_fragments(optimizer: Any, rank: int) -> Iterator[tuple[int, Fragment]]:
    """Fragments by id of the parameter. Each rank owns a part of every parameter; the last parts are padded."""
    for group, owner in zip(optimizer.fp16_groups, optimizer.fp32_partitioned_groups_flat, strict=True):
        offset = 0
        for value in group:
            padded_numel = value.partition_numel()
            start = min(rank * padded_numel, value.ds_numel)
            numel = min(padded_numel, value.ds_numel - start)
            yield id(value), Fragment(start, numel, owner, offset, padded_numel)
            offset += padded_numel


def save_file(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str]) -> dict[str, Any]:
    """Write a safetensors file; its entry in the manifest (`atomic_folders.entry`) follows from the content in memory."""
    content = save(dict(tensors), metadata)
    path.write_bytes(content)
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


class StateFiles:
    """Writes and reads weights and moments.

    Args:
        parameters: the model's, by name.
        fragments: this rank's fragments, by name.
        adamw: the torch optimizer that DeepSpeed calls.
        replicated: whether each rank owns all parameters (stage 0).
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        fragments: Mapping[str, Fragment],
        adamw: torch.optim.Optimizer,
        replicated: bool,
    ):
        self.parameters, self.fragments, self.adamw, self.replicated = (
            parameters,
            fragments,
            adamw,
            replicated,
        )
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()

    def save(self, folder: Path) -> dict[str, Any]:
        """Write the files one after another, taking turns among ranks; all ranks must call it.

        Only the rank that writes a file copies its tensors to the CPU, and computes its checksum.

        Returns: the manifest's entries of the files that this rank wrote, by name.
        Raises:
            OperationalError: this rank could not write a file. It has taken part in the rest all the same.
        """
        problem: Exception | None = None
        updates, written = self._updates(), {}
        for number, names in enumerate(self._names_by_file()):
            writer = number % self.world_size
            state = {}
            for name in names:
                for key, value in self._gather(name, writer):
                    if self.rank == writer:
                        state[key] = value.cpu().contiguous()
            if self.rank == writer:
                try:
                    folder.mkdir(parents=True, exist_ok=True)
                    path = folder / f"state_{number:03d}.safetensors"
                    written[path.name] = save_file(state, path, {UPDATES: str(updates)})
                except (OSError, SafetensorError) as error:
                    problem = problem or error
        if problem:
            raise OperationalError(f"{folder}: {problem}")
        return written

    def load(self, folder: Path) -> None:
        """Read what `save` wrote with any number of ranks."""
        for path in sorted(folder.glob("state_*.safetensors")):
            with safe_open(path, framework="pt") as file:
                updates = int(file.metadata()[UPDATES])
                for name in set(file.keys()) & set(self.parameters):
                    self._set_parameter(name, file.get_tensor(name))
                    fragment = self.fragments.get(name)
                    if updates and fragment is not None:
                        state = self._optimizer_state(fragment.owner, updates)
                        for moment in MOMENTS:
                            _copy_fragment(fragment, file.get_tensor(_key(name, moment)), state[moment])

    def _names_by_file(self) -> Iterator[list[str]]:
        """The names of the parameters of each file."""
        names: list[str] = []
        size = 0
        for name, value in self.parameters.items():
            names.append(name)
            size += 4 * getattr(value, "ds_numel", value.numel())
            if size >= FILE_BYTES:
                yield names
                names, size = [], 0
        if names:
            yield names

    def _gather(self, name: str, writer: int) -> Iterator[tuple[str, Tensor]]:
        """A parameter and its moments, by key, whole on rank `writer`; all ranks must iterate."""
        yield name, self._gather_tensor(name, writer, lambda fragment: fragment.owner)
        if self._updates():
            for moment in MOMENTS:
                yield _key(name, moment), self._gather_tensor(name, writer, partial(self._moment, moment))

    def _moment(self, moment: str, fragment: Fragment) -> Tensor:
        return self.adamw.state[fragment.owner][moment]

    def _gather_tensor(self, name: str, writer: int, read: Callable[[Fragment], Tensor]) -> Tensor:
        """A tensor of the parameter's shape, whole on rank `writer`.

        Args:
            read: the tensor with the layout of the owner, of which this rank contributes its fragment.
        """
        value, fragment = self.parameters[name], self.fragments.get(name)
        if self.replicated:
            assert fragment is not None
            return read(fragment).detach()
        shape = getattr(value, "ds_shape", value.shape)
        flat = torch.zeros(shape.numel(), dtype=torch.float32, device=value.device)
        if fragment is not None:
            own = slice(fragment.start, fragment.start + fragment.numel)
            flat[own] = fragment.select(read(fragment)).to(flat.device)
        if self.world_size > 1:
            dist.reduce(flat, dst=writer)  # every element is non-zero on one rank at most
        return flat.view(shape)

    def _set_parameter(self, name: str, whole: Tensor) -> None:
        """Set a parameter and the fp32 copy that AdamW updates."""
        value, fragment = self.parameters[name], self.fragments.get(name)
        if hasattr(value, "ds_tensor"):
            assert fragment is not None
            own = whole.reshape(-1).narrow(0, fragment.start, fragment.numel)
            value.ds_tensor[: fragment.numel].copy_(own.to(value.ds_tensor.device))
        else:
            value.data.copy_(whole)
        if fragment is not None:
            _copy_fragment(fragment, whole, fragment.owner)

    def _updates(self) -> int:
        """Number of updates that AdamW has made; 0 as long as it has no moments."""
        counts = [int(state["step"]) for state in self.adamw.state.values()]
        return counts[0] if counts else 0

    def _optimizer_state(self, owner: Tensor, updates: int) -> dict[str, Tensor]:
        """AdamW's state of a flat tensor, created if absent, with its step count set."""
        state = self.adamw.state[owner]
        if not state:
            state |= {moment: torch.zeros_like(owner, requires_grad=False) for moment in MOMENTS}
        fused = self.adamw.defaults.get("fused")
        state["step"] = torch.tensor(float(updates), device=owner.device if fused else "cpu")
        return state


def _copy_fragment(fragment: Fragment, whole: Tensor, flat: Tensor) -> None:
    """Copy the fragment of a whole tensor into a flat tensor with the layout of the owner."""
    fragment.select(flat).copy_(whole.reshape(-1).narrow(0, fragment.start, fragment.numel))


def _key(name: str, moment: str) -> str:
    return f"{name}:{moment}"
