"""A plan: the jobs of a grid, and what each waits for."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass, field
from typing import Any

RUN_KINDS = ("pretrain", "finetune", "baseline")


@dataclass(frozen=True)
class Job:
    """One process (on a cluster: one per GPU) that turns the results of other jobs into one more."""

    id: str  # also its folder below the root; of a run, it ends with the hash of metapt/launch/run_identity.py
    kind: str  # prepare, pretrain, finetune, baseline or report
    program: tuple[str, ...]  # what follows `python`: ("-m", "metapt.pretrain")
    argv: tuple[str, ...]
    run_dir: str  # relative to the root of the grid
    needs: tuple[str, ...] = ()  # ids of the jobs that must have ended before
    variant: str = ""
    nodes: int = 1
    gpus_per_node: int = 0
    hours: float | None = None  # time limit; None: what the cluster says
    mem_gb: int | None = None  # memory per node; None: what the cluster says

    @property
    def command(self) -> list[str]:
        return [sys.executable, *self.program, *self.argv]

    @property
    def is_run(self) -> bool:
        """Whether the job itself writes a run folder with a result.json."""
        return self.kind in RUN_KINDS

    @property
    def runs_after_failures(self) -> bool:
        """The report is made of whatever there is."""
        return self.kind == "report"

    @property
    def tasks_per_node(self) -> int:
        return max(1, self.gpus_per_node)


@dataclass(frozen=True)
class Plan:
    """The jobs of a grid, each after the ones that it needs."""

    grid: str
    jobs: tuple[Job, ...]
    configs: dict[str, Any] = field(default_factory=dict, compare=False)  # of the runs, by job id

    def to_json(self) -> dict[str, Any]:
        return {"grid": self.grid, "jobs": [asdict(job) for job in self.jobs]}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Plan:
        jobs = []
        for entry in value["jobs"]:
            sequences = {name: tuple(entry[name]) for name in ("program", "argv", "needs")}
            jobs.append(Job(**{**entry, **sequences}))
        return cls(value["grid"], tuple(jobs))
