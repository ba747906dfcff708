"""Pictures of predicted pixels: a prediction equal to its target shows the image; the report contains them."""

import pytest
import torch
from torch import nn

import mambar
from data.pictures import encoded, photo
from mambar.data import Preprocessing
from mambar.pretraining.autoregressive import AutoregressiveOptions, NextClusterModel
from mambar.pretraining.masked import MaskedOptions, MaskedPatchModel
from mambar.pretraining.pixel_report import predicted_images
from training import runs

DECODER = {"decoder_dim": 16, "decoder_heads": 2, "decoder_depth": 2}


class Exact(nn.Module):
    """The model with its targets as predictions."""

    def __init__(self, model):
        super().__init__()
        self.model, self.backbone, self.predicted_patches = model, model.backbone, model.predicted_patches

    def forward(self, images):
        target = self.model(images)[1]
        return target, target


# A quarter of the patches is visible, or one of 16 clusters is not predicted.
@pytest.mark.parametrize(
    "build, options, mixer, shown",
    [
        (MaskedPatchModel, MaskedOptions(**DECODER), "bidirectional", 1 / 4),
        (NextClusterModel, AutoregressiveOptions(cluster=1, **DECODER), "forward", 1 / 16),
    ],
)
def test_an_exact_prediction_is_the_image(build, options, mixer, shown):
    config = {**runs.tiny().config, "img_size": 16, "num_classes": 0, "mixer": mixer}
    net = Exact(build(mambar.create_model("mambar_tiny_patch16_224", **config), options)).train()
    preprocessing = Preprocessing(img_size=16)
    pixels = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    pictures = predicted_images(net, preprocessing.normalize(pixels), preprocessing)
    assert (pictures["image"] == pixels.numpy()).all() and (pictures["prediction"] == pixels.numpy()).all()
    assert (pictures["not predicted"] == pixels.numpy()).all(1).mean() == shown
    assert net.training


def test_a_folder_without_classes_is_trained_on_and_the_report_shows_the_prediction(tmp_path):
    (tmp_path / "images").mkdir()
    for number in range(30):
        (tmp_path / "images" / f"{number}.jpg").write_bytes(encoded(photo(16, 16, seed=number)))
    fields = {"mixup": 0.0, "cutmix": 0.0, "label_smoothing": 0.0, "max_steps": 1, "data": str(tmp_path / "images")}
    runs.here(runs.tiny(task="masked", task_options=DECODER, **fields), tmp_path / "run")
    report = (tmp_path / "run" / "report.html").read_text("utf-8")
    assert "Predicted pixels" in report and report.count('alt="not predicted"') == 6
