"""The shape of the repository: what ships, and what may import what."""

import ast
import doctest
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import unsee

ROOT = Path(__file__).parents[1]
BELOW = {"_errors", "_files", "_reading", "_registry", "_settings", "gallery", "records"}
MAY_IMPORT = {
    "prompts": BELOW - {"gallery", "records"},
    "pipelines": BELOW | {"prompts"},
    "erasers": BELOW | {"prompts", "pipelines"},
    "eval": BELOW | {"prompts"},
    "cli": BELOW | {"prompts", "pipelines", "erasers", "eval", "flow"},
}


def test_every_package_ships() -> None:
    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    inits = [p for top in MAY_IMPORT for p in (ROOT / top).rglob("__init__.py")]
    found = {".".join(("unsee", *p.parent.relative_to(ROOT).parts)) for p in inits}
    assert set(project["tool"]["setuptools"]["packages"]) == found | {"unsee"}


@pytest.mark.parametrize("layer", MAY_IMPORT)
def test_imports_point_down(layer: str) -> None:
    for path in (ROOT / layer).rglob("*.py"):
        depth = len(path.relative_to(ROOT).parts)
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level == depth:
                target = (node.module or node.names[0].name).split(".")[0]
                assert target in MAY_IMPORT[layer], f"{path.relative_to(ROOT)} imports {target}"


MODULES = sorted(
    ".".join(("unsee", *path.relative_to(ROOT).with_suffix("").parts))
    for top in MAY_IMPORT
    for path in (ROOT / top).rglob("*.py")
    if path.name != "__init__.py"
)


@pytest.mark.parametrize("name", ["unsee", *(f"unsee.{name}" for name in sorted(BELOW)), *MODULES])
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
