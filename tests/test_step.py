"""The training step: nothing in it waits for the device, and replaying it is the same as running it."""

import copy
import re
import warnings

import pytest
import torch
import torch._inductor.config
from conftest import PROGRAMS, NoHostReads

from wassersteinssl import augment
from wassersteinssl import step as step_module
from wassersteinssl.augmentation import CROP_AND_FLIP, Augmentation
from wassersteinssl.cli import UserError
from wassersteinssl.data import load
from wassersteinssl.files import load_module
from wassersteinssl.optim import LARS, param_groups, set_lr
from wassersteinssl.step import EAGER, NonFiniteLoss, SlicedTerm, TrainingStep
from wassersteinssl.uniformity import MEASURES, lu_uniformity
from wassersteinssl.w2 import w2_uniformity


def polar(z):
    return w2_uniformity(z, solver="polar")


@pytest.fixture(scope="module")
def images():
    return load("digits", None, limit_train=128)


def make(name, images, device="cpu", term=None, lr_tensor=False, **options):
    program = load_module(PROGRAMS[name])
    chosen = getattr(program, name + "Settings")(dataset="digits", width=2, hidden_dim=16, dim=8, **options)
    torch.manual_seed(0)
    method = getattr(program, name)(chosen).place(torch.device(device))
    optimizer = LARS(param_groups(method, batch_size=32), lr=0.2)
    step = TrainingStep(method, optimizer, term, images, Augmentation(), chosen, torch.device(device))
    step.alpha.fill_(0.5)
    if lr_tensor:
        for group in optimizer.param_groups:
            group["lr"] = torch.tensor(group["lr"], device=device)
    return step


def train(step, images, steps, device="cpu"):
    split = images.train.to(device)
    order = torch.arange(len(split)).split(32)
    for k in range(steps):
        pixels, _ = next(iter(split.batches([order[k % len(order)]], device)))
        set_lr(step.optimizer, 0.1 * (k + 1))
        views = [augment.draw(step.augmentation, 32, split.size, augment.generator(1, 0, k, v)) for v in "ab"]
        if isinstance(step.term, SlicedTerm):
            step.term.draw(augment.generator(1, 0, k, "directions"))
        step(pixels, views)
        step.method.after_step((k + 1) / steps)


# Operations that a step may dispatch, views and memory aside: a few more than it does. On a GPU each is a launch.
OPERATIONS = {
    "AlignUniform": 920,
    "BarlowTwins": 745,
    "BYOL": 945,
    "MoCoV2": 960,
    "NNCLR": 815,
    "SimCLR": 775,
    "SimSiam": 795,
    "ZeroCL": 815,
}
TERMS = {"none": (None, 0), "w2": (polar, 95), "lu": (lu_uniformity, 100)}


@pytest.mark.parametrize("term", TERMS)
@pytest.mark.parametrize(("name", "operations"), OPERATIONS.items())
def test_a_step_never_waits_for_the_device_and_has_few_operations(name, operations, term, images, monkeypatch):
    function, more = TERMS[term]
    step = make(name, images, term=function, lr_tensor=True)
    if name == "ZeroCL":  # as on a GPU
        zero_cl = load_module(PROGRAMS[name])
        monkeypatch.setattr(zero_cl, "by_eigh", zero_cl.by_products)
    step.check_every_step = False
    train(step, images, 1)
    views = [augment.draw(step.augmentation, 32, (8, 8), augment.generator(1, 0, 0, v)) for v in "ab"]
    pixels = images.train.images[:32]
    with NoHostReads():
        set_lr(step.optimizer, 0.5)
    with NoHostReads() as mode:
        step(pixels, views)
        step.method.after_step(0.5)
    assert mode.count <= operations + more


@pytest.mark.parametrize(
    ("part", "given", "told"),
    [
        ("forward", lambda a, b: (a, b), r"BYOL.forward must return a dict of embeddings, z_a and z_b"),
        ("forward", lambda a, b: {"z_a": a}, r"BYOL.forward must return a dict of embeddings, z_a and z_b"),
        ("loss", lambda **embeddings: 1.0, r"BYOL.loss must return a 0-d tensor"),
        ("loss", lambda **embeddings: embeddings["z_a"][0], r"BYOL.loss must return a 0-d tensor"),
    ],
)
def test_what_a_method_of_ones_own_must_return_is_told(part, given, told, images, monkeypatch):
    step = make("BYOL", images)
    monkeypatch.setattr(step.method, part, given)
    with pytest.raises(UserError, match=told):
        train(step, images, 1)


