"""Saving and restoring pretraining checkpoints. metapt/runs.py has their layout, metapt/atomic_folders.py the commit protocol."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers.utils import logging as transformers_logging

from metapt import atomic_folders
from metapt.errors import OperationalError
from metapt.files import sync, write_json
from metapt.runs import ENGINE_DIR, MODEL_DIR, ORIGIN_FILE, STATE_FILE, Run
from metapt.training.engine import Engine
from metapt.training.metrics import RunTotals

transformers_logging.disable_progress_bar()


class Checkpoints:
    """The checkpoints of one run.

    Args:
        run: whose folder holds them.
        engine: its weights and optimizer state are saved.
        origin: how the model was pretrained, written beside its weights together with the step.
        tokenizer_dir: copied beside the weights, so that the model folder is complete.
        keep: number of newest checkpoints to keep; 0 keeps all.
    """

    def __init__(self, run: Run, engine: Engine, origin: dict[str, Any], tokenizer_dir: Path, keep: int):
        self.run, self.engine, self.keep = run, engine, keep
        self.origin, self.tokenizer_dir = origin, tokenizer_dir
        self._is_main = engine.rank == 0

    def save(self, step: int, totals: RunTotals) -> None:
        """Save the checkpoint of `step`. All ranks must call it; on return it is complete for all.

        Raises:
            OperationalError: a rank could not write its part. The partial checkpoint is deleted; older ones remain.
        """
        final = self.run.checkpoint(step)
        staging = final.with_name(final.name + atomic_folders.STAGING_SUFFIX)
        try:
            with self._failing_together():
                if self._is_main:
                    atomic_folders.staging(final)
            with self._failing_together():
                self.engine.save(staging / ENGINE_DIR)
            weights = self.engine.weights()
            with self._failing_together():
                if self._is_main:
                    self._export(staging / MODEL_DIR, weights, step)
                    state = {"step": step, "world_size": self.engine.world_size, **asdict(totals)}
                    write_json(staging / STATE_FILE, state)
                    sync(self.run.metrics_file)  # a run that resumes here does not write these lines again
                    atomic_folders.commit(staging, final)
                    self._delete_old()
        except OperationalError:
            if self._is_main:
                atomic_folders.remove(staging)
            raise

    def restore(self) -> tuple[int, RunTotals]:
        """Load the newest intact checkpoint; return its step and totals, or step 0 if there is none."""
        newest = self.run.newest_checkpoint(self._log)
        if newest is None:
            self._delete_after(-1)
            return 0, RunTotals()
        step, folder = newest
        state = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
        if state["world_size"] != self.engine.world_size:
            self._log(
                f"{folder} was saved by {state['world_size']} rank(s), now there are {self.engine.world_size}: "
                "the data and their order stay the same, sums are rounded differently"
            )
        self.engine.load(folder / ENGINE_DIR)
        self._delete_after(step)
        return step, RunTotals(**{item.name: state[item.name] for item in fields(RunTotals)})

    def _delete_after(self, step: int) -> None:
        """Delete checkpoints after `step`, which are damaged: `keep` would count them and delete an intact one."""
        self.engine.barrier()
        if self._is_main:
            for later, folder in self.run.checkpoints():
                if later > step:
                    atomic_folders.remove(folder)

    @contextmanager
    def _failing_together(self) -> Iterator[None]:
        """A context that fails on all ranks, at its end, if it fails on one, so that none waits for another."""
        problem: Exception | None = None
        try:
            yield
        except (OSError, SafetensorError, OperationalError) as error:
            problem = error
        if self.engine.any_rank(problem is not None):
            raise OperationalError(
                "the checkpoint could not be written, the previous one is intact: "
                f"{problem or 'another rank failed'}"
            )

    def _log(self, text: str) -> None:
        if self._is_main:
            print(text, file=sys.stderr)

    def _export(self, folder: Path, weights: dict[str, Any], step: int) -> None:
        """Write the decoder and its tokenizer in transformers' format."""
        prefix = "decoder."
        state = {
            name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)
        }
        self.engine.meta_lm.decoder.save_pretrained(folder, state_dict=state)
        shutil.copytree(self.tokenizer_dir, folder, dirs_exist_ok=True)
        write_json(folder / ORIGIN_FILE, {**self.origin, "step": step})

    def _delete_old(self) -> None:
        if self.keep:
            for _, folder in self.run.checkpoints()[: -self.keep]:
                atomic_folders.remove(folder)
