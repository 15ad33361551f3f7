"""What the pages of ``docs/`` say works: their code and their commands run."""

import dataclasses
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import typer.main
import yaml

import unsee
from unsee import Concept, Erasure, contract, records
from unsee._registry import Registry, told
from unsee.attacking import find_attacks
from unsee.attacks import ATTACKS, Control
from unsee.cli.commands import app
from unsee.eval import DETECTORS, METRICS
from unsee.eval.attack import WAYS
from unsee.eval.metrics import FEATURES
from unsee.eval.rows import ACCURACIES
from unsee.pipelines import parts_of
from unsee.pipelines.architectures import FAMILIES
from unsee.pipelines.names import COMFYUI
from unsee.pipelines.parts import Parts, Stream
from unsee.prompts import SUITES
from unsee.prompts.table import HUB, READERS, SHAPES
from unsee.prompts.where import Where

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
FIGURES = DOCS / "figures.md"
JUDGE = DOCS / "judge.md"
ATTACKING = DOCS / "attacks.md"
USE = sorted((DOCS / "use").glob("*.md"))
PAGES = pytest.mark.parametrize("page", USE, ids=lambda page: page.stem)


def typed(line: str) -> list[str]:
    """A line's words, without the launcher of several processes."""
    words = shlex.split(line, comments=True)
    return words[words.index("-m") + 1 :] if words[:1] == ["torchrun"] else words


COMMANDS = [
    words
    for page in (*USE, DOCS / "format.md", FIGURES, DOCS / "report.md", JUDGE, ATTACKING)
    for block in blocks(page)
    if block.language == "sh"
    for line in block.text.replace("\\\n", " ").splitlines()
    if (words := typed(line))
]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_of_ours_is_one_with_options_that_there_are(words: list[str]) -> None:
    assert words[0] in ("unsee", "cp"), words
    if words[0] == "unsee":
        found: Any = typer.main.get_command(app)
        found.commands[words[1]].make_context(words[1], words[2:])


def given(words: list[str], option: str) -> list[str]:
    """What a command's option is given, each time."""
    return [value for name, value in zip(words, words[1:], strict=False) if name == option]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_what_a_command_measures_with_is_there(words: list[str]) -> None:
    registries: list[tuple[str, Registry[Callable[..., Any]]]] = [
        ("--detector", DETECTORS),
        ("--metric", METRICS),
    ]
    for option, registry in registries:
        for spec in given(words, option):
            if Path(spec).suffix != ".yaml":
                told(registry, spec, {})  # its name and its settings
    for features in given(words, "--metric"):
        name, _, argument = features.partition(":")
        assert name not in ("kid", "cmmd") or argument.partition(":")[0] in FEATURES
    for suite in given(words, "--suite"):
        known = suite in SUITES or suite.startswith(HUB) or Path(suite).suffix in READERS
        assert known or Path(suite).suffix in (".yaml", ".yml"), suite
    for spec in [*given(words, "--attack"), *given(words, "-a")]:
        assert find_attacks(spec)
    for where in given(words, "--where"):
        Where(where, ["categories", "nudity_percentage", "hard"])


def test_a_detectors_yaml_on_the_page_of_figures_has_settings_that_there_are() -> None:
    (block,) = [block for block in blocks(FIGURES) if block.language == "yaml"]
    page = yaml.safe_load(block.text)
    assert set(page) == {"detector", "settings"}
    told(DETECTORS, page["detector"], page["settings"])


def test_every_protocol_and_accuracy_has_its_place_on_the_page_of_figures() -> None:
    text = FIGURES.read_text("utf-8")
    for name in DETECTORS:
        if name.startswith("nudenet/") and name != "nudenet/person":
            assert f"`{name}`" in text, name
    for name in (*ACCURACIES.values(), "ASR", "FID", "KID", "CMMD", "LPIPS", "`fid:published`"):
        assert name in text, name
    for shape in SHAPES[:-1]:
        assert shape.name in text or shape.name.lower() in text, shape.name


