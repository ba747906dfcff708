"""The demo: trains Mamba-R and Vim on handwritten digits and writes one report."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mambar.deprecated import LOADER_ARGUMENTS, accept_old_names
from mambar.errors import InputError
from mambar.recipes.digits import RECIPE, VIM_RECIPE
from mambar.recipes.run import default_out, run

if TYPE_CHECKING:
    from mambar.analysis import NormPanel
    from mambar.models.vision_mamba import VisionMamba

_NAMES = ("Mamba-R, 4 registers", "Vim, 1 middle register")
_PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket")
# In pixels: 28×28 patches of 2 pixels.
_PHOTOGRAPH_SIZE = 56
_ON_PHOTOGRAPHS = "Photographs: demo of the tooling; digits are too small to show the paper's effect"


@dataclass(frozen=True, kw_only=True)
class DemoResult:
    """Result of `run_demo`.

    Attributes:
        top1: Top-1 accuracy on validation digits, by network.
        report: Path of report.html.
        runs: Run directories, by network.
    """

    top1: Mapping[str, float]
    report: Path
    runs: Mapping[str, Path]

    def to_dict(self) -> dict[str, Any]:
        """All fields for JSON."""
        runs = {name: str(path) for name, path in self.runs.items()}
        return {"top1": dict(self.top1), "report": str(self.report), "runs": runs}


@accept_old_names(LOADER_ARGUMENTS)
def run_demo(
    *,
    out: str | Path | None = None,
    seed: int = 0,
    device: str = "cpu",
    num_workers: int = 0,
    fields: Iterable[str] = (),
) -> DemoResult:
    """Trains both networks into `out`/mambar and `out`/vim and writes `out`/report.html and `out`/token_norms.png.

    `fields` are `field=value` texts for both recipes. Raises InputError if `out` is not empty.
    """
    out = Path(out) if out is not None else default_out("demo")
    if out.is_symlink() or (out.exists() and (not out.is_dir() or any(out.iterdir()))):
        raise InputError(f"out={out} is not empty; choose another path.")
    fields = list(fields)
    recipes = {
        _NAMES[0]: (RECIPE.with_overrides(fields), "mambar"),
        _NAMES[1]: (VIM_RECIPE.with_overrides(fields), "vim"),
    }
    results = {
        name: run(recipe, out=out / folder, seed=seed, device=device, num_workers=num_workers)
        for name, (recipe, folder) in recipes.items()
    }
    top1 = {name: result.metrics["top1"] for name, result in results.items()}
    runs = {name: result.directory for name, result in results.items()}
    return DemoResult(top1=top1, report=_report(out, runs, top1), runs=runs)


def _report(out: Path, runs: Mapping[str, Path], top1: Mapping[str, float]) -> Path:
    from mambar.analysis.draw.image_maps import draw_norm_panels
    from mambar.analysis.draw.plots import png
    from mambar.analysis.draw.run_report import write_run_report
    from mambar.atomic_files import write_atomically
    from mambar.data import open_dataset
    from mambar.hub import load
    from mambar.recipes.evaluate_run import evaluate_run
    from mambar.training.classification_report import example_predictions
    from mambar.training.metrics_log import read_metrics
    from mambar.training.task import preprocessing_of

    first = next(iter(runs))
    from mambar.models.timm_vit import as_vision_mamba

    models = {name: as_vision_mamba(load(path), "The demo") for name, path in runs.items()}
    digits = open_dataset("digits", "val")
    found = evaluate_run(runs[first])
    preprocessing = preprocessing_of(RECIPE, RECIPE.stages[0])
    panels = _norm_panels(models)
    write_atomically(out / "token_norms.png", png(draw_norm_panels(panels[_ON_PHOTOGRAPHS])))
    return write_run_report(
        out / "report.html",
        title="mambar demo: registers in a vision Mamba",
        introduction=(
            "Two networks with the same blocks, data and schedule on 8×8-pixel handwritten digits: Mamba-R with four "
            "registers spread over the sequence, Vim with one in the middle."
        ),
        recipe=RECIPE.to_flat_dict(),
        metrics={name: read_metrics(path / "metrics.jsonl") for name, path in runs.items()},
        classes=digits.classes,
        model=first,
        confusion=found.confusion,
        predictions=example_predictions(models[first], digits, preprocessing, found.misclassified),
        norm_panels=panels,
        summary={f"top-1, {name}": f"{value:.2%}" for name, value in top1.items()},
    )


def _norm_panels(models: "Mapping[str, VisionMamba]") -> "dict[str, list[NormPanel]]":
    import torch

    from mambar.analysis import FigureLabel
    from mambar.analysis.draw.norm_panels import compare_norms
    from mambar.data import EvalTransform, Preprocessing, open_dataset
    from mambar.data.synthetic.photographs import photographs

    digits = open_dataset("digits", "val")
    pixels = [digits[index].image for index in range(4)]
    pictures = photographs(*_PHOTOGRAPHS)
    transform = EvalTransform(preprocessing=Preprocessing(img_size=_PHOTOGRAPH_SIZE))
    small = {name: transform.pixels(picture) for name, picture in pictures.items()}
    normal = next(iter(models.values())).preprocessing
    assert normal is not None
    return {
        "Held-out digits": compare_norms(
            models,
            torch.stack([normal.normalize(image) for image in pixels]),
            shown=[image.numpy() for image in pixels],
            label=FigureLabel(data="digits, held out", seed=RECIPE.seed),
        ),
        _ON_PHOTOGRAPHS: compare_norms(
            models,
            torch.stack([normal.normalize(image) for image in small.values()]),
            shown=[image.numpy() for image in small.values()],
            captions=list(small),
            label=FigureLabel(data="photographs of scikit-image", seed=RECIPE.seed),
        ),
    }
