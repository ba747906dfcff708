"""Draws one scene of the shapes data: background, clutter, filled outlines with shadows, and the mask.

Coordinates are fractions of the image, so that a key gives the same scene at every size, except for fine grain.
Images are stored as color planes, because numpy is fast along rows. Only `Generator.random` is used: its values are
fixed by the bit stream.
"""

import colorsys
import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Float, UInt8

from mambar.data.synthetic.outlines import OUTLINES, area

BACKGROUNDS = ("plain", "gradient", "clouds", "grain", "mixed")
_FILLS = ("flat", "gradient", "stripes", "dots")
_SHADOW = 0.28


@dataclass(frozen=True)
class SceneObject:
    """An object of a scene: class, center and radius in units of the image's shorter side, and rotation angle."""

    label: int
    row: float
    col: float
    radius: float
    angle: float


def uniform(low: float, high: float, generator: np.random.Generator) -> float:
    """A uniform random number."""
    return low + (high - low) * float(generator.random())


def random_index(count: int, generator: np.random.Generator) -> int:
    """A uniform random integer of 0 … count-1."""
    return int(generator.random() * count)


def background(
    kind: str, height: int, width: int, generator: np.random.Generator
) -> Float[np.ndarray, "3 height width"]:
    """A low-information background: one color, at most with a smooth gradient or faint grain."""
    if kind == "mixed":
        kind = BACKGROUNDS[random_index(len(BACKGROUNDS) - 1, generator)]
    base = _color(generator, saturation=(0.05, 0.55), value=(0.3, 0.9))[:, None, None]
    other = base + 0.4 * (_color(generator, saturation=(0.1, 0.6), value=(0.25, 0.9))[:, None, None] - base)
    if kind == "plain":
        return np.broadcast_to(base, (3, height, width)).astype(np.float32)
    if kind == "gradient":
        turn = uniform(0.0, 2 * math.pi, generator)
        along = _ramp(height) * math.sin(turn), _ramp(width) * math.cos(turn)
        share = 0.5 + 0.5 * (along[0][:, None] + along[1][None, :])
    elif kind == "clouds":
        share = 0.65 * _noise(3, height, width, generator) + 0.35 * _noise(7, height, width, generator)
    else:
        share = 0.5 * _noise(3, height, width, generator)
        share = share + 0.4 * (generator.random((height, width), dtype=np.float32) - 0.5)
    return base + share.astype(np.float32) * (other - base)


def draw_clutter(canvas: Float[np.ndarray, "3 height width"], clutter: float, generator: np.random.Generator) -> None:
    """Draws faint short strokes of no class into the canvas, up to 40 at clutter 1."""
    count = round(40 * clutter * float(generator.random()))
    height, width = canvas.shape[1:]
    side = min(height, width)
    for _ in range(count):
        row, col = height * float(generator.random()), width * float(generator.random())
        turn, half = uniform(0.0, math.pi, generator), uniform(0.02, 0.07, generator) * side
        thick = max(uniform(0.006, 0.014, generator) * side, 0.5)
        color = _color(generator, saturation=(0.1, 0.7), value=(0.2, 0.95))[:, None, None]
        window = _window(canvas, row, col, half + thick + 1)
        if window is None:
            continue
        part, down, across = window
        along = across * math.cos(turn) + down * math.sin(turn)
        aside = down * math.cos(turn) - across * math.sin(turn)
        distance = np.hypot(np.maximum(np.abs(along) - half, 0.0), aside) - thick
        cover = 0.5 * np.clip(0.5 - distance, 0.0, 1.0)
        part += cover * (color - part)


def draw_object(
    canvas: Float[np.ndarray, "3 height width"],
    mask: UInt8[np.ndarray, "height width"],
    item: SceneObject,
    name: str,
    generator: np.random.Generator,
    *,
    value: int,
) -> None:
    """Draws an object with anti-aliased edges and a soft shadow into the canvas, and `value` into the mask."""
    side = min(canvas.shape[1:])
    radius = item.radius * side
    row, col = item.row * side, item.col * side
    offset = max(round(0.06 * radius), 1)
    window = _window(canvas, row, col, radius + offset + 2)
    if window is None:
        return
    part, down, across = window
    cos, sin = math.cos(item.angle) / radius, math.sin(item.angle) / radius
    x, y = across * cos + down * sin, down * cos - across * sin
    distance = OUTLINES[name](x, y) * radius
    # The shadow is the same outline moved down and right by whole pixels, with a soft edge.
    shade = np.clip(0.5 - distance / (2.0 * offset), 0.0, 1.0)
    part[:, offset:, offset:] *= 1.0 - _SHADOW * shade[:-offset, :-offset]
    cover = np.clip(0.5 - distance, 0.0, 1.0)
    colors = _fill(x, y, _contrasting(part, generator), generator)
    part += cover * (colors - part)
    target = _window_of(mask, row, col, radius + offset + 2)
    target[cover >= 0.5] = value


