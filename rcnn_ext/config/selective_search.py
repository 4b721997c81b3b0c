"""The section ``selective_search`` of a recipe, and the options of every search."""

from __future__ import annotations

import dataclasses
import math
import numbers
from dataclasses import dataclass
from typing import Any, Literal, get_args

from rcnn_ext.config.values import Bool, Float, Int

BackendName = Literal["native", "package", "opencv"]
ModeName = Literal["single", "fast", "quality"]
MODES: tuple[str, ...] = get_args(ModeName)

# The kernel has a radius of 4 sigma; beyond this nothing is left of any image.
_MAX_SIGMA = 1000.0


@dataclass(frozen=True)
class _Defaults:
    scales: tuple[float, ...]
    sigma: float
    min_size: int | None


_DEFAULTS = {
    "single": _Defaults((500.0,), 0.9, 10),
    # Uijlings et al., section 5.2; like them, the smallest segment has as many pixels as the scale.
    "fast": _Defaults((50.0, 100.0), 0.8, None),
    "quality": _Defaults((50.0, 100.0, 150.0, 300.0), 0.8, None),
}


@dataclass(frozen=True)
class SearchSettings:
    """Everything that decides which regions a search finds, beside the image.

    Attributes:
        backend: ``native``; or another implementation, to compare with: ``package`` (the
            ``selectivesearch`` package) or ``opencv``.
        mode: ``single`` (one grouping, the regions of the ``selectivesearch`` package), ``fast`` or
            ``quality`` (the paper's sets of color spaces, similarities and scales, best proposals
            first).
        scale: Scale of the segmentation, for pixel values up to 255; larger gives larger segments.
            Several for ``fast`` and ``quality``. None means 500; 50 and 100 for ``fast``; 50, 100,
            150 and 300 for ``quality``.
        sigma: Standard deviation of the smoothing before the segmentation, in pixels. None means
            0.9, and 0.8 for ``fast`` and ``quality``.
        min_size: Pixels of the smallest segment. None means 10, and the scale for ``fast`` and
            ``quality``.
        seed: Seed of the random part of the order in ``fast`` and ``quality``.

    Raises:
        TypeError: A value is no number.
        ValueError: A value has no meaning.
    """

    backend: BackendName = "native"
    mode: ModeName = "single"
    scale: Float | tuple[Float, ...] | None = None
    sigma: Float | None = None
    min_size: Int | None = None
    seed: Int = 0

    def __post_init__(self) -> None:
        for name, known in (("mode", MODES), ("backend", get_args(BackendName))):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"{name}: expected one of {', '.join(known)}, got {getattr(self, name)!r}"
                )
        if self.scale is not None:
            several = not isinstance(self.scale, (numbers.Real, str))
            scales = tuple(self.scale) if several else (self.scale,)  # type: ignore[arg-type]
            checked = tuple(check_number("scale", scale, 0.0, math.inf) for scale in scales)
            if not checked or (self.mode == "single" and len(checked) > 1):
                expected = "one number" if self.mode == "single" else "at least one number"
                raise ValueError(
                    f"scale: expected {expected} for mode {self.mode!r}, got {self.scale!r}"
                )
            self._set("scale", checked if several else checked[0])
        if self.sigma is not None:
            self._set("sigma", check_sigma(self.sigma))
        if self.min_size is not None:
            self._set("min_size", check_min_size(self.min_size))
        self._set("seed", _check_integer("seed", self.seed))

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    @property
    def scales(self) -> tuple[float, ...]:
        """The scales of the segmentation, those of the mode where none is given."""
        if self.scale is None:
            return _DEFAULTS[self.mode].scales
        return self.scale if isinstance(self.scale, tuple) else (self.scale,)

    @property
    def smoothing_sigma(self) -> float:
        """Standard deviation of the smoothing, that of the mode where none is given."""
        return _DEFAULTS[self.mode].sigma if self.sigma is None else self.sigma

    def min_size_at(self, scale: float) -> int:
        """Return the pixels of the smallest segment at one of the scales."""
        size = _DEFAULTS[self.mode].min_size if self.min_size is None else self.min_size
        return round(scale) if size is None else size

    def resolved(self) -> dict[str, Any]:
        """Return all values with the mode's defaults filled in, for JSON.

        Settings that find the same regions resolve to equal dictionaries, so these can key a cache.
        """
        size = _DEFAULTS[self.mode].min_size if self.min_size is None else self.min_size
        return {
            "backend": self.backend,
            "mode": self.mode,
            "scales": self.scales,
            "sigma": self.smoothing_sigma,
            "min_size": size,
            "seed": self.seed,
        }


