"""The command `mambar`: its subcommands and exit codes.

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
    detect,
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
from mambar.cli.arguments import Command
from mambar.cli.console import PrintableFormatter, set_up_streams
from mambar.errors import MambarError
from mambar.memory import keep_freed_memory
from mambar.messages import printable
from mambar.user_module import import_file
from mambar.version import __version__

# Options of `mambar` that are also accepted after the subcommand.
_FLAGS_EVERYWHERE = ("--debug", "--quiet", "-q")

app = typer.Typer(
    name="mambar",
    help="Mamba-R: vision Mamba with register tokens. Train, evaluate and analyze it.",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

# In the order of a workflow, with the line that `mambar --help` shows.
_VERBS = {
    "demo": (demo.demo, "Train a small Mamba-R and a Vim, and compare them."),
    "train": (train.train, "Train a recipe, or resume a run."),
    "evaluate": (evaluate.evaluate, "Evaluate a model on held-out images."),
    "predict": (predict.predict, "Classify images."),
    "analyze": (analyze.analyze, "Find artifacts: norms, outliers, maps, probes."),
    "reproduce": (reproduce.reproduce, "Measure a table or figure of the paper."),
    "recipe": (recipe.recipe, "List the recipes, or print one."),
    "segment": (segment.segment, "Segment images."),
    "detect": (detect.detect, "Detect objects in images."),
    "pack": (pack.pack, "Write a folder as tar shards, or data as COCO files."),
    "export": (export.export, "Export: ONNX, torch.export, AOTInductor, OpenVINO, transformers."),
    "serve": (serve.serve, "Open a local web page for a model."),
    "doctor": (doctor.doctor, "Print versions, devices and backends; run a self-test."),
    "bench": (bench.bench, "Measure the speed of ops and models."),
    "convert": (convert.convert, "Convert released checkpoints, and back."),
    "info": (info.info, "Print a model's sizes and costs."),
}
for _name, (_verb, _line) in _VERBS.items():
    app.command(_name, short_help=_line, cls=Command)(_verb)


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
    modules: Annotated[
        list[str] | None,
        typer.Option(
            "--import", metavar="FILE", help="Python file that registers backbones, tasks, datasets; repeatable."
        ),
    ] = None,
) -> None:
    """Mamba-R: vision Mamba with register tokens. Train, evaluate and analyze it."""
    keep_freed_memory()
    level = logging.ERROR if quiet else logging.DEBUG if debug else logging.INFO
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(PrintableFormatter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("mambar").setLevel(level)
    for module in modules or ():
        import_file(module)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Runs the command line and exits with its code; `arguments` default to the process's own."""
    set_up_streams()
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    try:
        code = _run(_global_first(given), debug)
    except KeyboardInterrupt:
        # A second Ctrl-C while the message of the first one is printed.
        code = 130
    sys.exit(code)


def _global_first(arguments: Sequence[str]) -> list[str]:
    """The arguments with the options of `mambar` before the subcommand."""
    first: list[str] = []
    others: list[str] = []
    for index, argument in enumerate(arguments):
        everywhere = argument in (*_FLAGS_EVERYWHERE, "--import") or argument.startswith("--import=")
        is_file = index > 0 and arguments[index - 1] == "--import"
        (first if everywhere or is_file else others).append(argument)
    return [*first, *others]


def _run(arguments: list[str], debug: bool) -> int:
    try:
        result = _call(arguments)
        return result if isinstance(result, int) else 0
    except MambarError as error:
        return _fail(error, str(error), error.exit_code, debug)
    except (KeyboardInterrupt, typer.Abort) as error:
        # A second Ctrl-C does not replace the message of the first, which states how to resume.
        first = error.__context__
        return _fail(error, str(first) if isinstance(first, MambarError) else "Interrupted.", 130, debug)
    except BrokenPipeError:
        # The reader of the output has closed it.
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        code = 3 if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO) else 1
        return _fail(error, f"{error.filename or 'A file'}: {error.strerror or error}", code, debug)
    except Exception as error:
        usage = getattr(error, "format_message", None)
        if usage is not None:  # click's and typer's own errors about the arguments
            command = getattr(getattr(error, "ctx", None), "command_path", "mambar")
            return _fail(error, f"{usage()} See {command} --help.", getattr(error, "exit_code", 2), debug)
        message = f"{type(error).__name__}: {error} (run again with --debug to see where)"
        return _fail(error, message, 1, debug)


def _call(arguments: list[str]) -> object:
    # Without arguments typer would raise the help as an error message.
    return app(arguments or ["--help"], prog_name="mambar", standalone_mode=False)


def _fail(error: BaseException, message: str, code: int, debug: bool) -> int:
    if debug:
        import traceback

        traceback.print_exception(error)
    line = printable(" ".join(message.split())) or type(error).__name__
    typer.echo(f"mambar: {line}", err=True)
    return code
