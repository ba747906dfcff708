import logging
import os
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from data.pictures import encoded, photo
from mambar.data import has_test_split, open_dataset
from mambar.data.classification.folder import ImageFolder
from mambar.data.dataset import ImageDataset
from mambar.data.loading.images import read_image
from mambar.data.transforms.classification import to_pil_image
from mambar.errors import DataError, ImageError

BOTH = {"train/cat": 3, "train/dog": 2, "val/cat": 1, "val/dog": 2}


def refuses(root, match, split="train", **options):
    with pytest.raises(DataError, match=match) as caught:
        ImageFolder(root, split, **options)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_train_and_val_are_taken_as_they_are(make_folder):
    root = make_folder(BOTH)
    train, val = ImageFolder(root, "train"), ImageFolder(root, "val")
    assert isinstance(train, ImageDataset)
    assert (len(train), len(val)) == (5, 3)
    assert train.classes == val.classes == ("cat", "dog") and train.name == "pictures"
    assert [train[index].label for index in range(5)] == [0, 0, 0, 1, 1]
    assert list(val.paths) == ["cat/000.jpg", "dog/000.jpg", "dog/001.jpg"]
    assert torch.equal(val[2].image, read_image(root / "val/dog/001.jpg"))


@pytest.mark.parametrize("place", ["", "train/"])
def test_without_val_a_share_of_every_class_is_held_out(place, make_folder, caplog):
    root = make_folder({f"{place}cat": 10, f"{place}dog": 5})
    with caplog.at_level(logging.INFO, "mambar.data"):
        train, val = ImageFolder(root, "train"), ImageFolder(root, "val")
    assert ("held out" in caplog.text) == bool(place)
    assert np.bincount(val.labels).tolist() == [2, 1] and np.bincount(train.labels).tolist() == [8, 4]
    assert len({*train.paths} | {*val.paths}) == 15
    assert list(ImageFolder(root, "val").paths) == list(val.paths)
    assert len(ImageFolder(root, "val", val_fraction=0.5)) == 7
    assert list(ImageFolder(root, "val", split_seed=1).paths) != list(val.paths)


def test_all_formats_sub_folders_and_links_are_found(tmp_path, caplog):
    root = tmp_path / "mixed"
    (root / "a" / "deep").mkdir(parents=True)
    for name, kind in (("1.JPG", "JPEG"), ("2.png", "PNG"), ("deep/3.webp", "WEBP"), ("4.jpeg", "JPEG")):
        (root / "a" / name).write_bytes(encoded(photo(8, 8), kind))
    (root / "a" / "5.png").symlink_to(root / "a" / "2.png")
    for other in (".hidden.png", "notes.txt", "Thumbs.db", "old.bmp", ".DS_Store"):
        (root / "a" / other).write_bytes(b"x")
    (root / "b").symlink_to(root / "a", target_is_directory=True)
    (root / ".cache").mkdir()
    (root / "readme.txt").touch()
    with caplog.at_level(logging.WARNING, "mambar.data"):
        train = ImageFolder(root, "train", val_fraction=0.01)
    assert train.classes == ("a", "b")
    both = {*train.paths} | {*ImageFolder(root, "val", val_fraction=0.01).paths}
    names = ("1.JPG", "2.png", "4.jpeg", "5.png", "deep/3.webp")
    assert both == {f"{label}/{name}" for label in "ab" for name in names}
    assert "are left out: 6" in caplog.text and "2 .bmp" in caplog.text and "a/Thumbs.db" in caplog.text
    assert len(caplog.records) == 1
    assert all(train[index].image.shape == (3, 8, 8) for index in range(len(train)))


