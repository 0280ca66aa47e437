"""Whole runs on the embedded digits: what they leave, that they repeat, continue and refuse nonsense."""

import dataclasses
import errno
import itertools
import json
import math
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import types

import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import BYOL, ELSEWHERE, PROGRAMS, REPOSITORY, TINY, environment, load, metrics, timeless
from PIL import Image

from wassersteinssl import checkpoint, data, device, evaluate, pretrain, results, run, run_folder
from wassersteinssl.augmentation import CROP_AND_FLIP, FOR_DATASET, Augmentation
from wassersteinssl.cli import UserError
from wassersteinssl.encoder import load_encoder
from wassersteinssl.settings import Settings, differences, parse
from wassersteinssl.step import SlicedTerm, TrainingStep
from wassersteinssl.uniformity import MEASURES

DESIGNED = (
    "method uniformity dataset seed epochs acc1 acc5 best_acc1 knn1 w2 w2_floor lu alignment n_test dim "
    "pretrain_seconds evaluate_seconds images_per_second device complete config"
).split()


@pytest.fixture(scope="module")
def module():
    return load(BYOL)


def execute(module, folder, *options):
    """A run inside this process."""
    settings = parse(module.BYOLSettings, "", [*TINY, "--run-dir", str(folder), *map(str, options)])
    return run.execute(module.BYOL, settings)


@pytest.fixture(scope="module")
def finished(module, tmp_path_factory):
    """A finished run with the W2 term."""
    folder = tmp_path_factory.mktemp("runs") / "w2"
    assert execute(module, folder, "--uniformity", "w2")
    return folder


