"""Every code block of README and docs runs, both notebooks run, and the site builds without a warning or a network."""

import contextlib
import io
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from PIL import Image

import mambar
from mambar.cli.main import main
from mambar.models.config import VARIANTS
from mambar.recipes import get_recipe

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))

# What a block may need that a test machine lacks; the reader sees it as the block's title.
MARKERS = (
    r"needs (a GPU|ImageNet|ADE20K|the network|trained networks)",
    r"(one|two|four|eight) GPUs?, (about )?\w+ (minutes?|hours?|days?)",
    r"serves until stopped",
)
# Words that stand for something of the reader's own; the test has it under that very name.
RUN, IMAGES, IMAGE, MASKED = "RUN", "PATH", "IMAGE", "MASKED"
# Less of the same, put behind the words of the document: every word is still parsed and obeyed.
SHORTER = {
    "train digits": ["max_steps=2"],
    "train folder": ["epochs=1", "batch_size=4", "img_size=32", "config.depth=2"],
    "train finetune": ["epochs=1", "max_steps=2"],
    "train upernet": ["epochs=1", "max_steps=2", "batch_size=2", "config.depth=2"],
    "train upernet_shapes": ["epochs=1", "max_steps=2", "data_options.val_limit=4"],
    "train upernet_shapes_vim": ["epochs=1", "max_steps=2", "data_options.val_limit=4"],
    "train maskrcnn": ["epochs=1", "max_steps=1", "batch_size=2", "config.depth=2"],
    "pack shapes": ["data_options.num_images=4"],
    "analyze": ["--num-images", "4", "--gallery", "2", "--test-time-registers", "0"],
}


@dataclass(frozen=True)
class Block:
    """A fenced block: where it stands, its language, its title, its text."""

    page: Path
    line: int
    language: str
    title: str
    text: str


def blocks(page: Path) -> Iterator[Block]:
    """The fenced blocks of a page; an unknown language or title is an error."""
    fence = re.compile(
        r"^(?P<indent> *)```(?P<info>[^\n`]*)\n(?P<text>.*?)^(?P=indent)```\s*$", re.MULTILINE | re.DOTALL
    )
    text = page.read_text("utf-8")
    for found in fence.finditer(text):
        info = re.fullmatch(r'(\w*)(?: title="([^"]*)")?', found["info"].strip())
        where = f"{page.name}:{text[: found.start()].count(chr(10)) + 1}"
        assert info, f"{where}: {found['info']!r} is no language with a title."
        language, title = info[1], info[2] or ""
        assert language in ("python", "sh", "text", "bibtex"), (
            f"{where}: say python, sh, text or bibtex, not {language!r}."
        )
        known = any(re.fullmatch(marker, title) for marker in MARKERS)
        assert known or not title, f"{where}: {title!r} is no marker; known are {', '.join(MARKERS)}."
        yield Block(page, int(where.rpartition(":")[2]), language, title, found["text"])


def runnable(page: Path) -> list[Block]:
    return [block for block in blocks(page) if block.language in ("python", "sh") and not block.title]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """What the documents call RUN, PATH, IMAGE and MASKED, under these names."""
    place = tmp_path_factory.mktemp("documents")
    generator = torch.Generator().manual_seed(0)
    for name in ("cat", "dog", "horse"):
        (place / IMAGES / name).mkdir(parents=True)
        for number in range(10):
            pixels = torch.randint(0, 255, (40, 48, 3), generator=generator, dtype=torch.uint8)
            Image.fromarray(pixels.numpy()).save(place / IMAGES / name / f"{number:03d}.jpg")
    for number in range(5):
        for folder, name in (("images", f"{number}.jpg"), ("masks", f"{number}.png")):
            (place / MASKED / folder).mkdir(parents=True, exist_ok=True)
            pixels = torch.randint(0, 2 if folder == "masks" else 255, (40, 48, 3), generator=generator).byte().numpy()
            Image.fromarray(pixels[..., 0] if folder == "masks" else pixels).save(place / MASKED / folder / name)
    (place / MASKED / "classes.txt").write_text("background\nobject\n", "utf-8")
    shutil.copy(place / IMAGES / "cat" / "000.jpg", place / IMAGE)
    small = get_recipe("folder").replace(
        epochs=1, batch_size=4, img_size=32, config={"depth": 2, "patch_size": 8, "num_registers": 4}
    )
    mambar.run(small, data=place / IMAGES, out=place / RUN, device="cpu", num_workers=0)
    return place