@pytest.mark.parametrize("name", PROGRAMS)
def test_replaying_a_recorded_step_is_the_same_as_running_it(name, images):
    plain, recorded = (make(name, images, term=w2_uniformity, lr_tensor=True) for _ in range(2))
    replays = []

    def record(run):
        def replay():
            replays.append(1)
            run()

        return replay

    recorded.record = record
    train(plain, images, 8)
    train(recorded, images, 8)
    assert len(replays) == 8 - EAGER
    for (key, a), b in zip(plain.method.state_dict().items(), recorded.method.state_dict().values(), strict=True):
        assert torch.equal(a, b), key
    assert torch.equal(plain.sums, recorded.sums)


def test_where_recording_fails_training_goes_on_without(images, capsys):
    plain, recorded = make("BYOL", images), make("BYOL", images)

    def record(run):
        raise RuntimeError("operation not permitted when stream is capturing")

    recorded.record = record
    train(plain, images, 6)
    train(recorded, images, 6)
    assert capsys.readouterr().err.count("no CUDA graph") == 1
    assert torch.equal(plain.sums, recorded.sums)


def test_with_several_processes_the_augmentation_is_not_compiled(images, capsys, monkeypatch):
    monkeypatch.setattr(step_module.distributed, "size", lambda: 2)
    monkeypatch.setattr(step_module.distributed, "network", lambda method: method)
    assert make("BYOL", images, compile="augmentation").augment is augment.apply
    assert "augmentation not compiled" in capsys.readouterr().err


def test_compiling_says_what_it_costs_and_changes_nothing(images, capsys, monkeypatch):
    plain = make("BYOL", images)
    monkeypatch.setattr(torch, "compile", lambda function, **_: lambda *arguments: function(*arguments))
    compiled = make("BYOL", images, compile="all")
    train(plain, images, 2)
    train(compiled, images, 2)
    told = capsys.readouterr().err
    assert told.count("augmentation compiled in") == told.count("networks compiled in") == 1
    assert torch.equal(plain.sums, compiled.sums)


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_networks_of_every_method_compile_to_one_graph(name, images):
    torch._dynamo.reset()
    plain, compiled = make(name, images), make(name, images)
    compiled.network = torch.compile(compiled.network, fullgraph=True, backend="aot_eager")
    train(plain, images, 2)
    train(compiled, images, 2)
    torch.testing.assert_close(compiled.sums, plain.sums)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_w2_is_compiled_with_the_networks_but_on_a_cpu(images, device):
    assert (make("BYOL", images, device, term=w2_uniformity, compile="all").term is w2_uniformity) == (device == "cpu")
    assert make("BYOL", images, device, term=w2_uniformity, compile="augmentation").term is w2_uniformity
    assert make("BYOL", images, device, term=lu_uniformity, compile="all").term is lu_uniformity


def test_without_a_compiler_training_goes_on_without(images, capsys):
    plain, compiled = make("BYOL", images), make("BYOL", images, compile="augmentation")
    plain.augmentation = compiled.augmentation = CROP_AND_FLIP  # a small program: fails soon
    train(plain, images, 2)
    none = torch._inductor.config.patch({"cpp.cxx": ("/nonexistent/c++",)})
    with none, torch.compiler.config.patch(force_disable_caches=True):  # else an earlier result is used
        train(compiled, images, 2)
    assert capsys.readouterr().err.count("augmentation not compiled (InvalidCxxCompiler") == 1
    assert torch.equal(plain.sums, compiled.sums)


def test_the_compiler_does_not_advise_less_precision(monkeypatch, recwarn):
    def compile(function, **_):
        def call(*arguments):
            warnings.warn("TensorFloat32 tensor cores for float32 matrix multiplication available", stacklevel=1)
            warnings.warn("something else", stacklevel=1)
            return function(*arguments)

        return call

    monkeypatch.setattr(torch, "compile", compile)
    assert step_module.compiled(abs, "it")(-1) == 1
    assert [str(warning.message) for warning in recwarn] == ["something else"]


def test_a_step_moves_the_weights_by_the_gradient_of_loss_and_term_of_both_views(images):
    step = make("SimCLR", images, term=lu_uniformity)
    method = copy.deepcopy(step.method)
    optimizer, sums = LARS(param_groups(method, batch_size=32), lr=0.2), torch.zeros(2, dtype=torch.float64)
    for k in range(3):  # a gradient that stays from the step before would show in the second
        a, b = torch.randn(2, 32, 3, 8, 8, generator=torch.Generator().manual_seed(k))
        step.learn(a, b)
        z_a, z_b = method.embed(a), method.embed(b)
        loss, term = method.loss(z_a=z_a, z_b=z_b), lu_uniformity(torch.cat([z_a, z_b]))
        parameters = list(method.parameters())
        for p, gradient in zip(parameters, torch.autograd.grad(loss + 0.5 * term, parameters), strict=True):
            p.grad = gradient
        optimizer.step()
        sums += torch.stack([loss, term]).detach()
    torch.testing.assert_close(step.sums, sums)
    for ours, expected in zip(step.method.parameters(), method.parameters(), strict=True):
        torch.testing.assert_close(ours, expected)


