"""The command line, as a stranger would use it."""

import errno
import inspect
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import typer.main

import unsee
from unsee import audits, flow
from unsee.cli import main, terminal
from unsee.cli.commands import app

Run = Callable[..., tuple[int, str, str]]


def test_help_names_every_command(run: Run) -> None:
    code, out, _ = run("--help")
    assert code == 0
    for command in ("erase", "generate", "audit", "demo", "push", "show", "list"):
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
        ("models", "StableDiffusionXLPipeline"),
        ("models", "FluxPipeline"),
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


def raising(error: BaseException) -> Callable[..., Any]:
    def raises(*given: object, **settings: object) -> None:
        raise error

    return raises


def test_an_interrupt_says_how_to_go_on(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unsee.flow.erase", raising(KeyboardInterrupt()))
    code, _, err = run("erase", "emoji", "bomb")
    assert code == 130 and "Run the same command again to go on" in err


@pytest.mark.parametrize(
    "error, line",
    [
        (OSError(errno.ENOSPC, "No space left on device", "/x"), "No space left on device (/x)."),
        (MemoryError(), "The memory is full: make fewer images at a time (--batch-size)"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried"), "The memory is full"),
        (RuntimeError("a\nb\x1b[2J [/]"), "RuntimeError: a b\\x1b[2J [/]"),
        (EOFError(), "EOFError."),
        (ValueError("x" * 10**6), "ValueError: xxx"),
        (SystemError("[red]"), "SystemError: [red]"),
    ],
)
def test_what_broke_is_one_line_and_exit_code_3(
    run: Run, monkeypatch: pytest.MonkeyPatch, error: Exception, line: str
) -> None:
    monkeypatch.setattr("unsee.flow.erase", raising(error))
    code, _, err = run("erase", "emoji", "bomb")
    err = err.strip()
    assert code == 3 and "\n" not in err and len(err) < 3000
    assert err.startswith(f"unsee: {line}")
    assert "--debug" in err or len(str(error)) > 1000
    code, _, err = run("erase", "emoji", "bomb", "--debug")
    assert code == 3 and "Traceback" in err


@pytest.mark.parametrize(
    "arguments, line",
    [
        (["erase", "--nope"], "No such option: --nope"),
        (["erase"], "Missing argument"),
        (["ers"], "No such command 'ers'"),
        (["erase", "emoji", "bomb", "--seed", "x"], "Invalid value for '--seed'"),
        (["erase", "emoji", "bomb", "--seed", "-1"], "seed is -1; it must be"),
        (["generate", "emoji", "-p", "a", "-o", "x", "--steps", "0"], "Invalid value for"),
        (["generate", "emoji", "-p", "a", "-o", "x", "--steps", "5000"], "steps is 5000"),
        (["generate", "emoji", "-p", "a", "-o", "x", "--guidance", "nan"], "guidance is nan"),
        (["generate", "emoji", "-p", "a", "-o", "x", "--seed", "-1"], "seed must be"),
        (["erase", "emoji", "bomb, dog"], "unsee erase emoji bomb dog"),
        (["erase", "emoji", "x" * 300], "No concept of the emoji model"),
        (["erase", "none", "x" * 300], "has at most 200 bytes"),
    ],
)
def test_what_the_command_line_cannot_read_is_exit_code_2(
    run: Run, tmp_path: Path, arguments: list[str], line: str
) -> None:
    code, _, err = run(*arguments)
    assert code == 2 and err.startswith("unsee: ") and err.count("\n") == 1
    assert line in err
    assert not list(tmp_path.iterdir())


def test_no_command_at_all_is_the_help(run: Run) -> None:
    code, out, _ = run()
    assert code == 0 and "Usage: unsee" in out


def test_it_says_its_version(run: Run) -> None:
    assert run("--version") == (0, f"unsee {unsee.__version__}\n", "")


def commands() -> Iterator[tuple[str, Any]]:
    def below(path: str, found: Any) -> Iterator[tuple[str, Any]]:
        for name, one in getattr(found, "commands", {}).items():
            yield from below(f"{path} {name}".strip(), one)
        if not hasattr(found, "commands"):
            yield path, found

    yield from below("", typer.main.get_command(app))


@pytest.mark.parametrize("path, command", list(commands()))
def test_help_shows_every_default(
    run: Run, monkeypatch: pytest.MonkeyPatch, path: str, command: Any
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr("typer.rich_utils.MAX_WIDTH", 200, raising=False)
    code, out, _ = run(*path.split(), "--help")
    told = " ".join(out.replace("│", " ").split())
    assert code == 0
    for parameter in command.params:
        # Square brackets are markup to rich, which eats what it does not know.
        assert "[" not in (parameter.help or "") or parameter.name == "help", parameter.name
        if isinstance(parameter.show_default, str):
            assert f"[default: ({parameter.show_default})]" in told
        elif parameter.default not in (None, "", False) and not parameter.required:
            assert "[default: " in told, parameter.name


def test_help_says_what_the_model_decides(run: Run) -> None:
    told = " ".join(run("audit", "--help")[1].replace("│", " ").split())
    for option in ("--suite", "--detector", "--metric", "--guidance", "--steps"):
        assert "[default: (the model's)]" in told.partition(option)[2][:200], option


GOLDEN = Path(__file__).parent / "golden/erasures/format-2"
FILES = (GOLDEN / "dense.safetensors", GOLDEN / "lowrank.safetensors")

LOADING = " --variant fp16 --config c --dtype bfloat16 --device cpu --offload model"
LOADING += " --lora l:0.5 --lora m"
LOADED = unsee.Loading("fp16", "c", "bfloat16", "cpu", "model", ("l:0.5", "m"))

# Of a command the function that it calls, a value for each of its options that is not the
# default's, and what of them must reach the function.
REACHED: dict[str, tuple[str, list[str], dict[str, Any]]] = {
    "erase": (
        "erase",
        "mine bomb --method esd --preset leco --set iterations=5 --keep dog --keep cat "
        f"--anchor car --kind style --seed 7 --no-check -o it.safetensors{LOADING}".split(),
        {
            "model": "mine",
            "concepts": [unsee.Concept("bomb", "style", keep=("dog", "cat"), anchor="car")],
            "method": "esd",
            "preset": "leco",
            "keep": ["dog", "cat"],
            "anchor": "car",
            "seed": 7,
            "check": False,
            "settings": {"iterations": 5},
            "checkpoint": Path("it.safetensors.part"),
            "loading": LOADED,
        },
    ),
    "merge": (
        "merge",
        [
            *map(str, FILES),
            *f"--how joint --model mine --residual 0.5 -o it.safetensors{LOADING}".split(),
        ],
        {
            "how": "joint",
            "model": "mine",
            "residual": 0.5,
            "loading": LOADED,
        },
    ),
    "generate": (
        "generate_gallery",
        "mine -p a -p b --images 2 --seed 5 --guidance 2.5 --steps 3 --batch-size 4 -e one:0.5 "
        f"-e two -o out{LOADING}".split(),
        {
            "model": "mine",
            "erasures": ["one:0.5", "two"],
            "suite": unsee.Suite(
                "prompts",
                tuple(
                    unsee.Prompt(f"00{i}-00{k}", text, 5 + k)
                    for i, text in enumerate("ab")
                    for k in (0, 1)
                ),
            ),
            "out": Path("out"),
            "batch_size": 4,
            "guidance": 2.5,
            "steps": 3,
            "loading": LOADED,
        },
    ),
    "push": (
        "push",
        "f o/n --folder d --name n.safetensors --report r --license l --private".split(),
        {
            "erasure": "f",
            "repo": "o/n",
            "folder": Path("d"),
            "name": "n.safetensors",
            "report": Path("r"),
            "license": "l",
            "private": True,
        },
    ),
    "audit": (
        "audit",
        "mine -e one -e two -o out --suite s --suite t --size 8 --where w --detector d "
        "--detector e --metric m --metric n --guidance 2.5 --steps 3 --batch-size 4 "
        "--max-target 0.2 --max-keep-loss 0.3 --allow-unscored --no-images "
        "--attack x --attack y --control n=f --seed 5 "
        f"--against other --concept c --concept k --kind style{LOADING}".split(),
        {
            "base": "mine",
            "attacks": ["x", "y"],
            "control": "n=f",
            "seed": 5,
            "erasures": ["one", "two"],
            "against": "other",
            "concepts": ["c", "k"],
            "kind": "style",
            "out": Path("out"),
            "suite": ["s", "t"],
            "size": 8,
            "where": "w",
            "detectors": ["d", "e"],
            "metrics": ["m", "n"],
            "guidance": 2.5,
            "steps": 3,
            "batch_size": 4,
            "max_target": 0.2,
            "max_keep_loss": 0.3,
            "allow_unscored": True,
            "images": False,
            "loading": LOADED,
        },
    ),
    "attack": (
        "attack",
        "mine -e one -e two -a x -a y --with f.safetensors -o out --suite s --suite t --size 8 "
        "--where w --detector d --detector e --control n=f --seed 5 --guidance 2.5 --steps 3 "
        "--batch-size 4 --max-target 0.2 --allow-unscored --no-images "
        f"--against other --concept c --concept k --kind style{LOADING}".split(),
        {
            "base": "mine",
            "erasures": ["one", "two"],
            "attacks": ["x", "y", Path("f.safetensors")],
            "against": "other",
            "concepts": ["c", "k"],
            "kind": "style",
            "out": Path("out"),
            "suite": ["s", "t"],
            "size": 8,
            "where": "w",
            "detectors": ["d", "e"],
            "control": "n=f",
            "seed": 5,
            "guidance": 2.5,
            "steps": 3,
            "batch_size": 4,
            "max_target": 0.2,
            "allow_unscored": True,
            "images": False,
            "loading": LOADED,
        },
    ),
    "score": (
        "score",
        "in --detector d --detector e --metric m --table t.csv --reference r --concept c "
        "--kind style -o out --batch-size 3".split(),
        {
            "folder": Path("in"),
            "detectors": ["d", "e"],
            "metrics": ["m"],
            "table": Path("t.csv"),
            "reference": Path("r"),
            "concept": "c",
            "kind": "style",
            "out": Path("out"),
            "batch_size": 3,
        },
    ),
}
# What the command itself does something by
ITS_OWN = {
    "erase": {"--prompts", "--force"},
    "merge": {"--force"},
    "generate": {"--suite", "--where"},
    "score": {"--allow-unscored"},
    "audit": {"--each", "--images", "--table", "--from", "--dry-run"},
}


@pytest.mark.parametrize("name", REACHED)
def test_every_option_reaches_the_function_of_its_command(
    run: Run, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    function, options, wanted = REACHED[name]
    there = audits if name in ("audit", "attack") else flow
    signature = inspect.signature(getattr(there, function))
    reached: dict[str, Any] = {}

    def instead(*args: Any, **kwargs: Any) -> None:
        reached.update(signature.bind(*args, **kwargs).arguments)
        reached.update(reached.pop("options", {}))
        raise unsee.InputError("This is far enough.")

    monkeypatch.setattr(there, function, instead)
    code, _, err = run(name, *options)
    assert code == 2 and "far enough" in err
    for parameter, value in wanted.items():
        assert reached[parameter] == value, parameter
    if name == "merge":  # whose files the command has read already
        loaded = [unsee.Erasure.load(file).sha256 for file in FILES]
        assert [erasure.sha256 for erasure in reached["erasures"]] == loaded
    # And nothing else is left to a default in silence
    known = dict(commands())[name].params
    opted = {o for p in known for o in p.opts if o.startswith("--") and o != "--help"}
    given = {o if o == "--no-images" else o.replace("--no-", "--") for o in options}
    short = {"-e": "--erasure", "-o": "--out", "-p": "--prompt", "-a": "--attack"}
    assert opted == {short.get(o, o) for o in given if o.startswith("-")} | ITS_OWN.get(
        name, set()
    )


@pytest.mark.parametrize(
    "words, quoted",
    [
        (["a b"], "'a b'"),
        (["$(id)"], "'$(id)'"),
        (["`id`", ";", "|", "&", "*"], "'`id`' ';' '|' '&' '*'"),
        (["it's"], "'it'\"'\"'s'"),
    ],
)
@pytest.mark.skipif(os.name == "nt", reason="another shell's quotes")
def test_a_command_is_quoted_for_the_shell(words: list[str], quoted: str) -> None:
    assert terminal.command_line(words) == quoted
    assert shlex.split(terminal.command_line(words)) == words


NASTY = "[/] [red]x[/red] \x1b[2J\x1b]0;t\x07 $(id) \u202e"


def test_the_next_command_of_a_nasty_phrase_is_harmless(
    run: Run, tiny_folder: Path, tmp_path: Path
) -> None:
    model = shutil.copytree(tiny_folder, tmp_path / "$(touch pwned) [/]")
    code, out, err = run("erase", str(model), "cat $(id)", "--no-check")
    assert code == 0, err
    (line,) = [line for line in out.splitlines() if line.startswith("Next: ")]
    words = shlex.split(line.removeprefix("Next: "))
    assert words[:3] == ["unsee", "audit", str(model)]
    file = words[words.index("--erasure") + 1]
    assert (tmp_path / file).is_file()
    assert words[words.index("--suite") + 1] == "objects" and "--detector" in words
    echoed = subprocess.run(
        ["sh", "-c", line.removeprefix("Next: unsee ").join(["printf '%s\\n' ", ""])],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert echoed.stdout.splitlines() == words[1:]
    assert not (tmp_path / "pwned").exists()


def test_nothing_foreign_steers_the_terminal(
    monkeypatch: pytest.MonkeyPatch,
    pipe: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    concept = unsee.Concept("cat " + NASTY, phrases=("cat",))
    unsee.erase(pipe, concept, check=False).save(tmp_path / "it.safetensors")
    suite = tmp_path / "suite.yaml"
    suite.write_text(
        json.dumps({"name": NASTY, "prompts": [{"prompt": NASTY, "category": NASTY}]})
    )
    (tmp_path / "bad.yaml").write_text(json.dumps({"prompts": [{"prompt": "a", "id": NASTY}]}))
    for arguments in (
        ("show", "it.safetensors"),
        ("suites", "show", "suite.yaml"),
        ("suites", "check", "bad.yaml"),
        ("show", NASTY),
        ("list", NASTY),
        ("erase", "emoji", NASTY),
        ("erase", "emoji", "bomb", "--set", NASTY + "="),
        ("generate", NASTY, "-p", "a", "-o", "x"),
    ):
        monkeypatch.setattr(sys, "argv", ["unsee", *arguments])
        with pytest.raises(SystemExit):
            main()
        said = "".join(capsys.readouterr())
        assert "MarkupError" not in said and "Traceback" not in said
        for character in "\x1b\x07\u202e":
            assert character not in said, arguments
        assert "[/]" in said, arguments


def shell(*arguments: str, cwd: Path, **env: str) -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run(
        [sys.executable, "-m", "unsee", *arguments],
        cwd=cwd,
        capture_output=True,
        env={**os.environ, **env},
    )


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "utf-8"])
def test_a_terminal_of_few_characters_shows_the_others_as_it_can(
    encoding: str, tmp_path: Path
) -> None:
    (tmp_path / "a.yaml").write_text("name: ✓ → 宮\nprompts: [✓]\n", encoding="utf-8")
    told = shell("suites", "show", "a.yaml", cwd=tmp_path, PYTHONIOENCODING=encoding)
    assert told.returncode == 0, told.stderr
    assert ("✓ → 宮" if encoding == "utf-8" else "? ? ?") in told.stdout.decode(encoding)


def test_a_reader_that_goes_away_is_no_verdict(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "unsee", "list", "concepts"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout and process.stderr
    process.stdout.close()
    assert process.wait(60) == 3
    assert b"Traceback" not in process.stderr.read()
    process.stderr.close()


# A shell without job control starts what is in its background with interrupts ignored, as nohup
# does hang-ups, and processes hand that down.
HEEDED = "signal.signal(signal.SIGINT, signal.default_int_handler)"


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_an_interrupt_in_the_middle_of_a_save_leaves_nothing_and_is_130(
    tiny_folder: Path, tmp_path: Path
) -> None:
    # A signal that arrives while the file is renamed to its name, in a process of its own
    code = (
        f"import os, signal, sys; {HEEDED}; from unsee.cli import main\n"
        "replace = os.replace\n"
        "def late(*names):\n"
        "    os.kill(os.getpid(), signal.SIGINT); replace(*names)\n"
        "os.replace = late; main()"
    )
    told = subprocess.run(
        [sys.executable, "-c", code, "erase", str(tiny_folder), "cat", "--no-check"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert told.returncode == 130, told.stderr
    assert "Interrupted." in told.stderr and "Traceback" not in told.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_an_interrupt_during_an_import_is_130(tmp_path: Path) -> None:
    code = (
        f"import builtins, os, signal; {HEEDED}; from unsee.cli import main\n"
        "load = builtins.__import__\n"
        "def slow(name, *more, **named):\n"
        "    if name == 'diffusers.utils': os.kill(os.getpid(), signal.SIGINT)\n"
        "    return load(name, *more, **named)\n"
        "builtins.__import__ = slow; main()"
    )
    told = subprocess.run(
        [sys.executable, "-c", code, "erase", "emoji", "bomb"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert told.returncode == 130, told.stderr
    assert "Traceback" not in told.stderr


def test_a_score_is_shown_again(run: Run, tmp_path: Path) -> None:
    made = ("generate", "emoji", "-p", "a bomb emoji", "--steps", "2", "-o", "made")
    assert run(*made)[0] == 0
    code, out, err = run("score", "made", "--detector", "emoji/object")
    assert code == 0, err
    code, again, err = run("show", "made/score.json")
    assert code == 0, err
    first = [line for line in out.splitlines() if "Next:" not in line]
    assert first == [line for line in again.splitlines() if "Next:" not in line]


def test_all_that_is_printed_goes_through_the_terminal() -> None:
    for path in (Path(unsee.__file__).parent / "cli").glob("*.py"):
        if path.name != "terminal.py":
            source = path.read_text(encoding="utf-8")
            assert "console.print(" not in source and "escape" not in source, path
