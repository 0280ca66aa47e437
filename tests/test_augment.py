"""Augmentation against PIL, torchvision and scipy, and its distributions against torchvision's own samples."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, NoHostReads
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter, ImageOps
from scipy import stats
from scipy.ndimage import gaussian_filter
from torch.utils._python_dispatch import TorchDispatchMode

from wassersteinssl import augment
from wassersteinssl.augment import Parameters, apply, draw, generator, normalize
from wassersteinssl.augmentation import CROP_AND_FLIP, FOR_DATASET, Augmentation, crop_only
from wassersteinssl.device import move_into, moved
from wassersteinssl.files import load_module
from wassersteinssl.vision import torchvision  # noqa: F401  (before the next: its import is repaired there)

from torchvision.transforms import RandomResizedCrop  # isort: skip
from torchvision.transforms.v2 import functional as F  # isort: skip

PIXELS = {"mean": (0.0, 0.0, 0.0), "std": (1 / 255,) * 3}  # leaves the scale at 0..255
CIFAR = {"mean": (0.4914, 0.4822, 0.4465), "std": (0.247, 0.243, 0.261)}
PAPER = Augmentation()
BLENDS = {(0, 0): F.adjust_brightness, (1, 0): F.adjust_contrast, (0, 1): F.adjust_saturation}  # by (mean, grey) weight


def noise(n, size=(32, 32), seed=0):
    """uint8 images (n, 3, H, W): uniform noise, the hardest case for an interpolation."""
    return torch.randint(0, 256, (n, 3, *size), dtype=torch.uint8, generator=generator(seed, 0, 0, "noise"))


def identity(n, size=(32, 32)):
    """Parameters that change nothing."""
    parameters = draw(PAPER, n, size, generator(0, 0, 0, "identity"))
    parameters.box.copy_(torch.tensor([0, 0, *size])[:, None])
    parameters.factor.fill_(1)
    for field in (parameters.flip, parameters.hue, parameters.gray, parameters.sigma, parameters.solarize):
        field.zero_()
    return parameters


def to_pil(image):
    return Image.fromarray(image.permute(1, 2, 0).numpy())


def from_pil(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float()


# --- Each operation against an independent implementation ------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "output"),
    [
        ((32, 32), (32, 32)),
        ((8, 8), (8, 8)),
        ((16, 16), (64, 64)),
        ((64, 64), (32, 32)),
        ((96, 96), (96, 96)),
        ((24, 40), (20, 36)),
        ((40, 24), (48, 16)),
    ],
)
def test_crop_resize_flip_equals_pil(size, output):
    check_crops(size, output, Image.BICUBIC)


def check_crops(size, output, resampling):
    images = noise(24, size)
    parameters = draw(CROP_AND_FLIP, 24, size, generator(1, 0, 0, 0))
    ours = apply(images, parameters, CROP_AND_FLIP, **PIXELS, output_size=output)
    assert ours.shape == (24, 3, *output)
    assert 0 < parameters.flip.sum() < 24
    difference = []
    for i, (top, left, height, width) in enumerate(parameters.box.T.int().tolist()):
        pil = to_pil(images[i]).crop((left, top, left + width, top + height)).resize(output[::-1], resampling)
        pil = ImageOps.mirror(pil) if parameters.flip[i] else pil
        difference.append((ours[i] - from_pil(pil)).abs())
    difference = torch.stack(difference)
    assert difference.mean() < 0.4  # PIL rounds both passes to integers, each time by 0.25 on average
    # Where the height shrinks, recent versions of PIL take the columns first, and cut other values to 0..255.
    assert difference[parameters.box[2] <= output[0]].max() < 1.3


@pytest.mark.parametrize(("size", "output"), [((32, 32), (32, 32)), ((64, 64), (32, 32)), ((24, 40), (20, 36))])
def test_bilinear_crops_as_in_the_papers_evaluation_equal_pil(monkeypatch, size, output):
    program = load_module(REPOSITORY / "code" / "results" / "mini-cpu" / "paper_evaluation.py")
    monkeypatch.setattr(augment, "_resize_matrix", program.bilinear)
    check_crops(size, output, Image.BILINEAR)


def test_an_integer_output_size_is_a_square():
    parameters = draw(CROP_AND_FLIP, 2, (12, 20), generator(0, 0, 0, 0))
    assert apply(noise(2, (12, 20)), parameters, CROP_AND_FLIP, **PIXELS, output_size=16).shape == (2, 3, 16, 16)
    assert apply(noise(2, (12, 20)), parameters, CROP_AND_FLIP, **PIXELS).shape == (2, 3, 12, 20)


@pytest.mark.parametrize("weights", BLENDS)
@pytest.mark.parametrize("factor", [0.0, 0.6, 1.0, 1.4])
@pytest.mark.parametrize("position", [0, 2])
def test_blends_equal_torchvision_and_pil(weights, factor, position):
    images, parameters = noise(8), identity(8)
    parameters.factor[position] = factor
    parameters.mean_weight[position], parameters.grey_weight[position] = weights
    ours = apply(images, parameters, PAPER, **PIXELS) / 255
    torch.testing.assert_close(ours, BLENDS[weights](images / 255, factor), atol=1.1e-4, rtol=0)  # it has 0.2989
    pil = torch.stack([from_pil(BLENDS[weights](to_pil(image), factor)) for image in images])
    assert (255 * ours - pil).abs().max() < 1.6  # PIL rounds the grey image and its mean


@pytest.mark.parametrize("largest", [0.1, 0.5])
def test_hue_equals_torchvision_and_pil(largest):
    images, parameters = noise(41), identity(41)
    images[:8, 1] = images[:8, 0]  # ties of two channels, and of three
    images[4:8, 2] = images[4:8, 0]
    parameters.hue.copy_(torch.linspace(-largest, largest, 41))
    ours = apply(images, parameters, replace(PAPER, hue=largest), **PIXELS) / 255
    for image, our, hue in zip(images, ours, parameters.hue.tolist(), strict=True):
        torch.testing.assert_close(our, F.adjust_hue(image / 255, hue), atol=1e-5, rtol=0)
        difference = (255 * our - from_pil(F.adjust_hue(to_pil(image), hue))).abs()
        assert difference.mean() < 2  # PIL rounds hue, saturation and value to 8 bits


def test_gray_equals_torchvision_and_pil():
    images, parameters = noise(8), identity(8)
    parameters.gray[::2] = 1
    ours = apply(images, parameters, PAPER, **PIXELS)
    torch.testing.assert_close(ours[1::2], images[1::2].float(), atol=1e-3, rtol=0)
    theirs = F.rgb_to_grayscale(images[::2] / 255, num_output_channels=3)
    torch.testing.assert_close(ours[::2] / 255, theirs, atol=1.1e-4, rtol=0)
    pil = torch.stack([from_pil(F.rgb_to_grayscale(to_pil(image), 3)) for image in images[::2]])
    assert (ours[::2] - pil).abs().max() < 1


@pytest.mark.parametrize("threshold", [128, 60, 0, 255])
def test_solarize_equals_torchvision_and_pil(threshold):
    images, parameters = noise(8), identity(8)
    parameters.solarize[::2] = 1
    options = Augmentation(jitter=0, blur=0, solarize_threshold=threshold)  # what rounds would cross the threshold
    ours = apply(images, parameters, options, **PIXELS)
    torch.testing.assert_close(ours[1::2], images[1::2].float(), atol=0, rtol=0)
    torch.testing.assert_close(ours[::2], F.solarize(images[::2], threshold).float(), atol=0, rtol=0)
    pil = torch.stack([from_pil(ImageOps.solarize(to_pil(image), threshold)) for image in images[::2]])
    torch.testing.assert_close(ours[::2], pil, atol=0, rtol=0)


@pytest.mark.parametrize("size", [(32, 32), (8, 8), (20, 36)])
def test_blur_equals_scipy(size):
    images, parameters = noise(20, size), identity(20, size)
    parameters.sigma.copy_(torch.linspace(0.1, 2, 20))
    parameters.sigma[5] = 0
    ours = apply(images, parameters, PAPER, **PIXELS)
    for i, sigma in enumerate(parameters.sigma.tolist()):
        theirs = images[i].double().numpy()
        if sigma > 0:
            theirs = gaussian_filter(theirs, (0, sigma, sigma), mode="nearest", truncate=4)
        torch.testing.assert_close(ours[i], torch.from_numpy(theirs).float(), atol=2e-3, rtol=0)


def test_blur_resembles_pils():
    coarse, parameters = noise(20, (8, 8)), identity(20)
    images = torch.stack([F.pil_to_tensor(to_pil(image).resize((32, 32), Image.BICUBIC)) for image in coarse])
    parameters.sigma.copy_(torch.linspace(0.1, 2, 20))
    ours = apply(images, parameters, PAPER, **PIXELS)
    for image, our, sigma in zip(images, ours, parameters.sigma.tolist(), strict=True):
        pil = from_pil(to_pil(image).filter(ImageFilter.GaussianBlur(sigma)))  # box filters, not a Gaussian
        assert (our - pil).abs().mean() < 1.5


def test_jitter_equals_torchvision_in_the_order_of_each_sample():
    n = 240
    images, parameters = noise(n, (8, 8)), draw(replace(PAPER, jitter=1), n, (8, 8), generator(2, 0, 0, 0))
    unchanged = identity(n, (8, 8))
    for field in ("box", "flip", "gray", "sigma", "solarize"):
        getattr(parameters, field).copy_(getattr(unchanged, field))
    ours = apply(images, parameters, PAPER, **PIXELS) / 255
    orders = orders_of(parameters)
    assert len(set(orders)) == 24
    for i, order in enumerate(orders):
        factors = iter(parameters.factor[:, i].tolist())
        theirs = images[i] / 255
        for name in order:
            if name == "hue":
                theirs = F.adjust_hue(theirs, parameters.hue[i].item())
            else:
                theirs = getattr(F, f"adjust_{name}")(theirs, next(factors))
        torch.testing.assert_close(ours[i], theirs, atol=5e-4, rtol=0)


def orders_of(parameters):
    """Each sample's order of the four colour operations, as a tuple of their names."""
    orders = []
    for place, means, greys in zip(parameters.place, parameters.mean_weight.T, parameters.grey_weight.T, strict=True):
        order = [BLENDS[int(a), int(b)].__name__.removeprefix("adjust_") for a, b in zip(means, greys, strict=True)]
        order.insert(int(place), "hue")
        orders.append(tuple(order))
    return orders