def test_tensorboard_shows_each_epoch_once(module, tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def shown():
        board = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
        return [(event.step, event.value) for event in board.Scalars("loss")]

    with monkeypatch.context() as patch:
        patch.setattr(run.Signals, "stop", lambda self: (tmp_path / "run" / "metrics.jsonl").exists())  # first epoch
        assert not execute(module, tmp_path / "run", "--tensorboard", "yes")
    first = shown()
    assert execute(module, tmp_path / "run", "--tensorboard", "yes")  # is continued
    lines = [(line["epoch"] + 1, pytest.approx(line["loss"])) for line in metrics(tmp_path / "run")]
    assert shown() == lines
    assert len(first) == 1 < len(lines)
    assert shown()[:1] == first


def test_tensorboard_that_is_not_installed_is_told_before_anything_is_written(module, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserError, match="pip install tensorboard"):
        execute(module, tmp_path / "run", "--tensorboard", "yes")
    assert not (tmp_path / "run").exists()


def outcome(folder):
    """All that a run computed, without times."""
    result = timeless(json.loads((folder / "result.json").read_text()))
    weights = safetensors.torch.load_file(folder / "encoder.safetensors")
    return result, [timeless(line) for line in metrics(folder)], weights, np.load(folder / "spectrum.npy")


def assert_bitwise_equal(folder, other):
    (result, lines, weights, spectrum), (result_b, lines_b, weights_b, spectrum_b) = outcome(folder), outcome(other)
    assert result == result_b
    assert lines == lines_b
    assert weights.keys() == weights_b.keys()
    assert all(torch.equal(weights[key], weights_b[key]) for key in weights)
    assert np.array_equal(spectrum, spectrum_b)


# ---- what a run leaves ----


def test_a_run_leaves_the_files_of_the_design(finished):
    result = json.loads((finished / "result.json").read_text())
    assert list(result) == DESIGNED
    assert result["complete"] is True
    assert result["method"] == "BYOL"
    assert 0 <= result["acc1"] <= result["best_acc1"] <= 100
    assert result["acc1"] <= result["acc5"]
    assert 0 <= result["w2"] <= 2**0.5
    assert result["lu"] <= 0 <= result["alignment"]
    assert result["config"]["settings"]["uniformity"] == "w2"
    assert result["config"]["versions"]["torch"] == torch.__version__
    lines = metrics(finished)
    assert [line["epoch"] for line in lines] == [0, 1, 2]
    assert ["knn1" in line for line in lines] == [False, True, True]  # every second epoch and the last
    spectrum = np.load(finished / "spectrum.npy", allow_pickle=False)
    assert spectrum.shape == (8,)
    correct = np.load(finished / "correct.npy", allow_pickle=False)
    assert (correct.dtype, correct.shape) == (bool, (result["n_test"],))
    assert 100 * correct.mean() == pytest.approx(result["acc1"], rel=1e-12)
    assert (np.diff(spectrum) <= 0).all()
    assert len(list(finished.glob("checkpoint-*.pt"))) == 2
    measures = json.loads((finished / "measures.json").read_text())
    assert list(measures) == list(MEASURES)
    assert measures["w2"] == pytest.approx(result["w2"], rel=1e-5)


def test_the_weight_of_the_term_falls_linearly(module, tmp_path):
    options = "--uniformity w2 --alpha-max 3 --alpha-min 0 --stage pretrain --monitor-every 0".split()
    assert execute(module, tmp_path / "run", *options)
    assert [line["alpha"] for line in metrics(tmp_path / "run")] == pytest.approx([3, 2, 1])


def test_a_vanilla_run_never_computes_a_term(module, tmp_path, monkeypatch):
    def poisoned(_):
        raise AssertionError("computed")

    for name in ("w2", "lu"):
        monkeypatch.setitem(pretrain.MEASURES, name, dataclasses.replace(MEASURES[name], function=poisoned))
    assert execute(module, tmp_path / "run", "--stage", "pretrain", "--monitor-every", 0)
    assert "loss_uniformity" not in metrics(tmp_path / "run")[0]
    with pytest.raises(AssertionError, match="computed"):
        execute(module, tmp_path / "other", "--uniformity", "w2")


def test_the_term_makes_the_embedding_more_uniform(module, tmp_path):
    w2 = {}
    for term in ("none", "lu", "w2"):
        folder = tmp_path / term
        options = () if term == "none" else ("--uniformity", term, "--alpha-max", 5)
        execute(module, folder, *options, "--stage", "pretrain", "--epochs", 8, "--monitor-every", 8)
        w2[term] = metrics(folder)[-1]["w2"]
    assert w2["w2"] < w2["none"] - 0.05
    assert w2["lu"] < w2["none"]


# ---- what a run computes ----


def test_each_step_has_rate_weight_images_and_views_of_its_own(module, tmp_path, monkeypatch):
    """By the formulas of README and docstrings: 3 steps an epoch, warm-up of one epoch, rates for a batch of 256."""
    rates, alphas, images, views, progress = [], [], [], [], []
    step, after = TrainingStep.__call__, module.BYOL.after_step

    def spied(self, pixels, parameters):
        rates.append([group["lr"] for group in self.optimizer.param_groups])
        alphas.append(float(self.alpha))
        images.append(pixels.clone())
        views.extend(view.table.clone() for view in parameters)
        step(self, pixels, parameters)

    monkeypatch.setattr(TrainingStep, "__call__", spied)
    monkeypatch.setattr(module.BYOL, "after_step", lambda self, share: progress.append(share) or after(self, share))
    options = "--uniformity w2 --alpha-max 3 --alpha-min 0 --weight-lr 0.4 --vector-lr 0.02 --warmup-epochs 1"
    assert execute(module, tmp_path / "run", *options.split(), "--stage", "pretrain", "--monitor-every", 0)
    fall = [(1 + math.cos(math.pi * k / 6)) / 2 for k in range(6)]
    share = [0, 1 / 3, 2 / 3] + [q + (1 - q) * 0.001 for q in fall]
    assert rates == [pytest.approx([0.4 * 64 / 256 * s, 0.02 * 64 / 256 * s]) for s in share]
    assert alphas == pytest.approx([3] * 3 + [2] * 3 + [1] * 3)
    assert progress == pytest.approx([k / 9 for k in range(1, 10)])
    assert len({table.numpy().tobytes() for table in views}) == len(views) == 18  # none is used twice
    assert len({batch.numpy().tobytes() for batch in images}) == 9  # a new order in each epoch
    for epoch in range(3):  # no image twice in it; 200 digits, of which a few are equal
        assert len(torch.cat(images[3 * epoch : 3 * epoch + 3]).flatten(1).unique(dim=0)) > 185


def test_another_seed_gives_other_weights_to_begin_with(module, tmp_path):
    def begun(seed):
        settings = parse(module.BYOLSettings, "", [*TINY, "--run-dir", str(tmp_path / "run"), "--seed", str(seed)])
        return run._prepare(module.BYOL, settings).method.backbone.state_dict()

    first, again, other = begun(13), begun(13), begun(14)
    name = next(key for key, value in first.items() if value.ndim > 1)
    assert torch.equal(first[name], again[name])
    assert not torch.equal(first[name], other[name])


def test_the_evaluation_has_the_run_s_seed_crop_and_precision(module, tmp_path, monkeypatch):
    calls = []

    def spied(function):
        return lambda *arguments, **options: calls.append(options) or function(*arguments, **options)

    for name in ("linear_probe", "measure"):
        monkeypatch.setattr(evaluate, name, spied(getattr(evaluate, name)))
    assert execute(module, tmp_path / "run", "--seed", 13, "--precision", "bf16", "--monitor-every", 3)
    monitor, probe, final = calls
    assert {(call["seed"], call["precision"]) for call in calls} == {(13, "bf16")}
    assert (monitor["train_limit"], monitor["pairs_limit"]) == (10_000, 5_000)
    assert final["train_limit"] is final["pairs_limit"] is None
    digits = FOR_DATASET["digits"]
    assert digits.jitter > 0  # which the probe must not have
    assert probe["crop"] == dataclasses.replace(CROP_AND_FLIP, crop_scale=digits.crop_scale, flip=digits.flip)


def test_the_spectrum_is_that_of_unit_test_embeddings(module, tmp_path):
    assert execute(module, tmp_path / "run", "--monitor-every", 0)
    z = load_encoder(tmp_path / "run").embed(data.load("digits", None).test.images).detach().numpy().astype(float)
    unit = z / np.linalg.norm(z, axis=1, keepdims=True)
    expected = np.linalg.eigvalsh(np.cov(unit.T, bias=True))[::-1]
    np.testing.assert_allclose(np.load(tmp_path / "run" / "spectrum.npy"), expected, rtol=1e-3, atol=1e-7)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["images_per_second"] == pytest.approx(3 * 3 * 64 / result["pretrain_seconds"])


def test_seconds_are_those_of_all_continuations(module, tmp_path, monkeypatch):
    folder = tmp_path / "run"

    def earlier(key):
        """Say of the last checkpoint that a stage had taken 1000 s."""
        state = checkpoint.load(folder)
        assert state[key] < 500
        checkpoint.save(folder, int(checkpoint.newest(folder).name.split("-")[1]), state | {key: 1000.0})

    with monkeypatch.context() as patch:
        patch.setattr(run.Signals, "stop", lambda self: (folder / "metrics.jsonl").exists())  # after the first epoch
        assert not execute(module, folder, "--monitor-every", 0)
    earlier("seconds")
    assert execute(module, folder, "--monitor-every", 0, "--stage", "pretrain")
    earlier("evaluate_seconds")
    assert execute(module, folder, "--monitor-every", 0)
    result = json.loads((folder / "result.json").read_text())
    assert 1000 < result["pretrain_seconds"] < 1500
    assert 1000 < result["evaluate_seconds"] < 1500


def test_a_collapse_is_counted_over_continuations(tmp_path, monkeypatch):
    simsiam, folder = load(PROGRAMS["SimSiam"]), tmp_path / "run"
    embed = simsiam.SimSiam.embed
    monkeypatch.setattr(simsiam.SimSiam, "embed", lambda self, view: 1 + 1e-3 * embed(self, view))
    options = [*TINY, "--monitor-every", "0", "--stage", "pretrain", "--weight-lr", "1e-6", "--run-dir", str(folder)]
    settings = parse(simsiam.SimSiamSettings, "", options)
    with monkeypatch.context() as patch:
        patch.setattr(run.Signals, "stop", lambda self: (folder / "metrics.jsonl").exists())
        assert not run.execute(simsiam.SimSiam, settings)
    assert run.execute(simsiam.SimSiam, settings)
    assert [line.get("collapsed_epochs") for line in metrics(folder)] == [None, 2, 3]


# ---- repeating and continuing ----


def test_the_same_command_gives_the_same_numbers(module, finished, tmp_path):
    execute(module, tmp_path / "again", "--uniformity", "w2")
    assert_bitwise_equal(finished, tmp_path / "again")


def test_another_seed_gives_other_numbers(module, finished, tmp_path):
    execute(module, tmp_path / "other", "--uniformity", "w2", "--seed", 13, "--stage", "pretrain")
    assert metrics(tmp_path / "other")[0]["loss"] != metrics(finished)[0]["loss"]


def test_a_finished_run_is_not_repeated(module, finished, capsys):
    before = {path.name: path.stat().st_mtime_ns for path in finished.iterdir() if path.name != "lock"}
    assert execute(module, finished, "--uniformity", "w2")
    assert "done already" in capsys.readouterr().out
    assert before == {path.name: path.stat().st_mtime_ns for path in finished.iterdir() if path.name != "lock"}


@pytest.mark.parametrize("after", [1, 4, 8, 10])  # steps: 3 an epoch, then 3 a pass of the linear evaluation
def test_stopped_at_any_step_a_run_continues_bitwise(module, finished, tmp_path, monkeypatch, after):
    asked = iter(range(10**6))
    with monkeypatch.context() as patch:
        patch.setattr(run.Signals, "stop", lambda self: next(asked) >= after - 1)
        assert not execute(module, tmp_path / "run", "--uniformity", "w2")
    assert not (tmp_path / "run" / "result.json").exists()
    assert execute(module, tmp_path / "run", "--uniformity", "w2")
    assert_bitwise_equal(finished, tmp_path / "run")


@pytest.mark.parametrize("term", ["ssw", "sigreg"])
def test_a_term_on_random_directions_has_new_ones_in_each_step_and_continues_bitwise(
    term, module, tmp_path, monkeypatch
):
    seen, call = [], SlicedTerm.__call__

    def spied(self, z):
        seen.append(self.directions.clone())
        return call(self, z)

    monkeypatch.setattr(SlicedTerm, "__call__", spied)
    options = ("--uniformity", term, "--alpha-max", 1)
    assert execute(module, tmp_path / "whole", *options)
    of_whole = seen.copy()
    assert len(of_whole) == 9  # 3 an epoch
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(of_whole, 2))
    seen.clear()
    asked = iter(range(10**6))
    with monkeypatch.context() as patch:
        patch.setattr(run.Signals, "stop", lambda self: next(asked) >= 3)  # in the second epoch
        assert not execute(module, tmp_path / "run", *options)
    assert len(seen) < len(of_whole)
    assert execute(module, tmp_path / "run", *options)
    assert all(torch.equal(a, b) for a, b in zip(of_whole, seen, strict=True))
    assert_bitwise_equal(tmp_path / "whole", tmp_path / "run")


