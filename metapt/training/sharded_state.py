"""Which part of each parameter's optimizer state lies on this rank, and checkpoints that do not depend on it.

ZeRO flattens parameters and deals the flat tensors to the ranks. A checkpoint holds whole parameters and whole
moments by name, so that it is the same files, byte for byte up to rounding, for any number of ranks and any
stage, and any other number can go on from it. safetensors: nothing is unpickled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch import distributed as dist

from metapt.errors import OperationalError

MOMENTS = ("exp_avg", "exp_avg_sq")
UPDATES = "updates"  # AdamW's count, for its bias correction
FILE_BYTES = 2**28  # of parameters, before a new file is begun: what a rank holds in memory to write


@dataclass(frozen=True)
class Fragment:
    """Elements [start, start + numel) of a flattened parameter are [offset, offset + numel) of `owner`.

    `owner` is the fp32 tensor that AdamW updates on this rank, and the key of its moments. `width` counts the
    padding as well.
    """

    start: int
    numel: int
    owner: Tensor
    offset: int
    width: int

    def of(self, flat: Tensor) -> Tensor:
        """The part of a tensor with the layout of `owner`."""
        return flat.detach().view(-1).narrow(0, self.offset, self.numel)


def fragments(parameters: Mapping[str, Tensor], stage: int, optimizer: Any, rank: int) -> dict[str, Fragment]:
    """The fragment of each parameter that this rank owns; a parameter of which it owns nothing is left out.

    Args:
        parameters: the model's, by name.
        stage: of ZeRO.
        optimizer: DeepSpeed's, for stages above 0.
    """
    if stage == 0:
        return {name: Fragment(0, p.numel(), p, 0, p.numel()) for name, p in parameters.items()}
    if stage == 3:
        found = dict(_partitioned(optimizer, rank))
        return {name: found[id(p)] for name, p in parameters.items()}
    mapped = {name: getattr(p, "_hp_mapping", None) for name, p in parameters.items()}
    return {
        name: Fragment(
            place.lp_fragment_address.start,
            place.lp_fragment_address.numel,
            optimizer.single_partition_of_fp32_groups[place.param_group_index],
            place.hp_fragment_address.start,
            place.hp_fragment_address.numel,
        )
        for name, place in mapped.items()
        if place is not None
    }


def _partitioned(optimizer: Any, rank: int) -> Iterator[tuple[int, Fragment]]:
    """Fragments at stage 3 by id of the parameter: a part of every parameter, the last ones padded."""
    for group, owner in zip(optimizer.fp16_groups, optimizer.fp32_partitioned_groups_flat, strict=True):
        offset = 0
        for value in group:
            width = value.partition_numel()
            start = min(rank * width, value.ds_numel)
            yield id(value), Fragment(start, min(width, value.ds_numel - start), owner, offset, width)
            offset += width


class StateFiles:
    """Writes and reads weights and moments.

    Args:
        parameters: the model's, by name.
        places: this rank's fragments of them.
        adamw: the torch optimizer that DeepSpeed drives.
        replicated: whether each rank owns everything (stage 0).
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        places: Mapping[str, Fragment],
        adamw: torch.optim.Optimizer,
        replicated: bool,
    ):
        self.parameters, self.places, self.adamw, self.replicated = parameters, places, adamw, replicated
        self.rank, self.ranks = dist.get_rank(), dist.get_world_size()

    def save(self, folder: Path) -> None:
        """Writes one file after the other, each by one rank; all ranks call it.

        Raises:
            OperationalError: this rank could not write; it has gone on with the others to the end all the same.
        """
        problem: Exception | None = None
        updates = self._updates()
        for number, names in enumerate(self._files()):
            writer = number % self.ranks
            whole = {key: value for name in names for key, value in self._whole(name, writer)}
            if self.rank == writer:
                try:
                    folder.mkdir(parents=True, exist_ok=True)
                    path = folder / f"state_{number:03d}.safetensors"
                    save_file(whole, path, metadata={UPDATES: str(updates)})
                except (OSError, SafetensorError) as error:
                    problem = problem or error
        if problem:
            raise OperationalError(f"{folder}: {problem}")

    def load(self, folder: Path) -> None:
        """Reads what any number of ranks has written."""
        for path in sorted(folder.glob("state_*.safetensors")):
            with safe_open(path, framework="pt") as file:
                keys = set(file.keys())
                updates = int(file.metadata()[UPDATES])
                for name in keys & set(self.parameters):
                    self._set(name, file.get_tensor(name))
                    if updates and name in self.places:
                        state = self._state(self.places[name].owner, updates)
                        for moment in MOMENTS:
                            self._copy(self.places[name], file.get_tensor(_key(name, moment)), state[moment])

    def _files(self) -> Iterator[list[str]]:
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

    def _whole(self, name: str, writer: int) -> Iterator[tuple[str, Tensor]]:
        """The parameter and its moments, whole on rank `writer`; all ranks take part."""
        yield name, self._gathered(name, writer, lambda place: place.owner)
        if self._updates():
            for moment in MOMENTS:
                read = lambda place, moment=moment: self.adamw.state[place.owner][moment]  # noqa: E731
                yield _key(name, moment), self._gathered(name, writer, read)

    def _gathered(self, name: str, writer: int, read: Callable[[Fragment], Tensor]) -> Tensor:
        value, place = self.parameters[name], self.places.get(name)
        if self.replicated:
            assert place is not None
            return read(place).detach().cpu().contiguous()
        shape = getattr(value, "ds_shape", value.shape)
        flat = torch.zeros(shape.numel(), dtype=torch.float32, device=value.device)
        if place is not None:
            flat[place.start : place.start + place.numel] = place.of(read(place)).to(flat.device)
        if self.ranks > 1:
            dist.reduce(flat, dst=writer)  # every element is non-zero on one rank only
        return flat.view(shape).cpu()

    def _set(self, name: str, whole: Tensor) -> None:
        """Makes a parameter, and the fp32 copy that AdamW updates, equal to `whole`."""
        value, place = self.parameters[name], self.places.get(name)
        if hasattr(value, "ds_tensor"):
            assert place is not None
            value.ds_tensor[: place.numel].copy_(
                whole.reshape(-1).narrow(0, place.start, place.numel).to(value.ds_tensor.device)
            )
        else:
            value.data.copy_(whole)
        if place is not None:
            self._copy(place, whole, place.owner)

    @staticmethod
    def _copy(place: Fragment, whole: Tensor, flat: Tensor) -> None:
        place.of(flat).copy_(whole.reshape(-1).narrow(0, place.start, place.numel))

    def _updates(self) -> int:
        """How many updates AdamW has made; 0 while it has no moments yet."""
        counts = [int(state["step"]) for state in self.adamw.state.values()]
        return counts[0] if counts else 0

    def _state(self, owner: Tensor, updates: int) -> dict[str, Tensor]:
        """AdamW's state of a flat tensor, made if it is not there, with its count set."""
        state = self.adamw.state[owner]
        if not state:
            state |= {moment: torch.zeros_like(owner, requires_grad=False) for moment in MOMENTS}
        fused = self.adamw.defaults.get("fused")
        state["step"] = torch.tensor(float(updates), device=owner.device if fused else "cpu")
        return state


def _key(name: str, moment: str) -> str:
    return f"{name}:{moment}"
