"""Two-view augmentation of a whole batch at once, on whatever device the images live.

Random numbers are drawn on the CPU (`draw`), so that every device sees the same augmentation. `apply` then runs without
a host synchronisation or a data-dependent shape, and can be captured in a CUDA graph.

Crop, resize, flip and blur are linear and separable: each is a pair of small matrices for each sample, applied by
batched matrix products. This resizes with antialiasing exactly as PIL does.

Legend: n images of size H x W, output size h x w; pixels are on the scale 0..255 until they are normalised.
"""

import hashlib
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from wassersteinssl.augmentation import Augmentation
from wassersteinssl.device import moved

GREY = (0.299, 0.587, 0.114)  # luma of R, G, B
CHUNK_PIXELS = 64 * 32 * 32  # pixels per thread at a time on a CPU, so that they stay in its second-level cache


def _field(first: int, number: int = 1) -> property:
    """Row `first` of the table, or `number` rows from there on."""
    if number == 1:
        return property(lambda self: self.table[first])
    return property(lambda self: self.table[first : first + number])


@dataclass(frozen=True)
class Parameters:
    """What one `draw` chose. `table` has a row per quantity and a column per sample, so that one copy moves all of it.

    Blend k of a sample is x <- f x + (1 - f) (a mean(g) + b g), g the grey image: brightness, contrast and saturation
    in the sample's own order. Hue is shifted before blend k = `place`, or after all three if `place` is 3. `order`
    sorts the samples by `place`, so that hue is computed only once for each sample.
    """

    table: Tensor  # (20, n) float32
    cuts: tuple[int, ...] | None = None  # place k is at cuts[k]..cuts[k + 1] of the order; None: its quarter k

    box = _field(0, 4)  # top, left, height, width of the crop, in pixels
    flip = _field(4)  # 1: mirrored
    factor = _field(5, 3)  # (3, n) f
    mean_weight = _field(8, 3)  # (3, n) a, 0 or 1
    grey_weight = _field(11, 3)  # (3, n) b, 0 or 1
    hue = _field(14)  # in turns
    gray = _field(15)  # 1: made grey
    sigma = _field(16)  # of the blur, in pixels; 0: none
    solarize = _field(17)  # 1: solarised
    place = _field(18)  # 0, 1, 2 or 3
    order = _field(19)  # a permutation of the samples

    def to(self, device: torch.device | str) -> "Parameters":
        return Parameters(moved(self.table, device), self.cuts)

    def share(self, rank: int, size: int) -> "Parameters":
        """The parameters of the rank-th of `size` equal shares of the samples. On the CPU."""
        if size == 1:
            return self
        table = self.table.chunk(size, dim=1)[rank].clone()
        table[19] = table[18].argsort(stable=True)
        return Parameters(table, tuple(int((table[18] < k).sum()) for k in range(5)))


def joined(views: Sequence[Parameters]) -> list[Parameters]:
    """The parameters of several views of n images joined into one set, for the images repeated for each view: then one
    `apply` serves all views, which on a GPU halves the launches. If four does not divide n, and for shares, they are
    returned as they are."""
    n = views[0].table.shape[1]
    if n % 4 or any(view.cuts is not None for view in views):
        return list(views)
    table = torch.cat([view.table for view in views], dim=1)
    # the first quarter of every view, then the second ones, ...
    table[19] = torch.cat([(view.order + k * n).view(4, -1) for k, view in enumerate(views)], dim=1).flatten()
    return [Parameters(table)]


