"""PASCAL VOC's boxes: JPEGImages, Annotations/*.xml, and lists of names in ImageSets/Main.

Annotation tools export this layout with their own classes.
"""

from pathlib import Path
from xml.etree import ElementTree

from mambar.data.boxed_images import BoxedImages
from mambar.data.dataset import SPLITS, check_split
from mambar.data.loading.file_tree import FileTree, open_tree
from mambar.data.segmentation.voc import VOC_CLASSES, find_voc_root
from mambar.errors import DataError
from mambar.image_file import MAX_PIXELS
from mambar.image_paths import is_image_name
from mambar.messages import one_line

_IMAGES, _XML, _LISTS = "JPEGImages", "Annotations", "ImageSets/Main"
_Named = tuple[str, tuple[float, float, float, float]]


def is_voc_objects(path: Path) -> bool:
    """True if the folder, or VOCdevkit/VOC* inside it, has VOC's images and boxes."""
    return find_voc_root(open_tree(path), _IMAGES, _XML) is not None


def voc_objects(root: Path | str, *, split: str, max_pixels: int = MAX_PIXELS) -> BoxedImages:
    """The images of ImageSets/Main with their boxes, also of objects that are marked difficult.

    `root` is the folder or .zip VOC2007 or VOC2012, or one that contains it. Classes are VOC's twenty, or else the
    names in the annotations of both splits.
    """
    check_split(split, "VOC")
    tree = find_voc_root(open_tree(root), _IMAGES, _XML)
    if tree is None:
        raise DataError(f"data={root} has no {_IMAGES} and {_XML}; give the folder VOC2012.")
    annotated = set(tree.files(_XML))
    listed = {each: _names(tree.text(f"{_LISTS}/{each}.txt") or "") for each in SPLITS}
    if not listed[split]:
        raise DataError(f"{tree.name} has no names in {_LISTS}/{split}.txt; write one image name per line.")
    found = {}
    for name in (name for names in listed.values() for name in names):
        if f"{name}.xml" not in annotated:
            raise DataError(f"{tree.name}/{_LISTS} lists {one_line(name)!r}, which has no {_XML}/*.xml; add the file.")
        found[name] = _objects(tree, f"{_XML}/{name}.xml")
    used = {each for objects in found.values() for each, _ in objects}
    classes = VOC_CLASSES[1:] if used <= set(VOC_CLASSES[1:]) else tuple(sorted(used))
    files = {path.rpartition(".")[0]: path for path in tree.files(_IMAGES) if is_image_name(path)}
    objects = {
        f"{_IMAGES}/{files.get(name, f'{name}.jpg')}": [(classes.index(each), box) for each, box in found[name]]
        for name in listed[split]
    }
    name = Path(root).name or str(root)
    return BoxedImages(tree, split, name=name, classes=classes, objects=objects, max_pixels=max_pixels)


def _names(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def _objects(tree: FileTree, path: str) -> list[_Named]:
    try:
        data = tree.read(path)
        # Entities can expand to any size; annotations have none.
        if b"<!" in data.replace(b"<!--", b""):
            raise ValueError("it declares a document type or entities")
        return [_object(each) for each in ElementTree.fromstring(data).iter("object")]
    except (ElementTree.ParseError, ValueError) as error:
        raise DataError(
            f"{tree.name}/{path} cannot be read: {one_line(error).rstrip('.')}; each <object> needs <name> and "
            "<bndbox> with xmin, ymin, xmax, ymax."
        ) from error


def _object(element: ElementTree.Element) -> _Named:
    name = (element.findtext("name") or "").strip()
    x0, y0, x1, y1 = (float(element.findtext(f"bndbox/{side}") or "nan") for side in ("xmin", "ymin", "xmax", "ymax"))
    if not name or not (0 <= x0 <= x1 < 1e6 and 0 <= y0 <= y1 < 1e6):
        raise ValueError(f"object {name!r} has the box {x0:g}, {y0:g}, {x1:g}, {y1:g}")
    # VOC counts pixels from 1 and gives the last one inside.
    return name, (max(x0 - 1, 0), max(y0 - 1, 0), x1, y1)
