"""The device of a command."""

from mambar.errors import InputError


def choose_device(name: str) -> str:
    """The device that `auto`, `cpu`, `cuda`, `cuda:N` or `mps` names; `auto` prefers a GPU.

    Raises `InputError` for another name and for a device that is not available.
    """
    import torch

    mps = torch.backends.mps.is_available()
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if mps else "cpu"
    kind, colon, index = name.partition(":")
    if kind == "cuda" and (not colon or index.isdecimal()):
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if int(index or 0) >= count:
            missing = f"PyTorch sees only {count} GPUs here" if count else "PyTorch sees no GPU here"
            raise InputError(f"device {name} is not available: {missing}; choose cpu or auto.")
    elif name == "mps" and not mps:
        raise InputError("device mps is not available: PyTorch sees no Apple GPU here; choose cpu or auto.")
    elif name not in ("cpu", "mps"):
        raise InputError(f"device {name!r} is unknown; choose auto, cpu, cuda, cuda:N or mps.")
    return name
