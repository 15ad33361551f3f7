"""What the pages of ``docs/`` say works: their code and their commands run."""

import dataclasses
import json
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import typer.main

import unsee
from unsee import Concept, Erasure, records
from unsee.cli.commands import app
from unsee.pipelines import parts_of
from unsee.pipelines.names import COMFYUI

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


# docs/use: a page for each place where people use an erasure

NOT_RUN = "# Not run by the tests: "
USE = sorted((DOCS / "use").glob("*.md"))
PAGES = pytest.mark.parametrize("page", USE, ids=lambda page: page.stem)
COMMANDS = [
    words
    for page in (*USE, DOCS / "format.md", DOCS / "report.md")
    for block in blocks(page)
    if block.language == "sh"
    for line in block.text.replace("\\\n", " ").splitlines()
    if (words := shlex.split(line, comments=True))
]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_of_ours_is_one_with_options_that_there_are(words: list[str]) -> None:
    assert words[0] in ("unsee", "cp"), words
    if words[0] == "unsee":
        found: Any = typer.main.get_command(app)
        found.commands[words[1]].make_context(words[1], words[2:])


@PAGES
# peft says of every second LoRA that there is a first one.
@pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning")
def test_what_a_page_says_to_type_runs_from_top_to_bottom(
    page: Path,
    tiny_folder: Path,
    tmp_path: Path,
    run: Callable[..., tuple[int, str, str]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In a folder with a tiny model called base; ``run`` stands in it."""
    (tmp_path / "base").symlink_to(tiny_folder)
    names: dict[str, Any] = {}
    ran = 0
    for block in blocks(page):
        if block.language == "json":
            json.loads(block.text)
        elif block.text.startswith(NOT_RUN):
            # What of ours it names is there all the same.
            if block.language == "python":
                compile(block.text, page.name, "exec")
                for name in re.findall(r"unsee\.(\w+)", block.text):
                    assert hasattr(unsee, name)
        elif block.language == "python":
            exec(compile(block.text, page.name, "exec"), names)
            ran += 1
        else:
            assert block.language == "sh", block.language
            for line in block.text.splitlines():
                words = shlex.split(line, comments=True)
                assert words[0] == "unsee", line
                code, _, err = run(*words[1:])
                assert code == 0, f"{line}: {err}"
                ran += 1
    assert ran >= 3


def test_the_page_on_comfyui_names_every_pipeline_that_is_known_there() -> None:
    text = (DOCS / "use" / "comfyui.md").read_text("utf-8")
    for pipeline in COMFYUI:
        short = re.sub("(Img2Img|Inpaint)", "", pipeline)
        assert f"`{short}`" in text, pipeline


def test_every_block_is_run_or_says_why_not() -> None:
    for page in (*USE, DOCS / "format.md", DOCS / "report.md"):
        for block in blocks(page):
            assert block.language in ("sh", "python", "json")
        assert page.read_text("utf-8").count("```") == 2 * len(blocks(page))
