"""`mambar pack --coco`: drawn scenes in the format of other tools."""

from mambar.data import open_dataset


def test_mambar_pack_writes_scenes(mambar_command, tmp_path):
    options = ["data_options.num_images=3", "data_options.img_size=24"]
    code, out, _ = mambar_command("pack", "shapes", tmp_path / "coco", "--coco", *options)
    assert code == 0 and "3 images to train" in out and "3 images to val" in out
    assert len(open_dataset(tmp_path / "coco", "train", kind="detection")) == 3
    code, _, err = mambar_command("pack", "shapes", tmp_path / "coco", "--coco")
    assert code == 2 and "exists; give a new directory" in err
    code, _, err = mambar_command("pack", "x", tmp_path / "y", options[0])
    assert code == 2 and "with --coco only" in err
