"""What the README says to type works."""

import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from unsee.cli.commands import app

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")


def commands() -> Iterator[list[str]]:
    """The words after ``unsee`` of every command in a block or between backticks."""
    blocks = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    lines += re.findall(r"`(unsee [^`]+)`", README)
    for line in lines:
        if words := shlex.split(line, comments=True):
            assert words[0] in ("unsee", "make", "pip", "git", "cd"), line
            if words[0] == "unsee":
                yield words[1:]


COMMANDS = list(commands())
ELSEWHERE = r"path/to|MODEL|BASE|RUN|\.csv|demo|owner/"
# A command by its name alone is a word in a sentence.
BUILT_IN = [words for words in COMMANDS if words[1:] and not re.search(ELSEWHERE, str(words))]
BENCHMARKS = sorted(set(re.findall(r"`(?:python -m lab\.)?(bench_\w+)(?:\.py)?([^`]*)`", README)))


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_is_one_of_ours_with_options_that_there_are(words: list[str]) -> None:
    # parsed by the command line itself, and not run
    found: Any = typer.main.get_command(app)
    name, *rest = words
    while hasattr(found, "commands"):
        assert name in found.commands, " ".join(words)
        found = found.commands[name]
        if hasattr(found, "commands"):
            name, *rest = rest
    if rest:  # a name by itself, in a sentence, is only named
        found.make_context(name, list(rest))


def test_a_command_with_a_word_that_is_not_there_would_be_seen() -> None:
    for words in (["erase", "emoji", "cat", "--anchr", "x"], ["erase", "a", "b", "--seed", "x"]):
        with pytest.raises(typer.BadParameter.__mro__[1]):
            test_every_command_is_one_of_ours_with_options_that_there_are(words)
    with pytest.raises(AssertionError):
        test_every_command_is_one_of_ours_with_options_that_there_are(["erasee", "emoji"])


@pytest.mark.slow
def test_the_commands_on_the_built_in_model_run_one_after_the_other(
    run: Callable[..., tuple[int, str, str]],
) -> None:
    ran = []
    for words in BUILT_IN:
        if words in ran:
            continue
        code, _, err = run(*words)
        # An audit's exit code is its verdict.
        # An attack's is whether something comes back
        verdicts = ("audit", "attack")
        assert code in (0, 1 if words[0] in verdicts else 0), f"unsee {shlex.join(words)}: {err}"
        ran.append(words)
    assert {words[0] for words in ran} >= {
        "erase",
        "audit",
        "generate",
        "show",
        "score",
        "list",
        "export",
    }


@pytest.mark.slow
@pytest.mark.parametrize("name, options", BENCHMARKS)
def test_every_benchmark_is_there_and_has_its_options(name: str, options: str) -> None:
    told = subprocess.run(
        [sys.executable, "-m", f"lab.{name}", "--help"], cwd=ROOT, capture_output=True, text=True
    )
    assert told.returncode == 0, told.stderr
    for option in re.findall(r"--[\w-]+", options):
        assert option in told.stdout


def test_the_python_runs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL)
    assert code
    # A smaller audit than the README's, for the test's time
    small = code[1].replace('out="runs/knife"', 'out="runs/knife", size=12')
    assert small != code[1]
    exec(compile(small, "README.md", "exec"), {})
    assert "kitchen knife" in capsys.readouterr().out
    assert (tmp_path / "runs/knife/report.html").is_file()


def test_its_links_lead_somewhere() -> None:
    for link in re.findall(r"\]\((?!http)([^)#]+)", README):
        assert (ROOT / link).exists(), link
