"""`mambar train`: runs a recipe, or goes on with a run."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from mambar.cli.arguments import AsJson, Assignments, parse, print_json
from mambar.cli.console import say
from mambar.errors import InputError


def train(
    name: Annotated[str, typer.Argument(help="A recipe's name (mambar recipe --list).")] = "",
    assignments: Assignments = None,
    resume: Annotated[Path | None, typer.Option("--resume", metavar="DIR", help="Go on with a run.")] = None,
    override: Annotated[
        list[str] | None, typer.Option("--override", metavar="FIELD", help="With --resume: a field that may change.")
    ] = None,
    processes: Annotated[int, typer.Option("--processes", min=1, help="Processes on this machine (torchrun).")] = 1,
    restarts: Annotated[int, typer.Option("--max-restarts", min=0, help="With --processes: restarts allowed.")] = 0,
    as_json: AsJson = False,
) -> int:
    """Train a recipe: `mambar train digits epochs=10`, `mambar train folder data=PATH`, `mambar train --resume DIR`.

    Options for every recipe: data= out= seed= device=auto|cpu|cuda|mps precision= workers=; any field of the recipe as
    field=value (mambar recipe NAME lists them).
    """
    given = [*([name] if "=" in name else []), *(assignments or [])]
    name = "" if "=" in name else name
    if processes > 1:
        return _under_torchrun(processes, restarts)
    options = parse(given)
    if resume is None and not name:
        raise InputError("train needs a recipe's name or --resume DIR; mambar recipe --list shows the names.")
    if resume is not None and name:
        raise InputError(f"--resume {resume} goes on with that run's own recipe; leave the name {name!r} away.")
    if override and resume is None:
        raise InputError(f"--override {override[0]} is for --resume DIR only; leave it away.")
    if resume is not None and options.out is not None:
        raise InputError(f"--resume {resume} goes on in that directory; leave out={options.out} away.")

    from mambar.recipes.run import resume as resume_run
    from mambar.recipes.run import run
    from mambar.training.distributed.environment import rank

    shared = {"device": options.device, "workers": options.workers}
    if resume is not None:
        result = resume_run(resume, changes=options.assignments, data=options.data, override=override or (), **shared)
    else:
        from mambar.recipes.index import get_recipe

        chosen = get_recipe(name).with_overrides(options.assignments)
        result = run(
            chosen,
            data=options.data,
            out=options.out,
            seed=options.seed,
            precision=None if options.precision == "auto" else options.precision,
            **shared,
        )
    if as_json:
        print_json({"directory": str(result.directory), "metrics": dict(result.metrics)})
    elif rank() == 0:
        numbers = ", ".join(f"{name} {value:.4f}" for name, value in result.metrics.items())
        say(f"{result.directory}: {numbers}")
        say(f"report: {result.directory / 'report.html'}")
    return 0


def _under_torchrun(processes: int, restarts: int) -> int:
    """Starts the same command under torchrun, with what its restarts need.

    TORCH_DISABLE_SHARE_RDZV_TCP_STORE is read by torchrun's agent before our program starts; without it a
    restart can wait for ever. The processes meet at 127.0.0.1: a machine's own name need not lead anywhere.
    """
    own = _without_options(sys.argv[1:], ("--processes", "--max-restarts"))
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1"),
        *(f"--nproc_per_node={processes}", f"--max-restarts={restarts}", "-m", "mambar", *own),
    ]
    environment = {**os.environ, "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    # In a session of its own: what is typed or sent to us reaches it through us, and once.
    agent = subprocess.Popen(command, env=environment, start_new_session=True)
    asked: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        # It hands this on to the processes, which save; a second one would make it leave them behind.
        if len(asked) == 1:
            agent.terminate()

    for name in ("SIGINT", "SIGTERM", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), pass_on)
    code = agent.wait()
    if not asked or code == 0:
        return code
    return 130 if asked[0] == signal.SIGINT else 143


def _without_options(arguments: list[str], names: tuple[str, ...]) -> list[str]:
    kept, skip = [], False
    for argument in arguments:
        if skip:
            skip = False
        elif argument in names:
            skip = True
        elif not argument.startswith(tuple(f"{name}=" for name in names)):
            kept.append(argument)
    return kept
