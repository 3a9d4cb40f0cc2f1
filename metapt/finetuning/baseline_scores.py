"""The scores of the baselines on the sentences of a fine-tuning run, computed once for all runs that share a cache.

DIR/baselines/<key>.json has the scores. The key is a digest of everything that they depend on: the sentences, the source
code, and the versions of Python and CRFsuite. So a file is never stale.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from metapt.data.iob2 import Sentence
from metapt.data.run_sets import RunSets
from metapt.evaluation.reference_scores import reference_scores
from metapt.files import write_json
from metapt.leases import Lease
from metapt.provenance import installed_version, source_hash
from metapt.training.progress_line import log


@dataclass(frozen=True)
class BaselineInputs:
    """The arguments of `reference_scores`: all sentences that scores of baselines depend on."""

    train: Sequence[Sentence]
    dev: Sequence[Sentence]
    tests: Mapping[str, Sequence[Sentence]]

    def scores(self) -> dict[str, Any]:
        """Train the baselines and score them."""
        log("training baselines on the same sentences")
        return reference_scores(self.train, self.dev, self.tests)

    def sha256(self) -> str:
        """A digest of words, tags, names of the test sets, source code and versions."""

        def content(sentences: Sequence[Sentence]) -> list[Any]:
            return [(sentence.words, sentence.tags) for sentence in sentences]

        versions = [source_hash(), platform.python_version(), installed_version("python-crfsuite")]
        tests = [(name, content(sentences)) for name, sentences in self.tests.items()]
        everything = [versions, content(self.train), content(self.dev), tests]
        return hashlib.sha256(json.dumps(everything).encode()).hexdigest()


def baseline_scores(sets: RunSets, cache_dir: str | None) -> dict[str, Any]:
    """The scores of baselines that learn from the training sentences of the run, as in `reference_scores`.

    Args:
        cache_dir: where they are kept for other runs with the same sentences.
    """
    train, dev = (list(chain(*parts)) for parts in (sets.training_sample(), sets.sentences("dev")))
    inputs = BaselineInputs(train, dev, sets.tests())
    if cache_dir is None:
        return inputs.scores()
    return _shared_scores(inputs, Path(cache_dir).expanduser() / "baselines")


def _shared_scores(inputs: BaselineInputs, folder: Path) -> dict[str, Any]:
    """The scores in the file of these inputs; one process computes and writes them while others wait for it.

    A folder that cannot be written costs the sharing, not the run.
    """
    file = folder / f"{inputs.sha256()[:32]}.json"
    if (scores := _read(file)) is not None:
        return scores
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(Lease(file.with_suffix(".lock"), is_exclusive=False).held(timeout=None))
        except OSError as error:
            _warn(folder, error)
            return inputs.scores()
        if (scores := _read(file)) is not None:
            return scores
        scores = inputs.scores()
        try:
            write_json(file, scores)
        except OSError as error:
            _warn(folder, error)
    return scores


def _warn(folder: Path, error: OSError) -> None:
    log(f"warning: {folder}: cannot keep the scores of the baselines ({error.strerror or error})")


def _read(file: Path) -> dict[str, Any] | None:
    """The scores in a file; None if it does not exist or cannot be read."""
    try:
        scores: dict[str, Any] = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return None
    log(f"the scores of the baselines on the same sentences are in {file}")
    return scores
