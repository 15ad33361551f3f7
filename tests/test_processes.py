"""Several processes of one run: however many, the gallery and the report are the same."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from unsee import InputError, erase
from unsee.processes import launched

# Forks, of which each imports nothing again: a launcher's processes but for that.
LAUNCHER = """
import functools, json, os, pathlib, signal, socket, sys
import torch
from diffusers import StableDiffusionPipeline
from unsee import cli
import unsee.audits, unsee.eval.page, unsee.eval.audit, unsee.pipelines, unsee.pipelines.load

torch.set_num_threads(1)  # the threads of others would be missing in the forks
cli.LEAD = 0.2
root = pathlib.Path(sys.argv[1])

def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]

def child(rank, size, port, arguments, log, kill, store):
    os.environ |= {
        "UNSEE_STORE": str(root / store),
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }
    for fd in (1, 2):
        os.dup2(log, fd)
    if rank == kill[0]:
        call, calls = StableDiffusionPipeline.__call__, iter(range(100))
        @functools.wraps(call)
        def killed(*given, **named):
            if next(calls) == kill[1]:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*given, **named)
        StableDiffusionPipeline.__call__ = killed
    sys.argv = ["unsee", *arguments]
    cli.main()

def launch(size, arguments, kill, store):
    port, logs, ranks = free_port(), [os.memfd_create(str(r)) for r in range(size)], []
    for rank in range(size):
        if (pid := os.fork()) == 0:
            code = 99
            try:
                child(rank, size, port, arguments, logs[rank], kill, store)
            except SystemExit as end:
                code = end.code
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        ranks.append(pid)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in ranks]
    return [(c, os.pread(log, 10**6, 0).decode()) for c, log in zip(codes, logs)]

for line in sys.stdin:
    print(json.dumps(launch(*json.loads(line))), flush=True)
"""

Ended = list[tuple[int, str]]


class Launcher:
    """Starts ``unsee`` as so many processes of one run."""

    def __init__(self, root: Path) -> None:
        self._ready = subprocess.Popen(
            [sys.executable, "-c", LAUNCHER, str(root)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root,
        )  # fmt: skip

    def __call__(
        self, size: int, *words: str, store: str, kill: tuple[int, int] = (-1, 0)
    ) -> Ended:
        """Exit code and output of each; ``kill`` has a rank, and the drawing it does not begin."""
        assert self._ready.stdin is not None and self._ready.stdout is not None
        print(json.dumps([size, words, kill, store]), file=self._ready.stdin, flush=True)
        return [(code, said) for code, said in json.loads(self._ready.stdout.readline())]

    def close(self) -> None:
        self._ready.communicate()


@pytest.fixture
def launch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("TERM", "dumb")
    launcher = Launcher(tmp_path)
    yield launcher
    launcher.close()


@pytest.fixture
def words(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A command that makes 2 × 9 images, of a base and of an erased model, in batches of 2."""
    erasure = erase(tiny_folder, "cat", anchor="dog", kind="object", check=False)
    erasure.save(tmp_path / "cat.safetensors")
    rows = [("cat", i) for i in range(5)] + [("bomb", i) for i in range(4)]
    table = "".join(f"a {name} photo,{name},{seed}\n" for name, seed in rows)
    (tmp_path / "s.csv").write_text("prompt,object,seed\n" + table)
    options = "-e cat.safetensors --suite s.csv --detector emoji/object --steps 2 --batch-size 2"
    return ["audit", str(tiny_folder), *options.split(), "--metric", "pixels/ssim", "-o"]


def found(out: Path) -> dict[str, Any]:
    """All of a run's files; of the report what is of the images and not of the run."""
    files: dict[str, Any] = {
        str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()
    }
    report = json.loads(files.pop("report.json"))
    for name in ("date", "seconds", "peak_bytes", "command"):
        del report[name]
    for rung in (rung for one in report["attacks"] for rung in one["rungs"]):
        del rung["seconds"], rung["cost"]
    for one in report["attacks"] + [o["verdict"] for o in report["outcomes"] + [report]]:
        del one["detail"]  # what it took is in it
    del files["report.html"]
    # What an attack found is the same but for how long it took, which its file says
    kept = {name: data for name, data in files.items() if not name.endswith(".safetensors")}
    return kept | {"report.json": report}


