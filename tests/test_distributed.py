"""Several processes against one: the same losses and weights for every method, and what happens when one dies."""

import itertools
import os
import re
import signal
import socket
import subprocess
import sys
import unittest.mock

import pytest
import torch
from conftest import PROGRAMS, REPOSITORY, TINY, environment, load, metrics
from torch import nn

from wassersteinssl import augment, data, distributed, pretrain, run
from wassersteinssl.augmentation import Augmentation
from wassersteinssl.backbones import BatchNorm2d
from wassersteinssl.cli import UserError
from wassersteinssl.settings import parse

pytestmark = pytest.mark.skipif(os.name != "posix", reason="processes and signals of POSIX")

# Three steps: moving averages, queues and the change of the term's weight have had their effect.
SMALL = (
    "--dataset digits --limit-train 40 --width 2 --hidden-dim 16 --dim 8 --batch-size 24 --epochs 3 --device cpu "
    "--monitor-every 0 --alpha-max 0.5 --alpha-min 0 --uniformity"
).split()
# Each method with one term, so that each term is met with several methods, and the optional part of Zero-CL.
CASES = dict(zip(sorted(PROGRAMS), itertools.cycle(("lu", "w2"))))
MORE = {"ZeroCL": ["--instance-weight", "1"], "MoCoV2": ["--queue-size", "64"], "NNCLR": ["--queue-size", "64"]}


