"""The source that jobs run: the copy made at submission is complete and shared, and their processes import it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from metapt import provenance
from metapt.errors import OperationalError, UserError
from metapt.launch import code_snapshot as source
from metapt.launch.code_snapshot import (
    VARIABLE,
    CodeSnapshot,
    live_code,
    require_own_code,
    take_snapshot,
)

LOOK = [sys.executable, "-m", "metapt.look"]


@pytest.fixture(params=["clone", "installed"])
def project(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A source of a few files that replaces the real one, laid out as a clone or as an installed wheel.

    `python -m metapt.look` prints where each package was imported from.
    """
    folder = tmp_path / "the source"
    beside = folder if request.param == "clone" else folder / "metapt"
    for package in (folder / "metapt", *(beside / name for name in source.SUBPACKAGES)):
        (package / "__pycache__").mkdir(parents=True)
        (package / "__pycache__" / "x.pyc").touch()
        (package / "__init__.py").touch()
    (beside / "ds_configs" / "zero9.json").write_text("{}")
    (folder / "metapt" / "look.py").write_text(
        "import metapt.analysis\nprint('old', __file__, metapt.analysis.__file__)\n"
    )
    monkeypatch.setattr(source, "PACKAGE", folder / "metapt")
    monkeypatch.setattr(source, "SOURCE", folder)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    return folder


def change(project: Path) -> None:
    (project / "metapt" / "look.py").write_text("print('new')\n")


def test_jobs_run_the_submitted_source_after_it_has_changed(project: Path, tmp_path: Path) -> None:
    copy = take_snapshot(tmp_path / "a root")
    copy.write()
    change(project)
    with copy.active():
        output = subprocess.check_output(LOOK, text=True, cwd=project)  # where `python -m` would search first
    assert output.split(" /")[0] == "old"
    assert output.count(str(copy.folder)) == 2
    assert VARIABLE not in os.environ
    assert not list(copy.folder.rglob("__pycache__/x.pyc"))
    assert (copy.folder / "metapt" / "ds_configs" / "zero9.json").exists()


def test_a_batch_script_waits_for_the_copy_and_runs_it(project: Path, tmp_path: Path) -> None:
    copy = take_snapshot(tmp_path / "a root")
    change(project)
    lines = "\n".join([*copy.shell_lines(20), " ".join(LOOK)])
    late = threading.Thread(target=lambda: (time.sleep(0.5), copy.write()))
    late.start()
    ended = subprocess.run(["bash", "-c", lines], capture_output=True, text=True, cwd=project)
    late.join()
    assert ended.stdout.startswith(f"old {copy.folder}"), ended.stderr
    absent = CodeSnapshot(tmp_path / "absent", "", copy.content)
    ended = subprocess.run(
        ["bash", "-c", "\n".join([*absent.shell_lines(0), "echo on"])], capture_output=True, text=True
    )
    assert (ended.returncode, ended.stdout) == (1, "")
    assert f"{absent.folder} is not visible here" in ended.stderr


def test_a_copy_is_shared_by_equal_sources_and_written_once(project: Path, tmp_path: Path) -> None:
    first = take_snapshot(tmp_path)
    first.write()
    (first.folder / "metapt" / "look.py").write_text("# never written again\n")
    take_snapshot(tmp_path).write()
    assert (first.folder / "metapt" / "look.py").read_text() == "# never written again\n"
    change(project)
    second = take_snapshot(tmp_path)
    second.write()
    assert sorted(path.name for path in (tmp_path / "code").iterdir()) == sorted(
        [first.folder.name, second.folder.name]
    )


def test_a_folder_that_pythonpath_cannot_hold_is_a_user_error(project: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"root=.*a:b: .*PYTHONPATH.*choose another folder"):
        take_snapshot(tmp_path / "a:b")
    assert live_code().folder == project


def test_a_copy_knows_its_commit(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "git_commit", lambda: "0123456789abcdef+changes")
    copy = take_snapshot(tmp_path)
    copy.write()
    assert f"(commit 0123456789, with uncommitted changes): {copy.folder}" in str(copy)
    monkeypatch.setattr(provenance, "__file__", str(copy.folder / "metapt" / "provenance.py"))
    assert provenance.git_commit() == "0123456789abcdef+changes"


def test_the_live_source_runs_in_place(project: Path, tmp_path: Path) -> None:
    live = live_code()
    live.write()
    change(project)
    with live.active():
        assert subprocess.check_output(LOOK, text=True, cwd=tmp_path) == "new\n"
    assert not (tmp_path / "root").exists()
    assert "jobs run the live source, with any edits made before they start (now commit " in str(live)


def test_a_process_of_another_source_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(source.SOURCE))
    require_own_code()
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    with pytest.raises(OperationalError, match="submitted with the source"):
        require_own_code()
