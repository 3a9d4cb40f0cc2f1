"""Rules on modules: which may import which, how long they are, and which need heavy packages."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from conftest import REPO

from analysis.load.cache import USED

LAYERS = [  # of packages and modules of metapt, and analysis; each imports only from layers above it in this list
    ["errors", "files", "randomness", "baseline_names", "slurm_commands"],
    ["provenance", "atomic_folders"],
    ["leases"],
    ["runs"],
    ["config", "node_failures"],
    ["estimate"],
    ["data"],
    ["evaluation"],
    ["models"],
    ["tagger"],
    ["meta"],
    ["training"],
    ["finetuning"],
    ["inference"],
    ["launch"],
    ["analysis"],
    [
        "pretrain",
        "finetune_command",
        "tag",
        "evaluate_command",
        "generate",
        "baseline",
        "score_command",
        "submit",
        "sbatch",
        "status",
        "prepare",
        "probe",
        "__main__",
    ],
    ["api", "finetune"],
]
ANALYSIS_LAYERS = [
    ["run_refs", "parallel"],
    ["tables"],
    ["latex", "html_table"],
    ["load"],
    ["stats"],
    ["figures"],
    ["sections"],
    ["build"],
    ["report"],
]
MAX_LINES = 400
MAX_IMPORTS = 15
MANY_IMPORTS = {"analysis.build"}  # the list of all sections
DEEPSPEED = {"metapt.training.engine", "metapt.training.zero3", "metapt.training.sharded_state"}


@cache
def modules() -> dict[str, Path]:
    """The file of every module of metapt and analysis, by dotted name; a package stands for its __init__.py."""
    files = [path for root in ("metapt", "analysis") for path in (REPO / root).rglob("*.py")]
    names = (".".join(path.relative_to(REPO).with_suffix("").parts) for path in files)
    return {name.removesuffix(".__init__"): path for name, path in zip(names, files, strict=True)}


def imported_names(module: str) -> Iterator[str]:
    """Absolute dotted names that a module imports, wherever in its code; of `from a import b`, a.b."""
    path = modules()[module]
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{source}.{alias.name}" for alias in node.names)


@cache
def imports() -> dict[str, set[str]]:
    """The modules of ours that each module imports."""
    found: dict[str, set[str]] = {}
    for module in modules():
        names = (name.replace("metapt.analysis", "analysis") for name in imported_names(module))
        candidates = ((name, name.rpartition(".")[0]) for name in names)
        found[module] = {
            next(name for name in pair if name in modules())
            for pair in candidates
            if any(name in modules() for name in pair)
        } - {module}
    return found


def upward_imports(layers: list[list[str]], part_of: dict[str, str]) -> list[str]:
    """Imports between parts that do not go from a higher layer to a lower one."""
    rank = {name: number for number, layer in enumerate(layers) for name in layer}
    return [
        f"{module} -> {imported}"
        for module, part in part_of.items()
        for imported in sorted(imports()[module])
        if imported in part_of and part != part_of[imported] and rank[part] <= rank[part_of[imported]]
    ]


def test_metapt_imports_from_lower_layers_only():
    part_of = {
        name: "analysis" if name.startswith("analysis") else name.split(".")[1]
        for name in modules()
        if name != "metapt"  # imports lazily
    }
    assert set(part_of.values()) == {name for layer in LAYERS for name in layer}
    assert upward_imports(LAYERS, part_of) == []


def test_analysis_imports_from_lower_layers_only():
    part_of = {name: name.split(".")[1] for name in modules() if name.startswith("analysis.")}
    assert set(part_of.values()) == {name for layer in ANALYSIS_LAYERS for name in layer}
    assert upward_imports(ANALYSIS_LAYERS, part_of) == []


def test_no_import_cycle():
    """A package counts apart from its modules: its __init__ may import them, and they may import its other modules."""
    graph = {name: imported for name, imported in imports().items() if name != "metapt"}
    packages = {name for name, path in modules().items() if path.name == "__init__.py"}
    without_own_package = {
        name: {other for other in imported if not (other in packages and name.startswith(f"{other}."))}
        for name, imported in graph.items()
    }
    try:
        list(TopologicalSorter(without_own_package).static_order())
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_no_module_name_is_used_twice():
    names = Counter(path.stem for path in modules().values() if path.stem not in ("__init__", "__main__"))
    assert [name for name, count in names.items() if count > 1] == []


def test_no_file_is_longer_than_400_lines():
    folders = ("metapt", "analysis", "tests", "benchmarks")
    files = [path for folder in folders for path in (REPO / folder).rglob("*.py")]
    lengths = {
        str(path.relative_to(REPO)): len(path.read_text(encoding="utf-8").splitlines()) for path in files
    }
    assert {name: length for name, length in lengths.items() if length > MAX_LINES} == {}


def test_no_module_imports_more_than_15_of_ours():
    counts = {name: len(imported) for name, imported in imports().items() if name not in MANY_IMPORTS}
    assert {name: count for name, count in counts.items() if count > MAX_IMPORTS} == {}


@pytest.mark.parametrize("package", ["config", "estimate", "evaluation"])
def test_packages_without_torch(package: str):
    names = [name for name in modules() if name.startswith(f"metapt.{package}")]
    script = f"import sys, {', '.join(names)}; print('torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", script], cwd=REPO, text=True).strip() == "False"


def test_only_the_training_engine_imports_deepspeed():
    users = {
        module
        for module in modules()
        if any(name.partition(".")[0] == "deepspeed" for name in imported_names(module))
    }
    assert users <= DEEPSPEED


def test_the_cache_of_the_report_depends_on_the_code_that_makes_its_records() -> None:
    makers = ("analysis.load.run_reader", "analysis.load.prediction_reader", "analysis.load.records")
    needed = {name for maker in makers for name in imports()[maker] if name.startswith("metapt.")}
    assert needed <= {module.__name__ for module in USED}
