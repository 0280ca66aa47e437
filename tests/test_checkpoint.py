"""Checkpoints under damage, a full disk and a killed writer."""

import errno
import os
import time

import pytest
import torch

from wassersteinssl import checkpoint
from wassersteinssl.cli import UserError


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_what_is_saved_is_loaded(tmp_path):
    state = {"weights": torch.randn(3), "step": 7, "nested": {"list": [1, 2.5, None]}}
    assert checkpoint.save(tmp_path, 7, state)
    loaded = checkpoint.load(tmp_path)
    assert torch.equal(loaded["weights"], state["weights"])
    assert loaded["step"] == 7
    assert loaded["nested"] == state["nested"]


def test_an_empty_folder_holds_none(tmp_path):
    assert checkpoint.load(tmp_path) is None


def test_the_newest_of_two_kept_is_loaded(tmp_path):
    for step in (9, 10, 100):
        checkpoint.save(tmp_path, step, {"step": step})
    assert [name.split("-")[1] for name in names(tmp_path)] == ["000000010", "000000100"]
    assert checkpoint.load(tmp_path)["step"] == 100


@pytest.mark.parametrize("position", [0, 0.3, 0.99])
def test_one_flipped_bit_is_noticed_and_the_older_checkpoint_used(tmp_path, capsys, position):
    for step in (1, 2):
        checkpoint.save(tmp_path, step, {"step": step, "weights": torch.ones(100)})
    newest = tmp_path / names(tmp_path)[-1]
    content = bytearray(newest.read_bytes())
    content[int(position * len(content))] ^= 1
    newest.write_bytes(content)
    assert checkpoint.load(tmp_path)["step"] == 1
    assert newest.name in capsys.readouterr().err
    assert (tmp_path / f"{newest.name}.damaged").exists()  # and no more one of the two that are kept
    checkpoint.save(tmp_path, 3, {"step": 3})
    assert [name[:20] for name in names(tmp_path) if name.endswith(".pt")] == [
        "checkpoint-000000001",
        "checkpoint-000000003",
    ]


def test_a_truncated_newest_checkpoint_is_passed_over(tmp_path):
    for step in (1, 2):
        checkpoint.save(tmp_path, step, {"step": step})
    newest = tmp_path / names(tmp_path)[-1]
    newest.write_bytes(newest.read_bytes()[:-10])
    assert checkpoint.load(tmp_path)["step"] == 1


def test_with_all_damaged_the_user_is_told(tmp_path):
    checkpoint.save(tmp_path, 1, {"step": 1})
    (tmp_path / names(tmp_path)[0]).write_bytes(b"")
    with pytest.raises(UserError, match="damaged"):
        checkpoint.load(tmp_path)


def test_a_full_disk_keeps_the_previous_checkpoint(tmp_path, monkeypatch, capsys):
    checkpoint.save(tmp_path, 1, {"step": 1})
    before = names(tmp_path)

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    assert not checkpoint.save(tmp_path, 2, {"step": 2})
    assert "an earlier checkpoint is kept" in capsys.readouterr().err
    assert names(tmp_path) == before
    assert checkpoint.load(tmp_path)["step"] == 1


def test_a_quota_tells_the_size_of_the_checkpoint(tmp_path, monkeypatch, capsys):
    def full(_):
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    monkeypatch.setattr(os, "fsync", full)
    assert not checkpoint.save(tmp_path, 2, {"step": 2, "weights": torch.zeros(2**19)})
    told = capsys.readouterr().err
    assert "is full, 2.0 MiB more are needed; there is no earlier one" in told


def test_what_a_killed_writer_left_is_swept(tmp_path):
    (tmp_path / ".checkpoint-000000001-0123456789abcdef.pt.99.part").write_bytes(b"half")
    assert checkpoint.load(tmp_path) is None
    assert names(tmp_path) == []


def test_a_pickle_that_would_run_code_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "owned"),))

    checkpoint.save(tmp_path, 1, {"evil": Evil()})
    with pytest.raises(UserError, match="is no checkpoint: Weights only load failed"):
        checkpoint.load(tmp_path)
    assert not (tmp_path / "owned").exists()


def test_checkpoints_take_a_fiftieth_of_the_time_at_most(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: now[0])
    pace = checkpoint.Pace(None, 10)
    written = []
    for epoch in range(1, 301):  # of two seconds, with checkpoints of one
        now[0] += 2
        if pace.after_epoch(epoch):
            with pace.writing():
                now[0] += 1
            written.append(epoch)
    assert written == [1, *range(26, 301, 25)]
    assert not pace.overdue()
    now[0] += 600
    assert pace.overdue()
    assert not checkpoint.Pace(None, 0).overdue()
    assert [checkpoint.Pace(3, 0).after_epoch(k) for k in range(1, 7)] == [False, False, True] * 2


def test_the_newest_of_equal_steps_is_kept_and_loaded(tmp_path):
    """As of a linear evaluation that is stopped again and again before its first batch."""
    for number in range(6):
        assert checkpoint.save(tmp_path, 7, {"number": number})
        time.sleep(0.01)  # a file system's clock may be that coarse
        assert checkpoint.load(tmp_path)["number"] == number


@pytest.mark.parametrize("epochs", [None, 1000])
def test_after_an_epoch_the_minutes_count_too(monkeypatch, epochs):
    now = [0.0]
    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: now[0])
    pace = checkpoint.Pace(epochs, 1)
    with pace.writing():
        now[0] += 10  # a fiftieth of 500 s
    now[0] += 59
    assert not pace.after_epoch(1)
    now[0] += 1
    assert pace.after_epoch(2)


def test_memory_that_is_short_is_not_told_as_another_run_s_checkpoint():
    for error in (
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("can't allocate memory: 9 bytes"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ):
        with pytest.raises(RuntimeError), checkpoint.fitting():
            raise error
