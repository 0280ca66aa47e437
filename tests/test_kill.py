"""Runs that are killed, signalled, starved of disk space and fed bad numbers, and what is left of them."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys

import pytest
import safetensors.torch
import torch
from conftest import PROGRAMS, REPOSITORY, TINY, load, metrics
from test_run import assert_bitwise_equal

from wassersteinssl import augment, checkpoint, data, evaluate, method, pretrain, run, run_folder, step, w2
from wassersteinssl.augmentation import Augmentation
from wassersteinssl.encoder import Encoder, load_encoder
from wassersteinssl.settings import parse

pytestmark = pytest.mark.skipif(os.name != "posix", reason="fork and signals of POSIX")

# Two steps an epoch, three epochs; two forward batches an epoch of the linear evaluation.
SHORT = [*TINY, *"--limit-train 130 --monitor-every 0".split()]
TERM = "--alpha-max 0.5 --uniformity w2".split()


def execute(name, folder, *options, term=TERM):
    module = load(PROGRAMS[name])
    options = [*SHORT, *term, *(["--queue-size", "150"] if name in ("MoCoV2", "NNCLR") else []), *map(str, options)]
    settings = parse(getattr(module, name + "Settings"), "", [*options, "--run-dir", str(folder)])
    return run.execute(getattr(module, name), settings)


def nth_call(patch, owner, name, n, action):
    """Do `action(*arguments)` before the n-th call, counted from 1."""
    function, calls = getattr(owner, name), iter(range(1, 10**6))

    def counted(*arguments, **keywords):
        if next(calls) == n:
            action(*arguments)
        return function(*arguments, **keywords)

    patch.setattr(owner, name, counted)


def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def die_half_way(file):
    """Within the writing of a file, at its fsync: half of it is there."""
    os.ftruncate(file, os.fstat(file).st_size // 2)
    die()


def killed(monkeypatch, owner, name, n, action, work):
    """Do the work in a child process, which is killed at the n-th call of a function."""
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            nth_call(monkeypatch, owner, name, n, action)
            work()
        os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), "it was not killed"


# Where the run is killed, one after the other: function, number of its call, what happens then, the step of the newest
# checkpoint that is left; epochs of the linear evaluation are counted as further steps. An epoch
# takes three calls of fsync, of its line in the metrics, of its checkpoint and of the folder.
KILLS = {
    "writing its configuration": (os, "fsync", 1, die_half_way, None),
    "before the first checkpoint": (step.TrainingStep, "__call__", 2, die, None),
    "writing the second checkpoint": (os, "fsync", 5, die_half_way, 2),
    "in the third epoch": (step.TrainingStep, "__call__", 4, die, 4),
    "in the linear evaluation": (evaluate.LinearProbe, "learn", 2, die, 8),
    "before the result": (run_folder.RunFolder, "finish", 1, die, 9),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_run_killed_six_times_ends_bitwise_equal(name, tmp_path, monkeypatch):
    assert execute(name, tmp_path / "whole")
    folder = tmp_path / "killed"
    for place, (owner, function, n, action, left) in KILLS.items():
        killed(monkeypatch, owner, function, n, action, lambda: execute(name, folder))
        newest = max((int(path.name.split("-")[1]) for path in folder.glob("checkpoint-*.pt")), default=None)
        assert newest == left, place
    assert not (folder / "result.json").exists()
    assert execute(name, folder)
    assert_bitwise_equal(tmp_path / "whole", folder)
    ours, theirs = (checkpoint.load(path)["method"] for path in (tmp_path / "whole", folder))
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items())  # momentum encoder, queue, statistics
    assert list(folder.glob(".*")) == []


# ---- checkpoints ----


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGUSR2", "SIGINT", "SIGHUP"])
def test_a_signal_leaves_a_checkpoint_within_one_step(name, tmp_path, monkeypatch):
    number = getattr(signal, name)
    nth_call(monkeypatch, step.TrainingStep, "__call__", 4, lambda *_: signal.raise_signal(number))
    handler = signal.getsignal(number)
    assert not execute("BYOL", tmp_path / "run", "--limit-train", 200)  # three steps an epoch
    assert checkpoint.load(tmp_path / "run")["step"] == 4
    assert signal.getsignal(number) is handler


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ("--checkpoint-minutes 0", [2, 4, 6]),
        ("--checkpoint-minutes 0 --checkpoint-epochs 3", [6]),
        ("--checkpoint-minutes 1e-9 --checkpoint-epochs 3", [1, 2, 3, 4, 5, 6, 7]),
    ],
)
def test_checkpoints_come_by_epochs_and_by_minutes(options, kept, tmp_path, monkeypatch):
    steps = []
    monkeypatch.setattr(checkpoint, "save", lambda folder, step, state: steps.append(step))
    execute("BYOL", tmp_path / "run", "--stage", "pretrain", "--epochs", 4, *options.split())
    assert steps == [*kept, 9]  # the trained network, always


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 2 MiB."""
    folder = tmp_path / "small disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no small disk can be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


