"""What a run would refuse, found in a second: before its job is submitted, and at the start of the job on one process.

Nothing here imports torch, tokenizes text or reaches the hub.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from metapt.config import FinetuneConfig, PretrainConfig, identity, identity_in, training_splits
from metapt.data.run_sets import open_run_sets
from metapt.errors import UserError
from metapt.launch.jobs import Plan
from metapt.models.pretrained import HUB_PREFIX, model_folder
from metapt.runs import Run


def check_run(config: PretrainConfig | FinetuneConfig, ranks: int) -> None:
    """Checks one run on a number of ranks.

    Raises:
        UserError: with everything that the run would refuse, one a line.
    """
    if isinstance(config, FinetuneConfig):
        errors = [*_finetuning_errors(config, ranks), *_folder_errors(config)]
    else:
        errors = [*_corpus_errors(config), *_folder_errors(config)]
    _refuse(errors)


def check_plan(plan: Plan) -> None:
    """Checks the inputs of all runs of a grid that the grid does not make itself.

    Raises:
        UserError: with everything that a run would refuse, one a line.
    """
    errors: list[str] = []
    checked: set[str] = set()
    for job in plan.jobs:
        config: Any = plan.configs.get(job.id)
        if job.kind == "pretrain" and _is_new(checked, f"{config.data} {config.model.vocab_size}"):
            errors += _corpus_errors(config)
        if job.kind == "finetune" and _is_new(checked, _sets_read(config)):
            errors += _sets_errors(config)
        if job.model and _is_new(checked, job.model):
            errors += _model_errors(job.model)
    _refuse(errors)


def vocabulary_error(config: PretrainConfig, entries: int) -> str | None:
    """Why a model cannot have a tokenizer of `entries` entries, if that is so."""
    if entries <= config.model.vocab_size:
        return None
    return (
        f"model.vocab_size={config.model.vocab_size}: the tokenizer has {entries} entries; "
        f"use model.vocab_size={-(-entries // 64) * 64}"
    )


def _refuse(errors: Sequence[str]) -> None:
    if errors:
        raise UserError("\n".join(dict.fromkeys(errors)))


def _is_new(known: set[str], value: str) -> bool:
    if value in known:
        return False
    known.add(value)
    return True


def _corpus_errors(config: PretrainConfig) -> Iterator[str]:
    """Text that is missing, and a tokenizer that cannot be read or has too many entries."""
    data = config.data
    if data.name == "text" and data.text_dir is not None:
        from metapt.data.bad_input import BadInput
        from metapt.data.text_files import find_files

        root = Path(data.text_dir).expanduser()
        yield from _raised(lambda: find_files(root, BadInput(data.on_bad_input)))
    if data.tokenizer != "train":
        from metapt.data.tokenizers import is_path, read_tokenizer, vocabulary_size  # slow

        if not is_path(data.tokenizer):
            return
        found: list[int] = []
        yield from _raised(lambda: found.append(vocabulary_size(read_tokenizer(data.tokenizer))))
        for entries in found:
            if error := vocabulary_error(config, entries):
                yield error


def _finetuning_errors(config: FinetuneConfig, ranks: int) -> Iterator[str]:
    if config.tuning == "head_only" and ranks > 1:
        yield f"tuning=head_only runs in a single process, not in {ranks}"
    yield from _model_errors(config.checkpoint)
    yield from _sets_errors(config)


def _model_errors(model: str) -> Iterator[str]:
    if not model.startswith(HUB_PREFIX):
        yield from _raised(lambda: model_folder(model))


def _sets_read(config: FinetuneConfig) -> str:
    """What `_sets_errors` depends on: not the sample of training sentences."""
    whole = replace(config.data, max_train_sentences=None, entities_per_type=None, subset_seed=0)
    return f"{config.source} {training_splits(config)} {whole}"


def _sets_errors(config: FinetuneConfig) -> Iterator[str]:
    if config.data.name == "uner" and config.data.uner_dir is None:  # on the hub
        return
    yield from _raised(lambda: open_run_sets(config.data, config.source, training_splits(config)))


def _folder_errors(config: PretrainConfig | FinetuneConfig) -> Iterator[str]:
    """A run folder that holds another run."""
    run = Run(config.run_dir)
    if run.config_file.exists():
        wanted = identity_in(config, run) if isinstance(config, PretrainConfig) else identity(config)
        yield from _raised(lambda: run.check_identity(wanted, config=asdict(config)))


def _raised(check: Callable[[], object]) -> Iterator[str]:
    """The message of a UserError that a check raises."""
    try:
        check()
    except UserError as error:
        yield str(error)
