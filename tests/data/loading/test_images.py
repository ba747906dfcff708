import io
import json
import os
import struct
import subprocess
import sys
import zlib
from functools import cache

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

import hostile_images
from data.pictures import encoded, photo
from mambar.data.loading.images import MAX_PIXELS, read_image
from mambar.errors import ImageError

# What reading may take above its start: the largest image that is decoded needs 280 MB.
FREE = 300_000_000


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *chunks: bytes, depth: int = 8, color: int = 2, rows: bytes = b"") -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    body = b"".join(chunks) + png_chunk(b"IDAT", zlib.compress(rows, 9)) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + body


def animated(kind: str) -> bytes:
    frames = [photo(8, 8, seed) for seed in range(3)]
    return encoded(frames[0], kind, save_all=True, append_images=frames[1:])


def refuses(source, match: str, **options) -> None:
    with pytest.raises(ImageError, match=match) as caught:
        read_image(source, **options)
    assert "\n" not in str(caught.value) and len(str(caught.value)) <= 400


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_plain_images_are_as_pillow_reads_them(kind, tmp_path):
    data = encoded(photo(30, 41), kind)
    expected = torch.from_numpy(np.array(Image.open(io.BytesIO(data)).convert("RGB"))).permute(2, 0, 1)
    path = tmp_path / "image.dat"
    path.write_bytes(data)
    for source in (data, path, str(path)):
        pixels = read_image(source)
        assert pixels.dtype == torch.uint8 and torch.equal(pixels, expected)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(10))
def test_exif_turns_the_picture(orientation, kind):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(photo(10, 16), kind, exif=exif)
    opened = Image.open(io.BytesIO(data))
    expected = np.array(ImageOps.exif_transpose(opened).convert("RGB"))
    assert np.array_equal(read_image(data).permute(1, 2, 0).numpy(), expected)
    as_stored = read_image(data, apply_exif_orientation=False)
    assert np.array_equal(as_stored.permute(1, 2, 0).numpy(), np.array(opened.convert("RGB")))


def test_cmyk_becomes_rgb():
    image = Image.new("CMYK", (4, 4), (0, 255, 255, 0))
    red, green, blue = read_image(encoded(image, quality=95)).float().mean((1, 2)).tolist()
    assert red > 200 and green < 60 and blue < 60


@pytest.mark.parametrize("mode", ["1", "L"])
def test_gray_is_three_equal_channels(mode):
    image = photo(6, 9).convert(mode)
    pixels = read_image(encoded(image, "PNG"))
    assert torch.equal(pixels[0], pixels[1]) and torch.equal(pixels[0], pixels[2])
    assert np.array_equal(pixels[0].numpy(), np.array(image.convert("L")))


def test_16_bit_gray_keeps_its_range():
    values = np.array([[0, 255, 256, 32768, 65535]], dtype=np.uint16)
    pixels = read_image(encoded(Image.fromarray(values), "PNG"))
    assert pixels[0].tolist() == [[0, 0, 1, 128, 255]]


def test_16_bit_color_keeps_its_high_byte():
    data = png(2, 1, depth=16, rows=b"\0" + struct.pack(">6H", 0, 32768, 65535, 256, 511, 1))
    assert read_image(data).permute(1, 2, 0).tolist() == [[[0, 128, 255], [1, 1, 0]]]


def test_palettes_are_looked_up():
    image = photo(8, 8).quantize(16)
    assert np.array_equal(read_image(encoded(image, "PNG")).permute(1, 2, 0).numpy(), np.array(image.convert("RGB")))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB"])
def test_what_is_transparent_lies_on_white(mode):
    image = Image.new("RGBA", (2, 1), (0, 0, 0, 255))
    image.putpixel((0, 0), (9, 9, 9, 0))
    if mode == "P":
        image = image.convert("RGB").quantize(4)
        data = encoded(image, "PNG", transparency=image.getpixel((0, 0)))
    elif mode == "RGB":
        data = encoded(image.convert("RGB"), "PNG", transparency=(9, 9, 9))
    else:
        data = encoded(image.convert(mode), "PNG")
    assert read_image(data)[:, 0].T.tolist() == [[255, 255, 255], [0, 0, 0]]


def test_of_several_pictures_in_a_jpeg_the_first_is_taken():
    first = photo(8, 8, 0)
    stream = io.BytesIO()
    first.save(stream, "MPO", save_all=True, append_images=[photo(8, 8, 1)])
    assert np.array_equal(
        read_image(stream.getvalue()).permute(1, 2, 0).numpy(), np.array(Image.open(stream).convert("RGB"))
    )


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_animations_are_refused(kind):
    refuses(animated(kind), "animated")


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF", "PPM"])
def test_other_formats_are_refused(kind):
    refuses(encoded(photo(8, 8), kind), "PNG, JPEG or WEBP", name="photo.png")