@dataclass(frozen=True)
class FilterSettings:
    """Options that choose among the regions of an image.

    The steps are taken in the order of the attributes.

    Attributes:
        unique: Whether only the first of equal boxes is kept.
        min_side: Boxes whose width or height, x2 - x1 or y2 - y1, is below this are dropped, in
            pixels.
        max_aspect_ratio: Boxes whose longer side is more than this many times the shorter one are
            dropped; None keeps them.
        by_size: Whether the largest regions come first, not those that the search puts first; equal
            ones keep their order.
        max_boxes: At most this many are kept, the first ones; None keeps all.
        whole_image: Whether the whole image is a proposal where nothing remains.

    Raises:
        TypeError: A value is no number.
        ValueError: A value has no meaning.
    """

    unique: Bool = True
    min_side: Float = 0.0
    max_aspect_ratio: Float | None = None
    by_size: Bool = False
    max_boxes: Int | None = None
    whole_image: Bool = True

    def __post_init__(self) -> None:
        check_number("min_side", self.min_side, 0.0, math.inf)
        if self.max_aspect_ratio is not None:
            check_number("max_aspect_ratio", self.max_aspect_ratio, 1.0, math.inf)
        if self.max_boxes is not None and (
            not isinstance(self.max_boxes, numbers.Integral) or self.max_boxes < 1
        ):
            raise ValueError(
                f"max_boxes: expected a whole number of at least 1, got {self.max_boxes!r}"
            )


@dataclass(frozen=True)
class SelectiveSearchConfig(FilterSettings, SearchSettings):
    """The source of the boxes that Fast R-CNN classifies: selective search, kept on disk.

    The options of the search are those of :class:`SearchSettings`, those that choose among its
    regions those of :class:`FilterSettings`, where ``max_boxes`` is 2000 unless the recipe says
    otherwise.

    Attributes:
        folder: Where the regions are kept, relative to the current folder, as ``rcnn-ext
            selective-search --out`` writes them; null means ``selective_search`` in the folder of
            the run. The filters are applied when it is read, so they may change without another
            search.
        missing: Treatment of images that have none there: ``compute`` them before the first step,
            with all cores, or ``error``.
    """

    max_boxes: Int | None = 2000
    folder: str | None = None
    missing: Literal["compute", "error"] = "compute"

    def __post_init__(self) -> None:
        SearchSettings.__post_init__(self)
        FilterSettings.__post_init__(self)

    def settings(self) -> SearchSettings:
        """Return the options of the search alone."""
        names = (field.name for field in dataclasses.fields(SearchSettings))
        return SearchSettings(**{name: getattr(self, name) for name in names})


def check_number(name: str, value: Any, low: float, high: float) -> float:
    """Return a finite number in [low, high] as a float.

    Raises:
        TypeError: It is no number.
        ValueError: It is not finite, or outside.
    """
    if not isinstance(value, numbers.Real):
        raise TypeError(f"{name}: expected a number, got {value!r}")
    number = float(value)
    if not (math.isfinite(number) and low <= number <= high):
        bounds = f"of at least {low:g}" if high == math.inf else f"from {low:g} to {high:g}"
        raise ValueError(f"{name}: expected a finite number {bounds}, got {value!r}")
    return number


def check_sigma(sigma: Any) -> float:
    """Return a standard deviation in pixels as a float."""
    return check_number("sigma", sigma, 0.0, _MAX_SIGMA)


def check_min_size(min_size: Any) -> int:
    """Return a number of pixels as an int."""
    number = check_number("min_size", min_size, 0, 2**62)
    # The package compares sizes with it: a fraction acts as the next whole number.
    return math.ceil(number)


def _check_integer(name: str, value: Any) -> int:
    if not isinstance(value, numbers.Integral) or value < 0:
        raise ValueError(f"{name}: expected a whole number of at least 0, got {value!r}")
    return int(value)
