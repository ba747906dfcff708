"""`mambar doctor`: what is here, what can run and why not, and whether the numbers are right."""

import importlib.metadata
import platform
from typing import Annotated

import typer

from mambar.cli.arguments import AsJson, print_json
from mambar.version import __version__

_PACKAGES = (
    *("torch", "torchvision", "timm", "numpy", "safetensors", "triton", "llvmlite", "cuda-core"),
    *("transformers", "onnxruntime", "gradio"),
)


def doctor(
    quick: Annotated[bool, typer.Option("--quick", help="Leave the self-test out.")] = False,
    as_json: AsJson = False,
) -> int:
    """Show versions, devices, backends with reasons and cache places, and run a self-test; exit code 1 if it fails."""
    found: dict[str, object] = {
        "mambar": __version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "packages": {name: _version(name) for name in _PACKAGES},
    }
    found.update(_devices())
    found["backends"] = _backends()
    found["cache"] = _cache()
    failures: list[str] = []
    if not quick:
        from mambar.bench.self_test import self_test

        report = self_test()
        found["self-test"] = {name: "right" if error is None else error for name, error in report.items()}
        failures = [name for name, error in report.items() if error is not None]
    if as_json:
        print_json(found)
    else:
        for name, value in found.items():
            if isinstance(value, dict):
                typer.echo(name)
                for key, text in value.items():
                    typer.echo(f"  {key:36} {text}")
            else:
                typer.echo(f"{name:10} {value}")
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
    return {
        "processor": f"{processor()}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}",
        "gpus": ", ".join(gpus) or "none that PyTorch sees",
    }


def _backends() -> dict[str, str]:
    import torch

    from mambar.ops import available_backends
    from mambar.ops.dispatch import OPS

    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    return {
        f"{op} on {device}: {backend.name}": backend.missing or "ready"
        for op in OPS
        for device in devices
        for backend in available_backends(op, device)
    }


def _cache() -> str:
    from mambar.cache import cache_directory
    from mambar.errors import InputError

    try:
        return str(cache_directory())
    except InputError as error:
        return f"unusable: {error}"
