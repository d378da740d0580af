"""How pixels become what a network sees: what its weights were trained on, which no file of weights says."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import Any

from plywise.compressors.errors import ConfigurationError, DataError, FileFormatError, unknown_name

GIVEN = "given"
USUAL = "usual for the dataset"
MEASURED = "measured on the training split"

RGB, BGR, GRAY = "rgb", "bgr", "gray"
CHANNELS = {RGB: 3, BGR: 3, GRAY: 1}
"""Orders of the channels, and how many these are."""

USUAL_CROP = 0.875
"""Share of the resized image that is cut out along its shorter side, torchvision's 224 of 256."""
LEAST_CROP = 0.1
MOST_SIDE = 8192
"""Pixels of a side, beyond which a size is a mistake."""
NAMED_AT_MOST = 3
EXACT = ".12g"
"""As many digits of a number as it takes to give it again."""

Size = tuple[int, int]
"""Height and width in pixels."""

Given = float | str | Sequence[float] | None
"""A mean or a standard deviation as users give it: a number, one for each channel, or a text of them with commas."""
GivenSize = int | str | Sequence[int] | None
"""A size as users give it: one number for squares, height and width, or a text such as `224` or `224x320`."""


@dataclass(frozen=True)
class Preprocessing:
    """What is done to an image before the network reads it, in this order; None is left to the images.

    Attributes:
        channels: `rgb`, `bgr` or `gray`, which the image is converted to.
        size: height and width that the network reads. The image is resized, keeping its proportions, until it just
            covers `size / crop`; its middle is cut out. Of squares: the shorter side is resized to `size / crop`.
        crop: share of the resized image that is cut out, above 0 and at most 1.
        mean: what is taken from each channel after scaling to [0, 1]: one number, or one for each channel.
        std: what each channel is divided by then, likewise.
        source: who chose mean and std: `GIVEN`, `USUAL` or `MEASURED`.
    """

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    size: Size | None = None
    crop: float | None = None
    channels: str | None = None
    source: str = GIVEN

    def __post_init__(self) -> None:
        self._check_numbers()
        if self.size is not None and not all(1 <= side <= MOST_SIDE for side in self.size):
            raise ConfigurationError(f"size={size_text(self.size)} must be 1 to {MOST_SIDE} pixels a side")
        if self.crop is not None and not LEAST_CROP <= self.crop <= 1.0:
            raise ConfigurationError(
                f"crop={self.crop:g} must lie between {LEAST_CROP} and 1: the share of the resized image that is cut "
                f"out of its middle, such as {USUAL_CROP}"
            )
        if self.channels is not None and self.channels not in CHANNELS:
            raise unknown_name("order of channels", self.channels, CHANNELS)

    def _check_numbers(self) -> None:
        if self.mean is None and self.std is None:
            return
        if self.mean is None or self.std is None:
            given, missing = ("std", "mean") if self.mean is None else ("mean", "std")
            raise ConfigurationError(f"{given} is given without {missing}: give both, they belong together")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if not values or not all(math.isfinite(value) for value in values):
                raise ConfigurationError(f"{name}={_text(values)} must be finite numbers, one or one for each channel")
        if min(self.std) <= 0.0:
            raise ConfigurationError(f"std={_text(self.std)} must be above 0: inputs are divided by it")
        if max(map(abs, self.mean)) > 2.0 or max(self.std) > 2.0:
            raise ConfigurationError(
                f"mean={_text(self.mean)} and std={_text(self.std)} must be those of pixels in [0, 1]: divide what is "
                "meant for pixels from 0 to 255 by 255"
            )

    def or_else(self, other: "Preprocessing") -> "Preprocessing":
        """Returns it with what is None taken from another one."""
        numbers = other if self.mean is None else self
        return Preprocessing(
            numbers.mean,
            numbers.std,
            self.size or other.size,
            self.crop or other.crop,
            self.channels or other.channels,
            numbers.source,
        )

    def for_channels(self, count: int) -> "Preprocessing":
        """Returns it with one number for each channel; raises ConfigurationError where there are others already."""
        if self.mean is None or self.std is None:
            return self
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, count):
                raise ConfigurationError(
                    f"{name}={_text(values)} has {len(values)} numbers, the images have {count} "
                    f"channel{'s' * (count != 1)}: give one number, or one for each channel"
                )
        mean, std = (values * count if len(values) == 1 else values for values in (self.mean, self.std))
        return replace(self, mean=mean, std=std)

    def for_images(self, sizes: Mapping[Size, int], colour: bool) -> "Preprocessing":
        """Returns it with size, crop and channels filled in from the images.

        Images that all have one size already are neither resized nor cut, unless a crop is given.

        Args:
            sizes: heights and widths that there are, and how many images have them.
            colour: whether any of them has colour.

        Raises:
            DataError: no size is given and the images differ in size.
            ConfigurationError: a crop is given without a size, or there are not as many numbers as channels.
        """
        channels = self.channels or (RGB if colour else GRAY)
        if self.size is None:
            if self.crop is not None:
                raise ConfigurationError(
                    f"crop={self.crop:g} is given without a size: give what the network reads as well, such as "
                    "--size 224"
                )
            if len(sizes) > 1:
                raise DataError(
                    f"the images differ in size: {_sizes_text(sizes)}; give what the network reads, such as "
                    "--size 224, or --size 192x256 (height x width): they are resized, keeping their "
                    f"proportions, and the middle is cut out (--crop, {USUAL_CROP} where not given)"
                )
        size = self.size or next(iter(sizes))
        crop = self.crop or (1.0 if set(sizes) == {size} else USUAL_CROP)
        return replace(self, size=size, crop=crop, channels=channels).for_channels(CHANNELS[channels])

    @property
    def covering(self) -> Size:
        """Height and width that a resized image just covers, and out of whose middle the size is cut."""
        assert self.size is not None
        assert self.crop is not None
        return round(self.size[0] / self.crop), round(self.size[1] / self.crop)

    def options(self) -> dict[str, str]:
        """Returns the options that give the same, by name."""
        given = {
            "mean": self.mean and _text(self.mean, EXACT),
            "std": self.std and _text(self.std, EXACT),
            "size": self.size and size_text(self.size),
            "crop": self.crop and f"{self.crop:{EXACT}}",
            "channels": self.channels,
        }
        return {name: text for name, text in given.items() if text}

    def report(self) -> dict[str, Any]:
        """Returns what the report of a run says about it."""
        return {
            "channels": self.channels,
            "size": self.size and list(self.size),
            "crop": self.crop,
            "mean": self.mean and list(self.mean),
            "std": self.std and list(self.std),
            "source": self.source,
            "in_words": str(self),
        }

    def __str__(self) -> str:
        parts = [] if self.channels is None else [self.channels]
        if self.size is not None:
            cut = "" if self.crop in (None, 1.0) else f" cut out of {size_text(self.covering)}"
            parts.append(f"{size_text(self.size)}{cut}")
        if self.mean is not None and self.std is not None:
            parts.append(f"pixels in [0, 1], mean {_text(self.mean)}, std {_text(self.std)} ({self.source})")
        return ", ".join(parts)


