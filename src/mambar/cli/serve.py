"""`mambar serve`: a local web page that shows a model's predictions, norms and maps."""

import logging
import os
import sys
from typing import Annotated

import typer

from mambar.cli.arguments import Compare, Device, ImgSize, MaxPixels, Pretrained
from mambar.cli.console import say
from mambar.device import choose_device
from mambar.errors import InputError
from mambar.image_file import MAX_PIXELS

logger = logging.getLogger("mambar.cli.serve")

_PASSWORD = "MAMBAR_PASSWORD"


def serve(
    model: Annotated[str, typer.Argument(help="A run directory, a checkpoint, a model's name, or timm/NAME.")],
    compare: Compare = None,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="Port of the page; by default a free one.")] = None,
    img_size: ImgSize = None,
    pretrained: Pretrained = False,
    device: Device = "auto",
    max_pixels: MaxPixels = None,
    public: Annotated[
        bool, typer.Option("--public", help=f"Allow other machines, with the password in {_PASSWORD} or prompted.")
    ] = False,
) -> None:
    """Open a local web page with classes, norms, feature and register maps of any image.

    A larger --img-size gives finer maps. Ctrl-C stops the page.
    """
    chosen_device = choose_device(device)
    password = _password() if public else None

    from dataclasses import replace

    from mambar.analysis.analyzed_model import open_model
    from mambar.web.server import USER, run_server, wait_for_shutdown

    sources = [model, *([] if compare is None else [compare])]
    common = {"pretrained": pretrained, "img_size": img_size, "device": chosen_device}
    models = [open_model(source, **common) for source in sources]
    if len({analyzed.name for analyzed in models}) < len(models):
        models[1] = replace(models[1], name=f"{models[1].name} (2)")
    logger.info("Starting the page; this takes some seconds.")
    with run_server(models, port=port, password=password, max_pixels=max_pixels or MAX_PIXELS) as page:
        say(f"page: {page.address}  (Ctrl-C ends it)")
        if public:
            say(f"other machines: same port, user {USER}; plain HTTP without encryption, use a TLS proxy")
        wait_for_shutdown()


def _password() -> str:
    """From the environment or the terminal, never from the command line, which others on the machine can read."""
    import getpass

    given = os.environ.get(_PASSWORD)
    if given is None and not sys.stdin.isatty():
        raise InputError(f"--public needs a password; set {_PASSWORD} (at least 8 characters).")
    return getpass.getpass("Password of the page: ") if given is None else given
