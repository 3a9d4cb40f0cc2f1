"""Saving and restoring pretraining checkpoints. metapt/runs.py has their layout, metapt/atomic_folders.py the commit protocol."""

from __future__ import annotations

import json
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers.utils import logging as transformers_logging

from metapt import atomic_folders
from metapt.errors import OperationalError
from metapt.files import file_sha256, sync, write_json
from metapt.runs import ENGINE_DIR, MODEL_DIR, ORIGIN_FILE, STATE_FILE, Run
from metapt.training.engine import Engine
from metapt.training.metrics import RunTotals

transformers_logging.disable_progress_bar()


NOT_WRITTEN = "the checkpoint could not be written, the previous one is intact"
VISIBILITY_S = 120.0
"""How long a rank waits to see what another node wrote; attribute caches of network file systems keep up to a minute."""


class Checkpoints:
    """The checkpoints of one run.

    Args:
        run: whose folder holds them.
        engine: its weights and optimizer state are saved.
        origin: how the model was pretrained, written beside its weights together with the step.
        tokenizer_dir: copied beside the weights, so that the model folder is complete.
        keep: number of newest checkpoints to keep, and how many of them keep the state of the optimizer; 0 keeps all.
    """

    def __init__(
        self, run: Run, engine: Engine, origin: dict[str, Any], tokenizer_dir: Path, keep: tuple[int, int]
    ):
        self.run, self.engine = run, engine
        self.keep, self.keep_states = keep
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
            with self._failing_together(NOT_WRITTEN):
                if self._is_main:
                    atomic_folders.staging(final)
            with self._failing_together(NOT_WRITTEN):
                written = self.engine.save(staging / ENGINE_DIR)
            known = {
                f"{ENGINE_DIR}/{name}": entry
                for entries in self.engine.from_all_ranks(written)
                for name, entry in entries.items()
            }
            weights = self.engine.weights()
            with self._failing_together(NOT_WRITTEN):
                if self._is_main:
                    self._export(staging / MODEL_DIR, weights, step)
                    state = {"step": step, "world_size": self.engine.world_size, **asdict(totals)}
                    write_json(staging / STATE_FILE, state)
                    sync(self.run.metrics_file)  # a run that resumes here does not write these lines again
                    atomic_folders.commit(staging, final, known)
                    self._prune(step)
        except OperationalError:
            if self._is_main:
                atomic_folders.remove(staging)
            raise

    def restore(self) -> tuple[int, RunTotals]:
        """Load the checkpoint that rank 0 chooses; return its step and totals, or step 0 if there is none.

        Ranks may see different states of a network file system. A rank that does not see that very checkpoint waits.

        Raises:
            OperationalError: on all ranks, if one of them does not see or cannot read it.
        """
        chosen = self.engine.from_main_rank(self._newest() if self._is_main else None)
        if chosen is None:
            self._delete_after(-1)
            return 0, RunTotals()
        step, checksum = chosen
        folder = self.run.checkpoint(step)
        with self._failing_together(f"the checkpoint of step {step} cannot be loaded"):
            self._wait_for(folder, checksum)
            state = self._load(folder)
        self._delete_after(step)
        return step, RunTotals(**{item.name: state[item.name] for item in fields(RunTotals)})

    def _newest(self) -> tuple[int, str] | None:
        """Step and checksum of the manifest of the newest checkpoint to resume from."""
        newest = self.run.newest_checkpoint(self._log)
        return newest and (newest[0], file_sha256(newest[1] / atomic_folders.MANIFEST))

    def _wait_for(self, folder: Path, checksum: str) -> None:
        """Wait until this rank sees the checkpoint with this manifest and all its files."""
        give_up = time.monotonic() + VISIBILITY_S
        while (problem := self._difference(folder, checksum)) is not None:
            if time.monotonic() > give_up:
                raise OperationalError(f"not visible on {socket.gethostname()} as it is on rank 0: {problem}")
            time.sleep(1)

    def _difference(self, folder: Path, checksum: str) -> str | None:
        """How this rank's view of a checkpoint differs from that of rank 0."""
        try:
            if file_sha256(folder / atomic_folders.MANIFEST) != checksum:
                return f"{folder / atomic_folders.MANIFEST} has other content"
        except OSError as error:
            return str(error)
        return atomic_folders.problem(folder, hashed=None)

    def _load(self, folder: Path) -> dict[str, Any]:
        """Load weights and optimizer state; return the content of state.json."""
        state: dict[str, Any] = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
        if state["world_size"] != self.engine.world_size:
            self._log(
                f"{folder} was saved by {state['world_size']} rank(s), now there are {self.engine.world_size}: "
                "the data and their order stay the same, sums are rounded differently"
            )
        self.engine.load(folder / ENGINE_DIR)
        return state

    def _delete_after(self, step: int) -> None:
        """Delete checkpoints after `step`, which are damaged: `keep` would count them and delete an intact one."""
        self.engine.barrier()
        if self._is_main:
            for later, folder in self.run.checkpoints():
                if later > step:
                    atomic_folders.remove(folder)

    @contextmanager
    def _failing_together(self, what: str) -> Iterator[None]:
        """A context that fails on all ranks, at its end, if it fails on one, so that none waits for another.

        Raises:
            OperationalError: `what` has failed.
        """
        problem: Exception | None = None
        try:
            yield
        except (OSError, SafetensorError, OperationalError) as error:
            problem = error
        if self.engine.any_rank(problem is not None):
            raise OperationalError(f"{what}: {problem or 'another rank failed'}")

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

    def _prune(self, newest: int) -> None:
        """Delete old checkpoints, and the optimizer states of those before the newest intact ones."""
        if self.keep:
            for _, folder in self.run.checkpoints()[: -self.keep]:
                atomic_folders.remove(folder)
        if not self.keep_states:
            return
        kept = 0
        for step, folder in reversed(self.run.checkpoints()):
            if not (folder / ENGINE_DIR).is_dir():
                continue
            suffices = kept == self.keep_states
            if step != newest and atomic_folders.problem(folder, hashed=None if suffices else "") is not None:
                continue  # damaged
            if suffices or not atomic_folders.lists(folder, ENGINE_DIR):
                atomic_folders.shrink(folder, ENGINE_DIR)
            else:
                kept += 1
