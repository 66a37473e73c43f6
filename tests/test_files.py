import os
from pathlib import Path

import pytest

from deepcomp import files
from deepcomp.errors import StageError


def test_a_failed_write_leaves_the_file_before(tmp_path):
    path = tmp_path / "folder" / "file.txt"
    files.write_text(path, "before")

    def fail(temporary):
        Path(temporary).write_text("half")
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError):
        files.write_atomically(path, fail)
    assert path.read_text() == "before"
    assert [p.name for p in path.parent.iterdir()] == ["file.txt"]
    assert path.stat().st_mode & 0o044  # others may read it, as they may any file


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes anywhere")
def test_a_read_only_folder_is_one_line(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(StageError, match="Cannot write in"):
        files.write_text(tmp_path / "file.txt", "text")


def test_a_file_in_the_way_of_the_folder_is_one_line(tmp_path):
    (tmp_path / "run").write_text("not a folder")
    with pytest.raises(StageError, match="Cannot write in"):
        files.write_text(tmp_path / "run" / "recipe.toml", "text")
