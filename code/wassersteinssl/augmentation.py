"""What is drawn for a view of an image: ranges and probabilities, and which data sets do not use those of the paper.
Loads no torch."""

import json
from dataclasses import asdict, dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Augmentation:
    """Ranges and probabilities of what is drawn. The defaults are the paper's, the same for both views."""

    crop_scale: tuple[float, float] = (0.08, 1.0)  # area of the crop box / area of the image
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)  # width / height of the crop box
    flip: float = 0.5  # probability
    jitter: float = 0.8  # probability of the four colour operations that follow
    brightness: float = 0.4  # factor from U(1 - b, 1 + b), and so on
    contrast: float = 0.4
    saturation: float = 0.2
    hue: float = 0.1  # shift from U(-hue, hue), in turns of the colour circle
    gray: float = 0.2  # probability
    blur: float = 0.5  # probability
    blur_sigma: tuple[float, float] = (0.1, 2.0)  # pixels of the output
    solarize: float = 0.2  # probability
    solarize_threshold: float = 128

    def __post_init__(self):
        for name in ("flip", "jitter", "brightness", "contrast", "saturation", "hue", "gray", "blur", "solarize"):
            largest = 0.5 if name == "hue" else 1
            if not 0 <= getattr(self, name) <= largest:
                raise ValueError(f"{name} must lie in [0, {largest}], got {getattr(self, name)}")
        for name in ("crop_scale", "crop_ratio", "blur_sigma"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"{name} must be 0 < low <= high, got {(low, high)}")

    def record(self) -> dict[str, Any]:
        """The augmentation as a run records it."""
        return json.loads(json.dumps(asdict(self)))


CROP_AND_FLIP = Augmentation(jitter=0, gray=0, blur=0, solarize=0)  # linear evaluation

# A mirrored digit is another sign, a blurred digit of 8 x 8 pixels is gone, and grey images have no hue.
DIGITS = Augmentation(crop_scale=(0.4, 1.0), flip=0, saturation=0, hue=0, gray=0, blur=0, solarize=0)

# Data sets, by their name for --dataset, for which the paper's augmentation makes no sense: one line each.
FOR_DATASET = {
    "digits": DIGITS,
}


def crop_only(augmentation: Augmentation) -> Augmentation:
    """The crop and flip of an augmentation, without the rest: for linear evaluation."""
    kept = {name: getattr(augmentation, name) for name in ("crop_scale", "crop_ratio", "flip")}
    return replace(CROP_AND_FLIP, **kept)


def usual(dataset: str) -> Augmentation:
    """The augmentation of a data set: its own, else the paper's."""
    return FOR_DATASET.get(dataset, Augmentation())


def unusual(noted: Any, dataset: str) -> dict[str, Any]:
    """The values in a run's record that differ from this repository's. A line that the user has added to FOR_DATASET
    counts as different, too: tables name it."""
    noted, ours = noted if isinstance(noted, dict) else {}, (DIGITS if dataset == "digits" else Augmentation()).record()
    return {key: noted[key] for key, value in ours.items() if noted.get(key, value) != value}
