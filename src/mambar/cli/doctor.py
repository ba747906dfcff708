"""`mambar doctor`: versions, devices, available backends, and a self-test of numerical results."""

import importlib.metadata
import os
import platform
from typing import Annotated

import typer

from mambar.cli.arguments import AsJson, print_json
from mambar.cli.console import say, say_table
from mambar.version import __version__

_PACKAGES = (
    *("torch", "torchvision", "timm", "numpy", "safetensors", "triton", "llvmlite", "cuda-core"),
    *("transformers", "onnx", "onnxruntime", "openvino", "gradio"),
)


def doctor(
    quick: Annotated[bool, typer.Option("--quick", help="Skip the self-test.")] = False, as_json: AsJson = False
) -> int:
    """Show versions, devices, backends and cache directories, and run a self-test; exit code 1 if it fails."""
    found: dict[str, object] = {
        "mambar": __version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "packages": {name: _version(name) for name in _PACKAGES},
    }
    found.update(_devices())
    found["backends"] = _backends()
    found["caches"] = _caches()
    failures: list[str] = []
    if not quick:
        from mambar.bench.self_test import self_test

        report = self_test()
        found["self-test"] = {name: "right" if error is None else error for name, error in report.items()}
        failures = [name for name, error in report.items() if error is not None]
    if as_json:
        print_json(found)
    else:
        say_table((name, value) for name, value in found.items() if not isinstance(value, dict))
        for name, value in found.items():
            if isinstance(value, dict):
                say(name)
                say_table(value.items(), indent="  ")
    if failures:
        typer.echo(f"mambar: the self-test failed: {', '.join(failures)}", err=True)
    return 1 if failures else 0


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _devices() -> dict[str, object]:
    import torch

    from mambar.bench.machine import processor

    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    reason = "none that PyTorch sees" if torch.version.cuda else "none: this build of PyTorch has no CUDA"
    return {
        "processor": f"{processor()}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}",
        "gpus": ", ".join(gpus) or reason,
        "mps": "ready" if torch.backends.mps.is_available() else "not an Apple GPU",
    }


def _backends() -> dict[str, str]:
    """Every backend by op and device, with the reason if it cannot run; GPU backends also without a GPU."""
    import torch

    from mambar.ops import available_backends
    from mambar.ops.dispatch import OPS

    found = {}
    for op in OPS:
        for device in ("cpu", "cuda"):
            for backend in available_backends(op, device):
                there = device == "cpu" or torch.cuda.is_available()
                if not there and "cuda" not in (backend.devices or ()):
                    continue
                reason = None if there else "PyTorch sees no GPU"
                found[f"{op} on {device}: {backend.name}"] = backend.missing or reason or "ready"
    return found


def _caches() -> dict[str, str]:
    """Cache directories: of mambar's kernels and weights, and of the libraries that it uses."""
    from huggingface_hub.constants import HF_HUB_CACHE
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    from mambar.cache import cache_directory
    from mambar.errors import InputError

    try:
        own = str(cache_directory())
    except InputError as error:
        own = f"unusable: {error}"
    triton = os.environ.get("TRITON_CACHE_DIR") or os.path.expanduser("~/.triton/cache")  # noqa: PTH111
    return {
        "mambar (MAMBAR_CACHE)": own,
        "Hugging Face (HF_HUB_CACHE)": HF_HUB_CACHE,
        "torch.compile (TORCHINDUCTOR_CACHE_DIR)": os.environ.get("TORCHINDUCTOR_CACHE_DIR") or default_cache_dir(),
        "Triton (TRITON_CACHE_DIR)": triton,
    }
