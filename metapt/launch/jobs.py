"""The plan of a grid: its jobs, and the jobs that each one needs."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

RUN_KINDS = ("pretrain", "finetune", "baseline")


@dataclass(frozen=True)
class Job:
    """One process (on a cluster: one per GPU) that turns the results of other jobs into a new result.

    The fields say what the job does. `argv` is rendered from them last (metapt/launch/job_arguments.py).
    """

    id: str  # KIND/NAME, also its folder in the grid folder; a run's ends with the hash of run_identity.py
    kind: str  # prepare, pretrain, finetune, baseline or report
    needs: tuple[str, ...] = ()  # ids of the jobs that must have ended before it starts

    size: str = ""  # scale of the decoder (pretraining)
    objective: str = ""
    variant: str = ""  # name of a set of pretraining overrides
    seed: int | None = None
    finetune_seed: int | None = None  # random seed of fine-tuning; None: `seed`
    model: str = ""  # folder or hub:NAME of a model that the grid does not pretrain (fine-tuning)
    checkpoint_step: int | None = None  # which checkpoint of the pretraining run to fine-tune; None: the last
    source: str = ""  # labelled set that it trains on
    tuning: str = ""
    baseline: str = ""
    overrides: tuple[str, ...] = ()  # `key=value` words of the grid

    nodes: int = 1
    gpus_per_node: int = 0
    hours: float | None = None  # time limit; None: that of its kind (metapt/launch/resources.py)
    mem_gb: int | None = None  # memory per node; None: an estimate

    program: tuple[str, ...] = ()  # what follows `python`: ("-m", "metapt.pretrain")
    argv: tuple[str, ...] = ()  # the words after the program

    @property
    def run_dir(self) -> str:
        """Its folder, relative to the grid folder."""
        return self.id

    @property
    def command(self) -> list[str]:
        return [sys.executable, *self.program, *self.argv]

    @property
    def is_run(self) -> bool:
        """Whether the job itself writes a run folder with a result.json."""
        return self.kind in RUN_KINDS

    @property
    def runs_after_failures(self) -> bool:
        """Whether it uses whatever results there are: the report does."""
        return self.kind == "report"

    @property
    def tasks_per_node(self) -> int:
        return max(1, self.gpus_per_node)


@dataclass(frozen=True)
class Plan:
    """The jobs of a grid. Each one comes after the jobs that it needs."""

    grid: str
    jobs: tuple[Job, ...]
    comparisons: tuple[Mapping[str, Any], ...] = ()  # that the report makes, as ComparisonConfig has them
    targets: tuple[str, ...] = ()  # languages or sets that its averages are about
    margin: float = 2.0  # F1 points: the largest difference without practical importance
    configs: dict[str, Any] = field(default_factory=dict, compare=False)  # of the runs, by job id

    @property
    def report_settings(self) -> dict[str, Any]:
        """What the report is asked, as plan.json has it."""
        return {
            "comparisons": [dict(comparison) for comparison in self.comparisons],
            "targets": list(self.targets),
            "margin": self.margin,
        }

    def to_json(self) -> dict[str, Any]:
        """The content of plan.json. Fields of a job that have their default are left out."""
        defaults = {item.name: item.default for item in fields(Job)}
        jobs = [
            {name: value for name, value in asdict(job).items() if value != defaults[name]}
            for job in self.jobs
        ]
        return {"grid": self.grid, **self.report_settings, "jobs": jobs}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Plan:
        """The plan, without configurations, of what `to_json` returned.

        Raises:
            KeyError, TypeError: the value is no such plan.
        """
        jobs = []
        for entry in value["jobs"]:
            sequences = {name: tuple(item) for name, item in entry.items() if isinstance(item, list)}
            jobs.append(Job(**{**entry, **sequences}))
        return cls(
            value["grid"], tuple(jobs), tuple(value["comparisons"]), tuple(value["targets"]), value["margin"]
        )
