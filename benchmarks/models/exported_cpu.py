"""Time of exported files on a CPU, relative to the model in PyTorch, for each format and runtime.

    uv run python benchmarks/models/exported_cpu.py                                   # Tiny, one image, one thread
    uv run python benchmarks/models/exported_cpu.py --model base --batch 8 --threads 2 --files FOLDER

Random weights, 224 pixels, float32 unless said. A round runs every program once; the table has medians over the rounds
of CPU time of the process and of elapsed time. On a machine with other load, compare CPU times of one thread. "Fixed
sizes" means that batch, height and width are set when the file is loaded. `--files` keeps the exported files for the
next run; without it they are exported anew, which takes minutes.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import openvino
import timm
import torch
from torch import Tensor

from mambar.bench.machine import describe
from mambar.bench.table import Row, markdown
from mambar.export import export_model
from mambar.memory import keep_freed_memory
from mambar.models import VARIANTS, VisionMamba

# File name → options of `export_model`.
FILES: dict[str, dict[str, Any]] = {
    "plain.onnx": {"format": "onnx"},
    "int8.onnx": {"format": "onnx", "int8": True},
    "plain.xml": {"format": "openvino"},
    "plain.pt2": {"format": "torch-export"},
    "kernels.pt2": {"format": "torch-export", "kernels": True},
    "plain.aoti.pt2": {"format": "aoti"},
    "kernels.aoti.pt2": {"format": "aoti", "kernels": True},
}
# Logits of float32 programs may differ from the model's by this much, those of int8 are not compared.
TOLERANCE = 1e-5


def by_torch(module: Callable[[Tensor], Tensor], images: Tensor) -> Callable[[], Tensor]:
    """Runs a module or an exported program."""

    def run() -> Tensor:
        with torch.inference_mode():
            return module(images)

    return run


def by_onnxruntime(file: Path, images: Tensor, threads: int, *, fixed: bool) -> Callable[[], Tensor]:
    """Runs an `.onnx` file."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    if fixed:
        for name, size in zip(("batch", "height", "width"), (images.shape[0], *images.shape[2:]), strict=True):
            options.add_free_dimension_override_by_name(name, size)
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    given = {"images": images.numpy()}
    return lambda: torch.from_numpy(session.run(None, given)[0])


def by_openvino(file: Path, images: Tensor, threads: int, *, fixed: bool) -> Callable[[], Tensor]:
    """Runs an `.xml` file in float32."""
    core = openvino.Core()
    graph = core.read_model(str(file))
    if fixed:
        graph.reshape(list(images.shape))
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
    request = core.compile_model(graph, "CPU", options).create_infer_request()
    return lambda: torch.from_numpy(request.infer([images.numpy()])[0])


def programs(model: VisionMamba, vit: str, folder: Path, images: Tensor, threads: int) -> dict[str, Callable]:
    """Name → function that runs it on `images`."""
    for name, options in FILES.items():
        if not (folder / name).exists():
            print(f"Exporting {name}.", file=sys.stderr, flush=True)
            export_model(model, folder / name, check=False, **options)
    packages = {name: torch._inductor.aoti_load_package(str(folder / name)) for name in FILES if "aoti" in name}
    return {
        "the model": by_torch(model, images),
        "torch.export, kernels": by_torch(torch.export.load(folder / "kernels.pt2").module(), images),
        "AOTInductor, kernels": by_torch(packages["kernels.aoti.pt2"], images),
        "OpenVINO, fixed sizes": by_openvino(folder / "plain.xml", images, threads, fixed=True),
        "OpenVINO": by_openvino(folder / "plain.xml", images, threads, fixed=False),
        "onnxruntime, fixed sizes": by_onnxruntime(folder / "plain.onnx", images, threads, fixed=True),
        "onnxruntime": by_onnxruntime(folder / "plain.onnx", images, threads, fixed=False),
        "onnxruntime, int8": by_onnxruntime(folder / "int8.onnx", images, threads, fixed=False),
        "AOTInductor": by_torch(packages["plain.aoti.pt2"], images),
        "torch.export": by_torch(torch.export.load(folder / "plain.pt2").module(), images),
        f"timm {vit}": by_torch(timm.create_model(vit).eval(), images),
    }


def seconds(works: dict[str, Callable], rounds: int) -> dict[str, tuple[float, float]]:
    """Medians of CPU time and elapsed time of each function over interleaved rounds, after one call each."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in works}
    for index in range(rounds + 1):
        for name, work in works.items():
            cpu, elapsed = time.process_time(), time.perf_counter()
            work()
            if index:
                found[name].append((time.process_time() - cpu, time.perf_counter() - elapsed))
    return {name: tuple(map(statistics.median, zip(*each, strict=True))) for name, each in found.items()}  # type: ignore[misc]


def main() -> None:
    """Exports, checks the logits, measures, prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", choices=("tiny", "small", "base"), default="tiny")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--files", type=Path, help="folder of exported files; default: a temporary one")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)
    keep_freed_memory()
    torch.manual_seed(0)
    model = VisionMamba(VARIANTS[f"mambar_{options.model}_patch16_224"]).eval()
    images = torch.randn(options.batch, 3, 224, 224)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.files or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        works = programs(model, f"vit_{options.model}_patch16_224", folder, images, options.threads)
        wanted = works["the model"]()
        for name, work in works.items():
            error = float(np.abs((work() - wanted).numpy()).max())
            if "int8" not in name and "timm" not in name and error > TOLERANCE:
                raise SystemExit(f"{name}: logits differ by {error:.1e}; nothing is timed.")
        load_before = os.getloadavg()[0]
        found = seconds(works, options.rounds)
    cpu_of_model, elapsed_of_model = found["the model"]
    rows = [
        Row(name=name, cells=(cpu * 1e3, f"{cpu / cpu_of_model:.2f}", wall * 1e3, f"{wall / elapsed_of_model:.2f}"))
        for name, (cpu, wall) in found.items()
    ]
    versions = f"onnxruntime {onnxruntime.__version__}, OpenVINO {openvino.__version__}, timm {timm.__version__}"
    print(f"{describe('cpu')}; {versions}; {datetime.now(UTC):%Y-%m-%d}")
    print(f"{options.model}, batch {options.batch}, threads: {options.threads}, {options.rounds} rounds; ", end="")
    print(f"load average {load_before:.1f} to {os.getloadavg()[0]:.1f}\n")
    print(markdown(["CPU ms", "of the model", "elapsed ms", "of the model"], rows))


if __name__ == "__main__":
    main()
