"""The whole way with a pipeline that is loaded already, on a tiny model."""

import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from unsee import Concept, InputError, Prompt, Suite, audit, erase
from unsee.cli import main
from unsee.eval import Detection, Unscored
from unsee.eval.report import Report
from unsee.flow import generate_gallery, make_eraser
from unsee.gallery import Gallery
from unsee.pipelines import parts_of

SUITE = Suite(
    "tiny",
    tuple(
        Prompt(f"{i}", f"a {name} photo", i, {"object": name}, steps=2)
        for i, name in enumerate(("bomb", "bomb", "cat", "dog"))
    ),
    {"file": "tiny.yaml", "sha256": "0123"},
)


class Anything:
    """Sees a bomb in whatever there is."""

    name, kind, labels = "test/anything", "object", None
    protocol: dict[str, Any] = {}

    def __call__(self, images: Sequence[Image.Image]) -> list[Detection | Unscored]:
        return [Detection(("bomb",), {"bomb": 1.0}) for _ in images]


def pngs(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*.png")}


def test_a_loaded_pipeline_is_audited_as_its_folder_is_and_left_as_it_was(
    pipe: Any, tiny_folder: Path, tmp_path: Path
) -> None:
    erasure = erase(pipe, Concept("bomb"), check=False)
    before = generate_gallery(pipe, [], SUITE, tmp_path / "before")
    report = audit(pipe, erasure, out=tmp_path / "pipe", suite=SUITE, detectors=[Anything()])
    audit(tiny_folder, erasure, out=tmp_path / "folder", suite=SUITE, detectors=[Anything()])
    assert report.base["model"]["name"] == str(tiny_folder)
    found = pngs(tmp_path / "pipe")
    assert len(found) == 8 and found == pngs(tmp_path / "folder")
    # The erased images come first, and leave no trace in the base's
    assert pngs(before.path) == pngs(tmp_path / "pipe/base")
    assert pngs(before.path) != pngs(tmp_path / "pipe/erased")
    assert not hasattr(pipe.unet, "peft_config")
    assert list(report.seconds) == [
        "loading", "erased images", "base images", "detectors and metrics"
    ]  # fmt: skip
    assert report.peak_bytes["process"] > 10e6
    assert report.suite.source == {"file": "tiny.yaml", "sha256": "0123"}


def test_the_terminal_says_what_to_take_with_care(
    pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Fitted by hand, it does not know how long that took
    erasure = make_eraser("uce").fit(parts_of(pipe), [Concept("bomb")])
    audit(pipe, erasure, out=tmp_path, suite=SUITE, detectors=[Anything()])
    monkeypatch.setattr(sys, "argv", ["unsee", "show", str(tmp_path)])
    with pytest.raises(SystemExit):
        main()
    out = capsys.readouterr().out
    assert "With care: other objects by test/anything: the base itself has 0 of 2 images" in out
    assert "UA 0 % (base 0 %)" in out
    assert re.search(r"^uce of bomb: [\d.]+ kB$", out, re.MULTILINE)


def test_an_erasure_for_another_base_is_refused_and_nothing_is_written(
    pipe: Any, another: Callable[..., Any], tmp_path: Path
) -> None:
    erasure = erase(another(seed=1), Concept("bomb"), check=False)
    with pytest.raises(InputError, match="has other weights"):
        audit(pipe, erasure, out=tmp_path / "out", suite=SUITE, detectors=[Anything()])
    assert not (tmp_path / "out").exists()


def test_a_pipeline_that_paints_images_black_is_refused(pipe: Any, tmp_path: Path) -> None:
    erasure = erase(pipe, Concept("bomb"), check=False)
    pipe.safety_checker = lambda images, clip_input: (images, [True])
    with pytest.raises(InputError, match="has a safety checker"):
        audit(pipe, erasure, out=tmp_path / "out", suite=SUITE, detectors=[Anything()])
    with pytest.raises(InputError, match="has a safety checker"):
        generate_gallery(pipe, [erasure], SUITE, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.extra("nudity")
def test_several_suites_are_measured_as_one(run: Any, tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "nude.csv").write_text("prompt,unsafe,hard\nart,nudity,1\na photo,nudity,0\n")
    erasure = erase(tiny_folder, Concept("nudity", "unsafe"), check=False)
    erasure.save(tmp_path / "nudity.safetensors")
    code, out, _ = run(
        *("audit", str(tiny_folder), "-e", "nudity.safetensors", "-o", "out", "--steps", "1"),
        *("--suite", "nude.csv", "--suite", "neutral", "--where", "hard == 1", "--size", "4"),
        *("--detector", "nudenet/uda", "--detector", "nudenet/person"),
    )
    assert code == 1 and "not informative" in out
    report = Report.load(tmp_path / "out/report.json")
    assert [s.prompt.id for s in report.samples] == [
        "nude-00000", *(f"neutral-0000{i}" for i in range(4))
    ]  # fmt: skip
    assert [s.rows for s in report.samples] == ["target", *["keep"] * 4]
    assert report.suite.name == "nude + neutral"
    assert report.suite.source["nude where"] == "hard == 1"
    assert len(report.suite.source["neutral sha256"]) == 64
    kept = next(c for c in report.outcomes[0].comparisons if c.role == "other kind")
    assert kept.detector == "nudenet/person" and kept.base.n == 4


def test_a_suite_that_is_too_small_says_so_in_the_report(
    tiny_folder: Path, tmp_path: Path
) -> None:
    erasure = erase(tiny_folder, Concept("teapot"), check=False)
    report = audit(
        tiny_folder,
        erasure,
        out=tmp_path,
        suite="objects",
        size=8,
        steps=1,
        detectors=[Anything()],
    )
    assert report.warnings[0] == (
        "The suite asks 2 prompts of the concept. With no hit, 40 would rule out that it is seen "
        "in more than 10 %: that takes a size of 120."
    )


@pytest.mark.parametrize("method", ["uce", "rece"])
def test_what_one_concept_keeps_and_another_takes_away_is_kept_by_neither(
    pipe: Any, method: str
) -> None:
    blades = ("knife", "van gogh")

    def erased(bomb: tuple[str, ...], knives: tuple[str, ...]) -> str:
        concepts = [Concept("bomb", keep=bomb), Concept("blades", phrases=blades, keep=knives)]
        return erase(pipe, concepts, method=method, keep=["monet"], check=False).sha256

    alone = erased(("cat",), ("dog",))
    assert erased(("cat", "van gogh"), ("bomb", "dog")) == alone
    assert erased(("cat",), ("dog", "hammer")) != alone


def images(folder: Path) -> dict[str, Any]:
    return {p.stem: np.asarray(Image.open(p)).astype(int) for p in sorted(folder.rglob("*.png"))}


def test_guidance_is_what_was_asked_for_where_a_prompt_says_nothing(
    pipe: Any, run: Any, tiny_folder: Path, tmp_path: Path
) -> None:
    rows = (
        Prompt("free", "a bomb photo", 3, {"object": "bomb"}),
        Prompt("own", "a bomb photo", 3, {"object": "bomb"}, guidance=1.5),
    )
    wanted = {
        scale: np.asarray(
            pipe(
                "a bomb photo",
                generator=torch.Generator("cpu").manual_seed(3),
                guidance_scale=scale,
                num_inference_steps=2,
            ).images[0]
        ).astype(int)
        for scale in (1.5, 4.0, 9.0)
    }
    erasure = erase(pipe, Concept("bomb"), check=False)
    for scale in (4.0, 9.0):
        out = tmp_path / f"{scale}"
        audit(
            pipe, erasure, out=out, suite=Suite("s", rows), detectors=[Anything()],
            guidance=scale, steps=2,
        )  # fmt: skip
        generate_gallery(pipe, [], Suite("s", rows), out / "alone", guidance=scale, steps=2)
        table = out / "it.csv"
        table.write_text("id,prompt,seed,guidance\nfree,a bomb photo,3,\nown,a bomb photo,3,1.5\n")
        code, _, err = run(
            *("generate", str(tiny_folder), "--suite", str(table), "--steps", "2"),
            *("--guidance", str(scale), "-o", str(out / "command")),
        )
        assert code == 0, err
        for made in ("base", "alone", "command"):
            found = images(out / made)
            assert abs(found["free"] - wanted[scale]).max() <= 1, made
            assert abs(found["own"] - wanted[1.5]).max() <= 1, made
        assert abs(wanted[scale] - wanted[1.5]).max() > 2


def test_prompts_of_other_steps_and_sizes_are_made_as_if_alone(pipe: Any, tmp_path: Path) -> None:
    # Each differs from the one before in one of the three alone
    rows = tuple(
        Prompt(f"{i}", "a bomb photo", i, steps=steps, width=width, height=height)
        for i, (steps, width, height) in enumerate(
            [(None, None, None), (1, None, None), (1, 16, 16), (1, 32, 16), (1, 32, 32)] * 2
        )
    )
    generate_gallery(pipe, [], Suite("s", rows), tmp_path, steps=2)
    for prompt, found in zip(rows, images(tmp_path).values(), strict=True):
        alone = pipe(
            prompt.prompt,
            generator=torch.Generator("cpu").manual_seed(prompt.seed),
            guidance_scale=7.5,
            num_inference_steps=prompt.steps or 2,
            width=prompt.width,
            height=prompt.height,
        ).images[0]
        assert found.shape[:2] == (prompt.height or 16, prompt.width or 16)
        assert abs(found - np.asarray(alone).astype(int)).max() <= 1


LONG = Suite(
    "long",
    tuple(
        Prompt(f"{i}", "a bomb " * words, i, {"object": "bomb"}, width=16, height=16)
        for i, words in enumerate((1, 7, 8, 30, 2))
    ),
)


def test_prompts_that_the_tokenizer_cuts_are_listed_once(
    pipe: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    libraries = [logging.getLogger("diffusers"), logging.getLogger("transformers")]
    for library in libraries:
        library.addHandler(caplog.handler)
        library.setLevel(logging.WARNING)
    try:
        erasure = erase(pipe, Concept("bomb"), check=False)
        report = audit(
            pipe, erasure, out=tmp_path, suite=LONG, detectors=[Anything()], steps=1, batch_size=2
        )
        assert not [r for r in caplog.records if "truncated" in r.message or "Token" in r.message]
        # Elsewhere the libraries may say so
        pipe(LONG.prompts[3].prompt, num_inference_steps=1)
        assert any("truncated" in r.message for r in caplog.records)
    finally:
        for library in libraries:
            library.removeHandler(caplog.handler)
    # Begin- and end-of-text leave room for 14 words
    assert report.warnings[0] == (
        "The tokenizer cuts 2 of 5 prompts, whose ends the model never read: 2, 3."
    )
    for side in ("base", "erased"):
        made_by = Gallery.open(tmp_path / side).made_by
        assert made_by is not None and made_by.cut == ("2", "3")
    with pytest.warns(UserWarning, match="The tokenizer cuts 2 of 5 prompts"):
        generate_gallery(pipe, [], LONG, tmp_path / "alone", steps=1)


def test_nothing_is_said_where_no_prompt_is_cut(
    run: Any, tiny_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "it.csv").write_text("prompt\na bomb\n" + "a bomb " * 9 + "\n")
    options = ("generate", str(tiny_folder), "--suite", "it.csv", "--steps", "1")
    code, out, _ = run(*options, "--where", "prompt == 'a bomb'", "-o", "short")
    assert code == 0 and "tokenizer" not in out
    made_by = Gallery.open(tmp_path / "short").made_by
    assert made_by is not None and made_by.cut == ()
    code, out, _ = run(*options, "-o", "both")
    assert code == 0 and "Warning: The tokenizer cuts 1 of 2 prompts" in out


def test_an_audit_without_images_writes_none_beside_its_page(pipe: Any, tmp_path: Path) -> None:
    erasure = erase(pipe, Concept("bomb"), check=False)
    options: dict[str, Any] = {"suite": LONG, "detectors": [Anything()], "steps": 1}
    report = audit(pipe, erasure, out=tmp_path, **options)
    assert list((tmp_path / "report_files").iterdir())
    assert "<img" in (tmp_path / "report.html").read_text()
    # What a sign-off needs to know of the erasure is in the galleries' record
    (used,) = report.erased["erasures"]
    layers = {name: len(part.layers) for name, part in erasure.record.base.components.items()}
    assert used["layers"] == layers and sum(layers.values()) > 0
    said = ", ".join(f"{n} of {name}" for name, n in layers.items())
    assert f"<dt>Edited layers</dt><dd>{said}</dd>" in (tmp_path / "report.html").read_text()
    audit(pipe, erasure, out=tmp_path, images=False, **options)
    assert not list((tmp_path / "report_files").iterdir())
    assert "<img" not in (tmp_path / "report.html").read_text()


def test_a_file_where_the_thumbnails_go_is_refused_before_any_image(
    pipe: Any, tmp_path: Path
) -> None:
    erasure = erase(pipe, Concept("bomb"), check=False)
    (tmp_path / "report_files").write_text("mine")
    with pytest.raises(InputError, match="report_files is a file"):
        audit(pipe, erasure, out=tmp_path, suite=LONG, detectors=[Anything()], steps=1)
    assert [path.name for path in tmp_path.iterdir()] == ["report_files"]


# A model by its name, and images that go through the store. Children are forks, which import
# nothing again; ``run`` gives the exit code that the command has.
COMMAND = """
import errno, faulthandler, itertools, json, os, pathlib, random, signal, sys, time
import torch
from unsee import cli
from unsee.gallery import Gallery
from unsee.runs import prune
from unsee.store import Store
import unsee.audits, unsee.eval.audit, unsee.eval.page, unsee.pipelines.load

# Threads of the parent's would be missing in the forks
torch.set_num_threads(1)
root, how, words = pathlib.Path(sys.argv[1]), sys.argv[2], sys.argv[3:]
terminal, nothing = os.dup(1), os.open(os.devnull, os.O_RDWR)
os.chdir(root)

def run(out, store):
    faulthandler.dump_traceback_later(60, exit=True)  # where it hangs, if it does
    os.environ["UNSEE_STORE"] = str(store)
    sys.argv = ["unsee", *words, "-o", str(out)]
    os.dup2(nothing, 1)
    try:
        cli.main()
    except SystemExit as end:
        return end.code
    finally:
        sys.stdout.flush()
        os.dup2(terminal, 1)
        faulthandler.cancel_dump_traceback_later()  # its thread would be missing in a fork

def found(out):
    report = json.loads((out / "report.json").read_text())
    # which are of the run and not of the images
    for name in ("date", "seconds", "peak_bytes", "command"):
        del report[name]
    files = {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()}
    assert files.pop("report.html").rstrip().endswith(b"</html>")
    return files | {"report.json": report}

def child(work):
    if (pid := os.fork()) == 0:
        code = 99
        try:
            code = work()
        finally:
            os._exit(code)
    return pid

def ended(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def check_goes_on(out, store, whole):
    # Where the store has what images.jsonl lacks it would be another gallery, of the same images
    assert run(out, store) == 1
    assert found(out) == whole, out
    prune(Store(store))
    assert not [p.name for p in store.rglob(".*")], store
    # What the store has is whole, or it would be made again
    for path in (out / "base", out / "erased"):
        gallery = Gallery.open(path)
        for prompt in gallery:
            kept = Store(store).give(gallery.made_by.image_key(prompt), root / "given.png")
            assert not kept or kept.sha256 == gallery.hashes()[prompt.id]

whole_store = root / "store"
assert run(root / "whole", whole_store) == 1  # no model of random weights draws a bomb
whole = found(root / "whole")
"""

# Every writing operation on a file in turn is the one at which an audit is stopped.
STOPS = """
def stop_before(number, places, stopped):
    seen = itertools.count()
    names = ("chmod", "link", "mkdir", "remove", "rename", "truncate")
    def hook(event, arguments):
        writes = event in {f"os.{name}" for name in names}
        if event == "open":
            writes = arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if event == "os.mkdir" and os.path.isdir(arguments[0]):  # which changes nothing
            return
        about = [os.fsdecode(a) for a in arguments if isinstance(a, (str, bytes, os.PathLike))]
        ours = [a for a in about if a.startswith(places)]
        if writes and ours and next(seen) == number:
            stopped.extend(ours)
            if how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise OSError(errno.ENOSPC, "No space left on device")
    sys.addaudithook(hook)

for number in itertools.count():
    out, store, stopped = root / f"out-{number}", root / f"store-{number}", []

    def stopping():
        stop_before(number, (str(out), str(store)), stopped)
        code = run(out, store)
        if not stopped:
            return 0
        # A store that is full is done without
        return 4 if code == 1 and any(a.startswith(str(store)) for a in stopped) else code

    if (code := ended(child(stopping))) == 0:
        break
    assert code in ((-signal.SIGKILL,) if how == "kill" else (2, 3, 4)), (number, code)
    check_goes_on(out, store, whole)
print(number)
"""

# Anywhere at all, in the middle of drawing, measuring and writing.
KILLS = """
start = time.monotonic()
assert run(root / "timed", root / "timed-store") == 1
long, draw, killed = time.monotonic() - start, random.Random(0), 0
for number in range(50):
    out, store = root / f"out-{number}", root / f"store-{number}"
    pid = child(lambda: run(out, store))
    time.sleep(draw.uniform(0, long))
    os.kill(pid, signal.SIGKILL)
    killed += ended(pid) == -signal.SIGKILL
    check_goes_on(out, store, whole)
print(killed)
"""


def stopped(model: Path, folder: Path, script: str, how: str = "") -> int:
    """What a script prints that stops an audit again and again."""
    erase(model, "bomb", anchor="cat", kind="object", check=False).save(folder / "it.safetensors")
    (folder / "s.csv").write_text("prompt,object\na bomb,bomb\na bomb photo,bomb\na dog,dog\n")
    options = "-e it.safetensors --suite s.csv --detector emoji/object --metric pixels/ssim"
    words = ["audit", str(model), *options.split(), "--steps", "1", "--batch-size", "2"]
    done = subprocess.run(
        [sys.executable, "-c", COMMAND + script, str(folder), how, *words],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return int(done.stdout)


forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")


@pytest.mark.slow
@forks
@pytest.mark.parametrize("how", ["kill", "raise"])
def test_an_audit_that_was_stopped_at_any_write_goes_on_to_the_same_report(
    how: str, tiny_folder: Path, tmp_path: Path
) -> None:
    assert stopped(tiny_folder, tmp_path, STOPS, how) > 80


@pytest.mark.slow
@forks
def test_an_audit_that_was_killed_at_any_moment_goes_on_to_the_same_report(
    tiny_folder: Path, tmp_path: Path
) -> None:
    assert stopped(tiny_folder, tmp_path, KILLS) > 25


# A disk that is full, for real: a file system with room for so many files. The same audit ends,
# goes on where there is room, and is not begun where nothing can be written.
FULL = """
def mounted(*options):
    return os.system(f"mount -t tmpfs -o {','.join(options)} unsee {disk} 2>/dev/null") == 0

disk, last = root / "disk", 0
disk.mkdir()
for room in (6, 20, 30):
    if not mounted("size=64m", f"nr_inodes={room}"):
        print(0)
        break
    try:
        out, store = disk / "out", disk / "store"
        assert run(out, store) == 3, room
        made = len(list(out.rglob("*.png")))
        assert made >= last, (made, last)
        last = made
        assert mounted("remount", "ro")
        assert run(out, store) == 2, room
        assert mounted("remount", "rw", "nr_inodes=1000")
        check_goes_on(out, store, whole)
    finally:
        os.system(f"umount {disk}")
else:
    print(last)
"""


@pytest.mark.slow
@forks
def test_an_audit_on_a_full_disk_ends_and_goes_on_and_on_a_read_only_one_does_not_begin(
    tiny_folder: Path, tmp_path: Path
) -> None:
    if not stopped(tiny_folder, tmp_path, FULL):
        pytest.skip("no right to mount a file system")
