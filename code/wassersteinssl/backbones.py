"""Networks: the ResNet-18 with a CIFAR stem, the projector and the predictor.

Legend of shapes: b images, H x W pixels, c = width, d = 8c features of the backbone (512 at width 64).
"""

import itertools

import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm
from torch.nn.modules.batchnorm import _BatchNorm

from wassersteinssl.cli import UserError
from wassersteinssl.vision import torchvision

BasicBlock = torchvision.models.resnet.BasicBlock


class _Uncounted(_BatchNorm):
    """Batch-norm that does not count its batches: only a cumulative average would need the count, and the counters made
    up 90 of the 1,015 operations that a step of BYOL dispatches."""

    def forward(self, x: Tensor) -> Tensor:
        self._check_input_dim(x)
        assert self.momentum is not None
        moments = self.running_mean, self.running_var
        return batch_norm(x, *moments, self.weight, self.bias, self.training, self.momentum, self.eps)


class BatchNorm1d(_Uncounted, nn.BatchNorm1d): ...


class BatchNorm2d(_Uncounted, nn.BatchNorm2d): ...


class ResNet18(nn.Module):
    """torchvision's ResNet-18 behind a stem for small images, (b, 3, H, W) -> (b, 8 * width).

    The stem is a 3x3 convolution of stride 1 and **padding 2**, as the paper's code has it (32 x 32 pixels become
    34 x 34), without max-pool. Everything behind it is torchvision's BasicBlock in torchvision's arrangement and under
    torchvision's attribute names: at width 64 state dicts load both ways, apart from the stem's `conv1` and the
    classifier `fc`. The last batch-norm of each residual branch starts at zero (Goyal et al., arXiv 1706.02677), so
    that every block begins as the identity.
    """

    def __init__(self, width: int = 64):
        super().__init__()
        self.feature_dim = 8 * width
        self.conv1 = nn.Conv2d(3, width, kernel_size=3, stride=1, padding=2, bias=False)
        self.bn1 = BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.Identity()
        self.layer1 = _stage(width, width, stride=1)
        self.layer2 = _stage(width, 2 * width, stride=2)
        self.layer3 = _stage(2 * width, 4 * width, stride=2)
        self.layer4 = _stage(4 * width, 8 * width, stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Identity()
        self._initialise()

    def _initialise(self) -> None:
        """torchvision's initialisation; batch-norm layers start at weight 1, bias 0 by themselves."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, BasicBlock):
                nn.init.zeros_(module.bn2.weight)

    @property
    def layout(self) -> torch.memory_format:
        """The memory format that images and weights should have where the weights are."""
        # oneDNN's backward pass of few channels crashes on larger images in this format (seen in torch 2.13).
        narrow = self.conv1.out_channels < 16 and self.conv1.weight.device.type == "cpu"
        return torch.contiguous_format if narrow else torch.channels_last

    def forward(self, x: Tensor) -> Tensor:
        x = x.contiguous(memory_format=self.layout)
        x = self.relu(self.bn1(self.conv1(x)))  # (b, 3, H, W) -> (b, c, H+2, W+2)
        x = self.layer1(self.maxpool(x))  # (b, c, H+2, W+2)
        x = self.layer2(x)  # (b, 2c, (H+2)/2, (W+2)/2)
        x = self.layer3(x)  # (b, 4c, (H+2)/4, (W+2)/4)
        x = self.layer4(x)  # (b, 8c, (H+2)/8, (W+2)/8)
        return self.fc(self.avgpool(x).flatten(1))  # (b, d)


def _stage(in_channels: int, channels: int, *, stride: int) -> nn.Sequential:
    """Two residual blocks; a 1x1 convolution fits the shortcut where the stage changes size or channels."""
    shortcut = None
    if stride != 1 or in_channels != channels:
        shortcut = nn.Sequential(
            nn.Conv2d(in_channels, channels, kernel_size=1, stride=stride, bias=False), BatchNorm2d(channels)
        )
    first = BasicBlock(in_channels, channels, stride, shortcut, norm_layer=BatchNorm2d)
    return nn.Sequential(first, BasicBlock(channels, channels, norm_layer=BatchNorm2d))


def resnet18(width: int = 64) -> ResNet18:
    """ResNet-18 for small images; `width` is the channels of the first stage, `feature_dim` = 8 * width."""
    if width < 1:
        raise UserError(f"--width must be at least 1, not {width}")
    return ResNet18(width)


def projector(in_dim: int, hidden_dim: int = 2048, out_dim: int = 256, layers: int = 3) -> nn.Sequential:
    """Linear-BN-ReLU, (layers - 1) times, then Linear with bias: (b, in_dim) -> (b, out_dim).

    The paper's is 512-2048-2048-256. Hidden linear layers keep PyTorch's default bias (the paper's code has none);
    in training it changes nothing, because the batch-norm that follows removes it.
    """
    if layers < 1:
        raise UserError(f"a projector has at least 1 layer, not {layers}")
    dims = [in_dim] + [hidden_dim] * (layers - 1)
    modules: list[nn.Module] = []
    for a, b in itertools.pairwise(dims):
        modules += [nn.Linear(a, b), BatchNorm1d(b), nn.ReLU(inplace=True)]
    return nn.Sequential(*modules, nn.Linear(dims[-1], out_dim))


def predictor(dim: int = 256, hidden_dim: int = 2048) -> nn.Sequential:
    """BYOL's predictor, a projector of two layers back into its own space: Linear-BN-ReLU-Linear, (b, dim) -> same."""
    return projector(dim, hidden_dim, dim, layers=2)