def test_the_time_left_is_of_the_images_left_at_the_pace_measured(module, tmp_path, monkeypatch):
    asked, told = iter(range(10**6)), []
    with monkeypatch.context() as patch:
        patch.setattr(run.Signals, "stop", lambda self: next(asked) >= 1)  # after two of the first epoch's three steps
        assert not execute(module, tmp_path / "run")
    earlier = checkpoint.load(tmp_path / "run")["epoch_seconds"]
    assert earlier > 0
    monkeypatch.setattr(pretrain, "_tell_epoch", lambda bar, line, minutes_left: told.append((line, minutes_left)))
    assert execute(module, tmp_path / "run")
    first, second = told[0][0], told[1][0]
    assert first["seconds"] == pytest.approx(earlier + 64 / first["images_per_second"])  # the third step here
    assert second["seconds"] == pytest.approx(3 * 64 / second["images_per_second"])
    for (line, minutes_left), epochs in zip(told, (2, 1, 0), strict=True):
        assert minutes_left * 60 * line["images_per_second"] == pytest.approx(epochs * 3 * 64)


def test_a_long_linear_evaluation_tells_how_far_it_is(module, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run, "TELL_SECONDS", 0.0)
    assert execute(module, tmp_path, "--linear-epochs", 3)
    line = r"linear evaluation, epoch (\d)  acc1 ([\d.]+)  left of it ([\d.]+) min"
    found = re.findall(line, capsys.readouterr().out)
    history = checkpoint.load(tmp_path)["probe"]["history"]
    assert [(int(epoch), acc1) for epoch, acc1, _ in found] == [(e["epoch"], f"{e['acc1']:.2f}") for e in history]
    assert float(found[-1][2]) == 0


def test_a_long_epoch_tells_how_far_it_is(module, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pretrain, "TELL_SECONDS", 0.0)
    assert execute(module, tmp_path)
    line = r"epoch (\d), (\d) of 3 steps  left of pre-training ([\d.]+) min"
    found = re.findall(line, capsys.readouterr().out)
    assert [(int(epoch), int(step)) for epoch, step, _ in found] == [(e, s) for e in range(3) for s in (1, 2, 3)]
    assert float(found[-1][2]) == 0


def test_a_result_names_every_device_that_pretraining_had(module, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(run.Signals, "stop", lambda self: True)
        patch.setattr(run, "hardware", lambda _: "another")
        assert not execute(module, tmp_path)
    assert execute(module, tmp_path)
    here = device.hardware(torch.device("cpu"))
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["device"], result["evaluate_device"]) == (f"another and {here}", here)


def test_a_result_names_the_device_of_each_stage(module, tmp_path, monkeypatch):
    execute(module, tmp_path, "--stage", "pretrain")
    monkeypatch.setattr(run, "hardware", lambda _: "another")
    execute(module, tmp_path, "--stage", "evaluate")
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["device"], result["evaluate_device"]) == (device.hardware(torch.device("cpu")), "another")


def test_a_result_names_what_began_and_what_ended_the_run(module, tmp_path, monkeypatch):
    execute(module, tmp_path, "--stage", "pretrain")
    begun = json.loads((tmp_path / "config.json").read_text())
    versions = {**begun["versions"], "torch": "3.0"}
    monkeypatch.setattr(run_folder, "versions", lambda *_: versions)
    execute(module, tmp_path, "--stage", "evaluate")
    config = json.loads((tmp_path / "result.json").read_text())["config"]
    assert config["versions"] == versions
    assert config["begun"] == {"versions": begun["versions"]}
    assert json.loads((tmp_path / "config.json").read_text()) == begun


def test_the_evaluation_holds_no_gradients_of_the_training(module, tmp_path, monkeypatch):
    held = []

    def evaluate(self):
        held.extend(p.grad for p in self.method.parameters())
        return False

    monkeypatch.setattr(run.Job, "evaluate", evaluate)
    execute(module, tmp_path, "--monitor-every", 0)
    assert held
    assert not any(gradient is not None for gradient in held)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_an_evaluation_without_the_memory_keeps_the_training(module, tmp_path, monkeypatch, device):
    def full(self):
        self.device = torch.device(device)
        raise torch.OutOfMemoryError("out of memory, of 9 GB")

    monkeypatch.setattr(run.Job, "measure", full)
    with pytest.raises(UserError) as raised:
        execute(module, tmp_path, "--monitor-every", 0)
    told = "out of memory in the evaluation: out of memory, of 9 GB; the training is kept, try where there is more"
    assert str(raised.value) == told + (": the same command with --device cpu" if device == "cuda" else "")
    monkeypatch.undo()
    assert execute(module, tmp_path, "--monitor-every", 0)