NOTHING_GIVEN = Preprocessing()
"""All is left to the images."""


def make_preprocessing(
    mean: Given = None,
    std: Given = None,
    size: GivenSize = None,
    crop: float | None = None,
    channels: str | None = None,
) -> Preprocessing:
    """Returns what a user has given.

    Raises:
        ConfigurationError: only one of mean and std is given, or a value is not allowed.
    """
    if crop is not None and (not isinstance(crop, Real) or isinstance(crop, bool)):
        raise ConfigurationError(f"crop={crop!r} must be a number, such as {USUAL_CROP}")
    if channels is not None and not isinstance(channels, str):
        raise ConfigurationError(f"channels={channels!r} must be {', '.join(CHANNELS)}")
    return Preprocessing(
        None if mean is None else _numbers("mean", mean),
        None if std is None else _numbers("std", std),
        None if size is None else _size(size),
        None if crop is None else float(crop),
        channels,
    )


def reported_preprocessing(report: Any) -> Preprocessing:
    """Returns what a report names, nothing where it names nothing; raises FileFormatError on nonsense."""
    if report is None:
        return NOTHING_GIVEN
    try:
        given = make_preprocessing(**{name: report[name] for name in ("mean", "std", "size", "crop", "channels")})
        return replace(given, source=str(report["source"]))
    except (TypeError, ValueError, KeyError, ConfigurationError) as error:
        raise FileFormatError(
            f"the report's preprocessing is damaged ({error}); compress again or restore it"
        ) from error


def size_text(size: Size) -> str:
    """Returns a size as users write it."""
    return "x".join(map(str, size))


def _size(given: int | str | Sequence[int]) -> Size:
    sides: Sequence[Any] = ()
    if isinstance(given, str):
        if re.fullmatch(r"\d{1,9}(x\d{1,9})?", given.strip()):
            sides = [int(side) for side in given.split("x")]
    else:
        sides = given if isinstance(given, Sequence) else [given]
    if len(sides) not in (1, 2) or not all(isinstance(side, Integral) and not isinstance(side, bool) for side in sides):
        raise ConfigurationError(
            f"size={given!r} must be what the network reads: whole pixels such as 224, or height x width such as "
            "192x256"
        )
    return int(sides[0]), int(sides[-1])


def _numbers(name: str, given: float | str | Sequence[float]) -> tuple[float, ...]:
    try:
        if isinstance(given, str):
            return tuple(float(part) for part in given.strip("[]() ").split(","))
        return tuple(float(value) for value in given) if isinstance(given, Sequence) else (float(given),)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(
            f"{name}={given!r} must be a number, or one for each channel such as 0.49,0.48,0.45"
        ) from error


def _text(values: Sequence[float], digits: str = ".4g") -> str:
    return ",".join(f"{value:{digits}}" for value in values)


def _sizes_text(sizes: Mapping[Size, int]) -> str:
    ordered = sorted(sizes.items(), key=lambda item: (-item[1], item[0]))
    some = ", ".join(f"{size_text(size)} ({count} of them)" for size, count in ordered[:NAMED_AT_MOST])
    more = len(ordered) - NAMED_AT_MOST
    return some if more <= 0 else f"{some} and {more} other{'s' * (more != 1)} (height x width)"
