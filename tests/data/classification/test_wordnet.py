import pytest
import torch
from PIL import Image

from data.pictures import encoded, photo
from mambar.data.classification.folder import ImageFolder
from mambar.data.classification.wordnet import are_wordnet_ids, wordnet_names
from mambar.data.dataset import ImageDataset
from mambar.data.loading.images import read_image

IDS = ("n01440764", "n02012849", "n03126707", "n99999999")


def test_ids_become_words():
    names = wordnet_names(IDS)
    assert names[0] == "tench, Tinca tinca"
    assert names[1:3] == ("crane (n02012849)", "crane (n03126707)")
    assert names[3] == "n99999999"


def test_all_thousand_have_different_words():
    from timm.data.imagenet_info import ImageNetInfo

    ids = tuple(ImageNetInfo().label_names())
    assert ids == tuple(sorted(ids))
    names = wordnet_names(ids)
    assert len(set(names)) == 1000 and not set(names) & set(ids)


def test_the_layout_is_read_without_turning(make_folder):
    root = make_folder({f"{split}/{name}": 2 for split in ("train", "val") for name in IDS[:2]})
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encoded(photo(8, 16), exif=exif)
    (root / "val" / IDS[1] / "000.jpg").write_bytes(turned)
    val = ImageFolder(root, "val")
    assert isinstance(val, ImageDataset)
    assert len(val) == 4 and val.folder_names == IDS[:2]
    assert val.classes == ("tench, Tinca tinca", "crane")
    assert val[2].label == 1 and val[2].image.shape == (3, 8, 16)
    assert torch.equal(val[2].image, read_image(val.path(2), apply_exif_orientation=False))
    turning = ImageFolder(root, "val", apply_exif_orientation=True)
    assert turning[2].image.shape == (3, 16, 8) and turning.fingerprint() == val.fingerprint()


def test_other_folders_keep_their_names(make_folder):
    mixed = ImageFolder(make_folder({"n01440764": 2, "cats": 2}), "train")
    assert mixed.classes == mixed.folder_names == ("cats", "n01440764") and mixed.apply_exif_orientation


@pytest.mark.parametrize("name", ["n0144076", "n014407640", "x01440764", "n01440764 ", ""])
def test_a_wordnet_id_is_n_and_eight_digits(name):
    assert not are_wordnet_ids((name,))
