"""Images of label maps: overlays with class borders, palette PNGs, legends."""

import io
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, UInt8

from mambar.analysis.draw.color_maps import label_font
from mambar.analysis.figure_label import printable
from mambar.data.segmentation.masks import IGNORE, Color

# Pixels of the longer side of a written picture, and the least width of one with a legend.
MAX_SIDE = 8192
_LEGEND_WIDTH = 320
_BAND_ROWS = 256
_OPACITY = 0.55
_MAX_NAME_LENGTH = 28


def draw_overlay(
    image: UInt8[np.ndarray, "3 height width"], labels: UInt8[np.ndarray, "height width"], palette: Sequence[Color]
) -> UInt8[np.ndarray, "height width 3"]:
    """The image blended with the class colors; class borders are darker, ignored pixels unchanged."""
    drawn = np.empty((*labels.shape, 3), dtype=np.uint8)
    # In bands of rows, since each takes ten times its own memory; a border depends on the row below.
    for top in range(0, len(labels), _BAND_ROWS):
        rows = slice(top, top + _BAND_ROWS)
        edge = label_borders(labels[top : top + _BAND_ROWS + 1])[:_BAND_ROWS]
        drawn[rows] = _blend(np.moveaxis(image[:, rows], 0, -1), labels[rows], edge, _table(palette))
    return drawn


def _blend(pixels: np.ndarray, labels: np.ndarray, edge: np.ndarray, table: np.ndarray) -> np.ndarray:
    pixels, colors = pixels.astype(np.float32), table[labels].astype(np.float32)
    # Mostly gray, since the colors of the image would mix with those of the classes.
    gray = (pixels @ np.array([0.299, 0.587, 0.114], dtype=np.float32))[..., None]
    blended = (1 - _OPACITY) * (0.6 * gray + 0.4 * pixels) + _OPACITY * colors
    blended = np.where(edge[..., None], 0.25 * pixels + 0.75 * colors * 0.8, blended)
    ignored = (labels == IGNORE)[..., None]
    return np.clip(np.rint(np.where(ignored, pixels, blended)), 0, 255).astype(np.uint8)


def colorize_labels(
    labels: UInt8[np.ndarray, "height width"], palette: Sequence[Color]
) -> UInt8[np.ndarray, "height width 3"]:
    """The color of each label; ignored pixels are white."""
    return _table(palette)[labels]


def draw_errors(
    predicted: UInt8[np.ndarray, "height width"], labels: UInt8[np.ndarray, "height width"]
) -> UInt8[np.ndarray, "height width 3"]:
    """Correct pixels in light gray, wrong ones in red, ignored ones in white."""
    picture = np.full((*labels.shape, 3), 226, dtype=np.uint8)
    picture[predicted != labels] = (196, 40, 32)
    picture[labels == IGNORE] = 255
    return picture


def label_borders(labels: UInt8[np.ndarray, "height width"]) -> Bool[np.ndarray, "height width"]:
    """True for pixels whose right or lower neighbor has another label."""
    edge = np.zeros(labels.shape, dtype=bool)
    edge[:-1] |= labels[:-1] != labels[1:]
    edge[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    return edge


def index_png(labels: UInt8[np.ndarray, "height width"], palette: Sequence[Color]) -> bytes:
    """A palette PNG: pixel values are the labels, displayed in the class colors."""
    from PIL import Image

    picture = Image.fromarray(labels)
    picture.putpalette(_table(palette).flatten().tolist())
    stream = io.BytesIO()
    picture.save(stream, "PNG", optimize=True)
    return stream.getvalue()


def add_legend(
    picture: UInt8[np.ndarray, "height width 3"],
    entries: Sequence[tuple[str, Color, float]],
    *,
    row_names: Sequence[str] = (),
) -> UInt8[np.ndarray, "rows cols 3"]:
    """The picture with a legend below it: color, name and fraction (0-1) of each class in `entries`.

    row_names: names of the rows of equal height in the picture, written into their upper left corners.

    A picture narrower than 320 pixels is enlarged by an integer factor, so that the names are legible, to at
    most twice `MAX_SIDE`; the sheet has at least that width.
    """
    from PIL import Image, ImageDraw, ImageFont

    factor = max(1, min(-(-_LEGEND_WIDTH // picture.shape[1]), 2 * MAX_SIDE // max(picture.shape[:2])))
    large = np.repeat(np.repeat(picture, factor, 0), factor, 1)
    height, width = large.shape[0], max(large.shape[1], _LEGEND_WIDTH)
    size = int(np.clip(width / 38, 13, 40))
    font = ImageFont.truetype(label_font(), size)
    line, edge = round(size * 1.6), round(size * 0.7)
    texts = [(f"{_short(name)}  {fraction:.1%}", color) for name, color, fraction in entries]
    widest = max((font.getlength(text) for text, _ in texts), default=0.0)
    column = min(round(widest) + 3 * size, width)
    columns = max((width - edge) // column, 1)
    rows = -(-len(texts) // columns)
    sheet = Image.new("RGB", (width, height + rows * line + (2 * edge if rows else 0)), (255, 255, 255))
    sheet.paste(Image.fromarray(large), (0, 0))
    draw = ImageDraw.Draw(sheet)
    for number, name in enumerate(row_names):
        place = (size / 3, number * height / len(row_names) + size / 3)
        draw.text(
            place, name, fill=(255, 255, 255), font=font, stroke_width=max(size // 8, 1), stroke_fill=(28, 36, 48)
        )
    for number, (text, color) in enumerate(texts):
        left = edge + number // rows * column
        top = height + edge + number % rows * line
        draw.rectangle((left, top, left + size, top + size), fill=color, outline=(70, 78, 90))
        draw.text((left + round(1.5 * size), top + size / 2), text, fill=(28, 36, 48), font=font, anchor="lm")
    return np.asarray(sheet)


def _table(palette: Sequence[Color]) -> UInt8[np.ndarray, "256 3"]:
    table = np.full((256, 3), 255, dtype=np.uint8)
    table[: len(palette)] = np.array(palette, dtype=np.uint8).reshape(-1, 3)[:256]
    return table


def _short(name: str) -> str:
    shown = printable(name)
    return shown if len(shown) <= _MAX_NAME_LENGTH else f"{shown[: _MAX_NAME_LENGTH - 1]}…"
