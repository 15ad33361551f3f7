"""unsee demo: one concept, three methods, one leaderboard."""

import csv
import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from unsee.cli import commands
from unsee.pipelines import Erasure

ROOT = Path(__file__).parents[1]
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """A training of four steps, for the test's time."""
    monkeypatch.setitem(commands.DEMO, "esd", commands.DEMO["esd"] | {"iterations": 4})


def made(folder: Path) -> dict[Path, int]:
    """When erasures and images were written."""
    files = [*folder.glob("*.safetensors"), *folder.rglob("*.png")]
    return {file: file.stat().st_mtime_ns for file in files}


def test_its_settings_are_those_that_the_search_found_best_on_other_concepts() -> None:
    tried = json.loads((ROOT / "lab/results/methods-search.json").read_text("utf-8"))
    assert tuple(commands.DEMO) == ("uce", "esd", "sld")
    for method, settings in commands.DEMO.items():
        ours = [entry for entry in tried if entry["method"] == method]
        best = min(ours, key=lambda entry: float(entry["badness"]))
        assert settings == best["settings"]
        assert commands.DEMO_CONCEPT not in {row["concept"] for row in best["rows"]}


@pytest.mark.slow
def test_it_goes_on_where_it_was_and_compares_what_the_reports_say(
    run: Run, tmp_path: Path, short: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    demo = ("demo", "-o", "made", "--size", "8")
    folder = tmp_path / "made"

    @contextmanager
    def interrupting() -> Iterator[Callable[..., None]]:
        def show(what: str, done: float, total: int, note: str = "") -> None:
            if "esd" in what and done >= 50:
                raise KeyboardInterrupt

        yield show

    with monkeypatch.context() as patched:
        patched.setattr(commands, "progress", interrupting)
        assert run(*demo)[0] == 130
    part = folder / "esd.safetensors.part"
    assert part.exists() and not (folder / "esd.safetensors").exists()
    before = made(folder)
    code, out, err = run(*demo)
    assert code == 0, err
    assert before.items() <= made(folder).items() and not part.exists()
    assert Erasure.load(folder / "esd.safetensors").record.settings["iterations"] == 4
    for name in ("compare.html", "uce/report.html", "esd/report.html", "sld/report.html"):
        assert f"look at {Path('made') / name}" in out
    assert (folder / "compare.md").read_text("utf-8").count("\n| ") == 4
    lines = (folder / "compare.csv").read_text("utf-8").splitlines()
    rows = {row["name"]: row for row in csv.DictReader(lines)}
    assert list(rows) == ["base", "uce", "esd", "sld"]
    for name in commands.DEMO:
        report = json.loads((folder / name / "report.json").read_text("utf-8"))
        (target,) = (c for c in report["outcomes"][0]["comparisons"] if c["role"] == "target")
        for line, side in ((name, "erased"), ("base", "base")):
            assert math.isclose(float(rows[line]["target:emoji/object"]), target[side]["value"])
    # The base's images were made once
    stored = [
        json.loads(line).get("stored", False)
        for name in commands.DEMO
        for line in (folder / name / "base/images.jsonl").read_text("utf-8").splitlines()
    ]
    assert stored == [False] * 8 + [True] * 16
    before = made(folder)
    assert run(*demo)[0] == 0
    assert made(folder) == before


@pytest.mark.slow
def test_an_erasure_with_other_settings_is_made_again(
    run: Run, tmp_path: Path, short: None
) -> None:
    demo: tuple[Any, ...] = ("demo", "-o", ".", "--size", "4")
    assert run("erase", "emoji", "kitchen knife", "--no-check", "-o", "sld.safetensors")[0] == 0
    code, _, err = run(*demo)
    assert code == 0, err
    record = Erasure.load(tmp_path / "sld.safetensors").record
    assert (record.method, record.settings["momentum"]) == ("sld", 0.5)
