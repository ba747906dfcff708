"""What is trained: a segmenter, and beside it a head that helps the backbone and is thrown away afterwards."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mambar.segmentation.segmenter import Segmenter
from mambar.segmentation.upernet import FCNHead


class SegmenterInTraining(nn.Module):
    """A segmenter with an auxiliary head (UPerNet's: one convolution on one tapped layer), or without."""

    def __init__(self, segmenter: Segmenter, *, auxiliary: int, layer: int, dropout: float) -> None:
        super().__init__()
        self.segmenter = segmenter
        self.layer = min(layer, len(segmenter.layers) - 1)
        self.auxiliary: FCNHead | None = None
        if auxiliary:
            self.auxiliary = FCNHead(
                segmenter.backbone.embed_dim,
                num_classes=segmenter.num_classes,
                channels=auxiliary,
                norm=segmenter.config.norm,
                dropout=dropout,
            )

    @torch.no_grad()
    def init_bias(self, shares: Float[Tensor, "classes"]) -> None:
        """Lets the classifiers begin with the classes' shares of the pixels (their logarithms as biases).

        Otherwise the first updates all push one way, towards the most frequent class, and a small network can lose its
        features to that push: 200 steps on ten shapes found 0 % of the objects' pixels, and 75 % with this start.
        """
        heads = [self.segmenter.decoder, *([] if self.auxiliary is None else [self.auxiliary])]
        for head in heads:
            assert head.classifier.bias is not None
            head.classifier.bias.copy_(shares.log())

    def forward(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Sequence[Float[Tensor, "batch classes height width"]]:
        """Logits at the image's size: the segmenter's, then the auxiliary head's if there is one."""
        maps = self.segmenter.maps(images)
        coarse = [self.segmenter.decoder(maps)]
        if self.auxiliary is not None:
            coarse.append(self.auxiliary(maps[self.layer]))
        size = (images.shape[-2], images.shape[-1])
        return [self.segmenter.upsample_logits(logits, size) for logits in coarse]
