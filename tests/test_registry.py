"""What others add to a registry stands beside what is ours."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from unsee._errors import InputError
from unsee._registry import Registry
from unsee.pipelines.architectures import FAMILIES


def test_a_package_describes_a_pipeline_by_its_entry_point(tmp_path: Path) -> None:
    """In a process of its own, as one that begins with the package installed."""
    (tmp_path / "theirs.py").write_text(
        '"""Theirs: a model of somebody\'s own."""\n\n'
        "from unsee.pipelines.architectures.pixart_sigma import PixArtSigma\n\n\n"
        "class Theirs(PixArtSigma):\n    pass\n",
        encoding="utf-8",
    )
    installed = tmp_path / "theirs-1.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: theirs\nVersion: 1\n", encoding="utf-8"
    )
    (installed / "entry_points.txt").write_text(
        "[unsee.architectures]\nPixArtAlphaPipeline = theirs:Theirs\nFluxPipeline = theirs:No\n"
    )
    # tests/bare would hide the package
    given = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    path = os.pathsep.join([str(tmp_path), *(p for p in given if Path(p).name != "bare")])
    code = (
        "from diffusers import PixArtAlphaPipeline, FluxPipeline\n"
        "from unsee.pipelines.architectures import family_of\n"
        "class Derived(PixArtAlphaPipeline): pass\n"
        "assert family_of(PixArtAlphaPipeline).__name__ == 'Theirs'\n"
        "assert family_of(Derived).__name__ == 'Theirs'\n"
        "assert family_of(FluxPipeline).__name__ == 'Flux', 'ours was taken over'\n"
        "import sys; from unsee.cli import main\n"
        "sys.argv = ['unsee', 'list', 'models']; main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr
    line = next(line for line in done.stdout.splitlines() if "PixArtAlphaPipeline" in line)
    assert "Theirs: a model of somebody's own" in line


def test_what_a_script_registers_is_there_and_takes_nothing_over() -> None:
    names = list(FAMILIES)
    colours: Registry[type] = Registry("colour", "unsee.no-such-group", {"int": "builtins:int"})

    @colours.register("red")
    class Red:
        pass

    assert list(colours) == ["int", "red"] and "red" in colours and len(colours) == 2
    assert [colours["red"], colours["int"]] == [Red, int]
    with pytest.raises(InputError, match="There is a built-in colour named 'int'"):
        colours.register("int")
    with pytest.raises(InputError, match="No colour is named 'rad'. Did you mean 'red'?"):
        colours["rad"]
    # A cell that is run again
    colours.register("red")(int)
    assert [colours["red"]] == [int]
    assert list(FAMILIES) == names