def test_the_commit_of_a_repository_around_this_one_is_not_noted(tmp_path, monkeypatch):
    commit = [
        "git",
        "-C",
        str(tmp_path),
        "-c",
        "user.name=a",
        "-c",
        "user.email=a@b",
        "commit",
        "--allow-empty",
        "-qm",
        "a",
    ]
    for command in (["git", "init", "-q", str(tmp_path)], commit):
        subprocess.run(command, check=True)
    monkeypatch.setattr(run_folder, "REPOSITORY", tmp_path)
    assert run_folder.versions()["git"] is not None
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        os.chown(tmp_path, 1234, 1234)  # a copy of another user's
        assert run_folder.versions()["git"] is not None
    (tmp_path / "copy").mkdir()
    monkeypatch.setattr(run_folder, "REPOSITORY", tmp_path / "copy")
    assert run_folder.versions()["git"] is None


def test_the_commit_of_a_repository_that_the_environment_names_is_not_noted(tmp_path, monkeypatch):
    """As a hook or the user of a bare repository sets it."""
    before = run_folder.versions()["git"]
    author = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], [*author, "commit", "--allow-empty", "-qm", "a"]):
        subprocess.run(["git", "-C", str(tmp_path), *command], check=True)
    monkeypatch.setenv("GIT_DIR", str(tmp_path / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(tmp_path))
    assert run_folder.versions()["git"] == before


def test_pretraining_and_evaluating_apart_is_the_same(module, finished, tmp_path):
    with pytest.raises(UserError, match="no finished pre-training"):
        execute(module, tmp_path / "run", "--uniformity", "w2", "--stage", "evaluate")
    assert not (tmp_path / "run").exists()
    for stage in ("pretrain", "evaluate"):
        execute(module, tmp_path / "run", "--uniformity", "w2", "--stage", stage)
    assert_bitwise_equal(finished, tmp_path / "run")
    with pytest.raises(UserError, match=r"linear_epochs 2, now 3$"):  # another folder would not help
        execute(module, tmp_path / "run", "--uniformity", "w2", "--stage", "evaluate", "--linear-epochs", 3)


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_a_terminated_or_killed_program_continues_bitwise(finished, tmp_path, byol):
    command = [sys.executable, str(BYOL), *TINY, "--uniformity", "w2", "--run-dir", str(tmp_path / "run")]
    for number, status in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 75)):
        process = subprocess.Popen(
            command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        seen = len(list((tmp_path / "run").glob("checkpoint-*.pt")))
        for line in process.stdout:  # one line says that training starts, then one an epoch
            if line.startswith("epoch") or (seen and line.startswith("BYOL")):
                break
        time.sleep(0.01)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
        assert process.returncode in (status, 0), errors  # 0: it was quicker than the signal
        if number == signal.SIGKILL:
            with open(tmp_path / "run" / "metrics.jsonl", "a") as file:
                file.write('{"epoch": 7, "lo')  # half a line
    done = byol("--uniformity", "w2")
    assert done.returncode == 0, done.stderr
    assert_bitwise_equal(finished, tmp_path / "run")


def test_lines_of_epochs_go_by_their_number(module, tmp_path, capsys):
    """Of epochs that will be trained again, wherever they stand; what is lost is told."""
    folder = run_folder.RunFolder(tmp_path, "BYOL", parse(module.BYOLSettings, "", TINY))
    path = tmp_path / "metrics.jsonl"
    folder.truncate_metrics(0)
    assert not path.exists()
    for lines, logged, kept, lost in (([0, 1, 2], 2, [0, 1], 0), ([1, 2, 3, 2], 3, [1, 2, 2], 0), ([3], 2, [], 2)):
        path.write_text("".join(json.dumps({"epoch": k}) + "\n" for k in lines) + '{"epoch": 1, "lo')
        folder.truncate_metrics(logged)
        assert [json.loads(line)["epoch"] for line in path.read_text().splitlines()] == kept
        assert (f"lacks {lost} of the {logged} epochs" in capsys.readouterr().err) == bool(lost)


# ---- refusing ----


def test_another_configuration_is_refused_and_named(module, finished):
    before = (finished / "result.json").read_bytes()
    with pytest.raises(UserError, match=r"another configuration: epochs 3, now 4; seed 12, now 13"):
        execute(module, finished, "--uniformity", "w2", "--seed", 13, "--epochs", 4)
    assert (finished / "result.json").read_bytes() == before


def test_other_images_may_be_given_another_name(module, tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder, "REPOSITORY", tmp_path)

    def started(train, *options):
        settings = parse(module.BYOLSettings, "", ["--dataset", "folder", *options])
        folder = run_folder.RunFolder(run_folder.run_path("BYOL", settings), "BYOL", settings)
        folder.describe({"train": train}, None, Augmentation())
        with folder:
            folder.log({"epoch": 0})

    for options, hint in (((), " or --dataset-name"), (("--run-dir", str(tmp_path / "run")), "")):
        started(60, *options)
        with pytest.raises(UserError, match=rf"other images \(train\); choose another --run-dir{hint}$"):
            started(61, *options)
    started(61, "--dataset-name", "other")


def test_before_a_run_has_begun_another_configuration_takes_its_place(module, tmp_path):
    """As after "out of memory; try a smaller --batch-size"."""
    for batch in (24, 12):
        settings = parse(module.BYOLSettings, "", [*TINY, "--batch-size", str(batch)])
        with run_folder.RunFolder(tmp_path / "run", "BYOL", settings) as folder:
            pass
        assert json.loads((tmp_path / "run" / "config.json").read_text())["settings"]["batch_size"] == batch
    never = parse(module.BYOLSettings, "", [*TINY, "--batch-size", "12", "--resume", "never"])
    with run_folder.RunFolder(folder.path, "BYOL", never):
        pass
    folder.log({"epoch": 0})
    settings = parse(module.BYOLSettings, "", [*TINY, "--batch-size", "24"])
    with pytest.raises(UserError, match="batch_size 12, now 24"), run_folder.RunFolder(folder.path, "BYOL", settings):
        pass


def test_a_run_that_has_not_begun_gives_way_to_a_program_with_more_options(module, tmp_path):
    """As after a mistake in the first step of a method that is being written."""
    settings = parse(module.BYOLSettings, "", TINY)
    with run_folder.RunFolder(tmp_path, "BYOL", settings):
        pass
    config = json.loads((tmp_path / "config.json").read_text())
    del config["settings"]["momentum"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with run_folder.RunFolder(tmp_path, "BYOL", settings):
        assert json.loads((tmp_path / "config.json").read_text())["settings"]["momentum"] == settings.momentum
    other = run_folder.RunFolder(tmp_path, "SimCLR", settings)
    with pytest.raises(UserError, match="'BYOL', now 'SimCLR'"):
        other.compare()


def test_a_method_without_a_file_has_no_program(module):
    assert run._program(module.BYOL) == BYOL
    assert run._program(type("Mine", (module.BYOL,), {"__module__": "builtins"})) is None


def test_a_program_that_was_edited_since_the_run_began_is_told(module, tmp_path, capsys):
    program = tmp_path / "mine.py"
    program.write_text("first")
    settings = parse(module.BYOLSettings, "", TINY)
    told = f"mine.py has changed since {tmp_path / 'run'} began; another --run-dir begins anew\n"

    def opened():
        folder = run_folder.RunFolder(tmp_path / "run", "BYOL", settings, program)
        folder.describe({}, None, Augmentation())
        with folder:
            pass
        return folder

    opened().log({"epoch": 0})
    opened()
    assert capsys.readouterr().err == ""
    program.write_text("second")
    folder = opened()
    assert capsys.readouterr().err == told
    assert len(results.program_digests(folder.config)) == 2
    folder.tell_if_edited(folder.config)  # as in the result: another version began it
    assert capsys.readouterr().err == told


def test_a_finished_run_is_only_read(module, finished, monkeypatch, capsys):
    """As in a folder in which nothing can be written, or by two at a time."""
    with open(finished / "lock") as lock:
        run_folder.fcntl.flock(lock, run_folder.fcntl.LOCK_EX)
        before = {path: path.stat().st_mtime_ns for path in finished.iterdir()}
        assert execute(module, finished, "--uniformity", "w2")
        assert before == {path: path.stat().st_mtime_ns for path in finished.iterdir()}
    assert "done already" in capsys.readouterr().out
    with pytest.raises(UserError, match="holds a run; --resume auto continues it"):
        execute(module, finished, "--uniformity", "w2", "--resume", "never")
    monkeypatch.setattr(module.BYOL, "ALPHA", {"w2": (5.0, 0.0)})
    with pytest.raises(UserError, match="weight of the term"):
        execute(module, finished, "--uniformity", "w2")


def test_another_data_set_is_told_before_it_is_looked_for(module, finished, tmp_path):
    options = ["--stage", "evaluate", "--data-dir", str(tmp_path / "nowhere"), "--run-dir", str(finished)]
    with pytest.raises(UserError, match="another configuration: dataset 'digits', now 'cifar10'"):
        run.execute(module.BYOL, parse(module.BYOLSettings, "", options))
    assert not (tmp_path / "nowhere").exists()


def test_a_run_is_not_continued_with_another_default_weight(module, tmp_path, monkeypatch):
    execute(module, tmp_path, "--uniformity", "w2")
    assert json.loads((tmp_path / "config.json").read_text())["alpha"] == [0.2, 0.2]
    monkeypatch.setattr(module.BYOL, "ALPHA", {"w2": (5.0, 0.0)})
    with pytest.raises(UserError, match=r"weight of the term \[0\.2, 0\.2\], now \[5\.0, 0\.0\]"):
        execute(module, tmp_path, "--uniformity", "w2")


def test_a_checkpoint_of_another_weight_is_refused_though_the_configuration_was_edited(module, tmp_path, monkeypatch):
    assert execute(module, tmp_path, "--uniformity", "w2", "--stage", "pretrain", "--monitor-every", 0)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"alpha": [5.0, 0.0]}))
    monkeypatch.setattr(module.BYOL, "ALPHA", {"w2": (5.0, 0.0)})
    with pytest.raises(UserError, match=r"checkpoint .* is of another configuration: alpha"):
        execute(module, tmp_path, "--uniformity", "w2", "--stage", "evaluate")


