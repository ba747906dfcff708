"""Windows, scales and flips against the plain way with whole tensors; memory that does not grow with the image."""

import subprocess
import sys
from itertools import pairwise

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mambar.data.transforms.preprocessing import Preprocessing
from mambar.errors import InputError
from mambar.segmentation import Inference, Segmenter, predict, probabilities
from mambar.segmentation import inference as inference_module
from mambar.segmentation.inference import window_offsets

PREPROCESSING = Preprocessing(img_size=32)


@pytest.fixture
def model(backbone):
    return Segmenter(backbone, num_classes=5, channels=8).eval()


def image(height, width, seed=0):
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def whole_field(model, pixels, settings):
    bands = list(probabilities(model, pixels, settings, preprocessing=PREPROCESSING))
    assert [row for rows, _ in bands for row in rows] == list(range(pixels.shape[1]))
    return torch.cat([band for _, band in bands], dim=1)


def by_hand(model, pixels, crop, stride):
    """Sliding windows as mmseg writes them: sum of full logits over count."""
    images = PREPROCESSING.normalize(pixels)[None]
    height, width = images.shape[2:]
    total, count = torch.zeros(1, 5, height, width), torch.zeros(1, 1, height, width)
    for row in range(max(height - crop + stride - 1, 0) // stride + 1):
        for col in range(max(width - crop + stride - 1, 0) // stride + 1):
            bottom, right = min(row * stride + crop, height), min(col * stride + crop, width)
            top, left = max(bottom - crop, 0), max(right - crop, 0)
            with torch.no_grad():
                total[:, :, top:bottom, left:right] += model(images[:, :, top:bottom, left:right])
            count[:, :, top:bottom, left:right] += 1
    return (total / count)[0]


@pytest.mark.parametrize("size", [(32, 32), (48, 80), (50, 37), (20, 90)])
@pytest.mark.parametrize("band", [1, 700, 1 << 24])
def test_sliding_equals_the_plain_way(model, monkeypatch, size, band):
    monkeypatch.setattr(inference_module, "_BAND_SIZE", band)
    pixels = image(*size)
    ours = whole_field(model, pixels, Inference(crop=32, stride=21))
    torch.testing.assert_close(ours, by_hand(model, pixels, 32, 21).softmax(0), rtol=0, atol=1e-6)


def test_whole_equals_forward(model):
    pixels = image(45, 70)
    with torch.no_grad():
        plain = model(PREPROCESSING.normalize(pixels)[None])[0].softmax(0)
    torch.testing.assert_close(whole_field(model, pixels, Inference(crop=None)), plain, rtol=0, atol=1e-6)
    labels, sure = predict(model, pixels, Inference(crop=None), preprocessing=PREPROCESSING)
    assert torch.equal(labels, plain.argmax(0).to(torch.uint8))
    torch.testing.assert_close(sure, plain.amax(0))


@pytest.mark.parametrize("band", [700, 1 << 24])
@pytest.mark.slow
def test_scales_and_flip_equal_the_plain_way(model, monkeypatch, band):
    monkeypatch.setattr(inference_module, "_BAND_SIZE", band)
    pixels = image(40, 56)
    settings = Inference(crop=32, stride=21, scales=(0.75, 1.0, 1.6), flip=True)
    expected = 0
    for size in settings.sizes(40, 56):
        for mirrored in (False, True):
            scaled = inference_module._scaled(pixels, size)
            logits = by_hand(model, scaled.flip(-1) if mirrored else scaled, 32, 21)[None]
            logits = torch.nn.functional.interpolate(logits, (40, 56), mode="bilinear")[0]
            expected = expected + (logits.flip(-1) if mirrored else logits).softmax(0) / 6
    torch.testing.assert_close(whole_field(model, pixels, settings), expected, rtol=0, atol=2e-6)


def test_flip_makes_the_answer_even(model):
    pixels = image(32, 40)
    settings = Inference(crop=None, flip=True)
    there, back = whole_field(model, pixels, settings), whole_field(model, pixels.flip(-1), settings)
    torch.testing.assert_close(there, back.flip(-1), rtol=0, atol=1e-6)


def test_batch_of_windows_changes_nothing(model):
    pixels = image(64, 90)
    one, many = (whole_field(model, pixels, Inference(crop=32, stride=20, batch_size=batch)) for batch in (1, 16))
    torch.testing.assert_close(one, many, rtol=0, atol=1e-6)


def test_windows_cover_every_pixel():
    for length in (1, 31, 32, 33, 63, 64, 65, 200):
        starts = window_offsets(length, 32, 21)
        assert starts[0] == 0 and starts[-1] == max(length - 32, 0)
        assert all(second - first <= 21 for first, second in pairwise(starts))
        assert len(set(starts)) == len(starts)


def test_resize_keeps_proportions_within_both_sides():
    assert Inference(resize=(2048, 512)).sizes(683, 512) == [(683, 512)]
    assert Inference(resize=(2048, 512)).sizes(300, 400) == [(512, 683)]
    assert Inference(resize=(2048, 512)).sizes(100, 1000) == [(205, 2048)]
    assert Inference(scales=(0.5, 2.0)).sizes(100, 60) == [(50, 30), (200, 120)]


class Largest(TorchDispatchMode):
    """The largest tensor any operation makes."""

    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.untyped_storage().nbytes() // tensor.element_size())
        return out


def test_no_tensor_has_classes_times_pixels(make_backbone, monkeypatch):
    monkeypatch.setattr(inference_module, "_BAND_SIZE", 1 << 16)
    model = Segmenter(make_backbone(dim=8, patch_size=4), num_classes=60, channels=8).eval()
    pixels = image(130, 110)
    full = 60 * 130 * 110
    with Largest() as seen:
        predict(model, pixels, Inference(crop=32, stride=24), preprocessing=PREPROCESSING)
    assert seen.numel < full / 8
    # The same watch over the plain forward sees the full logits.
    with torch.no_grad(), Largest() as seen:
        model(PREPROCESSING.normalize(pixels)[None])
    assert seen.numel >= full


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"stride": 600}, "stride=600 must be from 1 to crop=512"),
        ({"scales": ()}, "scales="),
        ({"scales": (0.0,)}, "scales="),
        ({"resize": (0, 5)}, "resize="),
        ({"batch_size": 0}, "batch_size=0"),
    ],
)
def test_bad_settings(fields, message):
    with pytest.raises(InputError, match=message):
        Inference(**fields)


