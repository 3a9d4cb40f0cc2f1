"""Files of repositories of the Hugging Face hub: models, tokenizers and data sets, in the cache of its client.

The cache has one folder per commit, and a file refs/REVISION with the commit that a branch or tag had when it was
first downloaded. With HF_HUB_OFFLINE=1 only the cache is read, at that commit.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from metapt.errors import OperationalError, UserError, first_line, listed

CACHED_REPOSITORY = re.compile(r"(?P<kind>model|dataset)s--(?P<name>.+)")  # its folder in the cache
LISTED = 3  # files that an error names
NOT_IN_FOLDERS = ("*/*",)
TOKENIZER_PATTERNS = ("*.json", "*.txt", "*.model")
WEIGHTS_PATTERNS = ("*.safetensors", "pytorch_model*.bin")


@dataclass(frozen=True)
class HubFiles:
    """Some files of a repository.

    Attributes:
        kind: model or dataset.
        revision: branch, tag or commit.
        patterns, excluded: of paths in the repository; `*` also matches /.
        alternatives: further patterns, of which the first that matches a file is read, and the others are not.
    """

    kind: str
    name: str
    revision: str = "main"
    patterns: tuple[str, ...] = ("*",)
    excluded: tuple[str, ...] = ()
    alternatives: tuple[str, ...] = ()

    def __str__(self) -> str:
        kind = "data set" if self.kind == "dataset" else self.kind
        return f"{kind} {self.name} ({self.revision})"


def model_files(name: str) -> HubFiles:
    """Weights, configuration and tokenizer of a model."""
    return HubFiles(
        "model",
        name,
        patterns=TOKENIZER_PATTERNS,
        excluded=NOT_IN_FOLDERS,
        alternatives=WEIGHTS_PATTERNS,
    )


def tokenizer_files(name: str) -> HubFiles:
    """The tokenizer in the repository of a model."""
    return HubFiles("model", name, patterns=TOKENIZER_PATTERNS, excluded=NOT_IN_FOLDERS)


def download(files: HubFiles) -> Path:
    """The local folder of some files, downloaded unless they are in the cache.

    Raises:
        UserError: there is no such repository or revision.
        OperationalError: the hub is not available, and the files are not in the cache.
    """
    return _snapshot(files)


def fetch(files: HubFiles, cache: Path) -> str:
    """Put some files into a cache, unless they are there. Returns their commit.

    A branch or tag keeps the commit that it had when its first file was put there, so that all jobs that use a cache
    read the same content.

    Args:
        cache: the folder that HF_HUB_CACHE names for the jobs.
    Raises:
        UserError, OperationalError: see `download`.
    """
    present = cached_commit(files, cache)
    if present:
        return present
    pinned = _pinned_commit(files, cache)
    return _snapshot(files, cache_dir=cache, **({"revision": pinned} if pinned else {})).name


def cached_commit(files: HubFiles, cache: Path) -> str | None:
    """The commit at which all of some files are in a cache; None if any is missing. Does not reach the hub."""
    try:
        return _snapshot(files, cache_dir=cache, local_files_only=True).name
    except (UserError, OperationalError):
        return None


def current_commit(files: HubFiles) -> str:
    """The commit that a revision has on the hub now.

    Raises:
        UserError, OperationalError: see `download`.
    """
    from huggingface_hub import HfApi

    info = _asked(files, HfApi().repo_info, files.name, repo_type=files.kind, revision=files.revision)
    return str(info.sha)


def _snapshot(files: HubFiles, **options: Any) -> Path:
    """Download files. Of a repository that has none of the alternatives, UserError is raised."""
    from huggingface_hub import snapshot_download

    for alternative in files.alternatives or ("",):
        selected = replace(files, patterns=(*files.patterns, *filter(None, [alternative])))
        arguments = {
            "repo_type": files.kind,
            "revision": files.revision,
            "allow_patterns": list(selected.patterns),
            "ignore_patterns": list(files.excluded),
            **options,
        }
        folder = Path(_asked(selected, snapshot_download, files.name, **arguments))
        if not alternative or any(folder.glob(alternative)):
            return folder
    raise UserError(f"{files}: contains neither {' nor '.join(files.alternatives)}")


def _asked(files: HubFiles, request: Any, *arguments: Any, **options: Any) -> Any:
    """The result of a request of the hub's client, whose errors become UserError or OperationalError."""
    from huggingface_hub import errors

    unknown = (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.HFValidationError)
    try:
        return request(*arguments, **options)
    except unknown as error:
        raise UserError(_problem(files, error)) from None
    except errors.IncompleteSnapshotError as error:
        raise OperationalError(_incomplete(files, Path(error.snapshot_path))) from None
    except (errors.HTTPError, OSError) as error:
        raise OperationalError(_problem(files, error)) from None


def _problem(files: HubFiles, error: Exception) -> str:
    return f"{files}: cannot be downloaded ({type(error).__name__}: {first_line(error)})"


def _incomplete(files: HubFiles, folder: Path) -> str:
    """Name the files that the cached folder of a commit lacks, by the cached list of its files."""
    from huggingface_hub import get_cached_repo_tree
    from huggingface_hub.utils import filter_repo_objects

    tree = get_cached_repo_tree(
        files.name, repo_type=files.kind, revision=folder.name, cache_dir=folder.parents[2]
    )
    wanted = filter_repo_objects(
        [entry.path for entry in tree],
        allow_patterns=list(files.patterns),
        ignore_patterns=list(files.excluded),
    )
    return lacking_files(folder, [path for path in wanted if not (folder / path).is_file()])


def lacking_files(folder: Path, missing: Sequence[str]) -> str:
    """Say which files a folder lacks, and the command that downloads them if it belongs to the cache of the client.

    Args:
        missing: paths in the folder, at least one.
    """
    text = f"{folder}: lacks {listed(missing, LISTED)}"
    repository = CACHED_REPOSITORY.fullmatch(folder.parent.parent.name)
    if folder.parent.name != "snapshots" or repository is None:
        return text
    name = repository["name"].replace("--", "/")
    options = ["--repo-type", repository["kind"], "--revision", folder.name, "--cache-dir", folder.parents[2]]
    command = shlex.join(map(str, ["hf", "download", name, *missing, *options]))
    return f"{text}; download where the hub can be reached: {command}"


def _pinned_commit(files: HubFiles, cache: Path) -> str | None:
    from huggingface_hub.file_download import repo_folder_name

    try:
        folder = cache / repo_folder_name(repo_id=files.name, repo_type=files.kind)
        return (folder / "refs" / files.revision).read_text(encoding="utf-8").strip()
    except (OSError, ValueError):  # not there, or no valid name
        return None