def test_what_is_no_image_is_refused(tmp_path):
    refuses(b"", "empty")
    refuses(b"hello", "another kind")
    refuses(tmp_path, "is a directory")
    refuses(tmp_path / "none.png", "cannot be opened")
    (tmp_path / "empty.png").touch()
    refuses(tmp_path / "empty.png", "empty")
    (tmp_path / "link.png").symlink_to(tmp_path / "gone.png")
    refuses(tmp_path / "link.png", "link to nothing")
    refuses("no\0name.png", "cannot be opened")
    refuses(tmp_path / ("x" * 300), "cannot be opened")
    os.mkfifo(tmp_path / "pipe.png")
    refuses(tmp_path / "pipe.png", "not a regular file")


def test_a_link_to_an_image_is_an_image(tmp_path):
    (tmp_path / "real.jpg").write_bytes(encoded(photo(8, 8)))
    (tmp_path / "link.jpg").symlink_to(tmp_path / "real.jpg")
    assert read_image(tmp_path / "link.jpg").shape == (3, 8, 8)


def test_hostile_names_stay_on_one_line(tmp_path):
    path = tmp_path / "a\n\x1b[31mb‮.png"
    path.write_bytes(b"x")
    refuses(path, r"a \?\[31mb\?\.png")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_truncated_files_are_refused(kind):
    data = encoded(photo(40, 40), kind)
    for share in (0.1, 0.5, 0.9):
        refuses(data[: int(len(data) * share)], "cannot be read")


@cache
def bombs() -> dict[str, bytes]:
    huge = b"\0" * 50_000_000
    gray_row = b"\0" + b"\0" * 12_000
    exif = Image.Exif()
    exif[0x010E] = "x" * 60_000
    return {
        "30000 x 30000": png(30_000, 30_000),
        "a real one of 144 megapixels": png(12_000, 12_000, color=0, rows=gray_row * 12_000),
        "wide": png(2**31 - 1, 1),
        "text": png(8, 8, png_chunk(b"zTXt", b"a\0\0" + zlib.compress(huge, 9))),
        "profile": png(8, 8, png_chunk(b"iCCP", b"a\0\0" + zlib.compress(huge, 9))),
        "webp": encoded(photo(8, 8), "WEBP")[:20] + b"\xff" * 20,
        "many frames": animated("WEBP"),
        "no pixels": png(0, 0),
    }


@pytest.mark.parametrize("name", sorted(bombs()))
def test_bombs_are_refused(name):
    refuses(bombs()[name], ".")


def test_the_limit_is_in_pixels():
    data = encoded(photo(10, 10), "PNG")
    assert read_image(data, max_pixels=100).shape == (3, 10, 10)
    refuses(data, "10x10 pixels; at most 99", max_pixels=99)
    assert MAX_PIXELS < 30_000**2


_WEIGH = """
import sys
from pathlib import Path
from PIL import Image
from mambar.data.loading.images import read_image
from mambar.errors import ImageError
def peak():
    # Of this program alone: getrusage also remembers the process that started it.
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) // 1024
path = Path(sys.argv[1])
before = peak()
if sys.argv[2] == "guarded":
    try: read_image(path)
    except ImageError: pass
    else: sys.exit("not refused")
else:
    Image.MAX_IMAGE_PIXELS = None
    with Image.open(path) as image: image.convert("RGB")
print("GREW", peak() - before)
"""


def _growth(path, how: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", _WEIGH, str(path), how], capture_output=True, text=True, timeout=120, encoding="utf-8"
    )
    assert "GREW" in done.stdout, done.stderr
    return int(done.stdout.split()[1])


@pytest.mark.slow
@pytest.mark.rel
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_bomb_costs_no_memory(tmp_path):
    path = tmp_path / "bomb.png"
    path.write_bytes(bombs()["a real one of 144 megapixels"])
    assert path.stat().st_size < 1_000_000
    assert _growth(path, "guarded") < 30
    # The control: without the guard the same file takes hundreds of megabytes.
    assert _growth(path, "bare") > 300


