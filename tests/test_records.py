"""Records: typed, checked, and readable for ever."""

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from unsee._errors import InputError
from unsee._reading import loads
from unsee.pipelines import Erasure
from unsee.prompts import Concept
from unsee.records import Effect, Transport

GOLDEN = Path(__file__).parent / "golden" / "erasures"
FILES = sorted(GOLDEN.rglob("*.safetensors"))


def header(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="pt") as file:
        page: dict[str, Any] = json.loads(file.metadata()["unsee"])
        return page


@pytest.mark.parametrize("path", FILES, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_a_file_of_every_kind_and_format_stays_readable(path: Path, tmp_path: Path) -> None:
    erasure = Erasure.load(path)
    page = header(path)
    record = page["record"]
    assert path.parent.name == f"format-{record['format']}"
    assert erasure.record.kind == record["kind"] and erasure.record.method == record["method"]
    assert dict(erasure.record.settings) == record["settings"]
    assert [c.to_json() for c in erasure.record.concepts] == [
        {**c, **{k: tuple(v) for k, v in c.items() if isinstance(v, list)}}
        for c in record["concepts"]
    ]
    measured = page.get("measured", record)
    assert erasure.measured.seconds == measured["seconds"]
    if measured.get("effect"):
        wanted = {name: Effect(**seen) for name, seen in measured["effect"].items()}
        assert erasure.measured.effect == wanted
    erasure.save(tmp_path / "again.safetensors")
    again = Erasure.load(tmp_path / "again.safetensors")
    assert again.record == erasure.record and again.measured == erasure.measured


def test_the_golden_files_hold_every_kind_in_every_format() -> None:
    kinds = {(path.parent.name, Erasure.load(path).record.kind) for path in FILES}
    formats = {path.parent.name for path in FILES}
    assert kinds == {(f, kind) for f in formats for kind in ("lowrank", "dense", "guidance")}
    assert "format-1" in formats


def test_what_format_1_recorded_is_found_again() -> None:
    old = Erasure.load(GOLDEN / "format-1" / "transported.safetensors")
    assert old.record.transport == Transport("both", ("van gogh", "monet", "bomb"))
    assert old.measured.loss is not None and old.measured.loss.first > 0
    assert [c.name for c in old.record.concepts] == ["van gogh", "bomb"]
    assert old.record.concepts[1] == Concept("bomb")
    assert list(old.record.base.layers.values()) == [(32, 32)]
    guide = Erasure.load(GOLDEN / "format-1" / "guidance.safetensors")
    assert guide.record.base.components == {} and guide.measured.effect is None


@pytest.mark.parametrize(
    "text, match",
    [
        ("[" * 200_000, "nested too deeply"),
        ('{"a":' * 200_000, "nested too deeply"),
        ("NaN", "NaN is not JSON"),
        ('{"a": -Infinity}', "-Infinity is not JSON"),
        ("9" * 100_000, "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        ("{", "is not JSON"),
    ],
)
def test_what_is_no_json_is_one_line(text: str | bytes, match: str) -> None:
    with pytest.raises(InputError, match=f"it.json.*{match}") as error:
        loads(text, "it.json")
    assert "\n" not in str(error.value) and len(str(error.value)) < 300
