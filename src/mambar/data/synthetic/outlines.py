"""Outlines of the shapes data as signed distance functions, negative inside.

Coordinates are in units of the shape's radius: every outline fits into the unit circle, with y pointing down. Distances
are accurate to first order near the edge, which is sufficient for anti-aliasing.
"""

import math
from collections.abc import Callable
from functools import cache

import numpy as np
from jaxtyping import Float


def disc(x: Float[np.ndarray, "..."], y: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """Signed distance to a disc."""
    return np.hypot(x, y) - 1.0


def square(x: Float[np.ndarray, "..."], y: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """Signed distance to a square."""
    return np.maximum(np.abs(x), np.abs(y)) - math.sqrt(0.5)


def triangle(x: Float[np.ndarray, "..."], y: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """Signed distance to an equilateral triangle."""
    slope = np.abs(x) * math.sqrt(0.75) - y * 0.5
    return np.maximum(slope, y) - 0.5


def star(x: Float[np.ndarray, "..."], y: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """Signed distance to a star of five points."""
    turn = 2 * math.pi / 5
    angle = np.abs((np.arctan2(x, -y) + turn / 2) % turn - turn / 2)
    radius = np.hypot(x, y)
    # In the folded sector the edge runs from the tip (1, 0) to the inner corner.
    corner = 0.42 * math.cos(turn / 2), 0.42 * math.sin(turn / 2)
    run, rise = corner[0] - 1.0, corner[1]
    return (run * radius * np.sin(angle) - rise * (radius * np.cos(angle) - 1.0)) / -math.hypot(run, rise)


def ring(x: Float[np.ndarray, "..."], y: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """Signed distance to a ring."""
    return np.abs(np.hypot(x, y) - 0.76) - 0.24


def cross(x: Float[np.ndarray, "..."], y: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """Signed distance to a cross of two equal bars."""
    across, down = np.abs(x), np.abs(y)
    return np.maximum(np.minimum(across, down) - 0.3, np.maximum(across, down) - 0.95)


def moon(x: Float[np.ndarray, "..."], y: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """Signed distance to a crescent: a disc less a second one."""
    return np.maximum(np.hypot(x, y) - 1.0, 0.85 - np.hypot(x - 0.5, y))


def heart(x: Float[np.ndarray, "..."], y: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """Signed distance to a heart: a square on its corner with two half discs on the upper sides."""
    half = 0.5
    # The square is moved down so that the whole outline is centered.
    side, down = np.abs(x), y - 0.2
    body = (np.maximum(side + down, side - down)) * math.sqrt(0.5) - half
    lobe = np.hypot(side - half * math.sqrt(0.5), down + half * math.sqrt(0.5)) - half
    return np.minimum(body, lobe)


def bar(x: Float[np.ndarray, "..."], y: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """Signed distance to a bar with round ends."""
    return np.hypot(np.maximum(np.abs(x) - 0.75, 0.0), y) - 0.25


def flower(x: Float[np.ndarray, "..."], y: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """Signed distance to a flower of six petals."""
    radius, angle = np.hypot(x, y), 6.0 * np.arctan2(y, x)
    slope = 1.32 * np.sin(angle) / np.maximum(radius, 0.3)
    return (radius - 0.78 - 0.22 * np.cos(angle)) / np.sqrt(1.0 + slope * slope)


OUTLINES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "disc": disc,
    "square": square,
    "triangle": triangle,
    "star": star,
    "ring": ring,
    "cross": cross,
    "moon": moon,
    "heart": heart,
    "bar": bar,
    "flower": flower,
}


@cache
def area(name: str) -> float:
    """The outline's area at radius 1, computed on a fine grid."""
    steps = (np.arange(512) + 0.5) / 256 - 1.0
    inside = OUTLINES[name](steps[None, :], steps[:, None]) < 0
    return float(inside.mean()) * 4.0
