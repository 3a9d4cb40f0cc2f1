"""Models that `from_pretrained` can load: where they are, and what is known of them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from metapt import atomic_folders
from metapt.errors import UserError
from metapt.runs import MODEL_DIR, ORIGIN_FILE, Run

HUB_PREFIX = "hub:"


def model_folder(path: str | Path) -> Path:
    """The folder that `from_pretrained` can load, for a model folder, a checkpoint, a finished run (its newest), or hub:NAME.

    Raises:
        UserError: nothing of the kind is there, it is damaged, or the run is not finished.
    """
    if str(path).startswith(HUB_PREFIX):
        return _from_hub(str(path).removeprefix(HUB_PREFIX))
    path = Path(path).expanduser()
    for folder in (path, path / MODEL_DIR):
        if (folder / "config.json").is_file():
            checkpoint = folder.parent
            if (checkpoint / atomic_folders.MANIFEST).exists():
                problem = atomic_folders.problem(checkpoint)
                if problem:
                    raise UserError(problem)
            return folder
    run = Run(path)
    if run.checkpoints() and not run.is_done:
        raise UserError(f"{path}: this run is not finished; wait for it, or name one of its checkpoints")
    found = run.newest_checkpoint(lambda text: print(text, file=sys.stderr))
    if found is None:
        raise UserError(f"{path}: neither a finished run, nor a checkpoint, nor a model folder")
    return found[1] / MODEL_DIR


def _from_hub(name: str) -> Path:
    """A folder with the weights, configuration and tokenizer of a model of the hub, fetched unless it stands in the cache.

    Raises:
        UserError: there is no such model, or the hub cannot be reached.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    wanted = ["*.safetensors", "*.json", "*.txt", "*.model"]
    try:
        return Path(snapshot_download(name, allow_patterns=wanted, ignore_patterns=["*/*"]))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise UserError(
            f"{HUB_PREFIX}{name}: cannot be fetched ({type(error).__name__}: {str(error).splitlines()[0]})"
        ) from None


def model_origin(folder: Path, name: str = "") -> dict[str, Any]:
    """What is known of a model folder: its metapt.json, or its name alone if it was not made here.

    Args:
        name: that of a model of the hub, with its prefix; otherwise a model is called as its folder.
    """
    file = folder / ORIGIN_FILE
    called = name.removeprefix(HUB_PREFIX) if name.startswith(HUB_PREFIX) else folder.name
    try:
        return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {"model": called}
    except ValueError as error:
        raise UserError(f"{file}: not JSON ({error})") from None
