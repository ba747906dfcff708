"""Fits the classifier of a trained run again on its frozen features, and writes the model in half precision.

    python benchmarks/models/fit_head.py runs/clothing PATH weights/mambar_tiny_patch16_224.clothing

Logistic regression on the evaluation crops of the training images of PATH; the validation images select its strength.
"""

import argparse
from pathlib import Path

import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

import mambar
from mambar.data import EvalTransform, evaluation_batches, open_dataset

STRENGTHS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)


def features(model: mambar.VisionMamba, data: Path, split: str) -> tuple[Tensor, Tensor]:
    """The inputs of the classifier and the labels of all images of a split."""
    dataset, transform = open_dataset(data, split), EvalTransform(preprocessing=model.preprocessing)
    classifier, model.head.classifier = model.head.classifier, nn.Identity()
    rows, labels = [], []
    with torch.inference_mode():
        for batch in evaluation_batches(dataset, transform, batch_size=32):
            rows.append(model(batch.images))
            labels.append(batch.labels)
    model.head.classifier = classifier
    return torch.cat(rows), torch.cat(labels)


def fitted(train: tuple[Tensor, Tensor], val: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, float, float]:
    """Weight and bias of the strength with the highest validation accuracy, that strength, and the accuracy."""
    scaler = StandardScaler().fit(train[0])
    found = []
    for strength in STRENGTHS:
        fit = LogisticRegression(C=strength, max_iter=1000).fit(scaler.transform(train[0]), train[1])
        found.append((fit.score(scaler.transform(val[0]), val[1]), strength, fit))
        print(f"strength {strength}: validation {found[-1][0]:.2%}")
    accuracy, strength, fit = max(found, key=lambda item: item[0])
    weight = torch.tensor(fit.coef_ / scaler.scale_)
    bias = torch.tensor(fit.intercept_) - weight @ torch.tensor(scaler.mean_)
    return weight.float(), bias.float(), strength, accuracy


def write(model: mambar.VisionMamba, weight: Tensor, bias: Tensor, out: Path) -> None:
    """The model with this classifier as a model directory in half precision."""
    with torch.no_grad():
        model.head.classifier.weight.copy_(weight)
        model.head.classifier.bias.copy_(bias)
    mambar.save_model(out, model.half(), name=out.name.split(".")[0])


def main() -> None:
    """Reads the arguments, fits and writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("run", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    model = mambar.load(arguments.run)
    weight, bias, strength, accuracy = fitted(*(features(model, arguments.data, split) for split in ("train", "val")))
    print(f"strength {strength}: validation {accuracy:.2%}")
    write(model, weight, bias, arguments.out)


if __name__ == "__main__":
    main()
