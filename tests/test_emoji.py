"""The model that ships inside: it loads, it draws, it forgets, and it fits."""

import json
from pathlib import Path
from typing import Any

import pytest

from unsee import audit, erase
from unsee.eval import find_metric
from unsee.pipelines import load_pipeline
from unsee.prompts.emoji import world
from unsee.tasks import EMOJI_METRICS

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def emoji() -> Any:
    return load_pipeline("emoji", device="cpu")


def test_all_weights_together_are_within_40_mb() -> None:
    files = [*(ROOT / "pipelines/emoji").rglob("*"), *(ROOT / "eval/emoji").rglob("*")]
    weights = [f for f in files if f.suffix == ".safetensors"]
    assert len(weights) >= 5
    assert sum(f.stat().st_size for f in weights) <= 40e6


def test_it_is_diffusers_own_in_every_part(emoji: Any) -> None:
    assert {name: type(part).__name__ for name, part in emoji.components.items() if part} == {
        "vae": "AutoencoderKL",
        "text_encoder": "CLIPTextModel",
        "tokenizer": "CLIPTokenizer",
        "unet": "UNet2DConditionModel",
        "scheduler": type(emoji.scheduler).__name__,
    }


def test_the_tokenizer_takes_any_text(emoji: Any) -> None:
    text = "Ein Glühwürmchen, 萤火虫 🦗"
    ids = emoji.tokenizer(text).input_ids
    assert emoji.tokenizer.unk_token_id not in ids[1:-1]
    assert len(ids) > 5


def test_uce_takes_an_object_away_and_leaves_the_rest(tmp_path: Path) -> None:
    """An audit small enough for a test; the README's figures are the demo's."""
    erasure = erase("emoji", "bomb")
    seen = (erasure.measured.effect or {})["bomb"]
    assert seen.moved > 0.5 > (seen.kept_moved or 0)
    report = audit("emoji", erasure, out=tmp_path, size=64)
    rates = {c.role: c for c in report.outcomes[0].comparisons}
    target, kept = rates["target"], rates["same kind"]
    assert target.base.value is not None and target.erased.value is not None
    assert target.base.value >= 0.8
    assert target.erased.value <= 0.2
    assert kept.base.value is not None and kept.erased.value is not None
    assert kept.erased.value >= kept.base.value - 0.15
    page = json.loads((tmp_path / "report.json").read_text())
    assert len(page["samples"]) == 64
    assert (tmp_path / "report.html").read_text().count("<img") > 32


def test_an_audit_again_is_the_same_and_makes_nothing_anew(tmp_path: Path) -> None:
    erasure = erase("emoji", "bomb", check=False)
    first = audit("emoji", erasure, out=tmp_path, size=8)
    times = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.png")}
    again = audit("emoji", erasure, out=tmp_path, size=8)
    assert times == {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.png")}
    assert first.outcomes == again.outcomes and first.measurements == again.measurements


def test_what_it_is_measured_with_is_found_by_its_name_in_a_report() -> None:
    # so that a run can be verified with no more than its folder
    for spec in EMOJI_METRICS:
        metric = find_metric(spec)
        assert find_metric(metric.name).protocol == metric.protocol


def test_every_object_belongs_to_one_group() -> None:
    names = [name for group in world().groups.values() for name in group]
    assert len(names) == len(set(names)) == len(world().objects)