def damaged(directory, reader: str, first: int, count: int) -> dict:
    """What hostile_images.py reports: mutants of several kinds of file, in a process with 300 MB to spare."""
    exif = Image.Exif()
    exif[0x0112] = 6
    masks = {
        "numbers": encoded(photo(24, 24).convert("L"), "PNG"),
        "palette": encoded(photo(24, 24).quantize(8), "PNG"),
        "colors": encoded(photo(24, 24), "PNG"),
    }
    images = {
        "plain": encoded(photo(24, 24), "JPEG", exif=exif),
        "progressive": encoded(photo(24, 24), "JPEG", progressive=True),
        "cmyk": encoded(photo(24, 24).convert("CMYK"), "JPEG"),
        "png": encoded(photo(24, 24), "PNG", exif=exif),
        "palette": encoded(photo(24, 24).quantize(8), "PNG", transparency=0),
        "webp": encoded(photo(24, 24), "WEBP"),
    }
    files = []
    for name, data in (masks if reader == "read_mask" else images).items():
        files.append(directory / name)
        files[-1].write_bytes(data)
    command = [sys.executable, hostile_images.__file__, str(FREE), reader, str(first), str(count), *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=3600, encoding="utf-8")
    assert done.returncode == 0, f"exit {done.returncode}: {done.stderr[-500:]}"
    return json.loads(done.stdout)


@pytest.mark.rel
@pytest.mark.parametrize("reader", ["read_image", "read_mask"])
@pytest.mark.parametrize(
    ("first", "count"),
    [
        pytest.param(0, 400, marks=pytest.mark.slow, id="few"),
        pytest.param(1000, 10_000, marks=[pytest.mark.soak, pytest.mark.timeout(3600)], id="many"),
    ],
)
def test_mutants_are_read_or_refused_in_little_memory(tmp_path, reader, first, count):
    report = damaged(tmp_path, reader, first, count)
    assert report["unexpected"] == []
    assert sum(report["counted"].values()) == count
    assert report["counted"]["read"] > count / 50 and report["counted"]["refused"] > count / 4
    assert report["growth"] <= FREE


def test_the_harness_sees_a_reader_that_lets_errors_through(tmp_path, monkeypatch, capsys):
    def careless(data):
        return np.array(Image.open(io.BytesIO(data)))

    monkeypatch.setattr("mambar.data.loading.images.read_image", careless)
    monkeypatch.setattr(hostile_images, "limit_memory", lambda free: None)
    (tmp_path / "plain.jpg").write_bytes(encoded(photo(24, 24)))
    hostile_images.main("0", "read_image", "0", "60", str(tmp_path / "plain.jpg"))
    assert json.loads(capsys.readouterr().out)["counted"]["unexpected"] > 5


@pytest.mark.parametrize(("kind", "size"), [("JPEG", (320, 160)), ("JPEG", (299, 201)), ("MPO", (320, 160))])
def test_a_large_jpeg_is_reduced_while_it_is_decoded(kind, size):
    image = photo(size[1], size[0])
    options = {"save_all": True, "append_images": [image]} if kind == "MPO" else {}
    data = encoded(image, kind, **options)
    assert read_image(data, max_pixels=size[0] * size[1]).shape == (3, *size[::-1])
    for factor in (2, 4, 8):
        least = -(-size[0] // factor) * -(-size[1] // factor)
        reduced = read_image(data, max_pixels=least)
        assert reduced.shape == (3, -(-size[1] // factor), -(-size[0] // factor))
        # In another size the blocks at the edges are incomplete.
        if size[0] % 8 or size[1] % 8:
            continue
        expected = torch.from_numpy(np.array(image.resize(reduced.shape[:0:-1], Image.Resampling.BOX)))
        assert (reduced.permute(1, 2, 0).float() - expected.float()).abs().mean() < 3
    refuses(data, "at most 100 are decoded: make it smaller, or give --max-pixels", max_pixels=100)


def test_a_large_image_of_another_kind_needs_a_larger_limit():
    data = encoded(photo(20, 30), "PNG")
    refuses(data, "30x20 pixels; at most 599 are decoded", max_pixels=599)
    assert read_image(data, max_pixels=600).shape == (3, 20, 30)
    refuses(png(20_000, 9_000), "has more than 178000000 pixels, the limit of Pillow: make it smaller")


def test_a_progressive_jpeg_is_reduced_up_to_three_times_the_limit():
    data = encoded(photo(200, 300), progressive=True)
    assert read_image(data, max_pixels=20_000).shape == (3, 100, 150)
    refuses(data, "300x200 pixels; at most 19999", max_pixels=19_999)


@pytest.mark.slow
def test_a_photograph_of_100_megapixels_takes_less_than_300_megabytes(tmp_path):
    photo(8_736, 11_648).save(tmp_path / "large.jpg", quality=85)
    code = "import resource, sys; from mambar.data.loading.images import read_image\n"
    code += "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\nshape = read_image(sys.argv[1]).shape\n"
    code += "print(tuple(shape), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "large.jpg"], capture_output=True, encoding="utf-8", check=True
    )
    shape, _, kilobytes = done.stdout.strip().rpartition(" ")
    assert shape == "(3, 4368, 5824)" and int(kilobytes) * 1024 < FREE
