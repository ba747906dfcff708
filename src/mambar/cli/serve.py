"""`mambar serve`: a page that shows what a model sees in an image."""

import logging
import os
import sys
from typing import Annotated

import typer

from mambar.cli.arguments import Assignments, img_size, parse, truth, whole_number
from mambar.cli.console import say
from mambar.device import choose_device
from mambar.errors import InputError

logger = logging.getLogger("mambar.cli.serve")

_PASSWORD = "MAMBAR_PASSWORD"


def serve(
    model: Annotated[str, typer.Argument(help="A run directory, a checkpoint, a name of ours, or timm/NAME.")],
    assignments: Assignments = None,
    public: Annotated[
        bool, typer.Option("--public", help=f"Let other machines in, with the password in {_PASSWORD} or asked for.")
    ] = False,
) -> None:
    """Show classes, norms, feature and register maps of any image in the browser, on this machine only.

    compare=MODEL shows a second model beside the first in one scale. Others: port= device= img_size= (a larger one
    gives finer maps) pretrained=true for a bare name. Ends with Ctrl-C.
    """
    options = parse(assignments, allowed=("compare", "port", "device", "img_size", "pretrained"))
    fields = options.fields
    port = whole_number("port", fields["port"], 1) if "port" in fields else None
    if port is not None and port > 65535:
        raise InputError(f"port={port} must be at most 65535.")
    size = img_size(fields["img_size"]) if "img_size" in fields else None
    pretrained = truth("pretrained", fields.get("pretrained", "false"))
    device = choose_device(options.device)
    password = _password() if public else None

    from dataclasses import replace

    from mambar.analysis.analyzed_model import open_model
    from mambar.web.server import USER, run_server, wait_for_shutdown

    sources = [model, *([fields["compare"]] if "compare" in fields else [])]
    analyzed_models = [open_model(source, pretrained=pretrained, img_size=size, device=device) for source in sources]
    if len({analyzed.name for analyzed in analyzed_models}) < len(analyzed_models):
        analyzed_models[1] = replace(analyzed_models[1], name=f"{analyzed_models[1].name} (2)")
    logger.info("Starting the page; this takes some seconds.")
    with run_server(analyzed_models, port=port, password=password) as page:
        say(f"page: {page.address}  (Ctrl-C ends it)")
        if public:
            say(f"other machines reach it on the same port, as user {USER}; put TLS before it where others listen")
        wait_for_shutdown()


def _password() -> str:
    """From the environment or the terminal, never from the command line, which others on the machine can read."""
    import getpass

    given = os.environ.get(_PASSWORD)
    if given is None:
        if not sys.stdin.isatty():
            raise InputError(f"--public needs a password; set {_PASSWORD} (at least 8 characters).")
        given = getpass.getpass("Password of the page: ")
    if len(given) < 8:
        raise InputError(f"The password of a public page needs at least 8 characters; set {_PASSWORD} to a longer one.")
    return given
