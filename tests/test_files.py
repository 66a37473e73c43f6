import errno
import os
import stat
import threading
from pathlib import Path

import pytest

from deepcomp import files
from deepcomp.errors import OutputError


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
    with pytest.raises(OutputError, match="Cannot write in"):
        files.write_text(tmp_path / "file.txt", "text")


def test_a_file_in_the_way_of_the_folder_is_one_line(tmp_path):
    (tmp_path / "run").write_text("not a folder")
    with pytest.raises(OutputError, match="Cannot write in"):
        files.write_text(tmp_path / "run" / "recipe.toml", "text")


def test_threads_get_the_permissions_of_any_new_file(tmp_path, monkeypatch):
    """The umask belongs to the process: a thread must not change it while another one makes files."""
    before = os.umask(0o027)
    try:
        monkeypatch.setattr(os, "umask", lambda mask: pytest.fail("the umask of the process was changed"))

        def write(number):
            for i in range(30):
                files.write_text(tmp_path / str(number) / f"{i}.txt", "text")
                (tmp_path / str(number) / f"{i}.other").write_text("text")

        threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        monkeypatch.undo()
        os.umask(before)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.glob("*/*")}
    assert len([*tmp_path.glob("*/*")]) == 4 * 30 * 2
    assert modes == {0o640}


def test_two_writers_of_one_file_leave_it_whole(tmp_path):
    path, texts = tmp_path / "file.txt", ["a" * 10_000, "b" * 10_000]
    failed = []

    def write(text):
        try:
            for _ in range(50):
                files.write_text(path, text)
                assert path.read_text() in texts
        except Exception as error:
            failed.append(error)

    writers = [threading.Thread(target=write, args=(text,)) for text in texts]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert failed == []
    assert [one.name for one in tmp_path.iterdir()] == ["file.txt"]


@pytest.mark.parametrize("refused", ["open", "fsync"])
def test_a_folder_that_cannot_be_synced_is_no_error(refused, tmp_path, monkeypatch):
    """Windows opens no folders; some network shares refuse to sync them."""
    real = getattr(os, refused)

    def refuse(target, *rest):
        if target == tmp_path or (isinstance(target, int) and stat.S_ISDIR(os.fstat(target).st_mode)):
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(target, *rest)

    monkeypatch.setattr(os, refused, refuse)
    files.write_text(tmp_path / "file.txt", "text")
    assert (tmp_path / "file.txt").read_text() == "text"
