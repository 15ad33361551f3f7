"""The shape of the repository: what ships, and what may import what."""

import ast
import doctest
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import resolve_name
from pathlib import Path

import pytest

import unsee

ROOT = Path(__file__).parents[1]
# Each may import what stands before it: a folder, or a module at the root.
FOUNDATION = ("_errors", "_files", "_settings", "_reading", "_registry", "_images")
LAYERS: dict[str, set[str]] = {
    **{name: set(FOUNDATION[:i]) for i, name in enumerate(FOUNDATION)},
    "store": {*FOUNDATION},
    "processes": {*FOUNDATION},
    "prompts": {*FOUNDATION},
    "records": {*FOUNDATION, "prompts"},
    "gallery": {*FOUNDATION, "store", "prompts", "records"},
    "pipelines": {*FOUNDATION, "store", "processes", "prompts", "records", "gallery"},
}
LAYERS["training"] = {*LAYERS["pipelines"], "pipelines"}
LAYERS["attacks"] = {*LAYERS["training"], "training"}
LAYERS["erasers"] = {*LAYERS["attacks"], "attacks"}
LAYERS["eval"] = {*FOUNDATION, "prompts", "gallery"}
LAYERS["drawing"] = {*LAYERS["erasers"], "erasers"}
LAYERS["flow"] = {*LAYERS["drawing"], "drawing", "eval"}
LAYERS["tasks"] = {*LAYERS["flow"], "flow"}
LAYERS["plans"] = LAYERS["attacking"] = {*LAYERS["tasks"], "tasks"}
LAYERS["audits"] = {*LAYERS["attacking"], "attacking"}
LAYERS["verifying"] = {*LAYERS["audits"], "audits"}
LAYERS["runs"] = {*FOUNDATION, "store", "prompts", "gallery", "eval"}
LAYERS["cli"] = {*LAYERS["verifying"], "verifying", "plans", "runs"}
LAYERS["contract"] = {*LAYERS["flow"], "flow"}
LAYERS["__init__"] = LAYERS["cli"] - {"cli"}
LAYERS["__main__"] = {"cli"}
FOLDERS = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests", "lab"}


def sources(layer: str) -> list[Path]:
    return sorted((ROOT / layer).rglob("*.py")) if layer in FOLDERS else [ROOT / f"{layer}.py"]


def named(source: str, package: str) -> Iterator[str]:
    """The modules that a module's source names: by import, or as "module:attribute"."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            base = resolve_name("." * node.level + (node.module or ""), package)
            # from . import x may take a module or a name of the package
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            if found := re.fullmatch(r"(\.*[a-z_][\w.]*):[A-Za-z_]\w*", node.value):
                yield resolve_name(found[1], package)


def layers_named(source: str, package: str) -> set[str]:
    """Those of LAYERS among them."""
    found = [name.split(".") for name in named(source, package)]
    return {parts[1] for parts in found if parts[0] == "unsee" and len(parts) > 1} & LAYERS.keys()


def test_every_package_ships() -> None:
    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    inits = [p for top in FOLDERS for p in (ROOT / top).rglob("__init__.py")]
    found = {".".join(("unsee", *p.parent.relative_to(ROOT).parts)) for p in inits}
    assert set(project["tool"]["setuptools"]["packages"]) == found | {"unsee"}


def test_every_folder_and_root_module_has_its_layer() -> None:
    assert {path.stem for path in ROOT.glob("*.py")} | FOLDERS == LAYERS.keys()


@pytest.mark.parametrize("layer", LAYERS)
def test_what_a_module_names_stands_below_it(layer: str) -> None:
    for path in sources(layer):
        package = ".".join(("unsee", *path.relative_to(ROOT).parent.parts))
        up = layers_named(path.read_text(), package) - LAYERS[layer] - {layer}
        assert not up, f"{path.relative_to(ROOT)} names {', '.join(sorted(up))}"


@pytest.mark.parametrize(
    "source",
    [
        "from ..erasers.sld import guide",
        "from .. import erasers",
        "import unsee.erasers.sld",
        "def late():\n    from unsee import erasers",
        'GUIDES = {"sld": "unsee.erasers.sld:guide"}',
        'GUIDES = {"sld": "..erasers.sld:guide"}',
    ],
)
def test_a_name_that_points_up_is_seen_however_it_is_written(source: str) -> None:
    assert layers_named(source, "unsee.pipelines") == {"erasers"}


MODULES = sorted(
    ".".join(("unsee", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")
    for layer in LAYERS.keys() - {"__main__"}
    for path in sources(layer)
)


@pytest.mark.parametrize("name", MODULES)
def test_doctests(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0


@pytest.mark.parametrize(
    "code", ["import unsee, unsee.prompts, unsee.eval", "import unsee.cli.commands"]
)
def test_import_is_light(code: str) -> None:
    code += "; import sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_names_at_the_top_are_there() -> None:
    for name in unsee.__all__:
        assert getattr(unsee, name) is not None


def test_no_text_is_read_or_written_in_the_code_page_of_the_machine() -> None:
    """Nor YAML by a reader that bombs and keys that are there twice get through."""
    for path in [*(p for layer in LAYERS for p in sources(layer)), *ROOT.glob("lab/*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            where = f"{path.relative_to(ROOT)}:{node.lineno}"
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            assert name != "safe_load", where
            text = name in ("read_text", "write_text") or (name == "open" and mode(node) == "text")
            ours = name == "read_text" and isinstance(node.func, ast.Name)  # _files.read_text
            assert ours or not text or "encoding" in {word.arg for word in node.keywords}, where


def mode(call: ast.Call) -> str:
    """Whether a call of open, as a function or as a path's method, is of a file of text."""
    owner = getattr(getattr(call.func, "value", None), "id", "")
    if owner in ("Image", "Gallery", "cls", "webbrowser", "os"):
        return "none"
    given = [
        node.value
        for node in (*call.args, *(word.value for word in call.keywords))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    modes = [value for value in given if re.fullmatch("[rwaxbt+]{1,3}", value)]
    return "bytes" if any("b" in value for value in modes) else "text"