def test_settings_round_trip():
    settings = Inference(resize=(2048, 512), scales=(0.5, 1.0))
    assert Inference.from_dict(settings.to_dict()) == settings
    with pytest.raises(InputError, match="no field 'strid'"):
        Inference.from_dict({"strid": 3})
    assert Inference.from_dict({"batch": 2}) == Inference(batch_size=2)


LARGE = """
from pathlib import Path
import torch
from mambar.data.transforms.preprocessing import Preprocessing
from mambar.models import VisionMamba, VisionMambaConfig
from mambar.segmentation import Inference, Segmenter, predict

def peak():
    # Of this program alone: getrusage also remembers the process that started it.
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024

config = VisionMambaConfig(img_size=512, dim=16, depth=1, num_registers=2, reduce=2, state=4, num_classes=0)
model = Segmenter(VisionMamba(config), num_classes=150, channels=8).eval()
settings, preprocessing = Inference(crop=512, stride=341, batch_size=1), Preprocessing(img_size=512)
predict(model, torch.zeros(3, 512, 512, dtype=torch.uint8), settings, preprocessing=preprocessing)
before = peak()
labels, _ = predict(model, torch.zeros(3, {side}, 4000, dtype=torch.uint8), settings, preprocessing=preprocessing)
assert labels.shape == ({side}, 4000)
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.rel
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("side, most", [(1500, 800), pytest.param(4000, 1000, marks=pytest.mark.soak)])
def test_memory_of_a_4000_pixel_image_is_bounded(side, most):
    """150 classes at 1,500 (4,000) × 4,000 pixels: the full logits alone would be 3,433 (9,155) MiB."""
    program = LARGE.format(side=side)
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, encoding="utf-8"
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    # Pixels as numbers 69 (183) MiB, labels and certainties 27 (73), coarse logits of two rows of windows 225, bands.
    assert float(ended.stdout) < most
