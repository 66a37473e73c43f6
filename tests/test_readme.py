"""What the README shows and names must exist."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_pictures_and_links_lead_somewhere():
    targets = [target for target in re.findall(r"\]\(([^)]+)\)", README) if not target.startswith("http")]
    assert len(targets) >= 8
    assert [target for target in targets if not (ROOT / target).is_file()] == []


def test_commands_name_files_and_targets_that_exist():
    scripts = set(re.findall(r"python ((?:benchmarks/)?\w+\.py)", README))
    assert scripts >= {"train_full.py", "prune.py", "quantize.py", "deploy.py"}
    assert [script for script in scripts if not (ROOT / script).is_file()] == []
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^    make (\w+)", README, re.MULTILINE) + re.findall(r"`make (\w+)", README):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_nothing_is_left_to_fill_in():
    assert not re.search(r"@[A-Z_]+@|TODO|XXX", README)
