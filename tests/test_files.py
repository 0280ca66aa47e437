"""A file is written whole or not at all, whatever interrupts the writing."""

import contextlib
import errno
import os
import stat

import pytest

from wassersteinssl.files import load_module, reason, sweep, write_atomically


def test_bytes_and_a_writer_replace_what_was_there(tmp_path):
    path = tmp_path / "file.json"
    write_atomically(path, b"old")
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    write_atomically(path, lambda file: file.writelines([b"ne", b"west"]))
    assert path.read_bytes() == b"newest"
    assert os.listdir(tmp_path) == ["file.json"]


@pytest.mark.parametrize("broken", ["write", "fsync", "replace"])
def test_a_failure_keeps_the_old_content_and_leaves_nothing(tmp_path, monkeypatch, broken):
    path = tmp_path / "file.json"
    path.write_bytes(b"old")

    def fail(*_):
        raise OSError("stopped")

    def content(file):
        file.write(b"half")
        if broken == "write":
            fail()

    if broken != "write":
        monkeypatch.setattr(os, broken, fail)
    with pytest.raises(OSError, match="stopped"):
        write_atomically(path, content)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file.json"]


def test_a_program_is_a_module_by_its_path(tmp_path):
    """And not by its name, which a package or another program may have."""
    for k, folder in enumerate(("a", "b")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "queue.py").write_text(f"number = {k}")
    found = [load_module(tmp_path / folder / "queue.py") for folder in ("a", "b", "a")]
    assert [module.number for module in found] == [0, 1, 0]
    assert found[0] is found[2]


def test_an_error_names_the_file_and_not_the_temporary_one(tmp_path):
    (tmp_path / "file.json").mkdir()
    with pytest.raises(IsADirectoryError) as error:
        write_atomically(tmp_path / "file.json", b"new")
    assert (error.value.filename, error.value.filename2) == (str(tmp_path / "file.json"), None)


@pytest.mark.parametrize(("number", "kept"), [(errno.EINVAL, True), (errno.EIO, False)])
def test_a_file_system_may_lack_the_fsync_of_folders_and_not_fail_in_it(tmp_path, monkeypatch, number, kept):
    whole = os.fsync

    def fsync(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        whole(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with contextlib.nullcontext() if kept else pytest.raises(OSError, match=os.strerror(number)):
        write_atomically(tmp_path / "file.json", b"new")


def test_what_a_killed_writer_leaves_is_swept_and_nothing_else(tmp_path):
    while_writing: list[str] = []
    write_atomically(tmp_path / "file.json", lambda _: while_writing.extend(os.listdir(tmp_path)))
    assert len(while_writing) == 1
    for name in (while_writing[0], "users.part"):
        (tmp_path / name).write_text("half")
    sweep(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["file.json", "users.part"]


def test_a_reason_is_one_line():
    assert reason(FileNotFoundError(2, "No such file", "name")) == "No such file"
    assert reason(ValueError("two\n lines")) == "two lines"
    assert reason(ValueError()) == "ValueError"


def test_two_writers_of_one_file_leave_that_of_the_last(tmp_path):
    path = tmp_path / "file"

    def slow(file):
        write_atomically(path, b"other")
        file.write(b"mine")

    write_atomically(path, slow)
    assert path.read_bytes() == b"mine"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
