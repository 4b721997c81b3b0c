"""The parameters of a search."""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Sequence
from typing import Any

MODES = ("single", "fast", "quality")

# Radius of the kernel: 4 sigma. More than this is no longer an image of anything.
_MAX_SIGMA = 1000.0


@dataclasses.dataclass(frozen=True)
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


@dataclasses.dataclass(frozen=True)
class SearchSettings:
    """Everything that decides which regions a search finds, beside the image.

    Two equal settings give equal regions, so they can key a cache (:meth:`as_dict`).

    Attributes:
        backend: ``native``, ``package`` or ``opencv``.
        mode: ``single`` (one grouping, the regions of the ``selectivesearch`` package), ``fast`` or
            ``quality`` (the diversified sets of the paper).
        scales: scale of the segmentation, for pixel values up to 255; larger gives larger segments.
            Several for ``fast`` and ``quality``.
        sigma: standard deviation of the smoothing before the segmentation, in pixels.
        min_size: pixels of the smallest segment; None takes the scale.
        seed: of the random order of the diversified sets.
    """

    backend: str = "native"
    mode: str = "single"
    scales: tuple[float, ...] = _DEFAULTS["single"].scales
    sigma: float = _DEFAULTS["single"].sigma
    min_size: int | None = _DEFAULTS["single"].min_size
    seed: int = 0

    @classmethod
    def of(
        cls,
        *,
        backend: str = "native",
        mode: str = "single",
        scale: float | Sequence[float] | None = None,
        sigma: float | None = None,
        min_size: int | None = None,
        seed: int = 0,
    ) -> SearchSettings:
        """Make settings, taking what is None from the mode's defaults.

        Raises:
            TypeError: an argument is no number.
            ValueError: an argument has no meaning, or the mode is unknown.
        """
        if mode not in _DEFAULTS:
            raise ValueError(f"mode: expected one of {', '.join(MODES)}, got {mode!r}")
        defaults = _DEFAULTS[mode]
        if scale is None:
            scales = defaults.scales
        else:
            given = (scale,) if isinstance(scale, numbers.Real) else tuple(scale)  # type: ignore[arg-type]
            scales = tuple(check_number("scale", value, 0.0, math.inf) for value in given)
        if not scales or (mode == "single" and len(scales) > 1):
            expected = "one number" if mode == "single" else "at least one number"
            raise ValueError(f"scale: expected {expected} for mode {mode!r}, got {scale!r}")
        return cls(
            backend=backend,
            mode=mode,
            scales=scales,
            sigma=defaults.sigma if sigma is None else check_sigma(sigma),
            min_size=defaults.min_size if min_size is None else check_min_size(min_size),
            seed=_check_integer("seed", seed),
        )

    def min_size_at(self, scale: float) -> int:
        """Give the pixels of the smallest segment at one of the scales."""
        return round(scale) if self.min_size is None else self.min_size

    def as_dict(self) -> dict[str, Any]:
        """Give the settings for JSON."""
        return dataclasses.asdict(self)


def check_number(name: str, value: Any, low: float, high: float) -> float:
    """Give a finite number in [low, high] as a float.

    Raises:
        TypeError: no number.
        ValueError: not finite, or outside.
    """
    if not isinstance(value, numbers.Real):
        raise TypeError(f"{name}: expected a number, got {value!r}")
    number = float(value)
    if not (math.isfinite(number) and low <= number <= high):
        bounds = f"of at least {low:g}" if high == math.inf else f"from {low:g} to {high:g}"
        raise ValueError(f"{name}: expected a finite number {bounds}, got {value!r}")
    return number


def check_sigma(sigma: Any) -> float:
    """Give a standard deviation in pixels as a float."""
    return check_number("sigma", sigma, 0.0, _MAX_SIGMA)


def check_min_size(min_size: Any) -> int:
    """Give a number of pixels as an int."""
    number = check_number("min_size", min_size, 0, 2**62)
    # The package compares sizes with it: a fraction acts as the next whole number.
    return math.ceil(number)


def _check_integer(name: str, value: Any) -> int:
    if not isinstance(value, numbers.Integral) or value < 0:
        raise ValueError(f"{name}: expected a whole number of at least 0, got {value!r}")
    return int(value)