def test_exif_is_heeded_unless_not_wanted(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in "xy":
        (tmp_path / name).mkdir()
        for number in range(2):
            (tmp_path / name / f"{number}.jpg").write_bytes(encoded(photo(8, 16), exif=exif))
    assert ImageFolder(tmp_path, "train")[0].image.shape == (3, 16, 8)
    assert ImageFolder(tmp_path, "train", apply_exif_orientation=False)[0].image.shape == (3, 8, 16)


def test_wrong_layouts_are_refused_in_one_line(make_folder, tmp_path):
    refuses(tmp_path / "none", "does not exist")
    (tmp_path / "empty").mkdir()
    refuses(tmp_path / "empty", "no class sub-folders")
    (tmp_path / "file").touch()
    refuses(tmp_path / "file", "not a directory")
    (tmp_path / "loose").mkdir()
    (tmp_path / "loose" / "1.jpg").write_bytes(encoded(photo(8, 8)))
    refuses(tmp_path / "loose", "images but no class sub-folders")
    refuses(make_folder({"a": 3, "b": 0}, "hollow"), "class 'b' in .* has no images")
    refuses(make_folder({"a": 3, "b": 1}, "single"), "class 'b' in .* has 1 image, too few to split")
    refuses(make_folder({"val/a": 3}, "noval"), r"val/ but no train/")
    refuses(make_folder({"train/a": 2, "train/b": 2, "val/a": 2}, "less"), r"class 'b' is only in train/")
    refuses(make_folder({"train/a": 2, "val/a": 2, "val/c": 2}, "more"), r"class 'c' is only in val/")
    refuses(make_folder({"a": 3, "b": 3}, "fine"), "split='test'", split="test")
    refuses(tmp_path / "fine", "fraction=1.5", val_fraction=1.5)


def test_hostile_class_names_stay_on_one_line(make_folder):
    refuses(make_folder({"ok": 2, "evil\n\x1b[2Jname": 0}), r"evil \?\[2Jname")


def test_bad_images_are_replaced_in_training_and_left_to_evaluation(make_folder):
    root = make_folder(BOTH)
    (root / "train/cat/000.jpg").write_bytes(b"not an image")
    (root / "val/dog/000.jpg").unlink()
    (root / "val/dog/000.jpg").symlink_to(root / "gone.jpg")
    train, val = ImageFolder(root, "train"), ImageFolder(root, "val")
    assert torch.equal(train[0].image, train[1].image) and train[0].label == 0
    assert train.unreadable.count == 1
    with pytest.raises(ImageError, match="link to nothing"):
        val[1]


def test_too_many_bad_images_end_the_run(make_folder):
    root = make_folder({"train/a": 15, "train/b": 2, "val/a": 1, "val/b": 1}, size=(8, 8))
    for index in range(11):
        (root / f"train/a/{index:03d}.jpg").write_bytes(b"")
    train = ImageFolder(root, "train")
    with pytest.raises(DataError, match=r"11 of the 17 images in .* cannot be read"):
        [train[index] for index in range(17)]


def test_the_fingerprint_is_that_of_the_listing(make_folder):
    root = make_folder(BOTH)
    first = ImageFolder(root, "train").fingerprint()
    assert ImageFolder(root, "train").fingerprint() == first != ImageFolder(root, "val").fingerprint()
    (root / "train/dog/001.jpg").rename(root / "train/dog/002.jpg")
    assert ImageFolder(root, "train").fingerprint() != first


def test_a_folder_travels_to_other_processes(make_folder):
    train = ImageFolder(make_folder(BOTH), "train")
    copy = pickle.loads(pickle.dumps(train))
    assert torch.equal(copy[4].image, train[4].image) and copy.fingerprint() == train.fingerprint()


@pytest.mark.parametrize(
    ("train", "val"),
    [("Train", "Val"), ("Training", "Testing"), ("train", "valid"), ("TRAIN", "validation"), ("train", "test")],
)
@pytest.mark.parametrize("above", ["", "dataset/"])
def test_split_folders_are_found_under_their_usual_names(make_folder, train, val, above):
    root = make_folder(
        {f"{above}{train}/cat": 3, f"{above}{train}/dog": 3, f"{above}{val}/cat": 1, f"{above}{val}/dog": 2}
    )
    found = [ImageFolder(root, split) for split in ("train", "val")]
    assert [len(part) for part in found] == [6, 3] and found[0].classes == found[1].classes == ("cat", "dog")
    assert found[1][2].label == 1


def test_val_is_preferred_to_test_and_the_rest_is_named(make_folder, caplog):
    root = make_folder({"train/cat": 2, "train/dog": 2, "val/cat": 1, "val/dog": 1, "old/cat": 5, "Test/dog": 5})
    assert len(ImageFolder(root, "val")) == 2 and "old are not used" in caplog.text


def test_a_test_folder_beside_val_is_the_test_split(make_folder, caplog):
    splits = {"train/cat": 2, "train/dog": 2, "val/cat": 1, "val/dog": 1}
    root = make_folder({**splits, "Testing/cat": 3, "Testing/dog": 1})
    assert has_test_split(root) and len(open_dataset(root, "test")) == 4 and "not used" not in caplog.text
    without = make_folder({"train/cat": 2, "train/dog": 2, "test/cat": 1, "test/dog": 1}, "no val")
    assert not has_test_split(without)
    with pytest.raises(DataError, match=r"has train and val; its test images are split='val'\."):
        open_dataset(without, "test")
    with pytest.raises(DataError, match=r"split='valid' is not there: .* has train and val and test\."):
        open_dataset(root, "valid")
    assert not has_test_split(make_folder({**splits, "test/images": 3}, "unlabeled"))
    assert "its class folders differ" in caplog.text


def test_a_class_may_be_called_train(make_folder):
    assert ImageFolder(make_folder({"train": 5, "plane": 5, "car": 5}), "train").classes == ("car", "plane", "train")


def test_loose_images_and_unknown_suffixes_are_counted_and_named(make_folder, caplog):
    root = make_folder(BOTH)
    for name in ("train/loose.jpg", "train/cat/1.heic", "train/dog/old/2.TIFF", "train/dog/noname", "val/cat/3.tif"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(b"x")
    assert len(ImageFolder(root, "train")) == 5
    assert "files that are not PNG, JPEG or WEBP are left out: 3" in caplog.text and "1 without suffix" in caplog.text
    assert "images that are in no class sub-folder are left out: 1 (1 .jpg), such as 'loose.jpg'" in caplog.text
    caplog.clear()
    assert len(ImageFolder(root, "val")) == 3 and "(1 .tif), such as 'cat/3.tif'" in caplog.text


def test_a_folder_that_cannot_be_listed_is_refused(make_folder, monkeypatch):
    root = make_folder({"cat": 3, "dog": 3, "dog/closed": 1})
    listed = os.scandir

    def scandir(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    refuses(root, "dog/closed cannot be listed: permission denied; check its permissions")


def test_two_links_to_each_other_are_a_loop(make_folder):
    root = make_folder({"cat": 2, "dog": 2})
    (root / "cat" / "dogs").symlink_to(root / "dog", target_is_directory=True)
    (root / "dog" / "cats").symlink_to(root / "cat", target_is_directory=True)
    refuses(root, "links to a folder that contains it; remove the link")


def test_unlabeled_test_images_are_not_a_split(make_folder, caplog):
    root = make_folder({"Train/cat": 5, "Train/dog": 5, "Test": 4})
    assert len(ImageFolder(root, "val")) == 2 and "Test are not used" in caplog.text


def test_a_dataset_beside_other_folders_is_found_one_level_deeper(make_folder, caplog):
    root = make_folder({"data/Training/cat": 3, "data/Training/dog": 3, "data/Test/cat": 1, "data/Test/dog": 1})
    (root / "annotations").mkdir()
    (root / "annotations" / "labels.json").touch()
    with caplog.at_level(logging.INFO, "mambar.data"):
        assert [len(ImageFolder(root, split)) for split in ("train", "val")] == [6, 2]
    assert "the splits in its sub-folder data are used" in caplog.text


def test_what_may_be_a_split_or_a_class_is_a_question(make_folder):
    refuses(make_folder({"train/2019": 3, "train/2020": 3, "bus": 3}, "a"), "if it is a class, rename it")
    # A class named train beside one other class is a class.
    assert ImageFolder(make_folder({"train": 3, "bus": 3}, "b"), "train").classes == ("bus", "train")
    inside = make_folder({f"{name}/{split}": 2 for name in ("cat", "dog") for split in ("train", "val")}, "c")
    refuses(inside, r"each of cat, dog has train/ inside.*put the classes into the splits: train/cat")
    refuses(make_folder({"train": 3, "val": 3}, "d"), "train has images but no class sub-folders")


def test_one_class_alone_is_a_question(make_folder):
    refuses(make_folder({"photographs": 5}), "has one class, 'photographs'; a classifier needs two or more")
    refuses(make_folder({"train/cat": 5, "val/cat": 5}, "both"), "has one class, 'cat'")
    refuses(make_folder({"pets/cat": 5, "pets/dog": 5}, "above"), r"did you mean data=.*/above/pets\?")


def test_linked_folders_are_followed_and_loops_refused(make_folder, tmp_path):
    root, other = make_folder({"cat": 4, "dog": 4}), make_folder({"more": 3}, "elsewhere")
    (root / "cat" / "more").symlink_to(other / "more", target_is_directory=True)
    assert sum(len(ImageFolder(root, split)) for split in ("train", "val")) == 11
    (root / "dog" / "loop").symlink_to(root, target_is_directory=True)
    refuses(root, "links to a folder that contains it")


def test_jfif_and_multi_picture_files_are_jpegs(make_folder):
    root = make_folder({"cat": 2, "dog": 2})
    (root / "cat" / "000.jpg").rename(root / "cat" / "000.jfif")
    picture = to_pil_image(read_image(root / "dog/001.jpg"))
    picture.save(root / "dog" / "002.jpg", "MPO", save_all=True, append_images=[picture])
    found = [*ImageFolder(root, "train").paths, *ImageFolder(root, "val").paths]
    assert sorted(found) == ["cat/000.jfif", "cat/001.jpg", "dog/000.jpg", "dog/001.jpg", "dog/002.jpg"]
    assert read_image(root / "dog/002.jpg").shape == (3, *picture.size[::-1])
