"""Detections of batches in COCO's form, and the evaluation of a trained detector on a dataset."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mambar.data.detection.object_masks import compressed_masks, run_lengths, target_objects
from mambar.data.loading.loaders import Batch, evaluation_batches
from mambar.detection.detector import Detector, paste_mask
from mambar.detection.files import load_detector
from mambar.evaluation.detection import DetectionResult, ImageRecord, evaluate_records
from mambar.training.run_data import open_run_dataset


def evaluate_run(
    run: str | Path,
    *,
    data: str | Path | None = None,
    split: str | None = None,
    data_options: Mapping[str, Any] | None = None,
    device: str | torch.device = "cpu",
    num_workers: int = 0,
) -> DetectionResult:
    """COCO's numbers of the detector in `run`.

    data: a dataset with the model's classes; by default the run's own dataset with the same options.
    split: by default "val", or all images of a folder given as `data` that has no validation split.
    """
    model = load_detector(run, device=device)
    dataset = open_run_dataset(run, data, split, data_options, classes=model.classes, kind="detection")
    batches = evaluation_batches(dataset, lambda image: {"pixels": image}, batch_size=1, num_workers=num_workers)
    records = [record for batch in batches for record in image_records(model, batch)]
    return evaluate_records(records, dataset.classes, masks=model.config.masks)


def image_records(model: Detector, batch: Batch) -> list[ImageRecord]:
    """Objects and detections of the images in a batch; `model` is in evaluation mode."""
    images = [pixels.cpu() for pixels in batch["pixels"]]
    records = []
    names = [name for name in ("boxes", "box_labels", "areas", "crowd", "segmentations") if name in batch]
    for place, (image, found) in enumerate(zip(images, model.detect(images), strict=True)):
        height, width = image.shape[1:]
        objects = target_objects({name: batch[name][place] for name in names})
        ground_truth = [
            {"category_id": each.label, "bbox": _bbox(each.box), "area": each.area, "iscrowd": int(each.crowd)}
            for each in objects
        ]
        columns = found["labels"].tolist(), found["boxes"].tolist(), found["scores"].tolist()
        detections: list[dict[str, Any]] = [
            {"category_id": label, "bbox": _bbox(box), "score": score}
            for label, box, score in zip(*columns, strict=True)
        ]
        if model.config.masks:
            masks = [each.segmentation for each in objects]
            for each, mask in zip(ground_truth, compressed_masks(masks, height, width), strict=True):
                each["segmentation"] = mask
            for number, each in enumerate(detections):
                mask = paste_mask(found["masks"][number], found["boxes"][number], (height, width))
                (each["segmentation"],) = compressed_masks([run_lengths(mask)], height, width)
                each["area"] = float(mask.sum())
        index = int(batch.indices[place])
        records.append(ImageRecord(index=index, size=(height, width), objects=ground_truth, detections=detections))
    return records


def _bbox(box: Any) -> list[float]:
    x0, y0, x1, y1 = box
    return [x0, y0, x1 - x0, y1 - y0]