def fill(filler):
    with contextlib.suppress(OSError), open(filler, "wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass
    os.truncate(filler, filler.stat().st_size - 40960)  # lines of metrics find room, a checkpoint does not


def test_a_stop_with_the_disk_full_does_not_tell_of_a_checkpoint(small_disk, monkeypatch, capsys):
    folder, filler = small_disk / "run", small_disk / "filler"
    module = load(PROGRAMS["BYOL"])
    settings = parse(module.BYOLSettings, "", [*SHORT, "--run-dir", str(folder)])
    monkeypatch.setattr(run.Signals, "stop", lambda self: filler.exists())
    nth_call(monkeypatch, step.TrainingStep, "__call__", 4, lambda *_: fill(filler))
    with pytest.raises(SystemExit) as end:
        run.main(module.BYOL, settings)
    assert end.value.code == 2
    assert "stopped without a new checkpoint; make room" in capsys.readouterr().err.splitlines()[-1]
    assert checkpoint.load(folder)["step"] == 2


def test_a_full_disk_keeps_the_checkpoint_says_what_is_missing_and_the_run_continues(
    small_disk, tmp_path, monkeypatch, capsys
):
    folder, filler = small_disk / "run", small_disk / "filler"
    module = load(PROGRAMS["BYOL"])
    settings = parse(module.BYOLSettings, "", [*SHORT, *TERM, "--run-dir", str(folder)])

    with monkeypatch.context() as patch:
        nth_call(patch, step.TrainingStep, "__call__", 4, lambda *_: fill(filler))
        with pytest.raises(SystemExit) as end:
            run.main(module.BYOL, settings)
    assert end.value.code == 2
    errors = capsys.readouterr().err.splitlines()
    size = next(folder.glob("checkpoint-*.pt")).stat().st_size
    found = re.fullmatch(r"no checkpoint written: the disk of .* is full, ([\d.]+) MiB more are needed; .*", errors[0])
    assert float(found[1]) == pytest.approx((size - 40960) / 2**20, abs=0.06)
    assert errors[-1].endswith("the disk is full; make room, and the same command continues from the last checkpoint")
    assert checkpoint.load(folder)["step"] == 2
    assert len(metrics(folder)) == 3
    assert list(folder.glob(".*")) == []

    filler.unlink()
    with pytest.raises(SystemExit) as end:
        run.main(module.BYOL, settings)
    assert end.value.code == 0
    assert execute("BYOL", tmp_path / "whole")
    assert_bitwise_equal(tmp_path / "whole", folder)


# ---- bad numbers ----


def test_a_nan_batch_stops_the_run_before_the_update_and_it_can_continue(tmp_path, monkeypatch):
    weights = {}

    def poison(self, images, parameters):
        weights["before"] = [p.detach().clone() for p in self.method.parameters()]
        weights["method"] = self.method
        self.mean = (float("nan"),) * 3  # this batch, normalised with it, is NaN

    with monkeypatch.context() as patch:
        nth_call(patch, step.TrainingStep, "__call__", 4, poison)
        with pytest.raises(step.NonFiniteLoss) as error:
            execute("BYOL", tmp_path / "run")
    told, last = str(error.value).split("; last good checkpoint: ")
    assert told == "not finite at step 3: loss nan, uniformity nan, gradient nan"
    assert all(torch.equal(a, b) for a, b in zip(weights["before"], weights["method"].parameters(), strict=True))
    failed = json.loads((tmp_path / "run" / "failed.json").read_text())
    assert failed["reason"] == told
    assert failed["last_checkpoint"].startswith("checkpoint-000000002-")
    assert last == f"{failed['last_checkpoint']} in {tmp_path / 'run'}"
    with monkeypatch.context() as patch:  # continued from two steps, the second is again the fourth of all
        nth_call(patch, step.TrainingStep, "__call__", 2, poison)
        with pytest.raises(step.NonFiniteLoss, match="not finite at step 3: "):
            execute("BYOL", tmp_path / "run")
    assert execute("BYOL", tmp_path / "run")
    assert not (tmp_path / "run" / "failed.json").exists()


@pytest.mark.parametrize("gpu", [False, True], ids=["told at once", "told later"])
def test_a_gradient_that_is_not_finite_moves_no_weight(gpu):
    """With a learning rate on the device, as on a GPU, the step does not look; the weights stay all the same."""
    module = load(PROGRAMS["SimSiam"])
    settings = parse(module.SimSiamSettings, "", [*SHORT, *TERM])
    torch.manual_seed(0)
    method, images = module.SimSiam(settings), data.load("digits", None)
    optimizer = pretrain.LARS(pretrain.param_groups(method), lr=0.2)
    steep = iter([False, False, True, False, False])

    def term(z):  # at the third step its slope is infinite where its value is 0
        return (z - z.detach()).sum().square().sqrt() if next(steep) else w2.w2_uniformity(z)

    train = step.TrainingStep(
        method, optimizer, term, images, Augmentation(), settings, torch.device("cpu")
    )  # fmt: skip
    train.alpha.fill_(1.0)
    train.check_every_step = not gpu
    for group in optimizer.param_groups if gpu else []:
        group["lr"] = torch.tensor(group["lr"])

    def take(k):
        views = [augment.draw(train.augmentation, 16, (8, 8), augment.generator(0, 0, k, view)) for view in "ab"]
        pretrain.set_lr(optimizer, 1.0)
        train(images.train.images[16 * k : 16 * k + 16], views)

    def weights():
        return torch.cat([p.detach().flatten() for p in method.parameters()])

    moved = []
    for k in range(5):
        before = weights()
        with contextlib.nullcontext() if gpu or k != 2 else pytest.raises(step.NonFiniteLoss):
            take(k)
        moved.append(not torch.equal(before, weights()))
        if not gpu and k == 2:
            break
    assert moved == [True, True, False, False, False][: len(moved)]
    with pytest.raises(step.NonFiniteLoss, match=r"not finite at step 2: loss -?[\d.]+, uniformity 0, gradient nan"):
        train.raise_if_not_finite()


def test_a_collapse_is_told_in_the_log_and_once_on_stderr(tmp_path, monkeypatch, capsys):
    module = load(PROGRAMS["SimSiam"])
    embed = module.SimSiam.embed
    monkeypatch.setattr(module.SimSiam, "embed", lambda self, view: 1 + 1e-3 * embed(self, view))
    execute("SimSiam", tmp_path / "run", "--stage", "pretrain", "--weight-lr", 1e-6, term=())
    shown = capsys.readouterr()
    assert [line.get("collapsed_epochs") for line in metrics(tmp_path / "run")] == [None, 2, 3]
    assert shown.err.count("collapse: since two epochs W2 of a batch is within 1 % of sqrt 2") == 1
    assert "collapsed_epochs 3" in shown.out


# ---- the exported encoder ----


def test_networks_that_no_encoder_can_have_are_told_before_the_training(tmp_path, monkeypatch, capsys):
    execute("BYOL", tmp_path / "usual", "--stage", "pretrain")
    assert "will not read" not in capsys.readouterr().err
    make = method.projector
    monkeypatch.setattr(method, "projector", lambda *sizes: make(*sizes, layers=2))
    execute("BYOL", tmp_path / "own", "--stage", "pretrain")
    assert capsys.readouterr().err.count("load_encoder and audits will not read this run") == 1
    monkeypatch.undo()
    load_encoder(tmp_path / "usual")
    with pytest.raises(ValueError, match="no encoder that a run has exported"):
        load_encoder(tmp_path / "own")


def test_an_encoder_is_loaded_by_the_function_and_by_torch_hub(tmp_path):
    execute("BYOL", tmp_path / "run")
    path = tmp_path / "run" / "encoder.safetensors"
    images = data.load("digits", None).test.images
    encoder = load_encoder(path)
    assert torch.equal(load_encoder(tmp_path / "run").embed(images), encoder.embed(images))
    for shape in ((5, 1, 8, 8), (5, 8, 8, 3), (3, 8, 8), (5, 8, 8)):
        with pytest.raises(ValueError, match=rf"images of shape \(n, 3, H, W\), got {re.escape(str(shape))}$"):
            encoder(torch.zeros(shape))
        with pytest.raises(ValueError, match=r"got \("):
            encoder.embed(torch.zeros(shape, dtype=torch.uint8))
    for kind in (torch.int64, torch.int32, torch.bool):
        with pytest.raises(ValueError, match=rf"uint8 images or floats from 0 to 1, got {kind}$"):
            encoder(images.to(kind))
    with pytest.raises(TypeError, match="expected a torch tensor of images, got ndarray"):
        encoder(images.numpy())
    hub_path = list(sys.path)
    by_hub = torch.hub.load(str(REPOSITORY), "encoder", str(path), source="local")
    with torch.no_grad():
        z = encoder.embed(images)
        assert torch.equal(z, by_hub.embed(images))
        torch.testing.assert_close(encoder(given := images / 255), encoder(images))
        assert torch.equal(given, images / 255)
    measured = json.loads((tmp_path / "run" / "result.json").read_text())
    assert w2.W2Metric().update(z).compute() == pytest.approx(measured["w2"], rel=1e-5)
    assert encoder.config["method"] == "BYOL"
    assert not encoder.training
    hub_loss = torch.hub.load(str(REPOSITORY), "w2_loss", source="local")
    assert hub_path == sys.path  # where code/ would hide the caller's own audit.py
    assert hub_loss(z) == w2.w2_uniformity(z)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "run"
    execute("BYOL", folder, "--stage", "pretrain")
    return folder


@pytest.mark.parametrize(("dtype", "error"), [(torch.float64, 1e-5), (torch.bfloat16, 0.1), (torch.float16, 0.02)])
def test_an_encoder_of_other_weights_takes_the_same_images(exported, dtype, error):
    images = data.load("digits", None).test.images[:9]
    exact, encoder = load_encoder(exported).embed(images), load_encoder(exported).to(dtype)
    for given in (images, images / 255, (images / 255).to(dtype)):
        z = encoder.embed(given)
        assert z.dtype == dtype
        torch.testing.assert_close(z.float(), exact, rtol=error, atol=error * float(exact.abs().max()))


@pytest.mark.parametrize("scale", [1, 255])
def test_an_encoder_can_be_exported(exported, scale):
    encoder, images = load_encoder(exported), data.load("digits", None).test.images[:9]
    images = images if scale == 1 else images / scale
    torch.testing.assert_close(torch.export.export(encoder, (images,)).module()(images), encoder(images))


def test_a_home_before_an_encoder_is_resolved(exported, monkeypatch):
    monkeypatch.setenv("HOME", str(exported.parent))
    assert load_encoder("~/run").config["method"] == "BYOL"


@pytest.mark.parametrize("content", [None, b"", b"\xff" * 100, safetensors.torch.save({"weight": torch.ones(1)})])
def test_what_is_no_encoder_is_told_in_one_line(tmp_path, content):
    if content is not None:
        (tmp_path / "file").write_bytes(content)
    with pytest.raises(ValueError, match="file") as error:
        load_encoder(tmp_path / "file")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("metadata", "missing"),
    [
        (None, "config"),
        ({"format": "pt"}, "config"),
        ({"config": "{}", "mean": "[]", "std": "[]"}, "settings"),
        ({"config": "{}", "mean": "[]"}, "std"),
    ],
)
def test_the_weights_of_something_else_are_no_encoder(metadata, missing, tmp_path):
    safetensors.torch.save_file({"weight": torch.ones(1)}, tmp_path / "encoder.safetensors", metadata)
    for path in (tmp_path, tmp_path / "encoder.safetensors"):
        with pytest.raises(ValueError, match=r"encoder.safetensors is no .* has exported: it holds no (\w+)$") as error:
            load_encoder(path)
        assert str(error.value).endswith(missing)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"hidden_dim": 10**7}, "size mismatch"),
        ({"mean": [0.5, 0.5]}, "its mean is not"),
        ({"mean": ["a", 0, 0]}, ""),
        ({"mean": [float("nan"), 0, 0]}, "its mean is not"),
        ({"std": [1, 0, 1]}, "its std is not"),
        ({"std": None}, ""),
    ],
)
def test_an_encoder_whose_metadata_do_not_fit_is_told_in_one_line(wrong, told, tmp_path):
    settings = {"width": 2, "hidden_dim": 8, "dim": 4}
    tensors = Encoder({"settings": settings}, [], []).state_dict()
    metadata = {"config": {"settings": settings | wrong}, "mean": [0.5] * 3, "std": [0.2] * 3} | wrong
    path = tmp_path / "encoder.safetensors"
    safetensors.torch.save_file(tensors, path, {key: json.dumps(value) for key, value in metadata.items()})
    with pytest.raises(ValueError, match=rf"(?s)encoder\.safetensors is no encoder that a run has exported: .*{told}"):
        load_encoder(path)


def test_a_folder_without_an_encoder_is_told_in_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"cannot read .*encoder\.safetensors: No such file"):
        load_encoder(tmp_path)
    (tmp_path / "config.json").touch()
    with pytest.raises(ValueError, match=r"^the run in .* has not finished its pre-training$"):
        load_encoder(tmp_path)