@pytest.mark.parametrize("name", Settings.__dataclass_fields__)
def test_a_run_may_be_continued_elsewhere_and_not_with_other_numbers(name):
    assert bool(differences({name: 1}, {name: 2})) == (name not in ELSEWHERE)


def test_a_run_is_not_continued_with_another_augmentation(module, tmp_path, monkeypatch):
    execute(module, tmp_path, "--stage", "pretrain")
    augmentation = FOR_DATASET["digits"]
    assert json.loads((tmp_path / "config.json").read_text())["augmentation"]["crop_scale"] == [0.4, 1.0]
    assert execute(module, tmp_path, "--stage", "pretrain")
    monkeypatch.setitem(FOR_DATASET, "digits", dataclasses.replace(augmentation, blur=0.5))
    with pytest.raises(UserError, match=r"augmentation: blur 0, now 0\.5"):
        execute(module, tmp_path)


def test_what_could_not_be_opened_is_not_locked(module, tmp_path, monkeypatch):
    folder = run_folder.RunFolder(tmp_path / "run", "BYOL", parse(module.BYOLSettings, "", TINY))

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(run_folder, "write_atomically", full)
        with pytest.raises(UserError, match="cannot use the run folder"), folder:
            pass
    with folder:
        pass


def test_a_lock_of_byte_ranges_that_is_held_is_one(module, tmp_path, monkeypatch):
    def flock(*_):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(run_folder.fcntl, "flock", flock)
    folder = run_folder.RunFolder(tmp_path / "run", "BYOL", parse(module.BYOLSettings, "", TINY))
    with pytest.raises(UserError, match="another process is working"), folder:
        pass


def test_a_file_system_that_cannot_lock_is_told_and_used(module, tmp_path, monkeypatch, capsys):
    def flock(*_):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(run_folder.fcntl, "flock", flock)
    with run_folder.RunFolder(tmp_path / "run", "BYOL", parse(module.BYOLSettings, "", TINY)):
        assert "cannot be locked" in capsys.readouterr().err


def test_a_child_that_outlives_the_run_does_not_hold_its_lock(module, tmp_path):
    """As the processes that decode images do for some seconds after SIGKILL."""
    settings = parse(module.BYOLSettings, "", TINY)
    folder = run_folder.RunFolder(tmp_path / "run", "BYOL", settings)
    with folder:
        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
        child.start()
        time.sleep(0.2)
    try:
        with folder:  # another process would say so
            pass
    finally:
        child.kill()
        child.join()


def test_only_a_folder_s_images_are_given_a_name(module, capsys):
    with pytest.raises(SystemExit):
        parse(module.BYOLSettings, "", ["--dataset", "digits", "--dataset-name", "cifar10"])
    told = capsys.readouterr().err
    assert "error: --dataset-name goes with --dataset folder" in told
    assert told.count("\n") == 1


