"""What the pages of ``docs/`` say works: their code and their commands run."""

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from unsee import Concept, Erasure, records
from unsee.pipelines import parts_of

DOCS = Path(__file__).parents[1] / "docs"


@dataclass(frozen=True)
class Block:
    """A block of a page: what language it is in, and its lines."""

    page: str
    language: str
    text: str


def blocks(page: Path) -> list[Block]:
    found = re.findall(r"^```(\w+)\n(.*?)^```", page.read_text("utf-8"), re.M | re.S)
    return [Block(page.stem, language, text) for language, text in found]


FORMAT = (DOCS / "format.md").read_text("utf-8")


def test_a_program_that_follows_the_page_of_the_format_writes_an_erasure(
    tiny_folder: Path, pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (block,) = blocks(DOCS / "format.md")
    assert "unsee" not in re.sub(r'"unsee"', "", block.text)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base").symlink_to(tiny_folder)
    exec(compile(block.text, "format.md", "exec"), {})
    erasure = Erasure.load(tmp_path / "erasure.safetensors")
    assert (erasure.name, erasure.record.method) == ("van gogh", "one-row")
    # What it is said to do, to the row that it edits
    parts = parts_of(pipe)
    (stream,) = parts.streams()
    texts = ("van gogh", "art")
    rows = parts.reads(parts.encode(texts))["sequence"]
    one, other = (row[stream.position(text)] for row, text in zip(rows, texts, strict=True))
    name, layer = next(iter(parts.readers()["sequence"].layers.items()))
    wanted = layer(other)
    with erasure.applied(pipe):
        edited = pipe.unet.get_submodule(name)(one)
    torch.testing.assert_close(edited, wanted, rtol=0, atol=1e-4)
    assert not torch.allclose(layer(one), wanted, atol=1e-2)
    # Our own writer makes the same of it.
    again = tmp_path / "again.safetensors"
    erasure.save(again)
    assert Erasure.load(again).sha256 == erasure.sha256


@pytest.mark.parametrize(
    "cls",
    [records.Record, records.Component, records.Base, records.Transport, records.Measured]
    + [records.Effect, records.Loss, records.Debiased, Concept],
)
def test_the_page_of_the_format_names_every_field(cls: type) -> None:
    for field in dataclasses.fields(cls):
        assert f"`{field.name}`" in FORMAT, f"{cls.__name__}.{field.name}"
    assert f"| `format` | {records.FORMAT} |" in FORMAT
