"""Image sets: what is read equals what PIL, torchvision and scikit-learn read; every mistake is one clear line."""

import errno
import fcntl
import io
import json
import os
import pickle
import shutil
import tarfile
import threading
import time
import urllib.error
from collections import Counter
from hashlib import md5, sha256
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import ExifTags, Image
from torch.utils.data import DataLoader

from wassersteinssl import data, data_archives, data_cache, data_files, machine
from wassersteinssl.cli import UserError
from wassersteinssl.data import Split, load
from wassersteinssl.vision import torchvision

HEIGHT, WIDTH = 6, 8  # not square, so that a swap shows
COUNTS = {"train": 5, "test": 2}  # images a class
CLASSES = ("ant", "bee", "cow")


def picture(seed: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """train/ and test/ with three classes of png files."""
    root = tmp_path / "my images"
    for split, count in COUNTS.items():
        for label, name in enumerate(CLASSES):
            (root / split / name).mkdir(parents=True)
            for k in range(count):
                seed = 1000 * (split == "test") + 100 * label + k
                Image.fromarray(picture(seed)).save(root / split / name / f"{k}.png")
    return root


def expected_pixels(tree: Path, split: str) -> np.ndarray:
    files = sorted((tree / split).glob("*/[!.]*.png"))
    return np.stack([np.asarray(Image.open(file)).transpose(2, 0, 1) for file in files])


def message(name: str, root: Path | None, **options) -> str:
    with pytest.raises(UserError) as caught:
        load(name, root, **options)
    text = str(caught.value)
    assert "\n" not in text
    return text


def everything(split: Split, batch: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    pairs = list(split.batches(torch.arange(len(split)).split(batch), "cpu"))
    return torch.cat([images for images, _ in pairs]), torch.cat([labels for _, labels in pairs])


def forbid_decoding(monkeypatch) -> None:
    monkeypatch.setattr(data_files.Files, "_decode", lambda *_: pytest.fail("decoded although it is cached"))


# ---- image-folder trees ----


def test_folder_is_read_in_sorted_order(tree):
    (tree / "train" / "ant" / ".hidden.png").write_text("not an image")
    (tree / "train" / ".git").mkdir()
    (tree / "train" / "ant" / "notes.txt").write_text("not an image")
    images = load("folder", tree)
    assert images.classes == CLASSES
    assert images.unlabeled is None
    for split, count in COUNTS.items():
        part = getattr(images, split)
        assert part.images.dtype == torch.uint8
        assert part.labels.dtype == torch.int64
        assert part.size == (HEIGHT, WIDTH)
        assert len(part) == 3 * count
        np.testing.assert_array_equal(part.images.numpy(), expected_pixels(tree, split))
        assert part.labels.tolist() == [label for label in range(3) for _ in range(count)]


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1", "CMYK"])
def test_other_colour_modes_become_rgb(tree, mode):
    source = Image.fromarray(picture(7)).convert(mode)
    file = tree / "train" / "ant" / f"0.{'jpg' if mode == 'CMYK' else 'png'}"
    source.save(file, **({"transparency": b"\x00\x80"} if mode == "P" else {}))
    if mode == "CMYK":
        (tree / "train" / "ant" / "0.png").unlink()
    with Image.open(file) as image:
        expected = np.asarray(image.convert("RGBA").convert("RGB") if mode == "P" else image.convert("RGB"))
    np.testing.assert_array_equal(load("folder", tree).train.images[0].numpy(), expected.transpose(2, 0, 1))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_photographs_stand_upright(tree, orientation, suffix, stream):
    """Cameras store the picture as the sensor lies, and note in EXIF how it is to be turned."""
    shape = (WIDTH, HEIGHT) if orientation == 6 else (HEIGHT, WIDTH)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    file = tree / "train" / "ant" / f"00.{suffix}"
    Image.fromarray(picture(7, *shape)).save(file, exif=exif)
    stored = np.asarray(Image.open(file))
    found = next(load("folder", tree, stream=stream).train.batches([torch.tensor([1])], "cpu"))[0]
    expected = np.rot90(stored, {1: 0, 3: 2, 6: -1}[orientation])
    np.testing.assert_array_equal(found[0].numpy(), expected.transpose(2, 0, 1))
    if orientation == 6:
        Image.fromarray(picture(7)).save(file, exif=exif)
        assert f"{file} is 6 x 8 pixels but" in message("folder", tree, stream=stream)


def test_damaged_exif_data_turn_nothing(tree):
    file = tree / "train" / "ant" / "00.jpg"
    Image.fromarray(picture(7)).save(file, exif=b"Exif\0\0nonsense")
    np.testing.assert_array_equal(load("folder", tree).train.images[1].numpy().transpose(1, 2, 0), Image.open(file))


def test_images_kept_before_they_were_turned_are_decoded_again(tree, monkeypatch):
    load("folder", tree)
    record = tree / ".wassersteinssl" / "folder.json"
    kept = json.loads(record.read_text())
    del kept["source"]["upright"]
    record.write_text(json.dumps(kept))
    monkeypatch.setattr(data_files.Files, "_decode", lambda *_: np.full((3, HEIGHT, WIDTH), 9, np.uint8))
    assert bool((load("folder", tree).train.images == 9).all())


@pytest.mark.parametrize("suffix", [".jpg", ".JPEG", ".webp", ".bmp", ".PNG"])
def test_other_file_formats(tree, suffix):
    file = tree / "train" / "ant" / f"00{suffix}"
    Image.fromarray(picture(7)).save(file)
    found = load("folder", tree).train
    assert len(found) == 3 * COUNTS["train"] + 1
    np.testing.assert_array_equal(found.images[1].numpy().transpose(1, 2, 0), Image.open(file))


def test_files_of_other_kinds_are_left_out_and_told(tree, capsys):
    whole = len(load("folder", tree).train)
    capsys.readouterr()
    folder = next((tree / "train").iterdir())
    for name in ("a.tif", "b.TIF", "README", ".hidden.tif"):
        (folder / name).touch()
    assert len(load("folder", tree).train) == whole
    (folder / "nested").mkdir()
    assert len(load("folder", tree).train) == whole
    told, again = capsys.readouterr().err.splitlines()
    assert told.endswith("is left out: 2 .tif, 1 without an extension")
    assert again.endswith("is left out: 2 .tif, 1 folder(s), 1 without an extension")


def test_missing_folder(tmp_path):
    assert str(tmp_path / "nowhere") in message("folder", tmp_path / "nowhere")
    assert "--data-dir" in message("folder", None)


@pytest.mark.parametrize("split", ["train", "test"])
def test_missing_split(tree, split):
    shutil.rmtree(tree / split)
    text = message("folder", tree)
    assert f"there is no folder {tree / split}" in text
    assert "train/<class>/* and test/<class>/*" in text


def test_empty_folders(tree, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "there is no folder" in message("folder", tmp_path / "empty")
    for file in (tree / "test" / "bee").iterdir():
        file.unlink()
    assert f"the folder {tree / 'test' / 'bee'} holds no images" in message("folder", tree)
    for name in CLASSES:
        shutil.rmtree(tree / "test" / name)
    assert f"the folder {tree / 'test'} holds no class folders" in message("folder", tree)


@pytest.mark.parametrize(("split", "other"), [("train", "test"), ("test", "train")])
def test_class_in_one_split_only(tree, split, other):
    shutil.copytree(tree / split / "ant", tree / split / "yak")
    assert f"in {split}/ but not in {other}/: class yak" in message("folder", tree)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("split", ["train", "test"])
def test_wrong_size_names_the_file_and_both_sizes_and_writes_nothing(tree, split, stream):
    wrong = tree / split / "bee" / "1.png"
    Image.fromarray(picture(1, 5, 9)).save(wrong)
    Image.fromarray(picture(1, 5, 9)).save(tree / split / "cow" / "0.png")  # a later one
    text = message("folder", tree, stream=stream)
    assert text.startswith(f"{wrong} is 9 x 5 pixels but {tree / 'train' / 'ant' / '0.png'} is 8 x 6")
    assert sorted(os.listdir(tree)) == ["test", "train"]


@pytest.mark.parametrize("stream", [False, True])
def test_text_named_png(tree, stream):
    wrong = tree / "train" / "bee" / "1.png"
    wrong.write_text("hello")
    assert f"cannot read the image {wrong}" in message("folder", tree, stream=stream)
    wrong.write_bytes(b"")
    assert f"cannot read the image {wrong}" in message("folder", tree, stream=stream)


def test_a_pipe_called_like_an_image_is_told_and_not_waited_for(tree):
    os.mkfifo(tree / "train" / CLASSES[0] / "pipe.png")
    with pytest.raises(UserError, match=r"pipe\.png is a pipe or a device, no file"):
        load("folder", tree)


def test_truncated_image(tree):
    wrong = tree / "train" / "bee" / "1.png"
    wrong.write_bytes(wrong.read_bytes()[:-60])
    assert f"cannot read the image {wrong}" in message("folder", tree)


def test_dangling_link(tree):
    wrong = tree / "train" / "bee" / "1.png"
    wrong.unlink()
    wrong.symlink_to("nowhere.png")
    text = message("folder", tree)
    assert "No such file" in text
    assert str(wrong) in text


def test_sixteen_bit_image_is_refused(tree):
    """PIL would clip it to white."""
    wrong = tree / "train" / "bee" / "1.png"
    Image.fromarray(np.full((HEIGHT, WIDTH), 20_000, np.uint16)).save(wrong)
    assert f"{wrong} has more than 8 bits a channel" in message("folder", tree)


def test_an_image_that_is_a_program_is_not_executed(tree, tmp_path, monkeypatch):
    """PIL would hand EPS to Ghostscript, whatever the file is called."""
    ghostscript, wrong = tmp_path / "bin" / "gs", tree / "train" / "bee" / "1.png"
    ghostscript.parent.mkdir()
    ghostscript.write_text(f"#!/bin/sh\ntouch '{tmp_path / 'called'}'\n")
    ghostscript.chmod(0o755)
    monkeypatch.setenv("PATH", f"{ghostscript.parent}{os.pathsep}{os.environ['PATH']}")
    wrong.write_text(f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 {WIDTH} {HEIGHT}\n%%EndComments\nshowpage\n%%EOF\n")
    assert f"cannot read the image {wrong}: cannot identify" in message("folder", tree)
    assert not (tmp_path / "called").exists()


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "JPEG"])
def test_an_image_under_another_extension_is_read(tree, kind):
    Image.fromarray(picture(7)).save(tree / "train" / "bee" / "1.png", kind)
    assert len(load("folder", tree).train) == len(CLASSES) * COUNTS["train"]


def test_unreadable_folder_is_one_line(tree, monkeypatch):
    def refuse(folder):
        raise PermissionError(errno.EACCES, "Permission denied", str(folder))

    monkeypatch.setattr(os, "scandir", refuse)
    assert f"Permission denied: '{tree / 'train'}'" in message("folder", tree)


def test_options_are_checked(tree):
    assert "choose from cifar10" in message("mnist", tree)
    assert "choose from dataset, cifar10" in message("folder", tree, normalization="imagenet")


# ---- the cache ----


def test_second_load_does_not_decode(tree, monkeypatch):
    first = load("folder", tree)
    forbid_decoding(monkeypatch)
    second = load("folder", tree)
    assert torch.equal(first.train.images, second.train.images)
    assert torch.equal(first.test.labels, second.test.labels)
    assert (first.mean, first.std, first.classes) == (second.mean, second.std, second.classes)


def test_cache_survives_moving_the_tree(tree, monkeypatch):
    load("folder", tree)
    moved = tree.rename(tree.parent / "moved")
    forbid_decoding(monkeypatch)
    load("folder", moved)
    monkeypatch.chdir(moved)
    load("folder", ".")


@pytest.mark.parametrize("change", ["pixels", "added", "removed", "renamed"])
def test_changed_tree_is_decoded_again(tree, change, capsys):
    load("folder", tree)
    file = tree / "train" / "bee" / "1.png"
    if change == "pixels":
        Image.fromarray(picture(99)).save(file)
    elif change == "added":
        Image.fromarray(picture(99)).save(file.with_name("10.png"))
    elif change == "removed":
        file.unlink()
    else:
        file.rename(tree / "train" / "ant" / "9.png")
    np.testing.assert_array_equal(load("folder", tree).train.images.numpy(), expected_pixels(tree, "train"))
    assert "damaged" not in capsys.readouterr().err


def cache_files(tree: Path) -> list[Path]:
    return sorted((tree / ".wassersteinssl").iterdir())


def test_every_damaged_cache_file_is_reported_and_rebuilt(tree, capsys):
    good = load("folder", tree)
    assert len(cache_files(tree)) == 5
    for file in cache_files(tree):
        content = file.read_bytes()
        damages = [content[:-7], b"", b"\x00" * len(content)]
        if file.suffix == ".npy":  # one bit: in the data, and in the header
            damages += [content[:-3] + bytes([content[-3] ^ 1]) + content[-2:], content[:70] + b"9" + content[71:]]
        for damage in damages:
            file.write_bytes(damage)
            found = load("folder", tree)
            assert f"the cache file {file} is damaged" in capsys.readouterr().err
            assert torch.equal(found.train.images, good.train.images)
            assert torch.equal(found.test.labels, good.test.labels)
            assert file.read_bytes() == content
    file.unlink()
    assert torch.equal(load("folder", tree).train.images, good.train.images)


class Bomb:
    """Unpickling it creates a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


def test_cache_never_unpickles(tree, tmp_path, capsys):
    load("folder", tree)
    np.save(tree / ".wassersteinssl" / "folder-train-images.npy", np.array([Bomb(tmp_path / "boom")], object))
    load("folder", tree)
    assert "damaged" in capsys.readouterr().err
    assert not (tmp_path / "boom").exists()


def test_unwritable_folder_costs_only_a_note(tree, capsys):
    (tree / ".wassersteinssl").write_text("in the way of the folder")  # works for root too, unlike permissions
    found = load("folder", tree)
    np.testing.assert_array_equal(found.train.images.numpy(), expected_pixels(tree, "train"))
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert "not kept" in lines[0]
    assert str(tree / ".wassersteinssl") in lines[0]


def test_full_disk_costs_only_a_note(tree, capsys, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    load("folder", tree)
    assert "No space left on device" in capsys.readouterr().err
    assert cache_files(tree) == []


def test_one_prepares_a_folder_that_does_not_exist_yet_and_the_others_wait(tmp_path, capsys):
    folder, order = tmp_path / "new" / "data", []

    def second():
        with data_cache.alone(folder) as waited:
            order.append(("second", waited))

    with data_cache.alone(folder) as waited:
        thread = threading.Thread(target=second)
        thread.start()
        while "waiting for another run" not in capsys.readouterr().err:
            time.sleep(0.01)
        order.append(("first", waited))
    thread.join()
    assert order == [("first", False), ("second", True)]


def test_leftovers_of_a_killed_run_are_removed(tree):
    (tree / ".wassersteinssl").mkdir()
    (tree / ".wassersteinssl" / ".folder-train-images.npy.123.part").write_text("half")
    load("folder", tree)
    assert len(cache_files(tree)) == 5


def test_a_second_run_waits_for_the_first_and_uses_its_cache(tree, capsys, monkeypatch, tmp_path):
    copy = shutil.copytree(tree, tmp_path / "copy")  # keeps the modification times
    load("folder", copy)
    handle = os.open(tree, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    forbid_decoding(monkeypatch)
    found: list = []
    thread = threading.Thread(target=lambda: found.append(load("folder", tree)))
    thread.start()
    time.sleep(0.3)
    assert not found
    shutil.copytree(copy / ".wassersteinssl", tree / ".wassersteinssl")
    os.close(handle)
    thread.join(timeout=20)
    assert len(found[0].train) == 15
    assert "waiting for another run" in capsys.readouterr().err


# ---- batches, streaming, subsets ----


def test_streaming_gives_the_same_batches_as_memory(tree):
    memory, streaming = load("folder", tree), load("folder", tree, stream=True)
    assert streaming.train.images is None
    assert streaming.train.to("meta") is streaming.train
    assert (len(streaming.train), streaming.train.size) == (15, (HEIGHT, WIDTH))
    assert (streaming.mean, streaming.std) == (memory.mean, memory.std)
    generator = torch.Generator().manual_seed(3)
    order = list(torch.randperm(15, generator=generator).split(4))  # the last one is shorter
    state = torch.get_rng_state()
    pairs = list(zip(memory.train.batches(order, "cpu"), streaming.train.batches(order, "cpu"), strict=True))
    assert torch.equal(torch.get_rng_state(), state)  # the global generator is left alone
    assert len(pairs) == 4
    for index, ((images, labels), (streamed, streamed_labels)) in zip(order, pairs, strict=True):
        assert images.shape == (len(index), 3, HEIGHT, WIDTH)
        assert images.dtype == streamed.dtype == torch.uint8
        assert torch.equal(images, streamed)
        assert torch.equal(images, memory.train.images[index])
        assert torch.equal(labels, streamed_labels)
        assert torch.equal(labels, memory.train.labels[index])
    assert list(memory.train.batches([], "cpu")) == list(streaming.train.batches([], "cpu")) == []


def test_streaming_needs_no_cache_and_writes_none(tree):
    load("folder", tree, stream=True)
    assert sorted(os.listdir(tree)) == ["test", "train"]


def test_a_set_too_large_for_memory_streams(tree, monkeypatch):
    total = 3 * (5 + 2) * 3 * HEIGHT * WIDTH
    monkeypatch.setattr(machine, "memory", lambda: 2 * total - 1)
    assert load("folder", tree).train.images is None
    assert load("folder", tree, stream=False).train.images is not None
    monkeypatch.setattr(machine, "memory", lambda: 2 * total)
    assert load("folder", tree).train.images is not None


def test_each_process_of_a_machine_keeps_its_own_images(monkeypatch):
    monkeypatch.setattr(machine, "memory", lambda: 4e9)
    assert not machine.fills_memory(10**9)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert machine.fills_memory(10**9)


def test_processes_of_a_machine_share_its_cores_and_its_shared_memory(tree, monkeypatch):
    monkeypatch.setattr(data, "cpus", lambda: 2)
    monkeypatch.setattr(data.shutil, "disk_usage", lambda _: SimpleNamespace(free=10**9))
    started = []
    monkeypatch.setattr(data, "DataLoader", lambda *a, **k: started.append(k["num_workers"]) or DataLoader(*a, **k))
    train = load("folder", tree, stream=True).train
    for processes, workers in (("1", 2), ("2", 1), ("3", 0), ("0", 2)):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
        started.clear()
        list(train.batches(torch.arange(15).split(1), "cpu"))
        assert started == [workers]


def test_memory_is_measured():
    assert 1e6 < machine.memory() < 1e15


def test_memory_is_at_most_that_of_the_machine_where_linux_does_not_tell_more(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "Path", lambda *_: tmp_path / "none")  # neither /proc nor /sys
    assert machine.memory() == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize(
    ("limits", "cpus"),
    [
        ({}, 64),
        ({"a/b/cpu.max": "max 100000\n"}, 64),
        ({"a/b/cpu.max": "150000 100000\n"}, 2),
        ({"a/cpu.max": "300000 100000\n", "a/b/cpu.max": "max 100000\n"}, 3),  # of the group above
        ({"cpu.max": "1000 100000\n", "a/b/cpu.max": "800000 100000\n"}, 1),
        ({"a/b/cpu.max": "much"}, 64),
    ],
)
def test_a_limit_of_a_container_limits_the_cpus(tmp_path, monkeypatch, limits, cpus):
    (tmp_path / "process").write_text("0::/a/b\n")
    for name, text in limits.items():
        path = tmp_path / "groups" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.setattr(machine, "GROUP_OF_PROCESS", tmp_path / "process")
    monkeypatch.setattr(machine, "GROUPS", tmp_path / "groups")
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: range(64), raising=False)
    assert machine.cpus() == cpus
    (tmp_path / "process").unlink()  # no control groups
    assert machine.cpus() == 64


def test_memory_is_at_most_that_of_the_control_group(tmp_path, monkeypatch):
    (tmp_path / "process").write_text("1:name=x:/\n0::/a\n")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "memory.max").write_text("max\n")
    (tmp_path / "memory.max").write_text("1000\n")
    monkeypatch.setattr(machine, "GROUP_OF_PROCESS", tmp_path / "process")
    monkeypatch.setattr(machine, "GROUPS", tmp_path)
    assert machine.memory() == 1000


@pytest.mark.parametrize(("free", "workers"), [(10**9, True), (1000, False)])
def test_no_more_is_handed_over_than_shared_memory_takes(tree, monkeypatch, free, workers):
    """As in a container with 64 MB of it, where workers die, or wait for ever."""
    monkeypatch.setattr(data.shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    started = []
    monkeypatch.setattr(data, "DataLoader", lambda *a, **k: started.append(k["num_workers"]) or DataLoader(*a, **k))
    train = load("folder", tree, stream=True).train
    started.clear()
    assert len(list(train.batches(torch.arange(15).split(5), "cpu"))) == 3
    assert [number > 0 for number in started] == [workers]


def test_a_file_that_breaks_while_streaming_is_named_in_one_line(tree):
    train = load("folder", tree, stream=True).train
    wrong = tree / "train" / "bee" / "1.png"
    wrong.write_text("hello")
    with pytest.raises(UserError, match="cannot read the image") as caught:
        everything(train)
    assert str(wrong) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_limit_train(tree):
    memory, streaming = load("folder", tree, limit_train=7), load("folder", tree, limit_train=7, stream=True)
    assert Counter(memory.train.labels.tolist()) == {0: 3, 1: 2, 2: 2}
    assert len(memory.test) == 6
    rows = [0, 1, 2, 5, 6, 10, 11]
    np.testing.assert_array_equal(memory.train.images.numpy(), expected_pixels(tree, "train")[rows])
    for a, b in zip(everything(memory.train), everything(streaming.train), strict=True):
        assert torch.equal(a, b)
    again = streaming.train.take(4)  # a subset of a subset
    for a, b in zip(everything(memory.train.take(4)), everything(again), strict=True):
        assert torch.equal(a, b)
    assert load("folder", tree).mean == memory.mean  # the constants are the whole set's


@pytest.mark.parametrize("limit", [-1, 0, 2, 16])
def test_limit_train_out_of_range(tree, limit):
    text = message("folder", tree, limit_train=limit)
    assert f"--limit-train {limit}" in text
    assert "3 " in text
    assert "15" in text


@given(st.lists(st.integers(-1, 4), min_size=1, max_size=60), st.data())
def test_take_is_balanced_nested_and_ordered(labels, draw):
    split = Split(torch.tensor(labels), (1, 1), torch.arange(len(labels), dtype=torch.uint8).view(-1, 1, 1, 1))
    n = draw.draw(st.integers(len(set(labels)), len(labels)))
    taken = split.take(n)
    rows = taken.images.flatten().tolist()
    assert rows == sorted(set(rows))
    assert len(rows) == n
    assert taken.labels.tolist() == [labels[row] for row in rows]
    have, all_of = Counter(taken.labels.tolist()), Counter(labels)
    most = max(have.values())
    assert all(have[label] >= min(most - 1, all_of[label]) for label in all_of)
    if n < len(labels):
        assert set(rows) < set(split.take(n + 1).images.flatten().tolist())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("stream", [False, True])
def test_batches_on_the_gpu(tree, stream):
    memory, other = load("folder", tree).train, load("folder", tree, stream=stream).train
    order = list(torch.randperm(15).split(4))
    for split in (other, other.to("cuda")):
        pairs = list(split.batches(order, "cuda"))
        for index, (images, labels) in zip(order, pairs, strict=True):
            assert images.is_cuda
            assert labels.is_cuda
            assert torch.equal(images.cpu(), memory.images[index])
            assert torch.equal(labels.cpu(), memory.labels[index])


# ---- normalisation ----


def test_statistics_equal_float64_numpy(tree):
    pixels = expected_pixels(tree, "train").astype(np.float64) / 255
    images = load("folder", tree)
    np.testing.assert_allclose(images.mean, pixels.mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(images.std, pixels.std((0, 2, 3)), rtol=1e-12)


@pytest.mark.parametrize("measured", [15, 14, 5, 2])  # every image, every second, third and eighth
def test_statistics_are_the_same_in_memory_and_streaming(tree, monkeypatch, measured):
    monkeypatch.setattr(data, "MEASURED", measured)
    memory, streaming = load("folder", tree), load("folder", tree, stream=True)
    assert (memory.mean, memory.std) == (streaming.mean, streaming.std)
    pixels = expected_pixels(tree, "train")[:: {15: 1, 14: 2, 5: 3, 2: 8}[measured]] / 255
    assert len(pixels) <= measured
    np.testing.assert_allclose(memory.mean, pixels.mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(memory.std, pixels.std((0, 2, 3)), rtol=1e-12)


def test_a_constant_channel_has_no_zero_std(tree):
    for file in (tree / "train").glob("*/*.png"):
        array = picture(int(file.stem))
        array[..., 1] = 200
        Image.fromarray(array).save(file)
    images = load("folder", tree)
    assert images.mean[1] == pytest.approx(200 / 255)
    assert images.std[1] == pytest.approx(1 / 255)


def test_paper_normalisation(tree):
    images = load("folder", tree, normalization="cifar10")
    assert images.mean == (0.4914, 0.4822, 0.4465)
    assert images.std == (0.247, 0.243, 0.261)


# ---- embedded digits ----


def test_digits_do_not_need_scikit_learns_own_file(monkeypatch):
    read = load("digits", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    asked = load("digits", None)
    assert torch.equal(read.train.images, asked.train.images)
    assert torch.equal(read.test.labels, asked.test.labels)
    assert read.classes == asked.classes


def test_digits():
    from sklearn.datasets import load_digits

    images = load("digits", None)
    found = load_digits()
    assert images.classes == tuple("0123456789")
    assert (len(images.train), len(images.test)) == (1442, 355)
    assert images.train.size == (8, 8)
    assert Counter(images.test.labels.tolist()) == {
        label: int((found.target == label).sum()) // 5 for label in range(10)
    }
    for label in range(10):
        expected = found.images[found.target == label]
        test, train = images.test, images.train
        np.testing.assert_allclose(test.images[test.labels == label][:, 0] * (16 / 255), expected[4::5], atol=0.04)
        rest = np.delete(expected, np.s_[4::5], axis=0)
        np.testing.assert_allclose(train.images[train.labels == label][:, 2] * (16 / 255), rest, atol=0.04)
    assert images.train.images.max() == 255
    assert images.train.images.min() == 0
    assert (images.train.images == images.train.images[:, :1]).all()
    np.testing.assert_allclose(images.mean, (images.train.images / 255.0).double().mean((0, 2, 3)), rtol=1e-6)


# ---- published archives ----


class Mini:
    """A miniature of a published archive, with the tables of checksums that belong to it."""

    def __init__(self, name: str, published: type, files: dict[str, bytes], monkeypatch) -> None:
        self.name, self.published, self.files = name, published, files
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
            for file, content in files.items():
                member = tarfile.TarInfo(f"{published.base_folder}/{file}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
        self.archive = buffer.getvalue()
        self.sha256 = sha256(self.archive).hexdigest()
        monkeypatch.setitem(data_archives.ARCHIVES, name, (published.__name__, self.sha256))
        monkeypatch.setattr(published, "tgz_md5", md5(self.archive).hexdigest())
        for table in ("train_list", "test_list"):
            entries = [[file, md5(files[file]).hexdigest()] for file, _ in getattr(published, table)]
            monkeypatch.setattr(published, table, entries)

    def put(self, folder: Path) -> Path:
        folder.mkdir(exist_ok=True)
        file = folder / self.published.filename
        file.write_bytes(self.archive)
        return file

    def unpack(self, folder: Path) -> Path:
        target = folder / self.published.base_folder
        target.mkdir(parents=True)
        for file, content in self.files.items():
            (target / file).write_bytes(content)
        return target


@pytest.fixture
def cifar(monkeypatch) -> Mini:
    published = torchvision.datasets.CIFAR10
    rng = np.random.default_rng(0)
    files = {}
    for k, (file, _) in enumerate(published.train_list + published.test_list):
        labels = [(k + j) % 10 for j in range(4)]
        files[file] = pickle.dumps({"data": rng.integers(0, 256, (4, 3072), np.uint8), "labels": labels})
    names = [f"class {k}" for k in range(10)]
    files["batches.meta"] = pickle.dumps({"label_names": names})
    meta = dict(published.meta, md5=md5(files["batches.meta"]).hexdigest())
    monkeypatch.setattr(published, "meta", meta)
    return Mini("cifar10", published, files, monkeypatch)


def no_network(monkeypatch) -> None:
    def refuse(*_, **__):
        raise urllib.error.URLError(OSError("Network is unreachable"))

    monkeypatch.setattr("urllib.request.urlopen", refuse)


def test_cifar_archive_equals_torchvision(cifar, tmp_path, monkeypatch):
    no_network(monkeypatch)
    cifar.put(tmp_path / "data")
    cifar.unpack(tmp_path / "reference")
    images = load("cifar10", tmp_path / "data")
    for split in ("train", "test"):
        expected = cifar.published(tmp_path / "reference", train=split == "train")
        found = getattr(images, split)
        np.testing.assert_array_equal(found.images.numpy().transpose(0, 2, 3, 1), expected.data)
        assert found.labels.tolist() == expected.targets
        assert found.images.is_contiguous()
    assert images.classes == tuple(expected.classes)
    assert (images.mean, images.std) == ((0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261))
    assert sorted(os.listdir(tmp_path / "data")) == [".wassersteinssl", cifar.published.filename]


def test_cifar_cache_needs_no_archive_and_no_unpickling(cifar, tmp_path, monkeypatch):
    archive = cifar.put(tmp_path / "data")
    first = load("cifar10", tmp_path / "data")
    monkeypatch.setattr(data_archives, "_read_published", lambda *_, **__: pytest.fail("unpacked again"))
    assert torch.equal(load("cifar10", tmp_path / "data").train.images, first.train.images)
    archive.unlink()
    assert torch.equal(load("cifar10", tmp_path / "data").test.images, first.test.images)


def test_cifar_unpacked_by_torchvision_is_used(cifar, tmp_path, monkeypatch):
    no_network(monkeypatch)
    cifar.unpack(tmp_path)
    assert len(load("cifar10", tmp_path).train) == 20


def test_wrong_archive_is_named_and_never_unpickled(cifar, tmp_path):
    """The archive would run code when its pickles were read."""
    good = cifar.sha256
    cifar.put(tmp_path)
    load("cifar10", tmp_path)  # a cache of the good one does not hide the bad one
    evil = dict.fromkeys(cifar.files, pickle.dumps(Bomb(tmp_path / "boom")))
    with pytest.MonkeyPatch.context() as patch:
        bad = Mini("cifar10", cifar.published, evil, patch)
    archive = bad.put(tmp_path)
    text = message("cifar10", tmp_path)
    assert text.startswith(f"{archive} is damaged")
    assert good in text
    assert bad.sha256 in text
    assert "delete it and run again" in text
    assert not (tmp_path / "boom").exists()


def test_wrong_unpacked_files_are_never_unpickled(cifar, tmp_path):
    folder = cifar.unpack(tmp_path)
    for file in folder.iterdir():
        file.write_bytes(pickle.dumps(Bomb(tmp_path / "boom")))
    text = message("cifar10", tmp_path)
    assert text == f"{folder} is damaged or incomplete: delete it and run again"
    assert not (tmp_path / "boom").exists()


def test_truncated_archive(cifar, tmp_path):
    archive = cifar.put(tmp_path)
    archive.write_bytes(cifar.archive[:-100])
    assert f"{archive} is damaged" in message("cifar10", tmp_path)


def test_no_network_says_what_else_works(cifar, tmp_path, monkeypatch):
    no_network(monkeypatch)
    text = message("cifar10", tmp_path / "new")
    for word in (
        "Network is unreachable",
        "--data-dir",
        "--dataset folder",
        "--dataset digits",
        cifar.published.filename,
    ):
        assert word in text
    assert not (tmp_path / "new").exists()


class Response(io.BytesIO):
    def __init__(self, content: bytes = b"") -> None:
        super().__init__(content)
        self.headers = {"Content-Length": str(len(content))}


def test_download(cifar, tmp_path, monkeypatch):
    asked = []

    def serve(url, timeout):
        asked.append(url)
        return Response(cifar.archive)

    monkeypatch.setattr("urllib.request.urlopen", serve)
    images = load("cifar10", tmp_path / "new")
    assert asked == [cifar.published.url]
    assert len(images.train) == 20
    assert (tmp_path / "new" / cifar.published.filename).read_bytes() == cifar.archive
    load("cifar10", tmp_path / "new")
    assert len(asked) == 1


@pytest.mark.parametrize("content", [b"<html>try later</html>", b""])
def test_wrong_download_leaves_nothing(cifar, tmp_path, monkeypatch, content):
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: Response(content))
    text = message("cifar10", tmp_path)
    assert cifar.sha256 in text
    assert sha256(content).hexdigest() in text
    assert os.listdir(tmp_path) == []


def test_interrupted_download_leaves_nothing(cifar, tmp_path, monkeypatch):
    class Broken(Response):
        def read(self, *_):
            raise ConnectionResetError("Connection reset by peer")

    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: Broken())
    assert "Connection reset by peer" in message("cifar10", tmp_path)
    assert os.listdir(tmp_path) == []


def test_published_checksums_fit_torchvision():
    """torchvision is asked for sets by these class names; the digests are whole SHA-256 values."""
    for published, digest in data_archives.ARCHIVES.values():
        assert getattr(torchvision.datasets, published).filename.endswith(".tar.gz")
        assert len(bytes.fromhex(digest)) == 32


@pytest.fixture
def stl10(monkeypatch) -> Mini:
    rng = np.random.default_rng(0)
    counts = {"train": 12, "test": 11, "unlabeled": 15}
    files = {f"{split}_X.bin": rng.bytes(count * 3 * 96 * 96) for split, count in counts.items()}
    files |= {f"{split}_y.bin": bytes(k % 10 + 1 for k in range(counts[split])) for split in ("train", "test")}
    files["class_names.txt"] = "\n".join(f"class{k}" for k in range(10)).encode()
    return Mini("stl10", torchvision.datasets.STL10, files, monkeypatch)


@pytest.mark.parametrize("stream", [False, True])
def test_stl10_equals_torchvision(stl10, tmp_path, monkeypatch, stream):
    no_network(monkeypatch)
    stl10.put(tmp_path)
    images = load("stl10", tmp_path, stream=stream)
    assert images.classes == tuple(f"class{k}" for k in range(10))
    for split in ("train", "test", "unlabeled"):
        expected = stl10.published(tmp_path, split=split)
        found = getattr(images, split)
        assert (found.images is None) == stream
        pixels, labels = everything(found)
        np.testing.assert_array_equal(pixels.numpy(), expected.data)
        np.testing.assert_array_equal(labels.numpy(), np.asarray(expected.labels).astype(np.int8))
    assert set(images.unlabeled.labels.tolist()) == {-1}
    (tmp_path / stl10.published.filename).unlink()  # the unpacked files are enough
    limited = load("stl10", tmp_path, stream=stream, limit_train=14)
    assert (len(limited.unlabeled), len(limited.train)) == (14, 12)
    assert len(load("stl10", tmp_path, stream=stream, limit_train=10).train) == 10


def test_damaged_stl10(stl10, tmp_path):
    folder = stl10.unpack(tmp_path)
    (folder / "unlabeled_X.bin").write_bytes(b"")
    assert f"{folder} is damaged" in message("stl10", tmp_path)
    stl10.put(tmp_path)  # with the archive beside them they are unpacked again
    assert len(load("stl10", tmp_path).unlabeled) == 15


# ---- Tiny ImageNet ----


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    root = tmp_path / "tiny-imagenet-200"
    for label, name in enumerate(("n02", "n01")):
        (root / "train" / name / "images").mkdir(parents=True)
        (root / "train" / name / f"{name}_boxes.txt").write_text("")
        for k in range(3):
            Image.fromarray(picture(10 * label + k, 64, 64)).save(root / "train" / name / "images" / f"{k}.JPEG")
    (root / "val" / "images").mkdir(parents=True)
    for k in range(4):
        Image.fromarray(picture(50 + k, 64, 64)).save(root / "val" / "images" / f"val_{k}.JPEG")
    lines = [f"val_{k}.JPEG\t{'n01' if k in (1, 2) else 'n02'}\t0\t0\t9\t9" for k in (3, 1, 0, 2)]
    (root / "val" / "val_annotations.txt").write_text("\n".join(lines) + "\n")
    return root


def test_tinyimagenet(tiny):
    for folder in (tiny, tiny.parent):
        images = load("tinyimagenet", folder)
        assert images.classes == ("n01", "n02")
        assert images.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
        assert images.test.labels.tolist() == [1, 0, 0, 1]
        assert images.test.size == (64, 64)
        with Image.open(tiny / "val" / "images" / "val_1.JPEG") as image:
            np.testing.assert_array_equal(images.test.images[1].numpy().transpose(1, 2, 0), np.asarray(image))
        assert images.mean == (0.4802, 0.4481, 0.3975)


def test_tinyimagenet_labels_are_part_of_the_source(tiny):
    load("tinyimagenet", tiny)
    annotations = tiny / "val" / "val_annotations.txt"
    annotations.write_text(annotations.read_text().replace("val_3.JPEG\tn02", "val_3.JPEG\tn01"))
    assert load("tinyimagenet", tiny).test.labels.tolist() == [1, 0, 0, 0]


def test_tinyimagenet_mistakes(tiny, tmp_path):
    annotations = tiny / "val" / "val_annotations.txt"
    good = annotations.read_text()
    for bad in (good.replace("val_3.JPEG", "val_9.JPEG"), good.replace("n01", "n09"), good.replace("\t", " ")):
        annotations.write_text(bad)
        assert f"{annotations} does not fit the images" in message("tinyimagenet", tiny)
    annotations.unlink()
    assert "is not the unpacked tiny-imagenet-200" in message("tinyimagenet", tiny)
    assert "is not the unpacked tiny-imagenet-200" in message("tinyimagenet", tmp_path / "nowhere")


def test_a_cache_that_lacks_a_split_is_made_again(tree, capsys):
    good = load("folder", tree)
    (record,) = (file for file in cache_files(tree) if file.suffix == ".json")
    content = json.loads(record.read_text())
    del content["sha256"]["test"]
    record.write_text(json.dumps(content))
    assert torch.equal(load("folder", tree).test.images, good.test.images)
    assert "a split is missing" in capsys.readouterr().err
