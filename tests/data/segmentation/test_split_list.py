import pytest

from data.segmented import write
from mambar.data.loading.file_tree import open_tree
from mambar.data.segmentation.split_list import find_split_list, read_split_list

IMAGES, MASKS = ["a.jpg", "b c.png", "s/d.jpg", "v1.2"], ["a.png", "other.png", "s/d.png"]


@pytest.mark.parametrize(
    ("line", "image", "mask"),
    [
        ("a", "a.jpg", ""),
        ("./images/a.JPG", "a.jpg", ""),
        (r"C:\data\images\s\d.png", "s/d.jpg", ""),
        ("/My Data/images/b c.png", "b c.png", ""),
        ("b c", "b c.png", ""),
        ("v1.2", "v1.2", ""),
        ("images/a.jpg masks/other.png", "a.jpg", "other.png"),
        ("images/a.jpg,masks/a.png", "a.jpg", "a.png"),
        ("b c.png;other", "b c.png", "other.png"),
        ("a -1", "a.jpg", ""),
        ("d", "", ""),
        ("image,mask", "", ""),
    ],
)
def test_a_line_names_an_image_and_may_name_its_mask(tmp_path, line, image, mask):
    tree = open_tree(write(tmp_path, {"Valid.txt": "", "valid.txt": f"a\n\n{line}\n"}))
    assert find_split_list(tree, "val") == "valid.txt" and find_split_list(tree, "train") == ""
    listed = read_split_list(tree, "valid.txt", IMAGES, MASKS)
    assert [(each.image, each.mask) for each in listed] == [("a.jpg", ""), (image, mask)]