# --- The distributions -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(32, 32), (24, 48)])
def test_boxes_are_distributed_as_torchvisions(size):
    torch.manual_seed(0)
    blank = torch.empty(3, *size)
    theirs = [RandomResizedCrop.get_params(blank, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(4000)]
    theirs = np.array(theirs, dtype=float).T
    ours = draw(PAPER, 20_000, size, generator(0, 0, 0, 0)).box.double().numpy()
    for statistic in (
        lambda top, left, height, width: height,
        lambda top, left, height, width: width,
        lambda top, left, height, width: height * width,
        lambda top, left, height, width: width / height,
        lambda top, left, height, width: top / np.maximum(size[0] - height, 1),
        lambda top, left, height, width: left / np.maximum(size[1] - width, 1),
    ):
        assert stats.ks_2samp(statistic(*ours), statistic(*theirs)).pvalue > 0.01
    top, left, height, width = ours
    assert min(top.min(), left.min(), height.min() - 1, width.min() - 1) == 0
    assert (top + height).max() == size[0]
    assert (left + width).max() == size[1]
    at = (height == 20) & (width == 20)  # every position of a box, the last included, equally often
    counts = np.bincount(top[at].astype(int), minlength=size[0] - 19)
    assert stats.chisquare(counts).pvalue > 0.001


@pytest.mark.parametrize("size", [(8, 64), (64, 8), (16, 16)])
def test_the_box_when_no_try_fits_is_torchvisions_central_one(size):
    options = replace(CROP_AND_FLIP, crop_scale=(2, 3))  # larger than the image: never fits
    box = draw(options, 5, size, generator(0, 0, 0, 0)).box
    expected = RandomResizedCrop.get_params(torch.empty(3, *size), [2.0, 3.0], [3 / 4, 4 / 3])
    assert box.T.tolist() == [list(expected)] * 5


def test_probabilities_and_ranges():
    n = 40_000
    p = draw(PAPER, n, (32, 32), generator(3, 0, 0, 0))
    jittered = (p.factor != 1).any(0)
    for coin, probability in (
        (p.flip, 0.5),
        (jittered, 0.8),
        (p.hue != 0, 0.8),
        (p.gray, 0.2),
        (p.sigma > 0, 0.5),
        (p.solarize, 0.2),
    ):
        assert stats.binomtest(int(coin.sum()), n, probability).pvalue > 0.001
    assert torch.equal(jittered, p.hue != 0)
    uniform = [(p.hue[jittered], -0.1, 0.1), (p.sigma[p.sigma > 0], 0.1, 2.0)]
    for weights, spread in (((0, 0), 0.4), ((1, 0), 0.4), ((0, 1), 0.2)):
        chosen = (p.mean_weight == weights[0]) & (p.grey_weight == weights[1])
        assert (chosen.sum(0) == 1).all()  # each blend once a sample
        uniform.append((p.factor[chosen & jittered], 1 - spread, 1 + spread))
    for values, low, high in uniform:
        assert stats.kstest(values.numpy(), stats.uniform(low, high - low).cdf).pvalue > 0.01
    coins = torch.stack([p.flip, jittered.float(), p.gray, (p.sigma > 0).float(), p.solarize])
    correlation = torch.corrcoef(coins) - torch.eye(5)
    assert correlation.abs().max() < 4 / math.sqrt(n)  # independent


@pytest.mark.parametrize("n", [1, 6, 256])
def test_all_24_orders_are_equally_likely_for_one_sample(n):
    draws = 40 if n == 256 else 2400
    samples = range(0, n, 4) if n == 256 else [n - 1]  # a fixed sample of a small batch, many of a large one
    counts = dict.fromkeys(itertools.permutations(("brightness", "contrast", "saturation", "hue")), 0)
    for step in range(draws):
        orders = orders_of(draw(PAPER, n, (8, 8), generator(4, 0, step, n)))
        for i in samples:
            counts[orders[i]] += 1
    assert stats.chisquare(list(counts.values())).pvalue > 0.001


@pytest.mark.parametrize("n", [1, 2, 7, 8, 257])
def test_place_of_hue_is_stratified(n):
    for step in range(8):
        parameters = draw(PAPER, n, (8, 8), generator(5, 0, step, 0))
        assert sorted(parameters.order.tolist()) == list(range(n))
        counts = torch.bincount(parameters.place.int(), minlength=4)
        assert counts.sum() == n
        assert counts.max() - counts.min() <= 1
        assert (parameters.place[parameters.order.long()].diff() >= 0).all()


# --- Reproducibility -------------------------------------------------------------------------------------------------


def test_the_generator_is_a_pure_function_of_its_arguments():
    seen = set()
    for key in itertools.product((0, 12), (0, 1), (0, 1, 2), (0, 1, "probe")):
        torch.manual_seed(len(seen))  # the global state has no part in it
        first = draw(PAPER, 4, (32, 32), generator(*key)).table
        torch.rand(3)
        assert torch.equal(first, draw(PAPER, 4, (32, 32), generator(*key)).table)
        assert torch.equal(first, draw(PAPER, 4, (32, 32), generator(*map(np.int64, key[:3]), key[3])).table)
        seen.add(tuple(first.flatten().tolist()))
    assert len(seen) == 36
    assert not torch.equal(
        draw(PAPER, 4, (8, 8), generator(1, 0, 0, 0)).table, draw(PAPER, 4, (8, 8), generator(0, 1, 0, 0)).table
    )


def test_a_step_does_not_depend_on_the_steps_before_it():
    straight = [draw(PAPER, 5, (8, 8), generator(7, 0, step, 0)).table for step in range(6)]
    resumed = [draw(PAPER, 5, (8, 8), generator(7, 0, step, 0)).table for step in range(3, 6)]
    assert all(torch.equal(a, b) for a, b in zip(straight[3:], resumed, strict=True))


def test_apply_repeats_bitwise_and_leaves_its_inputs_alone():
    images, parameters = noise(9), draw(PAPER, 9, (32, 32), generator(0, 0, 0, 0))
    before = images.clone(), parameters.table.clone()
    first = apply(images, parameters, PAPER, **CIFAR)
    assert torch.equal(first, apply(images, parameters.to("cpu"), PAPER, **CIFAR))
    assert torch.equal(images, before[0])
    assert torch.equal(parameters.table, before[1])


def test_the_chunks_that_fit_the_cache_do_not_change_the_result(monkeypatch):
    images, parameters = noise(37), draw(PAPER, 37, (32, 32), generator(0, 0, 0, 0))
    whole = apply(images, parameters, PAPER, **PIXELS)
    monkeypatch.setattr(augment, "CHUNK_PIXELS", 5 * 32 * 32 // torch.get_num_threads())
    chunked = apply(images, parameters, PAPER, **PIXELS)
    # Solarisation is discontinuous at its threshold, where a difference in the last bit shows.
    assert ((whole - chunked).abs() > 1e-3).float().mean() < 1e-4


# --- Whole pipeline --------------------------------------------------------------------------------------------------


def test_identity_parameters_give_the_normalised_image():
    images = noise(7, (24, 20))
    ours = apply(images, identity(7, (24, 20)), PAPER, **CIFAR)
    torch.testing.assert_close(ours, normalize(images, **CIFAR), atol=1e-4, rtol=0)
    theirs = F.normalize(images / 255, CIFAR["mean"], CIFAR["std"])
    torch.testing.assert_close(normalize(images, **CIFAR), theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "colour", [(0, 0, 0), (255, 255, 255), (255, 0, 0), (0, 255, 255), (90, 90, 90), (10, 200, 60)]
)
def test_a_constant_image_stays_constant(colour):
    images = torch.tensor(colour, dtype=torch.uint8)[None, :, None, None].repeat(16, 1, 32, 32)
    ours = apply(images, draw(PAPER, 16, (32, 32), generator(0, 0, 0, 0)), PAPER, **PIXELS)
    spread = ours.amax((2, 3)) - ours.amin((2, 3))
    assert spread.max() < 1e-3 or (255 - spread[spread > 1e-3] < 1).all()  # at the threshold, both sides of it


@pytest.mark.parametrize("n", [1, 2, 3, 5])
@pytest.mark.parametrize("size", [(8, 8), (12, 40)])
def test_any_batch_size(n, size):
    parameters = draw(PAPER, n, size, generator(0, 0, 0, 0))
    images = noise(n, size)
    ours = apply(images, parameters, PAPER, **CIFAR)
    assert ours.shape == images.shape
    assert ours.dtype == torch.float32
    assert ours.is_contiguous()
    assert ours.isfinite().all()


@st.composite
def image_batches(draw_from):
    n = draw_from(st.integers(1, 6))
    size = draw_from(st.sampled_from([(8, 8), (9, 13), (16, 16)]))
    seed = draw_from(st.integers(0, 2**32))
    levels = draw_from(st.sampled_from([(0,), (255,), (0, 255), (127, 128), tuple(range(256))]))
    images = torch.tensor(levels, dtype=torch.uint8)[
        torch.randint(len(levels), (n, 3, *size), generator=generator(seed, 0, 0, "levels"))
    ]
    if draw_from(st.booleans()):
        images = images[:, :1].repeat(1, 3, 1, 1)  # grey
    return images, seed


@settings(max_examples=60, deadline=None)
@given(image_batches(), st.sampled_from([PAPER, Augmentation(brightness=1, contrast=1, saturation=1, hue=0.5)]))
def test_every_image_stays_finite_and_in_range(batch, options):
    images, seed = batch
    ours = apply(images, draw(options, len(images), images.shape[2:], generator(seed, 0, 0, 0)), options, **PIXELS)
    assert ours.isfinite().all()
    assert ours.min() >= -1e-2
    assert ours.max() <= 255 + 1e-2


def test_operations_of_probability_zero_are_skipped():
    counts = []
    for options in (PAPER, replace(PAPER, blur=0), replace(PAPER, blur=0, jitter=0), CROP_AND_FLIP):
        parameters = draw(options, 8, (16, 16), generator(0, 0, 0, 0))
        with NoHostReads() as mode:
            apply(noise(8, (16, 16)), parameters, options, **CIFAR)
        counts.append(mode.count)
    assert counts == sorted(set(counts), reverse=True)


def test_autocast_does_not_round_the_pixels():
    images, parameters = noise(8), draw(CROP_AND_FLIP, 8, (32, 32), generator(0, 0, 0, 0))
    plain = apply(images, parameters, CROP_AND_FLIP, **CIFAR)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(plain, apply(images, parameters, CROP_AND_FLIP, **CIFAR))


def test_linear_evaluation_keeps_the_crop_and_drops_the_colours():
    assert crop_only(PAPER) == CROP_AND_FLIP
    square = replace(PAPER, crop_scale=(0.5, 1.0), crop_ratio=(1.0, 1.0), flip=0)
    assert crop_only(square) == replace(CROP_AND_FLIP, crop_scale=(0.5, 1.0), crop_ratio=(1.0, 1.0), flip=0)
    digits = crop_only(FOR_DATASET["digits"])
    parameters = draw(digits, 50, (8, 8), generator(0, 0, 0, 0))
    assert parameters.flip.sum() == 0
    assert parameters.box[2].min() * parameters.box[3].min() > 64 * 0.2
    images = noise(50, (8, 8))[:, :1].repeat(1, 3, 1, 1)
    ours = apply(images, parameters, digits, **PIXELS)
    assert (ours.amax(1) - ours.amin(1)).max() == 0  # grey stays grey


# --- What a CUDA graph and a compiler need ---------------------------------------------------------------------------


@pytest.mark.parametrize("options", [PAPER, replace(PAPER, hue=0.5), CROP_AND_FLIP])
def test_apply_never_waits_for_the_device(options):
    images, parameters = noise(10), draw(options, 10, (32, 32), generator(0, 0, 0, 0))
    with NoHostReads():
        apply(images, parameters, options, **CIFAR)
    with pytest.raises(AssertionError, match="_local_scalar_dense"), NoHostReads():
        bool(images[0, 0, 0, 0] > 3)  # the guard works


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_apply_compiles_to_one_graph(backend):
    images, parameters = noise(10), draw(PAPER, 10, (32, 32), generator(0, 0, 0, 0))
    torch._dynamo.reset()
    compiled = torch.compile(apply, fullgraph=True, backend=backend)
    ours = compiled(images, parameters, PAPER, **PIXELS)
    assert ((ours - apply(images, parameters, PAPER, **PIXELS)).abs() > 1e-3).float().mean() < 1e-4
    torch._dynamo.reset()


# --- Mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        {"flip": 1.5},
        {"blur": -0.1},
        {"hue": 0.6},
        {"contrast": 2},
        {"crop_scale": (0, 1)},
        {"blur_sigma": (2, 1)},
    ],
)
def test_a_wrong_option_is_named(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Augmentation(**wrong)


def test_wrong_images_are_refused():
    parameters = draw(PAPER, 4, (8, 8), generator(0, 0, 0, 0))
    for images in (noise(4, (8, 8)).float(), noise(4, (8, 8))[:, :1], noise(3, (8, 8)), noise(1, (8, 8))[0]):
        with pytest.raises(ValueError, match="uint8"):
            apply(images, parameters, PAPER, **CIFAR)


class Copies(TorchDispatchMode):
    """Notes whether copies between devices wait."""

    def __init__(self):
        super().__init__()
        self.non_blocking = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.overloadpacket.__name__ == "_to_copy":
            self.non_blocking.append(kwargs.get("non_blocking", False))
        elif function.overloadpacket.__name__ == "copy_":
            self.non_blocking.append(len(args) > 2 and args[2])
        return function(*args, **(kwargs or {}))


def test_a_copy_waits_where_memory_cannot_be_pinned():
    """On an Apple GPU one that does not wait reads memory that may be gone."""
    with Copies() as copies:
        move_into(torch.empty(3, device="meta"), moved(torch.ones(3), "meta"))
        move_into(torch.empty(3), torch.ones(3))
    assert copies.non_blocking == [False, False, False]


def test_parameters_move_as_one_table():
    parameters = draw(PAPER, 4, (8, 8), generator(0, 0, 0, 0))
    moved = parameters.to("meta")
    assert isinstance(moved, Parameters)
    assert moved.table.device.type == "meta"
    assert moved.hue.shape == (4,)


@pytest.mark.parametrize("n", [4, 8, 64, 7])
def test_views_are_augmented_together_as_apart(n):
    images = torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    views = [augment.draw(Augmentation(), n, (32, 32), augment.generator(1, 0, 0, view)) for view in "ab"]
    statistics = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    apart = [augment.apply(images, view, Augmentation(), *statistics) for view in views]
    together = augment.joined(views)
    assert len(together) == (1 if n % 4 == 0 else 2)
    if len(together) == 1:
        both = augment.apply(images.repeat(2, 1, 1, 1), together[0], Augmentation(), (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
        torch.testing.assert_close(both, torch.cat(apart), rtol=0, atol=1e-5)
    shares = [view.share(1, 2) for view in views]
    assert augment.joined(shares) == shares


def test_the_blur_of_a_sigma_does_not_depend_on_the_largest():
    for sigma in (0.4, 0.9, 1.2):  # of radius 2, 4, 5
        alone, among = (augment._blur_matrix(torch.tensor([sigma]), 16, largest) for largest in (sigma, 2.0))
        torch.testing.assert_close(alone, among)
