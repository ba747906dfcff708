import numpy as np
import pytest

from data.pictures import encoded, photo
from mambar.data.classification.cifar10 import Cifar10Jpeg
from mambar.data.classification.digits import Digits
from mambar.data.classification.folder import ImageFolder
from mambar.data.dataset import ImageDataset, Subset
from mambar.data.registry import has_test_split, open_dataset
from mambar.data.shards.dataset import TarShards
from mambar.data.shards.pack import pack_folder
from mambar.data.synthetic.shapes import Shapes
from mambar.errors import DataError


def refuses(data, match, split="train", **options):
    with pytest.raises(DataError, match=match) as caught:
        open_dataset(data, split, **options)
    assert "\n" not in str(caught.value)


def test_names_open_what_is_built_in():
    assert isinstance(open_dataset("digits", "val"), Digits)
    shapes = open_dataset("shapes", "val", img_size=32, num_images=50)
    assert isinstance(shapes, Shapes) and shapes.split == "val" and len(shapes) == 50


def test_paths_are_looked_at(make_folder, tmp_path, monkeypatch):
    plain = make_folder({"digits": 5, "shapes": 5}, "digits")
    assert isinstance(open_dataset(plain, "train"), ImageFolder)
    assert isinstance(open_dataset(str(plain), "train", val_fraction=0.4), ImageFolder)
    imagenet = open_dataset(make_folder({"n01440764": 2, "n01443537": 2}, "net"), "val")
    assert isinstance(imagenet, ImageFolder) and imagenet.classes[0] == "tench, Tinca tinca"
    pack_folder(plain, tmp_path / "tars")
    assert isinstance(open_dataset(tmp_path / "tars", "val"), TarShards)
    (tmp_path / "cifar").mkdir()
    data = encoded(photo(32, 32))
    parts = {"jpeg": np.frombuffer(data, np.uint8), "offsets": np.array([0, len(data)])}
    for name in ("train", "test"):
        np.savez(tmp_path / "cifar" / name, **parts, labels=np.zeros(1, int), classes=np.array(["x"]))
    assert isinstance(open_dataset(tmp_path / "cifar", "val"), Cifar10Jpeg)
    monkeypatch.chdir(tmp_path)
    assert isinstance(open_dataset("digits", "val"), Digits)
    assert isinstance(open_dataset("./digits", "val"), ImageFolder)


@pytest.mark.parametrize(
    "counts, sizes",
    [
        ({"": 10}, (8, 2)),
        ({"all/2020": 5, "all/2021": 5}, (8, 2)),
        ({"train": 6, "val": 3, "test": 2}, (6, 3)),
    ],
)
def test_images_need_no_class_folders(counts, sizes, make_folder):
    root = make_folder(counts)
    train, val = (open_dataset(root, split, kind="images") for split in ("train", "val"))
    assert (len(train), len(val)) == sizes and train.classes == val.classes == ("images",)
    assert not {*map(str, map(train.path, range(len(train))))} & {*map(str, map(val.path, range(len(val))))}
    assert has_test_split(root, kind="images") == ("test" in counts)
    refuses(root, "class")


def test_images_of_class_folders_are_those_of_classification(make_folder):
    root = make_folder({"cat": 10, "dog": 5})
    for split in ("train", "val"):
        images, labeled = (open_dataset(root, split, kind=kind) for kind in ("images", "classification"))
        assert images.fingerprint() == labeled.fingerprint() and images.classes == ("cat", "dog")
    assert isinstance(open_dataset("digits", "val", kind="images"), Digits)
    (root.parent / "empty").mkdir()
    refuses(root.parent / "empty", "has no images", kind="images")


def test_errors_say_what_to_do(tmp_path):
    refuses(tmp_path / "none", "does not exist .* digits, shapes, cifar10")
    refuses("digit", "data=digit does not exist")
    (tmp_path / "file.npz").touch()
    refuses(tmp_path / "file.npz", "is a file; give the folder")
    (tmp_path / "empty").mkdir()
    refuses(tmp_path / "empty", "no class sub-folders")
    refuses("digits", "split='test'", split="test")
    refuses("digits", r"has no option 'img_size'; it takes limit, val_limit, canvas\.", img_size=3)
    refuses("shapes", "no option 'imagesize'; did you mean 'img_size'", imagesize=3)
    refuses("shapes", "no option 'split_seed'; it takes img_size", split_seed=3)
    refuses("shapes", "cannot be opened with img_size='big'", img_size="big")
    refuses("shapes", "limit=0", limit=0)
    refuses("cifar10", "CIFAR-10 is not complete", root=tmp_path)


def test_a_limit_keeps_the_same_few():
    whole = open_dataset("shapes", "train", num_images=100, img_size=8)
    part = open_dataset("shapes", "train", limit=30, num_images=100, img_size=8)
    assert isinstance(part, Subset) and isinstance(part, ImageDataset)
    assert len(part) == 30 and part.classes == whole.classes and part.name == "shapes"
    assert part.fingerprint() == open_dataset("shapes", "train", limit=30, num_images=100, img_size=8).fingerprint()
    assert len(open_dataset("shapes", "train", limit=1000, num_images=100, img_size=8)) == 100


def test_a_limit_of_its_own_for_val():
    options = {"num_images": 100, "img_size": 8, "val_limit": 20}
    assert len(open_dataset("shapes", "train", **options)) == 100
    assert len(open_dataset("shapes", "val", **options)) == 20
    assert len(open_dataset("shapes", "val", limit=30, **options)) == 20


@pytest.mark.wrong_shapes
@pytest.mark.parametrize("name", ["limit", "val_limit"])
@pytest.mark.parametrize("count", [0, -1, 2.5, "x", True])
def test_a_limit_that_is_no_count_is_refused_by_its_name(name, count):
    for split in ("train", "val"):
        with pytest.raises(DataError, match=f"^{name}={count!r} is not a count"):
            open_dataset("shapes", split, num_images=10, img_size=8, **{name: count})


def test_a_limit_written_wrongly_is_guessed():
    with pytest.raises(DataError, match="did you mean 'val_limit'"):
        open_dataset("shapes", "val", val_limt=5)