def test_a_run_is_not_continued_where_the_user_forbids_it(module, finished):
    before = (finished / "result.json").read_bytes()
    with pytest.raises(UserError, match=r"holds a run; --resume auto continues it"):
        execute(module, finished, "--uniformity", "w2", "--resume", "never")
    execute(module, finished, "--uniformity", "w2", "--resume", "auto")
    assert (finished / "result.json").read_bytes() == before


def test_a_second_writer_is_refused(module, tmp_path):
    settings = parse(module.BYOLSettings, "", TINY)
    with (
        run_folder.RunFolder(tmp_path / "run", "BYOL", settings),
        pytest.raises(UserError, match="another process"),
        run_folder.RunFolder(tmp_path / "run", "BYOL", settings),
    ):
        pass


def test_a_run_that_begins_while_another_looks_is_no_foreign_folder(module, tmp_path, monkeypatch):
    folder = run_folder.RunFolder(tmp_path, "BYOL", parse(module.BYOLSettings, "", TINY))

    def foreign(self):
        (tmp_path / "config.json").write_text("{}")
        return True

    with monkeypatch.context() as patch:
        patch.setattr(run_folder.RunFolder, "_foreign", foreign)
        folder.compare()


def test_a_folder_of_something_else_is_refused(module, tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match="no run's folder"):
        execute(module, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("content", ["", "[]", '{"method": "BYOL"}', '{"settings": 3}'])
def test_a_damaged_config_is_named(module, tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=r"config\.json is damaged"):
        execute(module, tmp_path)


def test_a_config_of_a_data_set_that_is_no_name_is_another(module, tmp_path):
    (tmp_path / "config.json").write_text('{"method": "BYOL", "settings": {"dataset": ["x"]}}')
    with pytest.raises(UserError, match=r"belongs to another configuration: dataset \['x'\], now 'digits'"):
        execute(module, tmp_path)


@pytest.mark.parametrize(
    ("counts", "told"),
    [
        ((4,), "one class: accuracies will say nothing"),
        ((4, 1), "80.0 % of the test images are of one class: read accuracies beside this"),
        ((3, 1), None),
    ],
)
def test_what_accuracies_say_of_few_or_unbalanced_classes_is_told(module, tmp_path, monkeypatch, capsys, counts, told):
    for split in ("train", "test"):
        for label, count in enumerate(counts):
            (tmp_path / "images" / split / str(label)).mkdir(parents=True)
            for k in range(count):
                image = Image.new("RGB", (8, 8), (k, 9 * k, label))
                image.save(tmp_path / "images" / split / str(label) / f"{k}.png")
    options = ["--dataset", "folder", "--data-dir", str(tmp_path / "images"), "--limit-train", 4, "--batch-size", 2]
    assert execute(module, tmp_path / "run", *options, "--epochs", 1, "--monitor-every", 0)
    err = capsys.readouterr().err
    assert err.count("accuracies") == (told is not None)
    assert (told or "") in err


def test_a_loss_that_is_not_finite_stops_before_the_update(module, tmp_path):
    with pytest.raises(FloatingPointError, match=r"not finite at step \d+: loss nan"):
        execute(module, tmp_path / "run", "--weight-lr", 1e30, "--vector-lr", 1e30)
    assert "loss nan" in json.loads((tmp_path / "run" / "failed.json").read_text())["reason"]
    assert not (tmp_path / "run" / "result.json").exists()


def test_a_full_disk_does_not_hide_a_loss_that_is_not_finite(module, tmp_path, monkeypatch):
    write = run_folder.write_atomically

    def full(path, content):
        if path.name == "failed.json":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(path, content)

    monkeypatch.setattr(run_folder, "write_atomically", full)
    with pytest.raises(FloatingPointError, match=r"not finite at step \d+: loss nan"):
        execute(module, tmp_path / "run", "--weight-lr", 1e30, "--vector-lr", 1e30)


@pytest.mark.parametrize("stage", ["linear_probe", "measure"])
def test_an_evaluation_that_is_not_finite_marks_the_run_as_failed(module, tmp_path, monkeypatch, stage):
    def bad(*_, **__):
        raise FloatingPointError("bad") if stage == "linear_probe" else ValueError("1 of 4 rows hold NaN")

    monkeypatch.setattr(run.evaluate, stage, bad)
    with pytest.raises(FloatingPointError):
        execute(module, tmp_path / "run", "--monitor-every", 0)
    assert (tmp_path / "run" / "failed.json").exists()
    monkeypatch.undo()
    assert execute(module, tmp_path / "run", "--monitor-every", 0)
    assert not (tmp_path / "run" / "failed.json").exists()


def test_processes_that_torchrun_has_not_started_are_told(byol, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    done = byol()
    assert done.returncode == 2
    assert "start several processes with torchrun" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.fixture
def tree(tmp_path):
    """An image folder of two classes, twelve training and four test images."""
    for split, n in (("train", 6), ("test", 2)):
        for label in ("cat", "dog"):
            (tmp_path / "tree" / split / label).mkdir(parents=True)
            for k in range(n):
                image = Image.fromarray(np.full((8, 8, 3), 40 * k, np.uint8))
                image.save(tmp_path / "tree" / split / label / f"{k}.png")
    return tmp_path / "tree"


def test_a_folder_of_images_trains(module, tree, tmp_path):
    options = ("--dataset", "folder", "--data-dir", tree, "--limit-train", 12, "--batch-size", 4)
    assert execute(module, tmp_path / "run", *options)


@pytest.mark.parametrize(
    ("spoil", "options", "words"),
    [
        (lambda tree: shutil.rmtree(tree), (), "there is no folder"),
        (lambda tree: shutil.rmtree(tree / "test" / "dog"), (), "class dog"),
        (lambda tree: (tree / "train" / "cat" / "3.png").write_text("no image"), (), "3.png"),
        (lambda tree: Image.new("RGB", (9, 9)).save(tree / "train" / "dog" / "2.png"), (), "9 x 9"),
        (lambda tree: None, ("--batch-size", 64), "--batch-size 64 exceeds the 12"),
        (lambda tree: None, ("--data-dir", ""), "needs --data-dir"),
        (lambda tree: None, ("--device", "cuda:77"), "--device cuda:77"),
        (lambda tree: None, ("--limit-train", 13), "--limit-train 13"),
        (lambda tree: None, ("--device", "meta"), "--device meta"),
    ],
)
def test_bad_input_is_one_clear_line_and_nothing_is_written(module, tree, tmp_path, spoil, options, words):
    spoil(tree)
    standard = ("--dataset", "folder", "--data-dir", tree, "--limit-train", 12, "--batch-size", 4)
    with pytest.raises(UserError) as error:
        execute(module, tmp_path / "run", *standard, *options)
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "options",
    [
        ("--dataset", "imagenet"),
        ("--dim", "1"),
        ("--hidden-dim", "1" + "0" * 18),
        ("--uniformity", "entropy"),
        ("--epochs", "-1"),
        ("--epochs", "2.5"),
        ("--batch-size", "1"),
        ("--weight-lr", "nan"),
        ("--alpha-min", "1"),
        ("--alpha-max", "1"),
        ("--no-such-option",),
        ("--epoch", "3"),  # no abbreviations: a later option must not change what an old command means
    ],
)
def test_a_wrong_option_ends_with_status_2_and_one_line(module, options, capsys):
    with pytest.raises(SystemExit) as end:
        parse(module.BYOLSettings, "", list(options))
    assert end.value.code == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "error:" in message


def test_the_program_tells_a_mistake_in_one_line_with_status_2(byol, tmp_path):
    done = byol("--batch-size", 4096)
    assert done.returncode == 2
    assert done.stderr == "byol.py: error: --batch-size 4096 exceeds the 200 training images\n"
    assert not (tmp_path / "run").exists()


DECODERS_DIE = """
import functools, multiprocessing, os, pathlib, runpy, signal, sys, time
sys.path.insert(0, str(pathlib.Path(sys.argv[1]).parents[1]))
from wassersteinssl import data
from wassersteinssl.step import TrainingStep

def learn(self, *_):
    for child in multiprocessing.active_children():
        os.kill(child.pid, signal.SIGKILL)
    time.sleep(float(os.environ["TRAINS"]))

TrainingStep.learn, data.load, data.cpus = learn, functools.partial(data.load, stream=True), lambda: 1
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("trains", [0, 5])
def test_a_process_that_dies_while_it_decodes_is_told_in_a_line(tree, tmp_path, trains):
    """Whether the run waits for its images or trains meanwhile: PyTorch raises where the main thread is."""
    options = f"--dataset folder --data-dir {tree} --run-dir {tmp_path / 'run'} --batch-size 4 --limit-train 12".split()
    done = subprocess.run(
        [sys.executable, "-c", DECODERS_DIE, str(BYOL), *TINY, *options], text=True, capture_output=True, timeout=60,
        env={**environment(), "TRAINS": str(trains)},
    )  # fmt: skip
    assert done.returncode == 2
    told = r"byol\.py: error: a process that decodes images has died, for want of memory\? \(.+\)\n"
    assert re.fullmatch(told, done.stderr)


STREAMS = """
import functools, pathlib, runpy, sys
sys.path.insert(0, str(pathlib.Path(sys.argv[1]).parents[1]))
from wassersteinssl import data
data.load, data.cpus = functools.partial(data.load, stream=True), lambda: 2
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_a_signal_to_all_processes_leaves_those_that_decode_to_the_run(tree, tmp_path):
    """As torchrun, Slurm and a machine that shuts down send it."""
    folder = tmp_path / "run"
    options = f"--dataset folder --data-dir {tree} --run-dir {folder} --batch-size 4 --limit-train 12".split()
    options += ["--epochs", "1000", "--checkpoint-epochs", "1000"]
    run = subprocess.Popen(
        [sys.executable, "-c", STREAMS, str(BYOL), *TINY, *options], text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment(),
    )  # fmt: skip
    log, end = folder / "metrics.jsonl", time.monotonic() + 60
    while not log.exists() and run.poll() is None and time.monotonic() < end:
        time.sleep(0.05)
    os.killpg(run.pid, signal.SIGTERM)
    told = run.communicate(timeout=60)[0]
    assert run.returncode == 75, told
    assert list(folder.glob("checkpoint-*.pt"))


def test_a_term_that_needs_more_rows_than_a_batch_has_is_told(byol):
    options = ("--uniformity", "kl", "--alpha-max", 1, "--dim", 8)
    done = byol(*options, "--batch-size", 4)
    assert done.returncode == 2
    assert "--uniformity kl is infinite where the 8 rows of a batch's views do not span the 8 dimensions" in done.stderr
    assert byol(*options, "--batch-size", 8).returncode == 0


def test_a_term_that_needs_more_hidden_features_is_told(byol):
    done = byol("--uniformity", "kl", "--alpha-max", 1, "--dim", 8, "--batch-size", 8, "--hidden-dim", 6)
    assert done.returncode == 2
    assert "--uniformity kl is infinite where 6 hidden features do not span the 8 dimensions" in done.stderr


# ---- launchers ----


@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
def test_help_answers_without_torch(program, tmp_path):
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')")
    shown = subprocess.run(
        [sys.executable, str(program), "--help"],
        env={**environment(), "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True,
    )  # fmt: skip
    assert shown.returncode == 0, shown.stderr
    assert "--alpha-max" in shown.stdout


LAUNCHERS = {
    "AlignUniform/run_vanilla_alignuniform.sh": ("align_uniform.py", "none"),
    "BYOL/run_vanilla_byol.sh": ("byol.py", "none"),
    "BYOL/run_byol+lu.sh": ("byol.py", "lu"),
    "BYOL/run_byol+w2.sh": ("byol.py", "w2"),
    "BarlowTwins/run_vanilla_barlowtwins.sh": ("barlow_twins.py", "none"),
    "BarlowTwins/run_barlowtwins+lu.sh": ("barlow_twins.py", "lu"),
    "BarlowTwins/run_barlowtwins+w2.sh": ("barlow_twins.py", "w2"),
    "MoCov2/run_vanilla_moco.sh": ("moco_v2.py", "none"),
    "MoCov2/run_moco+lu.sh": ("moco_v2.py", "lu"),
    "MoCov2/run_moco+w2.sh": ("moco_v2.py", "w2"),
    "NNCLR/run_vanilla_nnclr.sh": ("nnclr.py", "none"),
    "SimCLR/run_vanilla_simclr.sh": ("simclr.py", "none"),
    "SimSiam/run_vanilla_simsiam.sh": ("simsiam.py", "none"),
    "Zero-CL/run_vanilla_zerocl.sh": ("zero_cl.py", "none"),
    "Zero-CL/run_zerocl+lu.sh": ("zero_cl.py", "lu"),
    "Zero-CL/run_zerocl+w2.sh": ("zero_cl.py", "w2"),
}


def test_the_launchers_and_programs_are_those_of_the_design():
    code = REPOSITORY / "code"
    assert {str(path.relative_to(code)) for path in code.glob("*/run_*.sh")} == set(LAUNCHERS)
    assert {path.parent / LAUNCHERS[str(path.relative_to(code))][0] for path in code.glob("*/run_*.sh")} == set(
        PROGRAMS.values()
    )


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_without_options_a_launcher_runs_cifar10_then_cifar100(launcher, tmp_path):
    code = tmp_path / "a path with spaces" / "code"
    here = (code / launcher).parent
    here.mkdir(parents=True)
    shutil.copy(REPOSITORY / "code" / "launch.sh", code)
    shutil.copy(REPOSITORY / "code" / launcher, here)
    stub = tmp_path / "python stub"
    stub.write_text('#!/bin/sh\nprintf "<%s>" "$@"\necho\n')
    stub.chmod(0o755)
    shown = subprocess.run(
        ["bash", str(code / launcher), "--data-dir", "my data"],
        cwd=tmp_path, env={**environment(), "PYTHON": str(stub)}, capture_output=True, text=True,
    )  # fmt: skip
    program, term = LAUNCHERS[launcher]
    common = f"<{here / program}><--uniformity><{term}><--data-dir><my data>"
    expected = [f"{common}<--dataset><{name}>" for name in ("cifar10", "cifar100")]
    assert shown.stdout.splitlines() == expected, shown.stderr


@pytest.mark.parametrize("option", ["--run-dir=here", "--dataset-name"])
def test_one_name_for_two_runs_is_refused_before_the_first(option):
    launcher = ["bash", str(BYOL.parent / "run_byol+w2.sh"), option, "name"]
    shown = subprocess.run(launcher, env={**environment(), "PYTHON": "false"}, capture_output=True, text=True)
    told = f"byol.py: error: {option.removesuffix('=here')} goes with --dataset: without it there are two runs\n"
    assert (shown.returncode, shown.stderr) == (2, told)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGUSR2"])
def test_a_launcher_of_two_runs_hands_a_signal_on_and_ends_with_the_run_s_status(name, tmp_path):
    stub = tmp_path / "python"
    stub.write_text(
        "#!/bin/sh\ntrap 'sleep 0.3; echo asked; exit 75' TERM\necho started\nwhile :; do sleep 0.05; done\n"
    )
    stub.chmod(0o755)
    launched = subprocess.Popen(
        ["bash", str(BYOL.parent / "run_byol+w2.sh")],
        env={**environment(), "PYTHON": str(stub)}, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert launched.stdout.readline() == "started\n"
    launched.send_signal(getattr(signal, name))
    assert launched.communicate(timeout=20)[0] == "asked\n"  # and no second run
    assert launched.returncode == 75


def test_a_launcher_trains_from_any_folder_and_passes_options_on(tmp_path):
    folder = tmp_path / "with space"
    folder.mkdir()
    options = [*TINY, "--stage", "pretrain", "--run-dir", str(folder / "my run")]
    done = subprocess.run(
        ["bash", str(BYOL.parent / "run_byol+w2.sh"), *options],
        cwd=folder, env={**environment(), "PYTHON": sys.executable}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads((folder / "my run" / "config.json").read_text())["settings"]["uniformity"] == "w2"


def test_more_than_the_memory_is_told_in_a_line(byol, tmp_path):
    done = byol("--hidden-dim", 10**12)
    assert done.returncode == 2
    assert done.stderr.startswith("byol.py: error: out of memory: ")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_stop_in_the_linear_evaluation_keeps_its_finished_epochs(byol, tmp_path, monkeypatch):
    module = load(BYOL)
    options = [*TINY, "--checkpoint-epochs", "50", "--linear-epochs", "3", "--run-dir", str(tmp_path / "stopped")]
    chosen = parse(module.BYOLSettings, "", options)
    learn, calls = evaluate.LinearProbe.learn, []

    def stopping(*arguments):
        calls.append(0)
        if len(calls) == 2:  # in the second epoch
            signal.raise_signal(signal.SIGTERM)
        return learn(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(evaluate.LinearProbe, "learn", stopping)
        assert not run.execute(module.BYOL, chosen)
    assert len(checkpoint.load(tmp_path / "stopped")["probe"]["history"]) >= 1
    assert run.execute(module.BYOL, chosen)
    assert run.execute(module.BYOL, dataclasses.replace(chosen, run_dir=str(tmp_path / "whole")))
    ours, theirs = (json.loads((tmp_path / name / "result.json").read_text()) for name in ("stopped", "whole"))
    assert timeless(ours) == timeless(theirs)


def test_the_device_has_a_number_where_one_is_needed(monkeypatch):
    """torch.cuda.set_device refuses "cuda"; here without a GPU."""
    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "zeros", lambda *_, device: types.SimpleNamespace(device=torch.device(device.type, 0)))
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    assert device.find_device("auto") == device.find_device("cuda") == torch.device("cuda", 0)
    assert chosen == [torch.device("cuda", 0)] * 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_a_run_on_a_gpu(byol, tmp_path, device):
    done = byol("--device", device, "--uniformity", "w2", "--precision", "bf16")
    assert done.returncode == 0, done.stderr
    assert "no CUDA graph" not in done.stderr
    assert json.loads((tmp_path / "run" / "result.json").read_text())["device"] == torch.cuda.get_device_name()


def test_unlabelled_images_are_those_of_pretraining(module, tmp_path, monkeypatch):
    load, steps = run.data.load, []

    def with_unlabelled(*arguments, **options):
        images = load(*arguments, **options)
        return dataclasses.replace(images, unlabeled=images.train.take(64))  # one batch

    monkeypatch.setattr(run.data, "load", with_unlabelled)
    monkeypatch.setattr(pretrain, "set_lr", lambda optimizer, multiplier: steps.append(multiplier))
    assert execute(module, tmp_path / "run", "--stage", "pretrain", "--monitor-every", 0)
    assert len(steps) == 3  # of three epochs
    assert checkpoint.newest(tmp_path / "run").name.startswith("checkpoint-000000004-")


def test_the_term_is_noted_without_its_weight(module, tmp_path):
    options = "--uniformity w2 --alpha-max 30 --stage pretrain --monitor-every 0".split()
    assert execute(module, tmp_path / "run", *options)
    assert all(0 < line["loss_uniformity"] <= 2**0.5 for line in metrics(tmp_path / "run"))


def test_a_batch_of_all_images_is_one(module, tmp_path):
    options = "--limit-train 64 --batch-size 64 --stage pretrain --monitor-every 0 --epochs 1".split()
    assert execute(module, tmp_path / "run", *options)
