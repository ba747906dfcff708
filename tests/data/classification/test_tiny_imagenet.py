import shutil

import pytest
import torch

from boxed_files import BOXES, WNIDS, write_tiny_imagenet
from mambar.data import evaluation_batches, open_dataset
from mambar.errors import DataError


@pytest.fixture
def folder(tmp_path):
    return write_tiny_imagenet(tmp_path)


@pytest.mark.parametrize("split", ["train", "val"])
def test_images_labels_and_boxes_are_read(folder, split):
    dataset = open_dataset(folder, split)
    assert len(dataset) == 6 and dataset.name == "tiny_imagenet" and dataset.classes[0].startswith("goldfish")
    for index, sample in enumerate(dataset[place] for place in range(6)):
        x0, y0, x1, y1 = BOXES[index % 2]
        assert sample.label == index // 2 and sample.image.shape == (3, 64, 64)
        assert sample.targets["boxes"].tolist() == [[x0, y0, x1 + 1, y1 + 1]]
        assert sample.targets["box_labels"].tolist() == [sample.label]
        # The rectangle is dark, so box and pixels belong together.
        dark = sample.image.float().mean(0) < 150
        assert torch.equal(dark.any(0).nonzero().flatten(), torch.arange(x0, x1 + 1))
        assert torch.equal(dark.any(1).nonzero().flatten(), torch.arange(y0, y1 + 1))


def test_name_parent_folder_and_zip_give_the_same_data(folder):
    archive = shutil.make_archive(str(folder.parent / "tiny"), "zip", folder.parent, folder.name)
    one = open_dataset(folder, "train")
    for other in (
        open_dataset("tiny_imagenet", "train", root=str(folder)),
        open_dataset(folder.parent, "train"),
        open_dataset("tiny_imagenet", "train", root=archive),
    ):
        assert other.fingerprint() == one.fingerprint() and torch.equal(other[5].image, one[5].image)
    assert one.fingerprint() != open_dataset(folder, "val").fingerprint()


def test_a_batch_carries_the_boxes(folder):
    batch = next(iter(evaluation_batches(open_dataset(folder, "val"), lambda image: image, batch_size=4)))
    assert batch["boxes"].shape == (4, 1, 4) and batch.labels.tolist() == [0, 0, 1, 1]


def test_a_missing_image_is_skipped_in_evaluation(folder):
    (folder / "val/images/val_2.JPEG").unlink()
    batches = evaluation_batches(open_dataset(folder, "val"), lambda image: image, batch_size=6)
    assert sum(len(batch) for batch in batches) == 5


@pytest.mark.parametrize(
    ("file", "line", "message"),
    [
        ("val/val_annotations.txt", f"val_0.JPEG\t{WNIDS[0]}\t1\t2\t3\n", "has the line .* use 6 columns"),
        ("val/val_annotations.txt", "val_0.JPEG\tn00000001\t1\t2\t3\t4\n", "no folder in train"),
        ("val/val_annotations.txt", f"../x.JPEG\t{WNIDS[0]}\t1\t2\t3\t4\n", "has the line"),
        (f"train/{WNIDS[1]}/{WNIDS[1]}_boxes.txt", "a.JPEG\t1\t2\tx\t4\n", "has the line .* use 5 columns"),
    ],
)
def test_a_wrong_line_is_named(folder, file, line, message):
    (folder / file).write_text(line, "utf-8")
    with pytest.raises(DataError, match=message):
        open_dataset("tiny_imagenet", file.split("/")[0], root=folder)


def test_a_missing_file_is_named(folder):
    (folder / f"train/{WNIDS[1]}/{WNIDS[1]}_boxes.txt").unlink()
    with pytest.raises(DataError, match=f"has no train/{WNIDS[1]}/{WNIDS[1]}_boxes.txt"):
        open_dataset("tiny_imagenet", "train", root=folder)
    shutil.rmtree(folder / "train")
    with pytest.raises(DataError, match="has no class folders in train/"):
        open_dataset("tiny_imagenet", "val", root=folder)
