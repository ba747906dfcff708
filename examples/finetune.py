"""Fine-tunes a Mamba-R on a folder of images, one sub-folder a class.

    python examples/finetune.py FOLDER [CHECKPOINT]

CHECKPOINT is a run directory or a file; without it the network starts from fresh weights.
"""

import sys

from mambar import run
from mambar.recipes import get_recipe

if __name__ == "__main__":
    folder, *checkpoint = sys.argv[1:]
    chosen = get_recipe("finetune").replace(start_from=checkpoint[0]) if checkpoint else get_recipe("folder")
    result = run(chosen.replace(epochs=10), data=folder)
    print(f"{result.metrics['top1']:.2%} top-1, {result.directory}/report.html")
