"""A training task of your own: BYOL (arXiv 2006.07733), self-supervised, with a predictor and an EMA teacher."""

import copy
import sys

import torch
from torch import nn

import mambar
from mambar.recipes.digits import RECIPE
from mambar.training.task import EvalResult, Task


class Byol(nn.Module):
    """All that a checkpoint holds: the backbone, a predictor, and a teacher without gradients."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone
        self.predictor = nn.Sequential(nn.Linear(backbone.embed_dim, 64), nn.GELU(), nn.Linear(64, backbone.embed_dim))
        self.teacher = copy.deepcopy(backbone).requires_grad_(False)

    def forward(self, images, other):
        online, target = (
            net.tokens(view, [-1])[0].patches.mean(1) for net, view in ((self.backbone, images), (self.teacher, other))
        )
        return self.predictor(online), target


@mambar.register_task("byol")
class ByolTask(Task):
    """The predictor of one view matches the teacher's features of another view."""

    def build_model(self, backbone):
        return Byol(backbone)

    def train_transform(self):
        return lambda image, key: {"images": self.transform(image, key), "other": self.transform(image, key ^ 1)}

    def loss(self, model, batch):
        similarity = nn.functional.cosine_similarity(*model(batch["images"], batch["other"]))
        return {"loss": (1 - similarity).mean(), "similarity": similarity.mean()}

    def after_step(self, model, progress, outputs):
        for teacher, student in zip(model.teacher.parameters(), model.backbone.parameters(), strict=True):
            teacher.lerp_(student, 0.01)

    @torch.inference_mode()
    def evaluate(self, model, batches, context):
        sums = torch.zeros(2, dtype=torch.float64)
        for batch in batches:
            images = batch["images"].to(context.device, context.dtype)
            distance = (1 - nn.functional.cosine_similarity(*model(images, images))).sum()
            sums += torch.tensor([float(distance), len(batch)])
        total, count = context.all_reduce(sums)
        return EvalResult(metrics={"val_loss": float(total / count)})


if __name__ == "__main__":
    print(mambar.run(RECIPE.replace(task="byol", epochs=1), out=sys.argv[1], device="cpu", num_workers=0).metrics)
