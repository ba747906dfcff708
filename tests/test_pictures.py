"""Every picture of the documents has an entry that says how it was made, and is the file that the entry is about."""

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PICTURES = ROOT / "docs" / "pictures"
ENTRIES = json.loads((PICTURES / "pictures.json").read_text("utf-8"))


def test_every_picture_has_its_entry_and_is_shown():
    # An SVG file is its own source.
    pictures = {path.name for path in PICTURES.glob("*.png")}
    documents = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    shown = {
        name for page in documents for name in re.findall(r"\]\([^)]*pictures/([^)]+png)\)", page.read_text("utf-8"))
    }
    assert pictures == set(ENTRIES) == shown


def test_entries_are_complete_and_about_these_files():
    for name, entry in ENTRIES.items():
        assert all(entry[field].strip() for field in ("command", "commit", "date", "machine")), name
        assert re.match(r"[0-9a-f]{7}", entry["commit"]), name
        assert entry["sha256"] == hashlib.sha256((PICTURES / name).read_bytes()).hexdigest(), name


def test_the_script_remakes_a_picture_and_its_entry(tmp_path):
    script = ROOT / "benchmarks" / "pictures.py"
    subprocess.run([sys.executable, str(script), "efficiency", "--out", str(tmp_path)], check=True, capture_output=True)
    entry = json.loads((tmp_path / "pictures.json").read_text("utf-8"))["efficiency.png"]
    assert entry["command"] == "python benchmarks/pictures.py efficiency" == ENTRIES["efficiency.png"]["command"]
    assert entry["sha256"] == hashlib.sha256((tmp_path / "efficiency.png").read_bytes()).hexdigest()
