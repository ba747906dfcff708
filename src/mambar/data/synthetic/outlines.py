"""Outlines of the shapes data as signed distance functions, negative inside.

Coordinates are in units of the shape's radius: every outline fits into the unit circle, with y pointing down. Distances
are accurate to first order near the edge, which is sufficient for anti-aliasing.
"""

import math
from collections.abc import Callable
from functools import cache

import numpy as np


def _disc(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.hypot(x, y) - 1.0


def _square(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.maximum(np.abs(x), np.abs(y)) - math.sqrt(0.5)


def _triangle(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    slope = np.abs(x) * math.sqrt(0.75) - y * 0.5
    return np.maximum(slope, y) - 0.5


def _star(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    turn = 2 * math.pi / 5
    angle = np.abs((np.arctan2(x, -y) + turn / 2) % turn - turn / 2)
    radius = np.hypot(x, y)
    # In the folded sector the edge runs from the tip (1, 0) to the inner corner.
    corner = 0.42 * math.cos(turn / 2), 0.42 * math.sin(turn / 2)
    run, rise = corner[0] - 1.0, corner[1]
    return (run * radius * np.sin(angle) - rise * (radius * np.cos(angle) - 1.0)) / -math.hypot(run, rise)


def _ring(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.abs(np.hypot(x, y) - 0.76) - 0.24


def _cross(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    across, down = np.abs(x), np.abs(y)
    return np.maximum(np.minimum(across, down) - 0.3, np.maximum(across, down) - 0.95)


def _moon(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    # A disc minus a second one.
    return np.maximum(np.hypot(x, y) - 1.0, 0.85 - np.hypot(x - 0.5, y))


def _heart(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    # A square standing on a corner, with half discs on its upper sides; moved down to center the outline.
    half = 0.5
    side, down = np.abs(x), y - 0.2
    body = (np.maximum(side + down, side - down)) * math.sqrt(0.5) - half
    lobe = np.hypot(side - half * math.sqrt(0.5), down + half * math.sqrt(0.5)) - half
    return np.minimum(body, lobe)


def _bar(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    # With round ends.
    return np.hypot(np.maximum(np.abs(x) - 0.75, 0.0), y) - 0.25


def _flower(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    radius, angle = np.hypot(x, y), 6.0 * np.arctan2(y, x)
    slope = 1.32 * np.sin(angle) / np.maximum(radius, 0.3)
    return (radius - 0.78 - 0.22 * np.cos(angle)) / np.sqrt(1.0 + slope * slope)


# Name → signed distance at (x, y).
OUTLINES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    function.__name__.removeprefix("_"): function
    for function in (_disc, _square, _triangle, _star, _ring, _cross, _moon, _heart, _bar, _flower)
}


@cache
def area(name: str) -> float:
    """The outline's area at radius 1, computed on a fine grid."""
    steps = (np.arange(512) + 0.5) / 256 - 1.0
    inside = OUTLINES[name](steps[None, :], steps[:, None]) < 0
    return float(inside.mean()) * 4.0