def radius_for(share: float, name: str) -> float:
    """The radius, in units of a square image's side, at which an outline covers this fraction of the image."""
    return math.sqrt(share / area(name))


def _window_of(array: np.ndarray, row: float, col: float, reach: float) -> np.ndarray:
    top, left = max(math.floor(row - reach), 0), max(math.floor(col - reach), 0)
    return array[..., top : max(math.ceil(row + reach), 0), left : max(math.ceil(col + reach), 0)]


def _window(
    canvas: np.ndarray, row: float, col: float, reach: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """The part of the canvas around a point, and its pixels' offsets (down, across) from that point."""
    part = _window_of(canvas, row, col, reach)
    if not part.size:
        return None
    top, left = max(math.floor(row - reach), 0), max(math.floor(col - reach), 0)
    down = np.arange(top, top + part.shape[1], dtype=np.float32)[:, None] + np.float32(0.5 - row)
    across = np.arange(left, left + part.shape[2], dtype=np.float32)[None, :] + np.float32(0.5 - col)
    return part, down, across


def _fill(x: np.ndarray, y: np.ndarray, color: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    fill = _FILLS[random_index(len(_FILLS), generator)]
    second = np.clip(color * uniform(0.55, 0.8, generator) + uniform(0.0, 0.25, generator), 0, 1)
    color, second = color[:, None, None], second.astype(np.float32)[:, None, None]
    if fill == "flat":
        return color
    if fill == "gradient":
        share = np.clip(0.5 + 0.5 * (x * 0.6 + y * 0.8), 0.0, 1.0)
    elif fill == "stripes":
        share = np.clip(0.5 + 1.5 * np.sin(uniform(7.0, 13.0, generator) * x), 0.0, 1.0)
    else:
        rate = uniform(7.0, 12.0, generator)
        share = np.clip(3.0 * np.sin(rate * x) * np.sin(rate * y) - 0.6, 0.0, 1.0)
    return color + share * (second - color)


def _contrasting(part: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """A color that contrasts with the mean color of `part`."""
    # Summed pixel by pixel: `mean` of a plane sums in another order and rounds differently.
    around = np.add.accumulate(part.reshape(3, -1), axis=1)[:, -1] / np.float32(part[0].size)
    color = around
    for _ in range(12):
        color = _color(generator, saturation=(0.35, 0.95), value=(0.15, 1.0))
        if float(np.abs(color - around).sum()) > 0.75:
            break
    return color


def _color(
    generator: np.random.Generator, *, saturation: tuple[float, float], value: tuple[float, float]
) -> np.ndarray:
    hue = float(generator.random())
    rgb = colorsys.hsv_to_rgb(hue, uniform(*saturation, generator), uniform(*value, generator))
    return np.array(rgb, dtype=np.float32)


def _ramp(length: int) -> np.ndarray:
    return np.linspace(-1.0, 1.0, length, dtype=np.float32) / math.sqrt(2)


@lru_cache(maxsize=64)
def _spread(knots: int, length: int) -> np.ndarray:
    """(length, knots) weights of a smooth interpolation between equally spaced knots."""
    place = np.linspace(0, knots - 1, length)
    left = np.minimum(place.astype(int), knots - 2)
    share = place - left
    share = share * share * (3 - 2 * share)
    weights = np.zeros((length, knots), dtype=np.float32)
    weights[np.arange(length), left] = 1 - share
    weights[np.arange(length), left + 1] += share
    return weights


def _noise(knots: int, height: int, width: int, generator: np.random.Generator) -> np.ndarray:
    """Smooth noise in 0 … 1 between knots² random values."""
    values = generator.random((knots, knots), dtype=np.float32)
    return _spread(knots, height) @ values @ _spread(knots, width).T
