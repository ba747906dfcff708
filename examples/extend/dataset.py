"""Trains on a dataset class of your own: `python dataset.py`."""

import torch

import mambar
from mambar.training import Stage


@mambar.register_dataset("stripes")
class Stripes:
    """Horizontal or vertical stripes with noise."""

    classes = ("horizontal", "vertical")

    def __init__(self, split: str, *, num_images: int = 64) -> None:
        self.seed = 0 if split == "train" else 1_000_000
        self.labels = [index % 2 for index in range(num_images)]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        noise = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(self.seed + index))
        stripes = (torch.arange(16) // 2 % 2 * 128.0).expand(3, 16, 16)
        image = stripes if self.labels[index] else stripes.transpose(1, 2)
        return (image + 100 * noise).to(torch.uint8), self.labels[index]


recipe = mambar.Recipe(
    name="stripes",
    model="mambar_tiny_patch16_224",
    config={"embed_dim": 32, "depth": 1, "patch_size": 4, "num_registers": 2, "register_reduction": 2},
    data="stripes",
    data_options={"num_images": 48},
    stages=(Stage(img_size=16, epochs=2, batch_size=16, lr=1e-3, train_crop="center", hflip=0.0),),
)
if __name__ == "__main__":
    print(mambar.run(recipe, num_workers=0, device="cpu").metrics)