class Backbone(nn.Sequential):
    """Two layers with batch-norm in place of the ResNet-18, whose twenty would need a minute of messages."""

    feature_dim, layout = 16, torch.contiguous_format

    def __init__(self, width):
        first = [nn.Conv2d(3, 8, 3), BatchNorm2d(8), nn.ReLU(inplace=True)]
        super().__init__(*first, nn.Conv2d(8, 16, 3, 2), BatchNorm2d(16), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def trained(name):
    """All that a short training leaves: metrics, weights and buffers."""
    module = load(PROGRAMS[name])
    settings = parse(getattr(module, name + "Settings"), "", [*SMALL, CASES[name], *MORE.get(name, [])])
    torch.manual_seed(settings.seed)
    with unittest.mock.patch("wassersteinssl.method.resnet18", Backbone):
        method = getattr(module, name)(settings).place(torch.device("cpu"))
    images, lines = data.load("digits", None, limit_train=settings.limit_train), []
    # the full augmentation: the hue of a sample is shifted at a place that the whole batch decides
    pretrain.pretrain(
        method, images, Augmentation(crop_scale=(0.4, 1)), settings, torch.device("cpu"), state=None,
        save=lambda *_: None, log=lines.append, monitor=dict, stop=lambda: distributed.any_of(False),
    )  # fmt: skip
    return lines, method.state_dict()


def test_a_rank_that_was_left_in_the_environment_means_nothing(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setenv("RANK", "1")
    assert distributed.first()
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
        monkeypatch.setenv(name, "")
    assert (distributed.size(), distributed.rank(), distributed.local_rank()) == (1, 0, 0)


@pytest.mark.parametrize("number", ["two", "0", "-1"])
def test_a_world_size_that_is_none_is_told(monkeypatch, number):
    monkeypatch.setenv("WORLD_SIZE", number)
    assert distributed.first()  # it can be told
    with pytest.raises(UserError, match=f"WORLD_SIZE is '{number}': start several processes with torchrun"):
        distributed.join()


def test_a_rank_that_is_no_number_is_told(monkeypatch):
    for name, text in {"WORLD_SIZE": "2", "RANK": "x", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(name, text)
    with pytest.raises(UserError, match=r"WORLD_SIZE is 2, but .*'x'.*: start several processes with torchrun"):
        distributed.join()


@pytest.mark.parametrize("rank", ["2", "0"])
def test_a_rank_beyond_the_size_and_a_port_that_is_taken_are_told(monkeypatch, rank):
    with socket.socket() as taken:
        taken.bind(("localhost", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for name, text in {"WORLD_SIZE": "2", "RANK": rank, "MASTER_ADDR": "localhost", "MASTER_PORT": port}.items():
            monkeypatch.setenv(name, text)
        with pytest.raises(UserError, match="RANK is 2, WORLD_SIZE 2" if rank == "2" else "EADDRINUSE"):
            distributed.join()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_who_waits_for_processes_that_nobody_started_says_so_and_heeds_a_signal(tmp_path, number):
    """As with a WORLD_SIZE that is left over in a shell."""
    (tmp_path / "program.py").write_text(
        "import os, signal, threading\n"
        "from wassersteinssl import distributed\n"
        "from wassersteinssl.cli import Parser\n"
        "Parser(continues=True).parse_args()\n"
        "distributed.PATIENCE = 0.5\n"
        f"threading.Timer(3, os.kill, (os.getpid(), {int(number)})).start()\n"
        "distributed.join()\n"
    )
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    done = subprocess.run(
        [sys.executable, str(tmp_path / "program.py")], stderr=subprocess.PIPE, text=True, timeout=60,
        env={**environment(), "PYTHONPATH": str(REPOSITORY / "code"), **shared},
    )  # fmt: skip
    assert done.stderr.startswith(f"process 0 still waits for the others at localhost:{port} (WORLD_SIZE is 2;")
    assert done.returncode == -number


def test_a_signal_to_a_process_that_has_said_why_it_ends_changes_nothing(tmp_path):
    """As torchrun sends one to all others once a process has ended."""
    (tmp_path / "program.py").write_text(
        "import atexit, os, signal\n"
        "from wassersteinssl import run\n"
        "from wassersteinssl.cli import Parser\n"
        "def lose(*_): raise RuntimeError('Connection closed by peer')\n"
        "Parser(continues=True).parse_args()\n"
        "run.execute = lose\n"
        "atexit.register(os.kill, os.getpid(), signal.SIGTERM)\n"
        "run.main(None, None)\n"
    )
    several = {"PYTHONPATH": str(REPOSITORY / "code"), "WORLD_SIZE": "2", "RANK": "0"}
    done = subprocess.run(
        [sys.executable, str(tmp_path / "program.py")], stderr=subprocess.PIPE, text=True, timeout=60,
        env=environment() | several,
    )  # fmt: skip
    why = "another process of the run has ended (Connection closed by peer)"
    assert done.stderr == f"program.py: stopped: {why}; the same command continues the run\n"
    assert done.returncode == 75


def refused():
    """How a process leaves a block in which the first process has met a mistake of the user's."""
    try:
        with distributed.first_alone():
            raise UserError("told once")
    except (UserError, SystemExit) as error:
        return repr(error)


def of_each_process(path):
    """What each of two processes does for the tests below."""
    torch.set_num_threads(1)
    distributed.join()
    left = {name: trained(name) for name in CASES}
    left["any"] = [distributed.any_of(distributed.rank() == k) for k in range(3)]
    left["first"] = distributed.from_first(lambda: f"of process {distributed.rank()}")
    left["refused"] = refused(), torch.distributed.is_initialized()
    torch.save(left, f"{path}/{distributed.rank()}.pt")


def start_two(*command, **keywords):
    """The program twice, as torchrun would start it."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    shared = {**environment(), "PYTHONPATH": str(REPOSITORY / "code"), "WORLD_SIZE": "2"}
    shared |= {"MASTER_ADDR": "localhost", "MASTER_PORT": port}
    command = [sys.executable, *map(str, command)]
    return [subprocess.Popen(command, env={**shared, "RANK": str(k)}, text=True, **keywords) for k in range(2)]


@pytest.fixture(scope="module")
def by_two(tmp_path_factory):
    """What of_each_process has left in each of two."""
    folder = tmp_path_factory.mktemp("two")
    processes = start_two(__file__, folder)
    assert [process.wait(timeout=300) for process in processes] == [0, 0]
    return [torch.load(folder / f"{k}.pt", weights_only=True) for k in range(2)]


@pytest.mark.parametrize("name", CASES)
def test_two_processes_train_as_one(name, by_two):
    lines, state = trained(name)
    ours, other = by_two[0][name], by_two[1][name]
    assert other[0] == []  # one process alone writes
    for line, single in zip(ours[0], lines, strict=True):
        for key in ("loss", "loss_uniformity", "alpha", "lr", "w2_batch"):
            assert line[key] == pytest.approx(single[key], rel=2e-4), key
    for key, value in state.items():
        torch.testing.assert_close(ours[1][key], value, rtol=1e-3, atol=2e-4, msg=lambda text, key=key: key + text)
        assert torch.equal(ours[1][key], other[1][key]), key  # the queue and the statistics of batch-norm among them


def test_processes_agree(by_two):
    for left in by_two:
        assert left["any"] == [True, True, False]
        assert left["first"] == "of process 0"
    assert [left["refused"] for left in by_two] == [("UserError('told once')", False), ("SystemExit(2)", False)]


@pytest.mark.parametrize("n", [12, 30])  # whether or not four divides a share
def test_shares_of_a_batch_are_augmented_as_the_batch(n):
    images = torch.randint(256, (n, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    everything = Augmentation(jitter=1, hue=0.5)
    parameters = augment.draw(everything, n, (8, 8), augment.generator(1, 0, 0, "a"))
    whole = augment.apply(images, parameters, everything, (0.5,) * 3, (0.2,) * 3)
    parts = [
        augment.apply(part, parameters.share(k, 3), everything, (0.5,) * 3, (0.2,) * 3)
        for k, part in enumerate(images.chunk(3))
    ]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "words"),
    [(("--batch-size", 20), "divisible"), (("--device", "cuda:1"), "each takes its own"), (("--device", "mps"), "cpu")],
)
def test_what_does_not_fit_several_processes_is_told(monkeypatch, options, words):
    monkeypatch.setenv("WORLD_SIZE", "3")
    module = load(PROGRAMS["BYOL"])
    settings = parse(module.BYOLSettings, "", [*SMALL, "w2", *map(str, options)])
    with pytest.raises(UserError, match=words):
        run._prepare(module.BYOL, settings)


def children(process):
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True).stdout
    return sorted(map(int, found.split()))


def wait_for(epoch, output):
    for line in output:
        if line.startswith(f"epoch {epoch} "):
            return
    raise AssertionError(f"no epoch {epoch}")


def test_a_process_that_dies_ends_all_and_the_same_command_continues(tmp_path):
    folder = tmp_path / "run"
    options = [*TINY, "--limit-train", "100", "--batch-size", "40", "--epochs", "6", "--monitor-every", "0"]
    options += ["--uniformity", "w2", "--stage", "pretrain", "--device", "cpu"]
    command = [str(PROGRAMS["BYOL"]), *options, "--run-dir", str(folder)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}

    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    process = subprocess.Popen([*torchrun, *command], env=environment(), text=True, **pipes)
    wait_for(0, process.stdout)
    os.kill(children(process)[-1], signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    told = r"byol\.py: stopped: another process of the run has ended \(.+\); the same command continues the run\n"
    assert re.search(told, errors)
    assert 1 <= len(metrics(folder)) < 6

    first, second = start_two(*command, **pipes)
    wait_for(len(metrics(folder)), first.stdout)
    second.send_signal(signal.SIGTERM)  # to one of them; they agree on the step after which both end
    (_, errors), (output, silent) = (process.communicate(timeout=60) for process in (first, second))
    assert (first.returncode, second.returncode) == (75, 75)
    assert errors == f"{folder}: stopped, checkpoint written; the same command continues it\n"
    if torch.__version__.startswith("2.10."):  # whose gloo talks
        output = re.sub(r"\[Gloo\].*\n", "", output)
    assert (output, silent) == ("", "")
    assert 2 <= len(metrics(folder)) < 6

    module = load(PROGRAMS["BYOL"])  # and on with one process
    for path in (folder, tmp_path / "one"):
        assert run.execute(module.BYOL, parse(module.BYOLSettings, "", [*options, "--run-dir", str(path)]))
    assert [line["epoch"] for line in metrics(folder)] == list(range(6))
    for line, single in zip(metrics(folder), metrics(tmp_path / "one"), strict=True):
        assert line["loss"] == pytest.approx(single["loss"], rel=0.01)
        assert line["loss_uniformity"] == pytest.approx(single["loss_uniformity"], rel=0.01)


if __name__ == "__main__":
    of_each_process(sys.argv[1])