def generator(seed: int, epoch: int, step: int, stream: int | str) -> torch.Generator:
    """A CPU generator whose state is a pure function of the arguments; `stream` distinguishes the views of a step."""
    digest = hashlib.sha256(f"{seed} {epoch} {step} {stream}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def _draw_boxes(augmentation: Augmentation, size: tuple[int, int], u: Tensor) -> list[Tensor]:
    """Crop boxes (top, left, height, width), each (n,), from u (22, n) uniform in [0, 1).

    RandomResizedCrop's distribution: of ten tries with area ~ U(scale) H W and log ratio ~ U(log ratio), the first that
    has w = round(sqrt(area ratio)) <= W and h = round(sqrt(area / ratio)) <= H; if none has, the largest central box
    with a ratio in the range. The position is uniform over the integers that keep the box inside.
    """
    H, W = size
    (scale_low, scale_high), (ratio_low, ratio_high) = augmentation.crop_scale, augmentation.crop_ratio
    area = H * W * (scale_low + (scale_high - scale_low) * u[:10])  # (10, n)
    ratio = torch.exp(math.log(ratio_low) + math.log(ratio_high / ratio_low) * u[10:20])
    width, height = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
    fits = (width > 0) & (width <= W) & (height > 0) & (height <= H)
    found, first = fits.any(0), fits.int().argmax(0, keepdim=True)  # argmax: the first of the largest
    width = torch.where(found, width.gather(0, first)[0], min(W, round(H * ratio_high)))  # (n,)
    height = torch.where(found, height.gather(0, first)[0], min(H, round(W / ratio_low)))
    top = torch.where(found, u[20] * (H - height + 1), (H - height) / 2).floor()
    left = torch.where(found, u[21] * (W - width + 1), (W - width) / 2).floor()
    return [top, left, height, width]


def draw(augmentation: Augmentation, n: int, size: tuple[int, int], generator: torch.Generator) -> Parameters:
    """Draw the augmentation of n images of `size` (H, W), with torchvision's distributions, on the CPU.

    For every sample the order of brightness, contrast, saturation and hue is uniform over the 24 orders. Across the
    batch the place of hue is stratified: each place gets a quarter of the samples, and the remainder is random.
    """
    u = torch.rand(35, n, dtype=torch.float64, generator=generator)
    order = torch.randperm(n, generator=generator)
    odd = torch.randint(4, (), generator=generator)
    place = torch.empty(n).index_copy_(0, order, ((4 * torch.arange(n) + 3 - odd) // max(n, 1)).float())
    of_box, (jitter, hue, blur, sigma, flip, gray, solarize), factor, rank = u.split((22, 7, 3, 3))
    a = augmentation
    jittered = jitter < a.jitter
    spread = torch.tensor([a.brightness, a.contrast, a.saturation])[:, None]
    factor = torch.where(jittered, 1 + spread * (2 * factor - 1), 1.0)  # (3, n)
    blend = rank.argsort(0)  # (3, n): 0 brightness, 1 contrast, 2 saturation, in a uniformly random order
    sigma = a.blur_sigma[0] + (a.blur_sigma[1] - a.blur_sigma[0]) * sigma
    rows = [
        *_draw_boxes(a, size, of_box),
        flip < a.flip,
        *factor.gather(0, blend),
        *(blend == 1),
        *(blend == 2),
        torch.where(jittered, a.hue * (2 * hue - 1), 0.0),
        gray < a.gray,
        torch.where(blur < a.blur, sigma, 0.0),
        solarize < a.solarize,
        place,
        order,
    ]
    return Parameters(torch.stack([row.float() for row in rows]))


def _resize_matrix(start: Tensor, length: Tensor, mirrored: Tensor | None, inside: int, outside: int) -> Tensor:
    """(n, outside, inside): row i holds PIL's bicubic weights of output pixel i on the box [start, start + length).

    R_ij ~ k((j + 1/2 - c_i) / s), c_i = start + (i + 1/2) length / outside, s = max(length / outside, 1), zero outside
    the box, rows summing to 1; k is the cubic kernel with a = -1/2. A mirrored sample has its rows reversed.
    """
    pixel = torch.arange(inside, dtype=torch.float32, device=start.device) + 0.5
    along = (torch.arange(outside, dtype=torch.float32, device=start.device) + 0.5) / outside  # (outside,)
    start, length = start[:, None], length[:, None]  # (n, 1)
    if mirrored is not None:
        along = mirrored[:, None] + (1 - 2 * mirrored[:, None]) * along  # (n, outside)
    scale = (length / outside).clamp(min=1)
    beyond = (pixel < start) | (pixel > start + length)  # (n, inside)
    position = (pixel / scale).masked_fill_(beyond, 1e6)  # where the kernel is 0
    centre = (start + along * length) / scale
    # With r = max(1 - |t|, -1) and q = max(r, 0), 2 k(t) = r (r + 1)^2 + 2 q^2 - 4 q^3 on both pieces of the kernel.
    r = (position[:, None, :] - centre[:, :, None]).abs_().neg_().add_(1).clamp_(min=-1)  # (n, outside, inside)
    q = r.clamp(min=0)
    weights = (r + 1).square_().mul_(r)
    square = q.square()
    weights.add_(square, alpha=2).addcmul_(square, q, value=-4)
    return weights.mul_(1 / weights.sum(-1, keepdim=True))


def _blur_matrix(sigma: Tensor, size: int, largest: float) -> Tensor:
    """(n, size, size): a Gaussian cut at 4 sigma, edge pixels repeated; the identity where sigma is 0."""
    radius = int(4 * largest + 0.5)
    offset = torch.arange(-radius, radius + 1, device=sigma.device)  # (taps,)
    sigma = sigma[:, None]
    kernel = torch.exp(-0.5 * (offset / sigma.clamp(min=1e-3)).square())  # (n, taps)
    kernel = kernel * (offset.abs() <= torch.floor(4 * sigma + 0.5))
    kernel = kernel / kernel.sum(-1, keepdim=True)
    pixel = torch.arange(size, device=sigma.device)
    source = (pixel + offset[:, None]).clamp(0, size - 1)  # (taps, size): the pixel that tap t of pixel i reads
    return (kernel @ (source[:, :, None] == pixel).float().flatten(1)).unflatten(1, (size, size))


def _rows_times(x: Tensor, matrix: Tensor) -> Tensor:
    """Every row of pixels by its sample's matrix: x (n, 3, H, W), matrix (n, w, W) -> (n, 3, H, w)."""
    return torch.bmm(x.flatten(1, 2), matrix.mT).unflatten(1, (3, -1))


def _columns_times(x: Tensor, matrix: Tensor) -> Tensor:
    """Every column of pixels by its sample's matrix: x (n, 3, H, W), matrix (n, h, H) -> (n, 3, h, W)."""
    matrix = matrix[:, None].expand(-1, 3, -1, -1)  # copying a matrix three times is cheaper than moving the pixels
    return torch.bmm(matrix.flatten(0, 1), x.flatten(0, 1)).unflatten(0, (-1, 3))


def _grey(x: Tensor) -> Tensor:
    return (x[:, 0] * GREY[0]).add_(x[:, 1], alpha=GREY[1]).add_(x[:, 2], alpha=GREY[2])  # (n, h, w)


def _blend(x: Tensor, factor: Tensor, mean_weight: Tensor, grey_weight: Tensor) -> None:
    """In place, x <- clamp(f x + (1 - f) (a mean(g) + b g), 0, 255), g the grey image; x (n, 3, h, w); f, a, b (n,).

    Brightness is (a, b) = (0, 0), contrast (1, 0) and saturation (0, 1): one formula, so one pass, for all three.
    """
    grey = _grey(x)
    rest = 1 - factor
    mean = grey.mean((1, 2)).mul_(mean_weight * rest)
    reference = grey.mul_((grey_weight * rest)[:, None, None]).add_(mean[:, None, None])
    x.mul_(factor[:, None, None, None]).add_(reference[:, None]).clamp_(0, 255)


def _shift_hue(x: Tensor, shift: Tensor, largest: float) -> None:
    """In place, turn the hue of x (n, 3, h, w) by shift (n,), in turns; HSV's value and saturation stay.

    M, m: largest and smallest channel, C = M - m; H: hue in sextants, red 0, green 2, blue -2. Then
    |H| = 1 + (g + b - r - m) / C, its sign is that of g - b, and channel c is m + C clamp(2 - d(H, H_c), 0, 1) with
    d the distance on the circle of length 6.
    """
    red, green, blue = x.unbind(1)  # (n, h, w)
    high, low = torch.maximum(red, green), torch.minimum(red, green)
    high, low = torch.maximum(high, blue), torch.minimum(low, blue)
    chroma = high.sub_(low).clamp_(min=1e-6)  # of a grey pixel: not 0 / 0
    hue = (green + blue).sub_(red).sub_(low).div_(chroma).add_(1)
    hue = hue.copysign_(green - blue).add_(6 * shift[:, None, None])
    if largest > 1 / 3:  # 2 - d = ||H - H_c| - 3| - 1 only as long as |H - H_c| <= 7
        hue = hue.add_(3).remainder_(6).sub_(3)
    near = torch.stack((hue, hue - 2, hue + 2), 1).abs_().sub_(3).abs_().sub_(1).clamp_(0, 1)  # (n, 3, h, w)
    torch.addcmul(low[:, None], near, chroma[:, None], out=x)


def _solarize(x: Tensor, chosen: Tensor, threshold: float) -> None:
    """In place, x <- 255 - x where x >= threshold, for the chosen samples; x (n, 3, h, w), chosen (n,) of 0 and 1."""
    bright = torch.ge(x, threshold, out=torch.empty_like(x)).mul_(chosen[:, None, None, None])  # 0 or 1
    x.addcmul_(bright, torch.rsub(x, 255, alpha=2))


def _normalize(x: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """In place, (x / 255 - mean) / std; x (n, 3, h, w) float."""
    for channel in range(3):  # with Python numbers: to make a tensor of them on a GPU is a copy that waits
        x[:, channel].mul_(1 / (255 * std[channel])).sub_(mean[channel] / std[channel])
    return x


def normalize(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(images / 255 - mean) / std: images (n, 3, H, W) uint8 -> float32. For test images."""
    return _normalize(images.to(torch.float32, copy=True), mean, std)


def _augment(x: Tensor, p: Parameters, a: Augmentation, size: tuple[int, int], quarters: list[slice]) -> Tensor:
    """x (n, 3, H, W) float -> (n, 3, h, w), both on the scale 0..255; quarters[k] contains all samples of place k."""
    (H, W), (h, w) = x.shape[2:], size
    top, left, height, width = p.box
    # As PIL does: rows first, and both results clamped to the range of a pixel.
    x = _rows_times(x, _resize_matrix(left, width, p.flip if a.flip > 0 else None, W, w)).clamp_(0, 255)
    x = _columns_times(x, _resize_matrix(top, height, None, H, h)).clamp_(0, 255)
    if a.jitter > 0:
        for k, quarter in enumerate(quarters):
            if a.hue > 0 and quarter.start < quarter.stop:
                _shift_hue(x[quarter], p.hue[quarter] * (p.place[quarter] == k), a.hue)
            if k < 3:
                _blend(x, p.factor[k], p.mean_weight[k], p.grey_weight[k])
    if a.gray > 0:
        x.lerp_(_grey(x)[:, None], p.gray[:, None, None, None])
    if a.blur > 0:
        vertical = _blur_matrix(p.sigma, h, a.blur_sigma[1])
        horizontal = vertical if h == w else _blur_matrix(p.sigma, w, a.blur_sigma[1])
        x = _columns_times(_rows_times(x, horizontal), vertical)
    if a.solarize > 0:
        _solarize(x, p.solarize, a.solarize_threshold)
    return x


@torch.no_grad()
def apply(
    images: Tensor,
    parameters: Parameters,
    augmentation: Augmentation,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    output_size: int | tuple[int, int] | None = None,
) -> Tensor:
    """Augment and normalise: images (n, 3, H, W) uint8 -> (n, 3, h, w) float32 on their device.

    `parameters` come from `draw` with the same augmentation, n and (H, W), moved to that device. Without `output_size`
    the output has the size of the images.
    """
    columns = parameters.table.shape[1]
    if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] != 3 or len(images) != columns:
        raise ValueError(f"expected ({columns}, 3, H, W) uint8 images, got {tuple(images.shape)} {images.dtype}")
    n, _, H, W = images.shape
    h, w = (output_size, output_size) if isinstance(output_size, int) else output_size or (H, W)
    chunk = n
    if images.device.type == "cpu" and not torch.compiler.is_compiling():
        chunk = max(1, CHUNK_PIXELS * torch.get_num_threads() // (h * w))
    order = parameters.order.long()
    quarters_of_n = [(k * n // 4, -(-(k + 1) * n // 4)) for k in range(4)]
    places = quarters_of_n if parameters.cuts is None else list(itertools.pairwise(parameters.cuts))
    table = parameters.table.index_select(1, order)
    out = torch.empty(n, 3, h, w, device=images.device)
    with torch.autocast(images.device.type, enabled=False):  # pixels keep their float32
        for start in range(0, n, chunk):
            stop = min(start + chunk, n)
            quarters = [slice(max(first, start) - start, min(last, stop) - start) for first, last in places]
            x = images.index_select(0, order[start:stop]).float()
            x = _augment(x, Parameters(table[:, start:stop]), augmentation, (h, w), quarters)
            out.index_copy_(0, order[start:stop], _normalize(x, mean, std))
    return out
