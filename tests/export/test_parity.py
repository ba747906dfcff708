"""The comparison itself: it sees what differs, and takes near equals for equal."""

import torch

from mambar.export import parity
from mambar.models import VisionMamba, VisionMambaConfig

TINY = VisionMambaConfig(img_size=16, patch_size=8, embed_dim=8, depth=1, num_registers=2, num_classes=8, d_state=4)


def report(change, *, tolerance=1e-5, tmp_path, count=20, **options):
    torch.manual_seed(0)
    model = VisionMamba(TINY).eval()
    file = tmp_path / "file"
    file.write_bytes(b"abc")
    images = parity.probe_images(count, 3, (16, 16))
    run = lambda batch: change(model(batch))  # noqa: E731
    return parity.compare(model, run, file, name=file, format="test", images=images, tolerance=tolerance, **options)


def test_the_same_passes(tmp_path):
    found = report(lambda logits: logits, tmp_path=tmp_path, other_images=[parity.probe_images(3, 3, (24, 16))])
    assert found.passed and found.max_difference == 0 and found.images == 23
    assert found.same_top1 == found.same_top5 == 23 and found.batches == (1, 2, 7, 8)
    assert found.image_sizes == ((16, 16), (24, 16)) and found.images_per_size == (20, 3)
    assert "checked on 23 images (20 of 16x16, 3 of 24x16 pixels;" in found.lines()[1]
    assert found.bytes == 3 and found.to_dict()["passed"] is True


def test_a_small_difference_anywhere_fails(tmp_path):
    found = report(lambda logits: logits + 2e-5 * torch.eye(8)[7], tmp_path=tmp_path)
    assert not found.passed and 1e-5 < found.max_difference < 3e-5
    assert not report(lambda logits: logits * float("nan"), tmp_path=tmp_path).passed
    assert report(lambda logits: logits.flip(1), tmp_path=tmp_path, tolerance=1e9).same_top1 < 20


def test_a_swap_of_near_equals_is_no_difference():
    wanted = torch.tensor([[9.0, 8, 7, 6, 5, 5 - 1e-6, 0]])
    given = torch.tensor([[9.0, 8, 7, 6, 5 - 1e-6, 5, 0]])
    assert parity._agreement(wanted, given, 1e-5)["same_top5"] == 1
    assert parity._agreement(wanted, given, 1e-8)["same_top5"] == 0


def test_labels_give_accuracies(tmp_path):
    labels = torch.zeros(20, dtype=torch.long)
    found = report(
        lambda logits: 9 * torch.eye(8)[[0]].expand(len(logits), 8), tmp_path=tmp_path, tolerance=None, labels=labels
    )
    assert found.passed and found.exported_accuracy == 1 and 0 <= found.model_accuracy <= 1


def test_probe_images_are_the_same_every_time_and_unlike_each_other():
    first, again = parity.probe_images(6, 3, (16, 24)), parity.probe_images(6, 3, (16, 24))
    assert torch.equal(first, again) and len(torch.unique(first.flatten(1).mean(1))) == 6