def test_the_networks_see_the_images_normalised_by_their_own_statistics(images, monkeypatch):
    step, seen = make("SimCLR", images), []
    step.augmentation = Augmentation((1, 1), (1, 1), flip=0, jitter=0, gray=0, blur=0, solarize=0)
    monkeypatch.setattr(step, "learn", lambda *views: seen.extend(views))
    pixels = images.train.images[:32]
    step(pixels, [augment.draw(step.augmentation, 32, (8, 8), augment.generator(1, 0, 0, v)) for v in "ab"])
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (images.mean, images.std))
    for view in seen:
        torch.testing.assert_close(view, (pixels / 255 - mean) / std, rtol=1e-4, atol=1e-4)
    assert len(seen) == 2


def test_the_networks_compute_in_bfloat16_where_asked_and_the_loss_in_float32(images, monkeypatch):
    step, seen = make("SimCLR", images, precision="bf16"), []
    network, loss = step.network, step.method.loss
    step.network = lambda *views: seen.append(network(*views)) or seen[-1]
    monkeypatch.setattr(step.method, "loss", lambda **z: seen.append(z) or loss(**z))
    step.learn(*torch.randn(2, 32, 3, 8, 8))
    assert [z["z_a"].dtype for z in seen] == [torch.bfloat16, torch.float32]


def test_a_loss_that_is_not_finite_leaves_the_weights_alone(images):
    step = make("BYOL", images, term=lambda z: z.sum() * torch.nan)
    before = copy.deepcopy(dict(step.method.named_parameters()))
    with pytest.raises(NonFiniteLoss, match="uniformity nan"):
        train(step, images, 1)
    assert all(torch.equal(value, before[name]) for name, value in step.method.named_parameters())


@pytest.mark.parametrize("recorded", [False, True])
def test_a_loss_that_is_not_finite_leaves_the_weights_alone_where_nobody_looks_at_each_step(images, recorded):
    """As on a GPU, where looking would cost a wait."""
    step, whole = (make("BYOL", images, term=polar, lr_tensor=True) for _ in range(2))
    step.check_every_step = whole.check_every_step = False
    step.record = (lambda run: run) if recorded else None
    train(whole, images, 5)
    train(step, images, 5)
    step.alpha.fill_(torch.nan)
    train(step, images, 3)
    for value, expected in zip(step.method.parameters(), whole.method.parameters(), strict=True):
        if value.requires_grad:  # the moving average of the weights goes on
            assert torch.equal(value, expected)
    assert int(step.finite_steps) == 5
    assert all(s.isfinite().all() for state in step.optimizer.state.values() for s in state.values())
    with pytest.raises(NonFiniteLoss, match=r"not finite at step 5: .*gradient nan"):
        step.raise_if_not_finite()


def test_a_backward_pass_that_does_not_compile_is_run_as_it_is(capsys, monkeypatch):
    from torch._dynamo.backends.common import aot_autograd

    def refuses(*_):
        raise RuntimeError("out of shared memory")

    def compile(function, **options):
        return whole(function, backend=backend, **options)

    backend, whole = aot_autograd(fw_compiler=lambda graph, _: graph, bw_compiler=refuses), torch.compile
    monkeypatch.setattr(torch, "compile", compile)
    x = torch.ones(3, requires_grad=True)
    step_module.compiled(lambda x: x.sin().sum(), "it")(x).backward()
    torch.testing.assert_close(x.grad, torch.ones(3).cos())
    assert re.match("it not compiled .*out of shared memory.*training goes on without", capsys.readouterr().err)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_on_a_gpu_the_captured_step_trains_as_the_plain_one(name, precision, images):
    plain = make(name, images, "cuda", term=polar, precision=precision, cuda_graph="no")
    captured = make(name, images, "cuda", term=polar, precision=precision, cuda_graph="auto")
    train(plain, images, 8, "cuda")
    train(captured, images, 8, "cuda")
    assert captured._replay is not None
    torch.testing.assert_close(plain.sums, captured.sums, rtol=1e-2 if precision == "bf16" else 1e-4, atol=1e-3)
    if precision == "fp32":
        for (key, a), b in zip(plain.method.state_dict().items(), captured.method.state_dict().values(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-2, msg=lambda told, key=key: f"{key}: {told}")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", ["ssw", "sigreg"])
def test_on_a_gpu_the_captured_step_sees_the_directions_of_each_step(name, images):
    def trained(**options):
        measure = MEASURES[name]
        term = SlicedTerm(measure.function, measure.directions_per_slice, 8, torch.device("cuda"))
        step = make("BYOL", images, "cuda", term=term, **options)
        train(step, images, 8, "cuda")
        return step

    plain, captured = trained(cuda_graph="no"), trained(cuda_graph="auto")
    assert captured._replay is not None
    torch.testing.assert_close(plain.sums, captured.sums, rtol=1e-4, atol=1e-4)
