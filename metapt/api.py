"""The functions of `import metapt`: fine-tune, tag, score and compare in Python, and read run folders as tables.

Settings are the keys of the commands (`metapt finetune --help`), given as a mapping: `{"ner.lr": 1e-3}`.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from math import nan
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from metapt.config import commandline
from metapt.config.registry import TASKS
from metapt.data.iob2 import Sentence
from metapt.errors import UserError
from metapt.evaluation import score_system
from metapt.evaluation.score_inputs import read_gold, read_predictions
from metapt.evaluation.score_system import Comparison, ScoredSystem, default_set_name, default_system_name
from metapt.evaluation.span_f1 import set_scores
from metapt.runs import Run

if TYPE_CHECKING:
    import pandas as pd

    from metapt.data.episodes import Episode, TaskSampler
    from metapt.inference.entity_tagger import EntityTagger

Settings = Mapping[str, object]
COMMAND_ONLY = {"check", "folds"}
"""keys of `metapt finetune` with which it makes no tagger, or several"""
TaggedFile = str | Path
Tags = Sequence[Sequence[str]]
"""the IOB2 tags of each sentence, such as [["B-PER", "O"]]"""


@dataclass(frozen=True)
class SetScore:
    """Micro-averaged scores of spans on one labelled set, from 0 to 1.

    Attributes:
        f1, precision, recall: of spans with the right type and both boundaries.
        low, high: 95 % confidence interval of F1 over documents, or over sentences where none are marked; NaN without a
            gold span.
        per_type: F1 of each entity type.
    """

    f1: float
    low: float
    high: float
    precision: float
    recall: float
    gold_spans: int
    sentences: int
    per_type: dict[str, float]

    @classmethod
    def of_result(cls, entry: Mapping[str, Any]) -> SetScore:
        """The scores in an entry of `sets` in result.json."""
        low, high = (nan if bound is None else float(bound) for bound in entry["f1_interval"])
        per_type = {name: scores["f1"] for name, scores in entry["per_type"].items()}
        return cls(
            entry["f1"],
            low,
            high,
            entry["precision"],
            entry["recall"],
            entry["gold_spans"],
            entry["sentences"],
            per_type,
        )


@dataclass(frozen=True)
class FinetunedTagger:
    """A finished fine-tuning run.

    Attributes:
        path: the run folder.
        dev_f1: of the best epoch, from 0 to 1; None without a dev set.
        sets: the scores on each test set.
    """

    path: Path
    dev_f1: float | None
    sets: dict[str, SetScore]

    def load(self, *, device: str = "auto") -> EntityTagger:
        """The tagger itself."""
        return load_tagger(self.path, device=device)


def finetune(
    checkpoint: str | Path,
    source: str,
    run_dir: str | Path,
    *,
    tuning: Literal["head_only", "full", "lora"] = "head_only",
    settings: Settings | None = None,
) -> FinetunedTagger:
    """Fine-tune a model as a named entity tagger, or resume the run in `run_dir`; a finished run is only read.

    Args:
        checkpoint: a pretraining run, a checkpoint, a model folder, or hub:NAME.
        source: the labelled set to train on; several are joined by +.
        settings: further keys of `metapt finetune`, such as {"data.uner_dir": "UNER", "ner.lr": 1e-3}.
    Raises:
        UserError: an error in the settings, the model or the data; or the folder holds another run.
    """
    for name in COMMAND_ONLY & (settings or {}).keys():
        raise UserError(f"{name}: only for the command `metapt finetune`")
    from metapt.finetuning.run_finetuning import finetune as run_finetuning
    from metapt.training.signals import StopRequest

    given = {"checkpoint": checkpoint, "source": source, "tuning": tuning, "run_dir": run_dir}
    run_finetuning(_config("finetune", given, settings), StopRequest())
    result = Run(run_dir).result()
    sets = {name: SetScore.of_result(entry) for name, entry in result["sets"].items()}
    return FinetunedTagger(Path(run_dir), result["dev_f1"], sets)


def evaluate(
    checkpoint: str | Path, sets: Sequence[str] = (), *, settings: Settings | None = None
) -> dict[str, SetScore]:
    """Score a finished tagger on labelled sets; the scores are kept in its run folder, for the report.

    Args:
        checkpoint: a finished fine-tuning run, or its tagger folder.
        sets: names of labelled sets; empty: every set with a test split.
        settings: further keys of `metapt evaluate`, such as {"data.uner_dir": "UNER"}.
    Raises:
        UserError: there is no such tagger or set.
    """
    from metapt.inference.evaluate_tagger import evaluate_tagger

    given = {"checkpoint": checkpoint, "sets": list(sets)}
    evaluated = evaluate_tagger(_config("evaluate", given, settings))
    return {name: SetScore.of_result(entry) for name, entry in evaluated.sets.items()}


def score(
    gold: TaggedFile | Tags, predicted: TaggedFile | Tags, *, types: Mapping[str, str] | None = None
) -> SetScore:
    """Score predicted tags against gold tags.

    Args:
        gold, predicted: both files in the formats of `metapt score`, or both the IOB2 tags of each sentence.
        types: entity types of files to rename, or to leave out with O, such as {"PERSON": "PER", "DATE": "O"}.
    Raises:
        UserError: the sentences do not agree, or a file cannot be read.
    """
    if isinstance(gold, str | Path) and isinstance(predicted, str | Path):
        return SetScore.of_result(_systems(types, gold, predicted)[0].scores)
    if isinstance(gold, str | Path) or isinstance(predicted, str | Path):
        raise UserError("gold and predicted must both be files, or both lists of tags")
    if [len(tags) for tags in gold] != [len(tags) for tags in predicted]:
        raise UserError("gold and predicted differ in the number of sentences, or of tags in a sentence")
    sentences = [
        Sentence(str(number), ("",) * len(tags), tuple(tags)) for number, tags in enumerate(gold, start=1)
    ]
    return SetScore.of_result(set_scores("", sentences, predicted))


def compare(
    gold: TaggedFile, first: TaggedFile, second: TaggedFile, *, types: Mapping[str, str] | None = None
) -> Comparison:
    """Compare two predictions of the same gold file: difference of F1 with interval and p, as `metapt score` does.

    Args:
        gold, first, second: files in the formats of `metapt score`.
        types: as in `score`.
    Returns: first minus second.
    Raises:
        UserError: the sentences do not agree, or a file cannot be read.
    """
    return score_system.compare(*_systems(types, gold, first, second))


def load_tagger(
    path: str | Path, *, precision: str = "fp32", device: str = "auto", batch_size: int = 64
) -> EntityTagger:
    """Load a tagger that `metapt finetune` trained: `load_tagger(path).tag(["Pumunta si Maria sa Cebu."])`.

    Args:
        path: a finished fine-tuning run, or its tagger folder.
        precision: precision of the model, `fp32` or `bf16`; the CRF stays in fp32.
        device: torch device, such as `cuda:1`; `auto` is the first of cuda, mps and cpu that there is.
        batch_size: maximum number of sentences in a batch.
    Raises:
        UserError: there is no tagger at that path, or no such device.
    """
    from metapt.inference.entity_tagger import EntityTagger  # imports torch, so only when it is needed

    return EntityTagger.load(path, precision=precision, device=device, batch_size=batch_size)


def load_runs(*roots: str | Path, kind: Literal["finetune", "pretrain"] = "finetune") -> pd.DataFrame:
    """The finished runs under folders as a table, as the report counts them.

    Args:
        roots: grid folders, or folders of runs.
        kind: `finetune` for one row per fine-tuning run or baseline and test set; `pretrain` for one row per
            pretraining run.
    Returns: a data frame. Its attrs["excluded"] lists (folder, reason) of every run folder that is left out.
    Raises:
        UserError: a root does not exist or contains no run folder.
    """
    import pandas as pd

    # analysis/ is a subpackage of metapt only where metapt is installed
    collect = import_module("metapt.analysis.load.collect").collect
    collection = collect([Path(root) for root in roots])
    rows: list[dict[str, Any]] = []
    if kind == "pretrain":
        for pretrained in collection.pretraining:
            result = pretrained.result
            rows.append(
                {
                    "run": str(pretrained.path),
                    "scale": pretrained.scale,
                    "variant": pretrained.variant,
                    "objective": pretrained.objective,
                    "seed": pretrained.seed,
                    "parameters": pretrained.parameters,
                    "updates": result.steps,
                    "tokens": result.tokens_total,
                    "flops": result.flops_total,
                    "seconds": result.seconds_total,
                    "eval_perplexity": result.eval_perplexity,
                }
            )
    else:
        for run in (*collection.finetuning, *collection.continued):
            sets = Run(run.path).result()["sets"]
            shared = {
                "run": str(run.path),
                **{name: getattr(run.setting, name) for name in run.setting.__struct_fields__},
                "objective": run.objective,
                "pretraining_seed": run.seeds[0],
                "seed": run.seeds[1],
                "train_sentences": run.result.train_sentences,
                "dev_f1": run.result.dev_f1,
            }
            for name in run.sets:
                values = vars(SetScore.of_result(sets[name])).copy()
                del values["per_type"]
                rows.append({**shared, "set": name, **values})
    frame = pd.DataFrame(rows)
    frame.attrs["excluded"] = [(str(item.path), item.reason) for item in collection.excluded]
    if collection.excluded:
        warnings.warn(
            f"{len(collection.excluded)} run folders are left out; see attrs['excluded']", stacklevel=2
        )
    return frame


def sample_episode(step: int = 0, number: int = 0, *, settings: Settings | None = None) -> Episode:
    """The episode that a pretraining run with objective=maml_paper sees: a function of its settings, step and number.

    Args:
        step: number of updates before it.
        number: of the episode in its update.
        settings: keys of `metapt pretrain`, such as {"data": "text", "data.text_dir": "TEXT", "meta.n_way": 8}.
    Raises:
        UserError: an error in the settings, or the corpus is too small for such episodes.
    """
    from metapt.data.corpus import prepare_corpus

    config = _config("pretrain", {"objective": "maml_paper"}, settings)
    sampler: TaskSampler = TASKS[config.meta.task].load().of(config, prepare_corpus(config.data))
    return sampler.episode(step, number)


def _config(command: str, given: Settings, settings: Settings | None) -> Any:
    """The checked configuration of a command.

    Raises:
        UserError: an error in a setting.
    """
    values = {**given, **(settings or {})}
    return commandline.load(
        command,
        [
            f"{name}={commandline.value_text(str(value) if isinstance(value, Path) else value)}"
            for name, value in values.items()
        ],
    )


def _systems(types: Mapping[str, str] | None, gold: TaggedFile, *predicted: TaggedFile) -> list[ScoredSystem]:
    """Read gold labels and the predictions of each system."""
    renames = types or {}
    name, labels = default_set_name(Path(gold)), read_gold(Path(gold), [], renames)
    return [
        ScoredSystem(
            default_system_name(Path(file)), name, labels, read_predictions(Path(file), labels, [], renames)
        )
        for file in predicted
    ]
