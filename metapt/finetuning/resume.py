"""The state of a fine-tuning run, and the checkpoints from which it resumes.

A checkpoint holds the training state, the trained weights, the best weights so far, and the optimizer. Everything else
that an update depends on is a function of (seed, step, epoch), so a resumed run ends with the same weights as an
uninterrupted one. The number of processes may change between runs.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

import torch
from accelerate.optimizer import AcceleratedOptimizer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from metapt import atomic_folders
from metapt.errors import OperationalError
from metapt.files import write_json
from metapt.finetuning.distributed import Distributed
from metapt.runs import ENGINE_DIR, STATE_FILE, Run
from metapt.training.progress_line import log

WEIGHTS_FILE, BEST_FILE, OPTIMIZER_FILE = "weights.safetensors", "best.safetensors", "optimizer.pt"


@dataclass
class TrainingState:
    """Progress of a run: finished epochs and steps, and the best epoch so far with its dev scores.

    Attributes:
        dev_f1, dev_loss_nats: of the best epoch.
        seconds_total: time of steps and dev scores, without loading, frozen features and checkpoints.
    """

    epoch: int = 0
    step: int = 0
    best_epoch: int = 0
    best_step: int = 0
    dev_f1: float = -1.0
    dev_loss_nats: float = float("inf")
    seconds_total: float = 0.0

    def is_best(self, f1: float, loss: float) -> bool:
        """Whether dev scores are better than the best so far: higher F1, or equal F1 and lower loss."""
        return (f1, -loss) > (self.dev_f1, -self.dev_loss_nats)


class FinetuneCheckpoints:
    """The training state of a run and its checkpoints.

    Args:
        trained: the module that is trained; checkpoints hold its parameters that require gradients.
    """

    def __init__(self, run: Run, processes: Distributed, trained: nn.Module, optimizer: AcceleratedOptimizer):
        self.run, self.processes, self.trained, self.optimizer = run, processes, trained, optimizer
        self.state, self.best_weights = TrainingState(), self._weights()

    def keep_if_best(self, f1: float, loss: float) -> None:
        """Record the dev scores and weights of the epoch that just ended if it is the best so far."""
        state = self.state
        if state.is_best(f1, loss):
            state.best_epoch, state.best_step = state.epoch, state.step
            state.dev_f1, state.dev_loss_nats = f1, loss
            self.best_weights = self._weights()

    def load_best(self) -> None:
        """Load the weights of the best epoch into the trained module."""
        self._load(self.best_weights)

    def save(self) -> None:
        """Write a checkpoint of the current state, then remove older checkpoints.

        Raises:
            OperationalError: on all ranks, if the main process cannot write it; the previous checkpoint is kept.
        """
        try:
            self.processes.run_on_main(self._write)
        except OperationalError as error:
            if self.processes.is_main_process:
                self.run.remove_leftovers()
            raise OperationalError(
                f"{self.run.path}: cannot write a checkpoint ({error}); the previous one is kept"
            ) from None

    def _write(self) -> None:
        final, older = self.run.checkpoint(self.state.step), self.run.checkpoints()
        staging = atomic_folders.staging(final)
        engine = staging / ENGINE_DIR
        engine.mkdir()
        save_file(self._weights(), engine / WEIGHTS_FILE)
        save_file(self.best_weights, engine / BEST_FILE)
        torch.save(self.optimizer.state_dict(), engine / OPTIMIZER_FILE)
        write_json(staging / STATE_FILE, asdict(self.state))
        atomic_folders.commit(staging, final)
        for _, folder in older:
            if folder != final:
                atomic_folders.remove(folder)

    def restore(self) -> None:
        """Load the newest intact checkpoint, if there is one."""
        found = self.run.newest_checkpoint(log) if self.processes.is_main_process else None
        found = self.processes.broadcast(found)
        if found is None:
            return
        folder = found[1]
        engine = folder / ENGINE_DIR
        self._load(load_file(engine / WEIGHTS_FILE))
        self.best_weights = load_file(engine / BEST_FILE)
        self.optimizer.load_state_dict(torch.load(engine / OPTIMIZER_FILE, weights_only=True))
        values = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
        # null stands for a number that is not finite: the dev loss before the first score, which is the default
        self.state = TrainingState(**{name: value for name, value in values.items() if value is not None})

    def _parameters(self) -> dict[str, nn.Parameter]:
        return {name: value for name, value in self.trained.named_parameters() if value.requires_grad}

    def _weights(self) -> dict[str, Tensor]:
        """Copy the trained parameters to the CPU."""
        return {name: value.detach().to("cpu", copy=True) for name, value in self._parameters().items()}

    @torch.no_grad()
    def _load(self, weights: dict[str, Tensor]) -> None:
        """Copy weights into the trained parameters."""
        for name, value in self._parameters().items():
            value.copy_(weights[name])
