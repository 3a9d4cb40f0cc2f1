"""Files that several processes write."""

from __future__ import annotations

from pathlib import Path

import pytest

from metapt import files


def test_two_writers_of_a_file_do_not_disturb_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One writes while another, here of the same process id, is about to rename its file: each one's content is whole."""
    path, sync = tmp_path / "file", files.sync
    other = iter(["theirs"])

    def interrupted(file: Path) -> None:
        sync(file)
        for text in other:
            files.write_atomically(path, text)
            assert path.read_text() == text

    monkeypatch.setattr(files, "sync", interrupted)
    files.write_atomically(path, "ours")
    assert path.read_text() == "ours"
    assert list(tmp_path.iterdir()) == [path]
