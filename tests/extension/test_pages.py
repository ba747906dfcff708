"""Each extension point has a page of one screen whose example is a single file that tests run."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
KINDS = ("task", "backbone", "mixer", "head", "placement", "dataset", "backend", "recipe", "table")
EXAMPLES = sorted(path.stem for path in (ROOT / "examples" / "extend").glob("*.py"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_page_is_short(kind):
    lines = (ROOT / "docs" / f"add_a_{kind}.md").read_text("utf-8").splitlines()
    code = re.findall(r"```python\n(.*?)```", "\n".join(lines), re.DOTALL)
    assert code and len(lines) - sum(block.count("\n") for block in code) <= 45


@pytest.mark.parametrize("kind", EXAMPLES)
def test_the_page_shows_the_example_and_a_test_runs_it(kind):
    """One file is the whole example, so that is what adding one takes."""
    example = (ROOT / "examples" / "extend" / f"{kind}.py").read_text("utf-8")
    page = (ROOT / "docs" / f"add_a_{kind}.md").read_text("utf-8")
    assert f"```python\n{example.rstrip()}\n```" in page
    tests = [path.read_text("utf-8") for path in (ROOT / "tests" / "extension").glob("test_*.py")]
    assert any(f'"{kind}.py"' in test for test in tests)
    assert (len(example.splitlines()) <= 65 and "import mambar" in example) or "from mambar" in example
