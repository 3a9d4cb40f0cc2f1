"""Saving and finding pretraining checkpoints. The folder's layout and its commit protocol are in metapt/runs.py."""

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
from metapt.training.metrics import Totals

transformers_logging.disable_progress_bar()


class Checkpoints:
    """The checkpoints of one run.

    Args:
        origin: what is known of the model, written beside its weights; the step is added.
        tokenizer_dir: copied beside the weights, so that a checkpoint stands alone.
        keep: newest so many are kept; 0 keeps all.
    """

    def __init__(self, run: Run, engine: Engine, origin: dict[str, Any], tokenizer_dir: Path, keep: int):
        self.run, self.engine, self.origin, self.tokenizer_dir, self.keep = (
            run,
            engine,
            origin,
            tokenizer_dir,
            keep,
        )

    def save(self, step: int, totals: Totals) -> None:
        """Makes the checkpoint of `step`; all ranks call it, and it is complete for all when it returns.

        Raises:
            OperationalError: some rank could not write its part. What was written is removed; older ones stand.
        """
        final = self.run.checkpoint(step)
        staging = final.with_name(final.name + ".tmp")
        leads = self.engine.rank == 0
        try:
            with self._agreed():
                if leads:
                    atomic_folders.staging(final)
            with self._agreed():
                self.engine.save(staging / ENGINE_DIR)
            weights = self.engine.weights()
            with self._agreed():
                if leads:
                    self._export(staging / MODEL_DIR, weights, step)
                    state = {"step": step, "world_size": self.engine.world_size, **asdict(totals)}
                    write_json(staging / STATE_FILE, state)
                    sync(self.run.metrics_file)  # its lines up to here will not be written again
                    atomic_folders.commit(staging, final)
                    self._forget_old()
        except OperationalError:
            if leads:
                atomic_folders.remove(staging)
            raise

    def restore(self) -> tuple[int, Totals]:
        """Loads the newest intact checkpoint. Returns its step and totals, or step 0 if there is none."""
        found = self.run.newest_checkpoint(self._say)
        if found is None:
            self._remove_after(-1)
            return 0, Totals()
        step, folder = found
        state = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
        if state["world_size"] != self.engine.world_size:
            self._say(
                f"{folder} was made on {state['world_size']} rank(s), and these are {self.engine.world_size}: the same "
                "data in the same order, sums rounded differently"
            )
        self.engine.load(folder / ENGINE_DIR)
        self._remove_after(step)
        return step, Totals(**{item.name: state[item.name] for item in fields(Totals)})

    def _remove_after(self, step: int) -> None:
        """Removes checkpoints after `step`, all of them damaged: `keep` would count them, and drop an intact one."""
        self.engine.barrier()
        if self.engine.rank == 0:
            for _, damaged in [each for each in self.run.checkpoints() if each[0] > step]:
                atomic_folders.remove(damaged)

    @contextmanager
    def _agreed(self) -> Iterator[None]:
        """What one rank cannot write fails on all ranks, once all have come here, so that none waits for another."""
        problem: Exception | None = None
        try:
            yield
        except (OSError, SafetensorError, OperationalError) as error:
            problem = error
        if self.engine.any(problem is not None):
            raise OperationalError(
                f"no checkpoint could be written, the one before stands: {problem or 'another rank failed'}"
            )

    def _say(self, text: str) -> None:
        if self.engine.rank == 0:
            print(text, file=sys.stderr)

    def _export(self, folder: Path, weights: dict[str, Any], step: int) -> None:
        decoder = self.engine.meta_lm.decoder
        state = {
            name.removeprefix("decoder."): value
            for name, value in weights.items()
            if name.startswith("decoder.")
        }
        decoder.save_pretrained(folder, state_dict=state)
        shutil.copytree(self.tokenizer_dir, folder, dirs_exist_ok=True)
        write_json(folder / ORIGIN_FILE, {**self.origin, "step": step})

    def _forget_old(self) -> None:
        if self.keep:
            for _, folder in self.run.checkpoints()[: -self.keep]:
                atomic_folders.remove(folder)
