"""The evaluation against pycocotools on the annotation file and on what `mambar detect` writes."""

import contextlib
import io
import json

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import nn

from mambar.data import open_dataset
from mambar.data.detection.coco_export import write_coco
from mambar.data.detection.object_masks import decoded_masks
from mambar.data.loading.loaders import evaluation_batches
from mambar.detection import DetectorConfig, detect
from mambar.detection.evaluator import image_records
from mambar.errors import DataError
from mambar.evaluation.detection import MEASURES, evaluate_records


class InexactDetector(nn.Module):
    """Finds the objects of a dataset at shifted places, some with another class or twice; masks are ellipses."""

    def __init__(self, dataset):
        super().__init__()
        self.dataset, self.classes = dataset, dataset.classes
        self.config = DetectorConfig(num_classes=len(dataset.classes), masks=True)

    def detect(self, images):
        found = []
        for image in images:
            index = next(n for n in range(len(self.dataset)) if torch.equal(self.dataset[n].image, image))
            generator = torch.Generator().manual_seed(index)
            given = self.dataset[index].targets
            boxes = given["boxes"].repeat(2, 1)
            boxes = boxes + 2.5 * torch.randn(boxes.shape, generator=generator)
            boxes[:, 2:] = torch.maximum(boxes[:, 2:], boxes[:, :2] + 1)
            height, width = image.shape[1:]
            boxes = boxes.clamp(torch.zeros(4), torch.tensor([width, height, width, height]).float())
            labels = given["box_labels"].repeat(2)
            labels = torch.where(torch.rand(len(labels), generator=generator) < 0.2, 0, labels)
            # Scores differ, as the order of equal ones is not defined.
            scores = torch.rand(len(labels), generator=generator).sort(descending=True).values
            rows, cols = torch.meshgrid(torch.linspace(-1, 1, 28), torch.linspace(-1, 1, 28), indexing="ij")
            masks = ((rows**2 + cols**2) < 1.1).float().expand(len(labels), 1, 28, 28)
            found.append({"boxes": boxes, "labels": labels, "scores": scores, "masks": masks})
        return found


@pytest.fixture
def folder(tmp_path):
    """Eight scenes: one without objects, a crowd, masks as polygons, run lengths and compressed run lengths."""
    scenes = open_dataset("shapes", "val", kind="detection", img_size=(90, 120), num_classes=3, num_images=8)
    write_coco(scenes, tmp_path, "val")
    file = tmp_path / "annotations/instances_val.json"
    content = json.loads(file.read_text("utf-8"))
    content["annotations"] = [each for each in content["annotations"] if each["image_id"] != 3]
    first, second, third = content["annotations"][:3]
    first["iscrowd"] = 1
    x, y, width, height = second["bbox"]
    second["segmentation"] = [[x, y, x + width, y, x + width, y + height, x, y + height]]
    second["area"] = width * height
    (mask,) = decoded_masks([third["segmentation"]], 90, 120).numpy()
    packed = coco_mask.encode(np.asfortranarray(mask))
    third["segmentation"] = {"size": [90, 120], "counts": packed["counts"].decode()}
    file.write_text(json.dumps(content), "utf-8")
    return tmp_path


def test_numbers_are_those_of_pycocotools_on_the_written_files(folder):
    dataset = open_dataset(folder, "val", kind="detection")
    model = InexactDetector(dataset)
    batches = evaluation_batches(dataset, lambda image: {"pixels": image}, batch_size=3)
    result = evaluate_records(
        (r for batch in batches for r in image_records(model, batch)), dataset.classes, masks=True
    )

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(folder / "annotations/instances_val.json"))
    detections = []
    for index, image in truth.imgs.items():
        for each in detect(model, folder / "val" / image["file_name"], threshold=0.0).to_dict()["objects"]:
            x0, y0, x1, y1 = each["box"]
            entry = {"image_id": index, "category_id": each["label"] + 1, "score": each["score"]}
            coded = coco_mask.frPyObjects(each["segmentation"], 90, 120)
            detections.append({**entry, "bbox": [x0, y0, x1 - x0, y1 - y0], "segmentation": coded})
    for kind, name in (("bbox", "box"), ("segm", "mask")):
        columns = ("image_id", "category_id", "score", "bbox" if kind == "bbox" else "segmentation")
        with contextlib.redirect_stdout(io.StringIO()):
            own = truth.loadRes([{column: each[column] for column in columns} for each in detections])
            evaluation = COCOeval(truth, own, kind)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        expected = dict(zip(MEASURES, evaluation.stats[:6].tolist(), strict=True))
        found = {measure: result.metrics[f"{name}_{measure}"] for measure in MEASURES}
        assert {key: value if value == value else -1 for key, value in found.items()} == expected
        assert 0.05 < found["ap"] < found["ap50"] < 1
    assert result.num_images == 8 and result.num_objects == len(truth.anns) - 1
    assert set(result.per_class) == set(dataset.classes)


def test_images_without_any_object_are_refused(folder):
    dataset = open_dataset(folder, "val", kind="detection")
    batches = evaluation_batches(dataset, lambda image: {"pixels": image}, batch_size=1)
    records = [record for batch in batches for record in image_records(InexactDetector(dataset), batch)]
    with pytest.raises(DataError, match="nothing to measure: the evaluated images have no objects"):
        evaluate_records(records[3:4], dataset.classes, masks=True)
