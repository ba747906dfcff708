"""P19: names of classes and files stay text on the whole way through training, reports, JSON, CSV, tracking and the
terminal; what the environment knows is in no output."""

import contextlib
import csv
import io
import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hostile_names import HOSTILE
from mambar.cli.main import main
from mambar.paper.claim import Provenance, Result
from mambar.paper.render import render

pytestmark = pytest.mark.rel

SECRETS = {
    "AWS_SECRET_ACCESS_KEY": "planted-aws-secret",
    "HF_TOKEN": "hf_plantedtoken",
    "WANDB_API_KEY": "planted-wandb-key",
    "HTTPS_PROXY": "http://someone:planted-password@proxy:1",
    "UNRELATED": "planted-value",
}
# A file name can hold all but these two, has at most 255 bytes, and may be no text at all (the byte E9, as Python
# shows it); a folder whose name begins with a dot is no class.
NAMES = sorted(
    {
        name.replace("/", "\N{DIVISION SLASH}").replace("\0", "").replace("\ud800", "\udce9").lstrip(".")[:40]
        for name in HOSTILE
    }
)


class Elements(HTMLParser):
    """Counts what a page consists of, and the addresses it has."""

    def __init__(self):
        super().__init__()
        self.found, self.addresses = [], []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, tuple(sorted(name for name, _ in attrs))))
        self.addresses += [value or "" for name, value in attrs if name in ("href", "src", "action")]


def elements(page: str) -> Elements:
    parser = Elements()
    parser.feed(page)
    return parser


def fill(folder: Path, names) -> Path:
    """Two images in each class folder, themselves called like the class."""
    generator = np.random.default_rng(0)
    for name in names:
        (folder / name).mkdir(parents=True)
        for number in range(2):
            pixels = Image.fromarray(generator.integers(0, 255, (16, 16, 3), dtype=np.uint8))
            pixels.save(folder / name / f"{name}{number}.png")
    return folder


def run(*arguments) -> tuple[str, str]:
    """Stdout and stderr of a command that must succeed."""
    out, error = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error), pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    assert stop.value.code == 0, error.getvalue()
    return out.getvalue(), error.getvalue()


SMALL = (
    "img_size=16",
    "config.depth=1",
    "batch_size=4",
    "max_steps=2",
    "eval_every=1",
    "--num-workers=0",
    "--device=cpu",
)


def walk(place: Path, names) -> dict[str, str]:
    """All that training, evaluating, predicting and analysing print for these class names."""
    data = fill(place / "data", names)
    image = next(path for path in sorted(data.rglob("*.png")))
    printed = {}
    printed["train"] = "".join(
        run("train", "folder", f"data={data}", f"--out={place / 'run'}", *SMALL, "trackers=tensorboard")
    )
    printed["evaluate"] = "".join(run("evaluate", place / "run"))
    printed["predict"] = "".join(run("predict", place / "run", image, f"--top={len(names)}"))
    printed["analyze"] = "".join(
        run(
            "analyze",
            place / "run",
            f"data={data}",
            f"--out={place / 'analysis'}",
            "--test-time-registers=0",
            "--num-images=8",
        )
    )
    for verb in (
        ("evaluate", place / "run"),
        ("predict", place / "run", image),
        ("doctor", "--quick"),
        ("info", place / "run"),
    ):
        printed[f"{verb[0]} --json"] = run(*verb, "--json")[0]
    return printed


@pytest.fixture(scope="module")
def walked(tmp_path_factory):
    place = tmp_path_factory.mktemp("hostile")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SECRETS.items():
            patch.setenv(name, value)
        printed = walk(place, NAMES)
        plain = walk(place / "plain", [f"class{number:02d}" for number in range(len(NAMES))])
    return place, printed, plain


@pytest.mark.slow
def test_reports_have_the_elements_of_plain_names(walked):
    place, _, _ = walked
    assert len(NAMES) >= 40
    for report in ("run/report.html", "analysis/report.html"):
        hostile = elements((place / report).read_text("utf-8"))
        plain = elements((place / "plain" / report).read_text("utf-8"))
        # How many examples are right, and so how many rows say so, may differ; the kinds of elements may not.
        assert set(hostile.found) == set(plain.found)
        assert not [name for _, names in hostile.found for name in names if name.startswith("on")]
        assert not [a for a in hostile.addresses if not a.startswith(("data:image/", "#", "figures/", "curves.png"))]


@pytest.mark.slow
def test_terminals_get_nothing_to_obey(walked):
    place, printed, _ = walked
    for verb, text in printed.items():
        assert all(line.isprintable() for line in text.splitlines()), verb
    assert f"report: {place / 'run' / 'report.html'}" in printed["train"]
    assert "script" in printed["evaluate"] and "script" in printed["predict"]


@pytest.mark.slow
def test_json_has_the_names_as_they_are(walked):
    place, printed, _ = walked
    described = json.loads((place / "run" / "config.json").read_text("utf-8"))
    classes = described["mambar"]["classes"]
    assert len(classes) == len(NAMES) and any("<script>" in name for name in classes)
    assert set(json.loads(printed["evaluate --json"])["per_class"]) == set(classes)
    for path in place.rglob("*.json*"):
        for line in path.read_text("utf-8").splitlines() if path.suffix == ".jsonl" else [path.read_text("utf-8")]:
            json.loads(line)


@pytest.mark.slow
def test_planted_secrets_are_in_no_output(walked):
    place, printed, _ = walked
    files = [path for path in place.rglob("*") if path.is_file()]
    assert {".html", ".json", ".jsonl", ".png", ".safetensors", ".npz"} <= {path.suffix for path in files}
    assert [path for path in files if "tfevents" in path.name]
    text = [path.read_bytes() for path in files] + [shown.encode() for shown in printed.values()]
    assert not [value for value in (*SECRETS.values(), "planted-") for content in text if value.encode() in content]


@pytest.mark.parametrize("name", HOSTILE, ids=lambda name: repr(name)[:30])
def test_tables_of_the_paper_keep_names_as_text(name):
    where = Provenance(command="c", commit="c", machine="m", date="d", data="d", seeds=(0,))
    results = [Result(row=name, column="top-1", budget="small", values=(50.0,), provenance=where)]
    plain = [Result(row="plain", column="top-1", budget="small", values=(50.0,), provenance=where)]
    assert elements(render((), results, format="html")).found == elements(render((), plain, format="html")).found
    assert render((), results).count("\n") == render((), plain).count("\n")
    header, row = csv.reader(io.StringIO(render((), results, format="csv")))
    assert len(row) == len(header) and row[0][:1] not in tuple("=+-@\t\r")