slow = pytest.mark.slow
linux = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="no Linux")


@slow
@linux
def test_any_number_of_processes_makes_the_same_gallery_and_report(
    launch: Launcher, words: list[str], tmp_path: Path
) -> None:
    ((code, said),) = launch(1, *words, "one", store="alone")
    assert code == 1, said  # no model of random weights draws a cat
    whole = found(tmp_path / "one")
    assert len([name for name in whole if name.endswith(".png")]) == 18
    for size in (2, 3):
        (first, *others) = launch(size, *words, f"{size}", store=f"of-{size}")
        assert first[0] == 1 and "the audit is not informative" in first[1], first
        assert others == [(0, "")] * (size - 1)
        assert found(tmp_path / f"{size}") == whole
        # What they have made is there for later runs, and what earlier ones have is not made again
        assert len(list((tmp_path / f"of-{size}").rglob("*.png"))) == 18
        (first, *others) = launch(size, *words, f"again-{size}", store="alone", kill=(size - 1, 0))
        assert (first[0], others) == (1, [(0, "")] * (size - 1))


@slow
@linux
def test_attacks_are_fitted_by_one_process_and_drawn_by_all(
    launch: Launcher, words: list[str], tmp_path: Path
) -> None:
    tried = ("textual-inversion?steps=2&rungs=2&batch_size=2&start=photo", "completion")
    command = [*words[:-1], *(word for one in tried for word in ("--attack", one)), "-o"]
    ((code, said),) = launch(1, *command, "one", store="alone")
    assert code == 1 and all(f"{one}: not informative." in said for one in tried), said
    whole = found(tmp_path / "one")
    assert [len(one["rungs"]) for one in whole["report.json"]["attacks"]] == [3, 2]
    first, *others = launch(2, *command, "2", store="of-2")
    assert first[0] == 1 and others == [(0, "")], (first, others)
    assert found(tmp_path / "2") == whole


@slow
@linux
@pytest.mark.parametrize(("killed", "drawing"), [(0, 0), (1, 1), (0, 4)])
def test_where_one_process_is_killed_the_rest_end_and_any_number_goes_on(
    killed: int, drawing: int, launch: Launcher, words: list[str], tmp_path: Path
) -> None:
    launch(1, *words, "one", store="alone")
    whole = found(tmp_path / "one")
    for size in (1, 3):
        out = f"{size}"
        ended = launch(2, *words, out, store=f"of-{size}", kill=(killed, drawing))
        assert ended[killed] == (-9, "")
        code, said = ended[1 - killed]
        assert code == 3 and len(said.strip().splitlines()) == 1, said
        assert "Another of the 2 processes ended before its work was done." in said
        assert not (tmp_path / out / "report.json").exists()
        ended = launch(size, *words, out, store=f"of-{size}")
        assert [code for code, _ in ended] == [1, 0, 0][:size], ended
        assert found(tmp_path / out) == whole


@slow
@linux
def test_what_is_wrong_for_all_processes_is_said_once_and_what_is_wrong_for_one_by_it(
    launch: Launcher, words: list[str], tmp_path: Path
) -> None:
    (tmp_path / "out" / "erased").mkdir(parents=True)
    (tmp_path / "out" / "erased" / "mine.txt").write_text("")
    first, other = launch(2, *words, "out", store="s")
    assert first[0] == other[0] == 2 and "exists and is no gallery" in first[1]
    assert other[1].startswith("unsee: Process 1 of 2: ")  # no launcher has ended it meanwhile
    for code, said in launch(2, "list", "methods", store="s"):
        assert code == 2 and "run this command without the launcher" in said


@pytest.mark.parametrize("said", [("1", "1"), ("-1", "2"), ("a", "2"), ("", "")])
def test_a_rank_that_cannot_be_is_refused(
    said: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in zip(("RANK", "WORLD_SIZE"), said, strict=True):
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match="must be a process's number"):
        launched()
    monkeypatch.delenv("RANK")
    assert launched().size == 1
