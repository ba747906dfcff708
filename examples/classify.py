"""Names for one image by a trained model.

    python examples/classify.py RUN IMAGE

RUN is what `mambar train` wrote, a directory of `mambar convert`, or a hub id.
"""

import sys
from pathlib import Path

import mambar
from mambar.evaluation.prediction import predict_file

if __name__ == "__main__":
    model = mambar.load(sys.argv[1])
    for guess in predict_file(model, Path(sys.argv[2]), top=3):
        print(f"{guess.probability:7.2%}  {guess.name}")