def command(words: list[str]) -> None:
    """Runs `mambar …` in this process; any other program is refused."""
    assert words[0] == "mambar", f"{shlex.join(words)}: a document's commands are mambar's, or carry a marker."
    for start, more in SHORTER.items():
        if words[1:][: len(start.split())] == start.split() and "--resume" not in words:
            words = words + more
    out, error = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error), pytest.raises(SystemExit) as stop:
        main(words[1:])
    assert stop.value.code == 0, f"{shlex.join(words)}: {error.getvalue()}"


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if runnable(page)], ids=lambda page: page.name)
def test_every_block_runs(page, workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    names: dict[str, object] = {}
    with torch.random.fork_rng():
        for block in runnable(page):
            if block.language == "python":
                with contextlib.redirect_stdout(io.StringIO()):
                    exec(compile(block.text, f"{block.page.name}:{block.line}", "exec"), names)
                continue
            for line in block.text.replace("\\\n", " ").splitlines():
                if words := shlex.split(line, comments=True):
                    command(words)


def test_blocks_are_counted():
    found = [block for page in PAGES for block in blocks(page)]
    marked = [block for block in found if block.title]
    run = [block for page in PAGES for block in runnable(page)]
    # Studies on GPUs carry markers by nature; what a laptop can run must stay the larger part.
    assert len(run) >= 25 and len(run) > len(marked)
    # Fences that the pattern above missed would go unrun.
    fences = sum(len(re.findall(r"^ *```", page.read_text("utf-8"), re.MULTILINE)) for page in PAGES)
    assert fences == 2 * len(found)
    # So would code that is only indented.
    fenced = re.compile(r"^ *```.*?^ *```", re.MULTILINE | re.DOTALL)
    assert not [page.name for page in PAGES if re.search(r"\n\n {4,}\S", fenced.sub("", page.read_text("utf-8")))]


@pytest.mark.parametrize(
    "info",
    ['python title="needs luck"', "pyton", "", "python hidden", 'sh title="needs a gpu"', 'sh title="a GPU"'],
    ids=repr,
)
def test_an_unknown_marker_fails(info, tmp_path):
    (tmp_path / "page.md").write_text(f"```{info}\nx\n```\n", "utf-8")
    with pytest.raises(AssertionError, match=r"page\.md:1"):
        list(blocks(tmp_path / "page.md"))


def test_a_wrong_block_fails(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AssertionError, match="no recipe 'digitz'"):
        command(["mambar", "recipe", "digitz"])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not target.startswith(("https://", "#")):
            assert (page.parent / target.partition("#")[0]).exists(), f"{page.name}: there is no {target}"
    assert not re.search(r"https?://(\w+\.)*(pypi\.org|pythonhosted\.org|anaconda\.org|download\.pytorch\.org)", text)


def test_every_page_is_in_the_navigation():
    listed = set(re.findall(r'= "([^"]+\.md)"', (ROOT / "zensical.toml").read_text("utf-8")))
    there = {str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")}
    assert there == listed


def test_the_api_page_has_every_public_name():
    named = {
        line.rpartition(".")[2]
        for line in (ROOT / "docs" / "api.md").read_text("utf-8").splitlines()
        if line[:3] == ":::"
    }
    assert set(mambar.__all__) - {"__version__", "MambarError"} <= named


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run(path, tmp_path, need_package):
    need_package("nbclient")
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        assert not cell.get("outputs"), f"{path.name}: outputs are not kept; clear them."
        cell["source"] = re.sub(r"EPOCHS = \d+", "EPOCHS = 1", cell["source"])
    shutil.copy(path.with_name("clothing.zip"), tmp_path)
    client = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    assert [output for output in outputs if "image/png" in output.get("data", {})]


@pytest.mark.parametrize("page", ["README.md", "docs/index.md"])
def test_the_sizes_of_the_models_are_those_of_the_package(page):
    rows = re.findall(
        r"^\| `(\w+_224)` \| ([\d.]+) M \| (\d+) × (\d+) \| (\d+) \| (\d+) \|$", (ROOT / page).read_text("utf-8"), re.M
    )
    assert [row[0] for row in rows] == mambar.list_models()
    for name, millions, width, depth, registers, tokens in rows:
        config = VARIANTS[name]
        costs = mambar.complexity(config)
        assert f"{costs.parameters / 1e6:.1f}" == millions and costs.length == int(tokens)
        assert (config.embed_dim, config.depth, config.num_registers) == (int(width), int(depth), int(registers))


def test_what_the_readme_says_of_the_package_is_true():
    text = " ".join((ROOT / "README.md").read_text("utf-8").split())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    torch_needed = next(each for each in project["dependencies"] if each.startswith("torch>"))
    facts = (f"Python ≥ {project['requires-python'][2:]}", f"PyTorch ≥ {torch_needed[7:]}", project["license"], "typed")
    assert " · ".join((f"mambar {mambar.__version__}", *facts)) in text
    assert (ROOT / "src" / "mambar" / "py.typed").is_file()
    assert f"dist/mambar-{mambar.__version__}-py3-none-any.whl" in text
    extras = re.findall(r"^\| `(\w+)` \|", (ROOT / "README.md").read_text("utf-8"), re.M)
    assert sorted(name for name in extras if name in project["optional-dependencies"]) == sorted(
        project["optional-dependencies"]
    )


def test_there_are_two_notebooks():
    assert [path.stem for path in NOTEBOOKS] == ["see_the_artifacts", "train_on_your_images"]


class Loads(HTMLParser):
    """The addresses that a browser opens by itself when it shows a page."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        own = given.get("href") if tag == "link" and given.get("rel") != "canonical" else given.get("src")
        self.found += [own] if own else []


def loads(page: str) -> list[str]:
    parser = Loads()
    parser.feed(page)
    return [address for address in parser.found if address.startswith(("http", "//"))]


@pytest.mark.slow
def test_the_site_builds_without_a_warning_or_a_network(tmp_path, need_program, need_root, need_package):
    need_package("zensical")
    for name in ("docs", "src", "zensical.toml"):
        source = ROOT / name
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(source, tmp_path / name, ignore=ignore) if source.is_dir() else shutil.copy(source, tmp_path)
    build = [need_program("unshare"), "--net", sys.executable, "-m", "zensical", "build", "--clean", "--strict"]
    done = subprocess.run(build, cwd=tmp_path, capture_output=True, text=True, timeout=300, encoding="utf-8")
    assert done.returncode == 0 and "No issues found" in done.stdout + done.stderr, done.stdout + done.stderr
    pages = sorted((tmp_path / "site").rglob("*.html"))
    assert len(pages) > len(PAGES) - 2
    assert [address for page in pages for address in loads(page.read_text("utf-8"))] == []
    styles = [path.read_text("utf-8") for path in (tmp_path / "site").rglob("*.css")]
    assert styles and not [text for text in styles if re.search(r"(url\(|@import)[\s\"']*(https?:)?//", text)]
    api = (tmp_path / "site" / "api.html").read_text("utf-8")
    assert "batch length dim" in api or "batch rows cols" in api, "shapes are missing from the API page"
    # The negative control: a link to nothing stops the build.
    (tmp_path / "docs" / "tour.md").write_text("# Tour\n\n[nowhere](nowhere.md)\n", "utf-8")
    broken = subprocess.run(build, cwd=tmp_path, capture_output=True, text=True, timeout=300, encoding="utf-8")
    assert broken.returncode != 0


def test_a_page_that_loads_from_elsewhere_is_seen():
    assert loads('<link rel="stylesheet" href="https://fonts.example/x.css"><script src="//x.example/y.js">')
