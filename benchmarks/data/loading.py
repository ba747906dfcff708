"""Images per second that one CPU core decodes and augments.

    OMP_NUM_THREADS=1 python benchmarks/data/loading.py                      # generated photographs, 500 x 375 JPEG
    OMP_NUM_THREADS=1 python benchmarks/data/loading.py --data /data/imagenet --cifar10 data/cifar10

Values are per CPU second of this process, so that other load has little effect; the table is printed. First checks that
Pillow and torchvision decode a photograph to nearly the same pixels, and that folder and shards give equal images.
"""

import argparse
import io
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from mambar.bench.machine import describe
from mambar.data import (
    EvalTransform,
    ImageDataset,
    Preprocessing,
    TrainTransform,
    open_dataset,
    pack_folder,
    read_image,
)
from mambar.data.loading.loaders import training_batches
from mambar.data.synthetic.photographs import photographs

SIDES = (500, 375)


def photographs_as_jpeg(root: Path, count: int) -> None:
    """Parts of scikit-image's photographs at ImageNet's usual size and quality, in one class folder."""
    sources = [Image.fromarray(np.asarray(image)).convert("RGB") for image in _arrays()]
    generator = np.random.default_rng(0)
    for split in ("train", "val"):
        for label in ("n01440764", "n01443537"):
            (root / split / label).mkdir(parents=True)
    for number in range(count):
        source = sources[number % len(sources)]
        share = float(generator.uniform(0.5, 1.0))
        cols, rows = int(source.width * share), int(source.height * share)
        left, top = int(generator.integers(source.width - cols + 1)), int(generator.integers(source.height - rows + 1))
        part = source.crop((left, top, left + cols, top + rows)).resize(SIDES, Image.Resampling.BICUBIC)
        folder = root / ("val" if number % 10 == 9 else "train") / ("n01440764", "n01443537")[number // 3 % 2]
        part.save(folder / f"{number:05d}.JPEG", quality=90)


def _arrays() -> list[np.ndarray]:
    return [image.permute(1, 2, 0).numpy() for image in photographs().values()]


def per_second(work: Callable[[int], object], seconds: float) -> float:
    """Calls per second of CPU time of this process, after ten warm-up calls."""
    for number in range(10):
        work(number)
    started, done = time.process_time(), 0
    while time.process_time() - started < seconds:
        work(done)
        done += 1
    return done / (time.process_time() - started)


def check(data: bytes) -> None:
    """Pillow's and torchvision's decoders agree to a few gray levels (their roundings differ)."""
    from torchvision.io import decode_jpeg

    ours = read_image(data)
    theirs = decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8))
    difference = (ours.int() - theirs.int()).abs()
    if int(difference.max()) > 8 or float(difference.float().mean()) > 0.5:
        raise SystemExit("the two decoders differ; nothing is measured")


def rows_of(dataset: ImageDataset, seconds: float) -> list[tuple[str, float]]:
    """(name, images per second of one core) for a set of photographs."""
    from torchvision.io import decode_jpeg

    samples = [dataset[index].image for index in range(min(len(dataset), 64))]
    encoded = []
    for image in samples:
        stream = io.BytesIO()
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(stream, "JPEG", quality=90)
        encoded.append(stream.getvalue())
    check(encoded[0])
    tensors = [torch.frombuffer(bytearray(data), dtype=torch.uint8) for data in encoded]
    many = len(samples)
    small, large = Preprocessing(img_size=128), Preprocessing(img_size=224)
    three = TrainTransform(preprocessing=large, auto_augment="three", color_jitter=0.3)
    chains = {
        "stage 1: 128 pixels, 3-Augment, jitter 0.3": replace(three, preprocessing=small),
        "stage 2: 224 pixels, 3-Augment, jitter 0.3": three,
        "stage 3: 224 pixels, RandAugment": TrainTransform(preprocessing=large, auto_augment="rand-m9-mstd0.5-inc1"),
    }
    evaluation = EvalTransform(preprocessing=large)
    rows = [
        ("decode, Pillow (used)", per_second(lambda n: read_image(encoded[n % many]), seconds)),
        ("decode, torchvision.io", per_second(lambda n: decode_jpeg(tensors[n % many]), seconds)),
    ]
    for name, chain in chains.items():
        rows.append((f"augment, {name}", per_second(lambda n, c=chain: c.pixels(samples[n % many], n), seconds)))
        rows.append((f"whole, {name}", loaded(dataset, chain.pixels, 32, seconds)))
    rows.append(("augment, evaluation at 224", per_second(lambda n: evaluation.pixels(samples[n % many]), seconds)))
    return rows


def loaded(dataset: ImageDataset, transform: Callable, batch_size: int, seconds: float) -> float:
    """Images per second of the data loader in this process, from the second epoch on."""
    batch_size = min(batch_size, len(dataset))
    sum(len(batch) for batch in training_batches(dataset, transform, seed=0, epoch=0, batch_size=batch_size))
    started, done, epoch = time.process_time(), 0, 1
    while time.process_time() - started < seconds:
        for batch in training_batches(dataset, transform, seed=0, epoch=epoch, batch_size=batch_size):
            done += len(batch)
            if time.process_time() - started >= seconds:
                break
        epoch += 1
    return done / (time.process_time() - started)


def main() -> None:
    """Measures and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="image folder; by default photographs are generated")
    parser.add_argument("--cifar10", type=Path, help="CIFAR-10 as .npz or in torchvision's format")
    parser.add_argument("--seconds", type=float, default=4.0, help="CPU seconds per row")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(describe("cpu"))
    with tempfile.TemporaryDirectory() as place:
        root = options.data or Path(place) / "folder"
        if options.data is None:
            photographs_as_jpeg(root, 200)
        train = open_dataset(root, "train")
        rows = rows_of(train, options.seconds)
        if options.data is None:
            pack_folder(root, Path(place) / "shards")
            shards = open_dataset(Path(place) / "shards", "train")
            if not all(torch.equal(train[index].image, shards[index].image) for index in range(len(train))):
                raise SystemExit("folder and shards differ; nothing is measured")
            chain = TrainTransform(preprocessing=Preprocessing(img_size=224), auto_augment="three", color_jitter=0.3)
            rows.append(("whole from tar shards, stage 2", loaded(shards, chain.pixels, 32, options.seconds)))
    if options.cifar10 is not None:
        shift = TrainTransform(preprocessing=Preprocessing(img_size=32), train_crop="shift", crop_padding=4)
        rows.append(
            (
                "CIFAR-10, 32 pixels, shift and flip",
                loaded(open_dataset(options.cifar10, "train"), shift.pixels, 256, options.seconds),
            )
        )
    print("\n| one core | images/s |\n|---|---|")
    for name, speed in rows:
        print(f"| {name} | {speed:,.0f} |")


if __name__ == "__main__":
    main()