def test_every_attack_control_and_verdict_has_its_row_on_the_page_of_attacks() -> None:
    text = ATTACKING.read_text("utf-8")
    for name in ATTACKS:
        assert f"\n| `{name}` |" in text, name
    for name in (*get_args(Control), *WAYS):
        assert f"\n| {name} |" in text, name
    # What its commands make is there before the next ones read it
    there: set[str] = set()
    for words in (typed(line) for b in blocks(ATTACKING) for line in b.text.splitlines()):
        read = {*given(words, "-e"), *(w for w in words[2:] if w.startswith("runs/"))}
        made = set(given(words, "-o"))
        assert read - made <= there, words
        there |= made


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
                words = typed(line)
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
    for page in (*USE, DOCS / "format.md", FIGURES, DOCS / "report.md", JUDGE, ATTACKING):
        for block in blocks(page):
            assert block.language in ("sh", "python", "json", "yaml")
        assert page.read_text("utf-8").count("```") == 2 * len(blocks(page))


@pytest.mark.slow
def test_the_line_for_several_gpus_starts_as_many_processes(
    tiny_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "base").symlink_to(tiny_folder)
    unsee.erase(tiny_folder, Concept("bomb"), check=False).save(tmp_path / "bomb.safetensors")
    (line,) = (
        line
        for block in blocks(DOCS / "use" / "several.md")
        if not block.text.startswith(NOT_RUN)
        for line in block.text.splitlines()
        if line.startswith("torchrun")
    )
    # This machine need not have a GPU
    words = shlex.split(line.replace("--nproc-per-node gpu", "--nproc-per-node 2"))
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *words[1:]],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("16 images") == 1
    gallery = unsee.Gallery.open(tmp_path / "bombs")
    assert len(gallery) == 16 and not gallery.unmade()


# docs/describe.md: a pipeline described from nothing

DESCRIBE = DOCS / "describe.md"


@pytest.mark.slow
def test_who_follows_the_page_describes_a_pipeline_that_keeps_the_contract(tmp_path: Path) -> None:
    """Its files as they stand, its commands, and its entry point as pip would install it."""
    commands, entry_points = [], ""
    for block in blocks(DESCRIBE):
        if block.language == "python":
            name = block.text.partition("\n")[0].removeprefix("# ")
            (tmp_path / name).write_text(block.text, encoding="utf-8")
        elif block.language == "toml":
            entry_points = re.sub(r'\[project\.entry-points\."(.*)"\]', r"[\1]", block.text)
        else:
            assert block.language == "sh", block.language
            commands += [shlex.split(line) for line in block.text.splitlines()]
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])

    def typed(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, *words],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": path},
            capture_output=True,
            text=True,
            encoding="utf-8",
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert [command[0] for command in commands] == ["python"]
    said = typed(*commands[0][1:]).splitlines()
    assert said == [f"holds: {law.__name__.replace('_', ' ')}" for law in contract.LAWS]
    installed = tmp_path / "described-1.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Name: described\nVersion: 1\n", encoding="utf-8")
    (installed / "entry_points.txt").write_text(entry_points.replace('"', ""), encoding="utf-8")
    listed = typed("-m", "unsee", "list", "models")
    assert re.search(r"PixArtAlphaPipeline +PixArt-α: T5's rows", listed)


def test_the_page_has_its_pipeline_described_by_nothing_of_another() -> None:
    (file,) = (b.text for b in blocks(DESCRIBE) if b.text.startswith("# pixart_alpha.py"))
    assert set(re.findall(r"from (unsee\S+) import", file)) == {
        "unsee.pipelines.architectures",
        "unsee.pipelines.parts",
        "unsee.pipelines.text",
    }
    assert "PixArtAlphaPipeline" not in FAMILIES


def test_the_page_names_all_that_a_description_of_ours_says() -> None:
    page = DESCRIBE.read_text("utf-8")
    public = {name for name in (*Parts.__annotations__, *vars(Parts)) if not name.startswith("_")}
    for family in FAMILIES.values():
        for cls in family.__mro__[: family.__mro__.index(Parts)]:
            for name in vars(cls).keys() & public:
                assert re.search(rf"`{name}\b", page), f"{family.__name__}.{name}"
    for field in dataclasses.fields(Stream):
        assert re.search(rf"`{field.name}\b", page), field.name


def test_the_comparison_on_the_page_is_read(tmp_path: Path) -> None:
    from unsee.tasks import Comparison

    (text,) = (block.text for block in blocks(JUDGE) if block.language == "yaml")
    file = tmp_path / "artists.yaml"
    file.write_text(text, encoding="utf-8")
    found = Comparison.load(file)
    assert list(found.each) == ["uce", "half", "esd"] and found.suites == ("artists",)
