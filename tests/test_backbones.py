"""The networks against torchvision's ResNet-18 and against the sizes the paper states."""

import pytest
import torch
from conftest import printed
from torch import nn

from wassersteinssl.backbones import predictor, projector, resnet18
from wassersteinssl.cli import UserError
from wassersteinssl.vision import torchvision

STEM = 7 * 7, 3 * 3  # taps of torchvision's first convolution, and of ours


def count(module):
    return sum(p.numel() for p in module.parameters())


@pytest.fixture(scope="module")
def reference():
    torch.manual_seed(0)
    return torchvision.models.resnet18(zero_init_residual=True)


def test_parameter_count_is_torchvisions_apart_from_stem_and_classifier(reference):
    without_classifier = count(reference) - count(reference.fc)
    assert count(resnet18()) == without_classifier - 3 * 64 * (STEM[0] - STEM[1])
    assert count(resnet18()) == 11_168_832  # the number CIFAR implementations of ResNet-18 give


def test_width_scales_every_layer(reference):
    narrow = dict(resnet18(16).named_parameters())
    assert resnet18(16).feature_dim == 128
    for name, p in resnet18(64).named_parameters():
        scaled = [size // 4 if size not in (1, 3) else size for size in p.shape]
        assert list(narrow[name].shape) == scaled, name


def test_same_layers_and_names_as_torchvision(reference):
    ours = resnet18().state_dict()
    theirs = {name: t for name, t in reference.state_dict().items() if not name.startswith("fc.")}
    assert list(ours) == list(theirs)
    assert {name for name in ours if ours[name].shape != theirs[name].shape} == {"conv1.weight"}
    ours_described = [f"{name}: {module!r}" for name, module in resnet18().named_modules() if name.startswith("layer")]
    assert ours_described == [
        f"{name}: {module!r}" for name, module in reference.named_modules() if name.startswith("layer")
    ]


def test_body_computes_what_torchvisions_does(reference):
    """With torchvision's weights loaded, and torchvision's stem replaced by ours, both give equal features."""
    torch.manual_seed(1)
    model = resnet18()
    for bn in (m for m in reference.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.uniform_(bn.weight, 0.5, 1.5)
        nn.init.uniform_(bn.running_var, 0.5, 1.5)
    body = {k: v for k, v in reference.state_dict().items() if not k.startswith(("fc.", "conv1."))}
    missing = model.load_state_dict(body, strict=False)
    assert missing.missing_keys == ["conv1.weight"]
    assert not missing.unexpected_keys
    theirs = torchvision.models.resnet18()
    theirs.load_state_dict(reference.state_dict())
    theirs.conv1 = nn.Conv2d(3, 64, 3, stride=1, padding=2, bias=False)
    theirs.conv1.weight = model.conv1.weight
    theirs.maxpool, theirs.fc = nn.Identity(), nn.Identity()
    images = torch.randn(3, 3, 32, 32)
    for module in (model, theirs):
        module.eval()
    arranged = images.contiguous(memory_format=model.layout)
    torch.testing.assert_close(model(images), theirs(arranged), rtol=0, atol=0)
    theirs.load_state_dict(model.state_dict())  # and the other way round, strictly


def test_stem_pads_by_two():
    model = resnet18(2)
    assert model.conv1(torch.zeros(1, 3, 32, 32)).shape == (1, 2, 34, 34)
    assert isinstance(model.maxpool, nn.Identity)
    assert isinstance(model.fc, nn.Identity)
    assert model.conv1.bias is None


@pytest.mark.parametrize("size", [(8, 8), (9, 13), (28, 28), (32, 32), (64, 64), (96, 96)])
def test_any_image_size(size):
    model = resnet18(4)
    assert model(torch.randn(2, 3, *size)).shape == (2, 32)


def test_blocks_start_as_the_identity():
    model = resnet18(4)
    blocks = [block for stage in (model.layer1, model.layer2, model.layer3, model.layer4) for block in stage]
    assert len(blocks) == 8
    x = torch.rand(2, 4, 6, 6)  # positive, as behind a ReLU
    torch.testing.assert_close(model.layer1(x), x)
    for block in blocks:
        assert not block.bn2.weight.any()
        assert (block.bn1.weight == 1).all()


def test_convolutions_start_as_torchvisions_do(reference):
    torch.manual_seed(0)
    for (name, ours), theirs in zip(resnet18().named_parameters(), reference.parameters(), strict=False):
        if ours.ndim == 4 and name != "conv1.weight":
            assert ours.std().item() == pytest.approx(theirs.std().item(), rel=0.05), name


def test_same_seed_same_weights():
    models = []
    for _ in range(2):
        torch.manual_seed(7)
        models.append(resnet18(4))
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(a, b)


def test_projector_is_the_papers():
    model = projector(512)
    assert [type(m).__name__ for m in model] == [*["Linear", "BatchNorm1d", "ReLU"] * 2, "Linear"]
    assert [(m.in_features, m.out_features) for m in model if isinstance(m, nn.Linear)] == [
        (512, 2048),
        (2048, 2048),
        (2048, 256),
    ]
    assert model[-1].bias is not None
    hidden = 512 * 2048 + 2048 + 2 * 2048 + 2048 * 2048 + 2048 + 2 * 2048
    assert count(model) == hidden + 2048 * 256 + 256
    assert model(torch.randn(4, 512)).shape == (4, 256)


def test_predictor_is_the_papers():
    model = predictor()
    assert [type(m).__name__ for m in model] == ["Linear", "BatchNorm1d", "ReLU", "Linear"]
    assert (model[0].in_features, model[0].out_features, model[-1].out_features) == (256, 2048, 256)


def test_projector_of_other_sizes():
    assert len(projector(8, 4, 2, layers=1)) == 1
    assert projector(8, 4, 2, layers=2)(torch.randn(3, 8)).shape == (3, 2)
    with pytest.raises(UserError, match="at least 1 layer"):
        projector(8, layers=0)


def test_width_must_be_positive():
    with pytest.raises(UserError, match="--width"):
        resnet18(0)


NARROW = """
import torch
from wassersteinssl.backbones import resnet18
for size in (58, 64, 96):
    network = resnet18(WIDTH)
    network.to(memory_format=network.layout)
    for _ in range(3):
        network(torch.randn(16, 3, size, size)).square().sum().backward()
"""


@pytest.mark.parametrize("width", [4, 8, 16])
def test_a_narrow_network_trains_on_larger_images(width):
    """In a process of its own: oneDNN crashes where its formats meet few channels."""
    printed(NARROW.replace("WIDTH", str(width)))
