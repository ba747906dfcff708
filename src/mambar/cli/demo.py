"""`mambar demo`: the main job on real images, in about two minutes on two CPU cores."""

from mambar.cli.arguments import AsJson, Assignments, parse, print_json
from mambar.cli.console import say


def demo(assignments: Assignments = None, as_json: AsJson = False) -> None:
    """Train a small Mamba-R and the same network with one middle register (Vim) on handwritten digits, and compare.

    Options: out= seed=0 device=cpu workers=0 epochs=.
    """
    options = parse(assignments, allowed=("out", "seed", "device", "workers", "epochs"))

    from mambar.recipes.demo import run_demo

    result = run_demo(
        out=options.out,
        seed=options.seed or 0,
        device="cpu" if options.device == "auto" else options.device,
        workers=options.workers or 0,
        fields=options.assignments,
    )
    if as_json:
        print_json(result.to_dict())
        return
    for name, top1 in result.top1.items():
        say(f"{name:28} {top1:.2%} top-1 on held-out digits")
    say(f"report: {result.report}")
