"""Prediction with an exported `.onnx` file; needs numpy, Pillow and onnxruntime, not torch.

Preprocessing equals `EvalTransform` bit for bit (tested).
"""

import json
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mambar.deprecated import PREPROCESSING_FIELDS, translate
from mambar.errors import CheckpointError, InputError
from mambar.image_file import INTERPOLATIONS, MAX_PIXELS, evaluation_crop, open_image
from mambar.messages import needs_package, one_line

_MAX_SIDE = 16_384


@dataclass(frozen=True, kw_only=True)
class OnnxPrediction:
    """One class and its probability (0-1)."""

    name: str
    index: int
    probability: float


class OnnxModel:
    """An exported classifier with its class names and preprocessing.

    Raises `CheckpointError` for a file that is damaged, was not exported by mambar, or refers to other files.
    """

    def __init__(self, path: Path | str, *, threads: int = 0) -> None:
        self.path = Path(path)
        try:
            import onnxruntime
        except ImportError as error:
            raise InputError(needs_package("Reading .onnx files", "onnxruntime", extra="export")) from error
        data = _model_bytes(self.path)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 4
        try:
            self._session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
            metadata = self._session.get_modelmeta().custom_metadata_map.get("mambar")
        # onnxruntime raises many types of errors for damaged files.
        except Exception as error:
            reason = one_line(error)
            raise CheckpointError(f"{self.path} is not an ONNX model that onnxruntime can run: {reason}") from error
        if metadata is None:
            raise CheckpointError(f"{self.path} was not exported by mambar: its metadata has no entry 'mambar'.")
        try:
            self._read_metadata(json.loads(metadata))
        except (ArithmeticError, LookupError, RecursionError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(f"{self.path} has damaged metadata: {type(error).__name__}.") from error

    def _read_metadata(self, content: dict[str, Any]) -> None:
        if content["format_version"] not in (1, 2):
            raise CheckpointError(f"{self.path} has a format_version that this version does not read; update mambar.")
        # Files of version 0.1 (format 1) name the fields differently.
        preprocessing = translate(content["preprocessing"], PREPROCESSING_FIELDS)
        size = preprocessing["img_size"]
        self.size = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
        self.crop = float(preprocessing["crop_pct"])
        self.interpolation = str(preprocessing["interpolation"])
        self.mean = np.asarray(preprocessing["mean"], np.float32)
        self.std = np.asarray(preprocessing["std"], np.float32)
        names = content["classes"]
        self.classes = None if names is None else tuple(str(name) for name in names)
        valid = 0 < self.crop <= 1 and min(self.size) > 0 and max(self.size) / self.crop <= _MAX_SIDE
        valid = valid and self.interpolation in INTERPOLATIONS
        if not valid or self.mean.shape != self.std.shape or not (self.std > 0).all():
            raise ValueError(size)

    @property
    def channels(self) -> int:
        """Number of input channels: 1 for gray images, 3 for RGB."""
        return int(self._session.get_inputs()[0].shape[1])

    def logits(self, images: np.ndarray) -> np.ndarray:
        """Logits (batch, classes) of normalized float32 images (batch, channels, height, width)."""
        return np.asarray(self._session.run(None, {"images": images})[0])

    def predict(self, path: Path | str, *, top: int = 5, max_pixels: int = MAX_PIXELS) -> list[OnnxPrediction]:
        """The `top` most probable classes of an image file, best first; raises `ImageError`."""
        logits = self.logits(self.prepare(open_image(path, max_pixels=max_pixels))[None])[0].astype(np.float32)
        weights = np.exp(logits - logits.max())
        probabilities = weights / weights.sum()
        best = np.argsort(-probabilities, kind="stable")[:top]
        return [
            OnnxPrediction(
                name=self.classes[index] if self.classes else str(index),
                index=int(index),
                probability=float(probabilities[index]),
            )
            for index in best
        ]

    def prepare(self, image: Image.Image) -> np.ndarray:
        """The model's input (channels, height, width) from an image, preprocessed as in evaluation."""
        height, width = self.size
        image = image.convert("L" if self.channels == 1 else "RGB")
        image = evaluation_crop(image, self.size, crop_pct=self.crop, interpolation=self.interpolation)
        pixels = np.asarray(image, np.uint8).reshape(height, width, -1).transpose(2, 0, 1).astype(np.float32)
        pixels /= np.float32(255)
        return np.ascontiguousarray((pixels - self.mean[:, None, None]) / self.std[:, None, None])


def _model_bytes(path: Path) -> bytes:
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise CheckpointError(f"{path} is no regular file; give the path of an .onnx file.")
        data = path.read_bytes()
    except (OSError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}.") from error
    # ONNX can store tensors in external files, named by a protobuf entry with the key "location".
    if b"\n\x08location" in data:
        raise CheckpointError(f"{path} keeps tensors in other files, which mambar never writes; refused.")
    return data
