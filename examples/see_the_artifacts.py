"""Find high-norm (artifact) tokens: each step of the analysis in a few lines.

    uv run python examples/see_the_artifacts.py                  # random weights: shows the tool, not the finding
    uv run python examples/see_the_artifacts.py runs/MY_RUN      # a trained network

The whole of it, with figures and numbers as files, is one call: `mambar.analysis.analyze(MODEL, out=Path("out"))`.
"""

import sys
from pathlib import Path

import torch

from mambar.analysis import (
    MedianDeviation,
    cluster_registers,
    compare_norms,
    feature_maps,
    norm_distributions,
    open_model,
    outlier_statistics,
    register_maps,
    token_norms,
)
from mambar.analysis.draw import html
from mambar.analysis.draw.norm_panels import panel
from mambar.analysis.measure.register_maps import map_similarity
from mambar.data.synthetic.photographs import photographs


def main(source: str, out: Path) -> None:
    """Asks one network everything and prints the answers."""
    analyzed = open_model(source)
    pictures = photographs("astronaut", "chelsea", "coffee")
    images = torch.stack([analyzed.preprocess(image) for image in pictures.values()])
    print(f"{analyzed.name}: {len(images)} photographs, {'random' if analyzed.random_weights else 'trained'} weights")

    # How long are the tokens after every block?
    norms = token_norms(analyzed.model, images)  # (layers, images, rows, cols)
    for layer, found in enumerate(norm_distributions(norms)):
        print(
            f"layer {layer:2d}: median {found.median:8.2f}, 99 % {found.quantile(0.99):8.2f}, max {found.maximum:8.2f}"
        )

    # Which of them stand out, and do they come back at the same place?
    last = outlier_statistics(norms, rule=MedianDeviation(k=10.0)).layers[-1]
    print(f"outliers in the last layer: {last.share:.2%} of tokens, {last.ratio:.1f} times the median at most")

    # What is near to the network's global vector, and to each register?
    near = feature_maps(analyzed.model, images, [-1], vector="register_mean", metric="cosine")
    seen = register_maps(analyzed.model, images, [-1], metric="cosine")[0]
    groups = cluster_registers(map_similarity(seen)).tolist()
    print(f"feature map from {near.min():.2f} to {near.max():.2f}; registers that see the same places: {groups}")

    # And as pictures.
    rows = compare_norms({analyzed.name: analyzed.model}, images, captions=list(pictures))
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(html.page("Token norms", html.section("Token norms", *(panel(row) for row in rows))))
    print(f"pictures: {out}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "mambar_tiny_patch16_224", Path("runs/artifacts.html"))
