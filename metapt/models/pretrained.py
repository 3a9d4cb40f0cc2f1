"""Finding models that `from_pretrained` can load, and what is known about them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from metapt import atomic_folders
from metapt.data.hub_files import WEIGHTS_PATTERNS, download, lacking_files, model_files
from metapt.errors import UserError, listed
from metapt.runs import MODEL_DIR, ORIGIN_FILE, Run

HUB_PREFIX = "hub:"
HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)
HINTED = 5  # names in a hint


def model_folder(path: str | Path) -> Path:
    """The model folder to load.

    Args:
        path: a model folder, a checkpoint, hub:NAME, or a finished run (of pretraining: its last checkpoint is used; of
            fine-tuning: its tagger).
    Raises:
        UserError: `path` is none of these, the model is damaged, or the run is not finished.
        OperationalError: the hub is not available.
    """
    if str(path).startswith(HUB_PREFIX):
        folder = download(model_files(str(path).removeprefix(HUB_PREFIX)))
        _require_weights(folder)
        return folder
    path = Path(path).expanduser()
    run = Run(path)
    for folder in (path, path / MODEL_DIR, *([run.tagger_dir] if run.is_done else [])):
        if (folder / "config.json").is_file():
            for committed in (folder, folder.parent):
                if (committed / atomic_folders.MANIFEST).exists() and (
                    problem := atomic_folders.problem(committed)
                ):
                    raise UserError(problem)
            _require_weights(folder)
            return folder
    if not run.result_file.exists():
        if run.checkpoints():
            raise UserError(f"{path}: this run is not finished; wait for it, or give one of its checkpoints")
        raise UserError(f"{path}: not a finished run, a checkpoint or a model folder{_what_exists(path)}")
    if problem := run.result_problem(hashed=""):
        raise UserError(
            f"{path}: the result of this run does not count: {problem}; "
            "repeat its command, which resumes it, or give one of its earlier checkpoints"
        )
    result = run.result()
    if result.get("kind") != "pretrain":
        raise UserError(f"{path}: this run has no tagger and no model")
    return run.checkpoint(result["steps"]) / MODEL_DIR


def _require_weights(folder: Path) -> None:
    """Check that a folder has all the files of its weights: those that an index lists, and no links to nothing.

    Raises:
        UserError: one is missing, as after a download that was interrupted.
    """
    missing = [path.name for path in sorted(folder.iterdir()) if path.is_symlink() and not path.exists()]
    for pattern in WEIGHTS_PATTERNS:
        for index in sorted(folder.glob(f"{pattern}.index.json")):
            try:
                names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise UserError(f"{index}: not an index of weights ({type(error).__name__})") from None
            missing += [name for name in names if not (folder / name).is_file()]
        if missing:
            raise UserError(lacking_files(folder, list(dict.fromkeys(missing))))
        if any(folder.glob(pattern)):
            return


def _what_exists(path: Path) -> str:
    """A hint for a path at which there is no model: the steps of its run, the runs in its folder, or the hub."""
    of_run = Run(path.parent.parent)
    steps = [str(step) for step, _ in of_run.checkpoints()]
    if path.parent == of_run.checkpoints_dir and steps:
        return f"; the run has checkpoints at step {listed(steps, HINTED)}"
    nearby = path if path.is_dir() else path.parent
    runs = sorted(str(file.parent) for file in nearby.glob(f"*/{Run('').result_file.name}"))
    if runs:
        return f"; finished runs there: {listed(runs, HINTED)}"
    if not path.exists() and HUB_NAME.fullmatch(str(path)):
        return f"; a model of the hub is written {HUB_PREFIX}{path}"
    return ""


def model_origin(folder: Path, name: str = "") -> dict[str, Any]:
    """How a model was pretrained: the content of its metapt.json, or only its name (and commit on the hub) if it has none.

    Args:
        folder: model folder.
        name: the path that was given for it; a hub:NAME is used as the model's name, else the folder's name is.
    Raises:
        UserError: metapt.json is not JSON.
    """
    file = folder / ORIGIN_FILE
    known = {"model": folder.name}
    if name.startswith(HUB_PREFIX):
        known = {"model": name.removeprefix(HUB_PREFIX), "commit": folder.name}
    try:
        return json.loads(file.read_text(encoding="utf-8")) if file.exists() else known
    except ValueError as error:
        raise UserError(f"{file}: not JSON ({error})") from None


def recorded_settings(name: str) -> dict[str, Any]:
    """The settings of the run that pretrained a model, with dotted keys; none if there is no such model or no record.

    A run that continued another model has the tokenizer of its checkpoint (`data.tokenizer`), since it trained none.

    Args:
        name: as in `model_folder`.
    Raises:
        OperationalError: the hub is not available.
    """
    try:
        folder = model_folder(name)
        settings = model_origin(folder).get("settings", {})
    except UserError:  # the command reports it where it loads the model
        return {}
    return settings | {"data.tokenizer": str(folder)} if settings.get("init_sha256") else settings
