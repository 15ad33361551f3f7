"""The command line, as a stranger would use it."""

from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., tuple[int, str, str]]


def test_help_names_every_command(run: Run) -> None:
    code, out, _ = run("--help")
    assert code == 0
    for command in ("erase", "generate", "audit", "demo", "show", "list"):
        assert command in out


@pytest.mark.parametrize(
    "what, name",
    [
        ("methods", "uce"),
        ("detectors", "emoji/object"),
        ("metrics", "emoji/clip"),
        ("suites", "emoji"),
        ("concepts", "van-gogh"),
        ("concepts", "i2p-unsafe"),
        ("concepts", "kitchen knife"),
        ("models", "emoji"),
    ],
)
def test_list_names_what_there_is(run: Run, what: str, name: str) -> None:
    code, out, _ = run("list", what)
    assert code == 0 and name in out and "Next: unsee " in out


def test_erase_generate_and_show_on_a_model_of_ones_own(
    run: Run, tiny_folder: Path, tmp_path: Path
) -> None:
    code, out, err = run(
        *("erase", str(tiny_folder), "van gogh", "--kind", "style", "--keep", "monet"),
        *("--preset", "2023", "--set", "ridge=0.1", "-o", "it.safetensors"),
    )
    assert code == 0, err
    assert "Erased van gogh" in out and "of the way to its anchor's" in out
    assert f"Next: unsee audit {tiny_folder} --erasure it.safetensors" in out
    code, out, _ = run("show", "it.safetensors")
    assert code == 0 and "van gogh (style)" in out and '"ridge": 0.1' in out and "monet" in out
    for _ in range(2):  # the second run finds everything made
        code, out, err = run(
            *("generate", str(tiny_folder), "-e", "it.safetensors", "-p", "a dog"),
            *("--images", "2", "--steps", "2", "-o", "made"),
        )
        assert code == 0, err
        assert sorted(p.name for p in (tmp_path / "made/images").iterdir()) == [
            "000-000.png",
            "000-001.png",
        ]
    code, out, _ = run("show", "made")
    assert code == 0 and "2 prompts, 0 of their images" in out


MISTAKES = {
    (
        "erase",
        "TINY",
        "bomb",
        "--method",
        "ucee",
    ): "No method is named 'ucee'. Did you mean 'uce'?",
    ("erase", "TINY", "bomb", "--preset", "205"): "preset of uce is named '205'",
    ("erase", "TINY", "bomb", "--set", "rigde=1"): "Did you mean 'ridge'?",
    ("erase", "TINY", "bomb", "--set", "ridge"): "--set wants NAME=VALUE",
    ("erase", "TINY", "bomb", "--set", "ridge=x"): "ridge is 'x'; it must be a number above 0",
    ("erase", "TINY", "bomb", "--set", "expand=2"): "expand is '2'; it must be true or false",
    ("erase", "TINY", "bomb", "--keep", "bomb"): "cannot both go and stay",
    ("erase", "TINY", "bomb", "--kind", "thing"): "wanted one of object, style",
    ("erase", "TINY", "bomb", "-o", "."): "is a folder",
    ("erase", "emoij", "bomb"): "Did you mean 'emoji'?",
    ("erase", "emoji", "kitchen nife"): "Did you mean 'kitchen knife'?",
    ("erase", "emoji", "bomb", "--keep", "hamer"): "Did you mean 'hammer'?",
    ("erase", "TINY", "none.yaml"): "none.yaml cannot be read",
    ("generate", "TINY", "-o", "x"): "either --prompt TEXT or --suite FILE",
    ("generate", "TINY", "-o", "x", "-p", "a", "-e", "no"): "no is not there",
    ("audit", "emoji", "-o", "x"): "There is no erasure to audit",
    ("show", "nothing"): "nothing is not there",
    ("list", "method"): "Did you mean 'methods'?",
}


@pytest.mark.parametrize("arguments", MISTAKES)
def test_a_mistake_is_one_line_exit_code_2_and_nothing_written(
    run: Run, tiny_folder: Path, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    code, out, err = run(*(str(tiny_folder) if a == "TINY" else a for a in arguments))
    assert code == 2
    assert err.count("\n") == 1 and err.startswith("unsee: ")
    assert MISTAKES[arguments] in err
    assert list(tmp_path.iterdir()) == []


def test_debug_gives_the_traceback(run: Run) -> None:
    code, _, err = run("list", "method", "--debug")
    assert code == 2 and "Traceback" in err and "InputError: No list is named 'method'" in err


def test_an_interrupt_says_how_to_go_on(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*given: object, **settings: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("unsee.flow.erase", interrupted)
    code, _, err = run("erase", "emoji", "bomb")
    assert code == 130 and "Run the same command again to go on" in err
