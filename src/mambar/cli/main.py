"""The command `mambar`: its verbs, and what becomes of errors.

Every error is one line on stderr and an exit code: 0 done, 1 failure, 2 usage or input, 3 disk, 4 non-finite,
130 interrupted, 143 terminated. `--debug` shows the traceback as well.
"""

import contextlib
import errno
import logging
import os
import sys
from collections.abc import Sequence
from typing import Annotated, NoReturn

import typer

from mambar.cli import (
    analyze,
    bench,
    convert,
    demo,
    doctor,
    evaluate,
    export,
    info,
    pack,
    predict,
    recipe,
    reproduce,
    segment,
    serve,
    train,
)
from mambar.cli.console import PrintableFormatter
from mambar.errors import MambarError
from mambar.memory import keep_freed_memory
from mambar.messages import printable
from mambar.version import __version__

_EVERYWHERE = ("--debug", "--quiet", "-q")

app = typer.Typer(
    name="mambar",
    help="Mamba-R: vision Mamba with register tokens. Train, evaluate and look into it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

# In the order of the work: try, train, look, use, and what is around it; with the line that `mambar --help` shows.
_VERBS = {
    "demo": (demo.demo, "Train a small Mamba-R and its Vim twin, compare them."),
    "train": (train.train, "Train a recipe, or go on with a run."),
    "evaluate": (evaluate.evaluate, "Top-1, top-5 and per class on held-out images."),
    "predict": (predict.predict, "Name what is on images."),
    "analyze": (analyze.analyze, "Look for artifacts: norms, maps, outliers, probes."),
    "reproduce": (reproduce.reproduce, "A table or figure of the paper, ours beside it."),
    "recipe": (recipe.recipe, "List the recipes, or show one resolved."),
    "segment": (segment.segment, "Name every pixel of images."),
    "pack": (pack.pack, "Write a folder of images as tar shards."),
    "export": (export.export, "ONNX, torch.export, AOTInductor, OpenVINO, transformers."),
    "serve": (serve.serve, "A page that shows what a model sees in an image."),
    "doctor": (doctor.doctor, "What is here, what can run, are the numbers right."),
    "bench": (bench.bench, "Speed of the ops and models on this machine."),
    "convert": (convert.convert, "Released checkpoints to ours, and back."),
    "info": (info.info, "What a model is and what it costs."),
}
for _name, (_verb, _line) in _VERBS.items():
    app.command(_name, short_help=_line)(_verb)


def _version(asked: bool) -> bool:
    if asked:
        typer.echo(f"mambar {__version__}")
        raise typer.Exit
    return asked


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print results and errors only.")] = False,
) -> None:
    """Mamba-R: vision Mamba with register tokens. Train, evaluate and look into it."""
    keep_freed_memory()
    level = logging.DEBUG if debug else logging.ERROR if quiet else logging.INFO
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(PrintableFormatter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("mambar").setLevel(level)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Runs the command line and exits with its code; `arguments` default to the process's own."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    # Wherever they stand, these are meant for the whole command.
    everywhere = [argument for argument in given if argument in _EVERYWHERE]
    given = [*everywhere, *(argument for argument in given if argument not in _EVERYWHERE)]
    try:
        code = _run(given, debug)
    except KeyboardInterrupt:
        # Pressed again while the line of the first was being printed.
        code = 130
    sys.exit(code)


def _run(arguments: list[str], debug: bool) -> int:
    try:
        result = app(arguments, prog_name="mambar", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except MambarError as error:
        return _fail(error, str(error), error.exit_code, debug)
    except (KeyboardInterrupt, typer.Abort) as error:
        # A second Ctrl-C on the way out does not hide what the first one has to say: how to go on.
        first = error.__context__
        return _fail(error, str(first) if isinstance(first, MambarError) else "Interrupted.", 130, debug)
    except BrokenPipeError:
        # The reader of our output has gone; nothing is left to say to it.
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        code = 3 if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO) else 1
        return _fail(error, f"{error.filename or 'A file'}: {error.strerror or error}", code, debug)
    except Exception as error:
        usage = getattr(error, "format_message", None)
        if usage is not None:  # click's and typer's own complaints about the arguments
            return _fail(error, usage(), getattr(error, "exit_code", 2), debug)
        message = f"{type(error).__name__}: {error} (run again with --debug to see where)"
        return _fail(error, message, 1, debug)


def _fail(error: BaseException, message: str, code: int, debug: bool) -> int:
    if debug:
        import traceback

        traceback.print_exception(error)
    line = printable(" ".join(message.split())) or type(error).__name__
    typer.echo(f"mambar: {line}", err=True)
    return code
