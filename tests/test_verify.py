"""A run is made out again: what was tampered with is found and named, and nothing else is."""

import json
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import unsee
from unsee import Concept, InputError, Prompt, Suite
from unsee.eval import Detection, Unscored
from unsee.eval.detectors import fingerprint
from unsee.eval.page import write
from unsee.eval.report import Report
from unsee.eval.verify import LEVELS, drawn
from unsee.gallery import Gallery
from unsee.tests.tried import Hue, attacked_run, hue

ROWS = tuple(
    Prompt(f"{i:02}", f"a {name} photo", i, {"object": name, "style": style}, steps=1)
    for i, (name, style) in enumerate(
        (name, style) for name in ("bomb", "hammer") for style in ("flat", "contrast", "flat")
    )
)
SUITE = Suite("tiny", ROWS, {"file": "tiny.yaml", "sha256": "0123"}, ("It is tiny.",))


@pytest.fixture(scope="module")
def model(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model's folder that a test may write over."""
    return Path(shutil.copytree(tiny_folder, tmp_path_factory.mktemp("model") / "tiny"))


@pytest.fixture(scope="module")
def erasure(model: Path) -> Path:
    file = model.parent / "bomb.safetensors"
    unsee.erase(model, Concept("bomb", keep=("hammer",)), check=False).save(file)
    return file


def audited(model: Path, erasure: Path, out: Path, **settings: Any) -> Path:
    chosen = {"detectors": ["emoji/object", "emoji/style"], "metrics": ["pixels/ssim"]}
    unsee.audit(model, erasure, out=out, suite=SUITE, **(chosen | settings))
    return out


@pytest.fixture(scope="module")
def made(model: Path, erasure: Path) -> Path:
    return audited(model, erasure, model.parent / "run")


@pytest.fixture
def run_(made: Path, tmp_path: Path) -> Path:
    """A run in another folder than it was made in."""
    return Path(shutil.copytree(made, tmp_path / "copy"))


# What holds


def test_a_run_holds_wherever_it_lies_and_what_was_not_looked_at_is_said(
    run_: Path, erasure: Path, run: Callable[..., Any]
) -> None:
    code, out, _ = run("verify", str(run_))
    assert code == 0 and "all that was checked holds" in out
    assert "Checked: 12 images; 24 answers; " in out and "report.html; the model's weights" in out
    assert out.count("Not checked:") == 5
    for not_checked in ("--ask", "--rerun", "-e", "1 warning of the suite or the model"):
        assert not_checked in out
    code, out, _ = run("verify", str(run_), "--ask", "--rerun", "5", "-e", str(erasure))
    assert code == 0 and out.count("Not checked:") == 2
    assert "3 erased images made again" in out and "2 base images made again" in out
    assert "the erasures' files" in out


def test_verifying_writes_nothing(run_: Path, erasure: Path) -> None:
    before = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in run_.rglob("*") if p.is_file()}
    unsee.verify(run_, ask=True, rerun=2, erasures=erasure)
    now = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in run_.rglob("*") if p.is_file()}
    assert now == before


def test_a_run_that_was_made_in_two_goes_and_in_other_batches_holds(
    model: Path, erasure: Path, tmp_path: Path
) -> None:
    def stop(what: str, done: int, total: int) -> None:
        if what == "images of the base model":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        audited(model, erasure, tmp_path / "run", batch_size=2, progress=stop)
    run = audited(model, erasure, tmp_path / "run", batch_size=3)
    found = unsee.verify(run, erasures=erasure, rerun=12, ask=True)
    assert not found.differences
    assert any("6 erased images made again" in line for line in found.checked)


def test_a_run_of_which_images_had_to_be_made_again_holds_and_must_say_so(
    model: Path, erasure: Path, run_: Path
) -> None:
    (run_ / "base/images/03.png").write_bytes(b"cut")
    with pytest.warns(UserWarning, match="made again: 03"):
        audited(model, erasure, run_)
    assert not unsee.verify(run_).differences
    page = json.loads((run_ / "report.json").read_text())
    (note,) = [line for line in page["warnings"] if "were made again: 03" in line]
    edit(run_ / "report.json", lambda page: page["warnings"].remove(note))
    assert f"report.json lacks the warning: {note}" in unsee.verify(run_).differences


# What was tampered with


def edit(file: Path, change: Callable[[Any], Any]) -> None:
    """Changes a JSON file's page in place."""
    page = json.loads(file.read_text(encoding="utf-8"))
    change(page)
    file.write_text(json.dumps(page, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def edit_lines(file: Path, change: Callable[[list[Any]], Any]) -> None:
    """Changes a JSONL file's pages in place."""
    pages = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    change(pages)
    text = "".join(json.dumps(page, ensure_ascii=False) + "\n" for page in pages)
    file.write_text(text, encoding="utf-8")


def swap(run: Path) -> None:
    shutil.copy(run / "base/images/01.png", run / "base/images/02.png")


def swap_with_its_line(run: Path) -> None:
    swap(run)

    def change(lines: list[Any]) -> None:
        of = {line["id"]: line for line in lines}
        of["02"]["sha256"] = of["01"]["sha256"]

    edit_lines(run / "base/images.jsonl", change)


def swap_everywhere_but_in_answers(run: Path) -> None:
    swap_with_its_line(run)

    def change(page: Any) -> None:
        of = {sample["prompt"]["id"]: sample["base"] for sample in page["samples"]}
        of["02"]["sha256"] = of["01"]["sha256"]

    edit(run / "report.json", change)


def cut_an_image(run: Path) -> None:
    file = run / "erased/images/04.png"
    file.write_bytes(file.read_bytes()[:200])


def label(run: Path) -> None:
    def change(lines: list[Any]) -> None:
        lines[0]["found"]["labels"] = [
            "hammer" if lines[0]["found"]["labels"] != ["hammer"] else "bomb"
        ]

    edit_lines(run / "erased/answers.jsonl", change)


def label_and_scores(run: Path) -> None:
    def change(lines: list[Any]) -> None:
        line = next(x for x in lines if x["id"] == "00" and x["detector"] == "emoji/object")
        line["found"]["labels"] = ["bomb"]
        line["found"]["scores"]["bomb"] = 1.0

    edit_lines(run / "erased/answers.jsonl", change)


def head(run: Path, side: str) -> None:
    """Makes gallery.json fit samples.jsonl."""
    import hashlib

    digest = hashlib.sha256((run / side / "samples.jsonl").read_bytes()).hexdigest()
    edit(run / side / "gallery.json", lambda page: page.update(samples=digest))


def prompt(run: Path, *sides: str) -> None:
    for side in sides:
        edit_lines(run / side / "samples.jsonl", lambda rows: rows[2].update(prompt="a dog"))


def prompt_and_head(run: Path, *sides: str) -> None:
    prompt(run, *sides)
    for side in sides:
        head(run, side)


def row(run: Path) -> None:
    for side in ("base", "erased"):
        edit_lines(run / side / "samples.jsonl", lambda rows: rows.pop())
        head(run, side)


def old_answers(run: Path) -> None:
    def change(lines: list[Any]) -> None:
        for line in lines:
            if line["detector"] == "emoji/style" and line["id"] == "05":
                line["protocol"] = "0" * 16

    edit_lines(run / "base/answers.jsonl", change)


def old_detector(run: Path) -> None:
    """The report of an older detector, with its answers."""
    file = run / "report.json"
    edit(file, lambda p: p["detectors"]["emoji/object"]["protocol"].update(weights_sha256="00"))
    protocol = json.loads(file.read_text())["detectors"]["emoji/object"]["protocol"]

    def change(lines: list[Any]) -> None:
        for line in lines:
            if line["detector"] == "emoji/object":
                line["protocol"] = fingerprint(protocol)

    for side in ("base", "erased"):
        edit_lines(run / side / "answers.jsonl", change)


def number(*path: Any, to: Any = 0.123) -> Callable[[Path], None]:
    def change(page: Any) -> None:
        *way, last = path
        for key in way:
            page = page[key]
        page[last] = to

    return lambda run: edit(run / "report.json", change)


def in_page(pattern: str, by: str) -> Callable[[Path], None]:
    def change(run: Path) -> None:
        file = run / "report.html"
        text, n = re.subn(pattern, by, file.read_text(encoding="utf-8"), count=1)
        assert n == 1
        file.write_text(text, encoding="utf-8")

    return change


def without(name: str) -> Callable[[Path], None]:
    return lambda run: (run / name).unlink()


FOUND: list[tuple[str, Callable[[Path], None], str]] = [
    ("an image swapped", swap,
     r"base/images/02\.png is not the file whose SHA-256 images\.jsonl has, nor the one that "
     r"report\.json has\."),
    ("an image swapped, with its line", swap_with_its_line,
     r"base/images/02\.png is not the file whose SHA-256 report\.json has\."),
    ("an image swapped everywhere but in the answers", swap_everywhere_but_in_answers,
     r"report\.json: row 02, base, "),
    ("an image cut", cut_an_image, r"erased/images/04\.png is not the file"),
    ("an image removed", without("erased/images/04.png"), r"erased/images/04\.png is missing\."),
    ("images.jsonl removed", without("erased/images.jsonl"),
     r"erased/images/04\.png is not the file whose SHA-256 images\.jsonl has\."),
    ("a label", label, r"erased/answers\.jsonl, line 1 says that emoji/object sees .* does not"),
    ("a label and its score", label_and_scores,
     r"report\.json: row 00, erased, detectors, emoji/object, labels\[?"),
    ("an answer removed",
     lambda run: edit_lines(run / "erased/answers.jsonl", lambda lines: lines.pop(6)),
     r"erased/answers\.jsonl has no answer of emoji/object on 03\."),
    ("all answers removed", without("base/answers.jsonl"),
     r"base/answers\.jsonl has no answer of emoji/style on 05\."),
    ("a broken line", lambda run: edit_lines(run / "base/answers.jsonl", lambda x: x[4].clear()),
     r"answers\.jsonl, line 5 lacks 'id'"),
    ("an old detector's answers", old_answers,
     r"has no answer of emoji/style on 05, but one by another protocol \(0000000000000000, not "),
    ("an old detector's answers and protocol", old_detector,
     r"emoji/object measures here by another protocol .*: its weights_sha256 is '[0-9a-f]{64}', "
     r"and was '00'\."),
    ("a prompt", lambda run: prompt(run, "erased"), r"erased/samples\.jsonl has been changed"),
    ("a prompt and its hash", lambda run: prompt_and_head(run, "erased"),
     r"galleries are of different prompts, first at '02'"),
    ("a prompt and its hash on both sides", lambda run: prompt_and_head(run, "base", "erased"),
     r"report\.json: row 02, prompt, prompt is 'a bomb photo'; it follows that it is 'a dog'\."),
    ("a row of the galleries", row, r"report\.json: samples has row 05, which does not follow\."),
    ("a row of the report", lambda run: edit(run / "report.json", lambda p: p["samples"].pop(1)),
     r"report\.json: samples lacks row 01\."),
    ("a seed of the report", number("samples", 1, "prompt", "seed", to=7),
     r"report\.json: row 01, prompt, seed is 7; it follows that it is 1\."),
    ("a verdict", number("verdict", "value", to="forgotten"),
     r"report\.json: verdict, value is 'forgotten'; it follows that it is 'not "),
    ("a rate's hits", number("outcomes", 0, "comparisons", 0, "erased", "hits", to=2),
     r"report\.json: .*target “bomb” by emoji/object, erased, hits is 2; it follows that it is "),
    ("an interval", number("outcomes", 0, "comparisons", 0, "erased", "interval", 1),
     r"report\.json: .*target “bomb” by emoji/object, erased, interval is \[.*, 0\.123\]; it fo"),
    ("a p-value", number("outcomes", 0, "comparisons", 1, "paired", "p_value"),
     r"report\.json: .*same kind “others” by emoji/object, paired, p_value is 0\.123;"),
    ("a metric's value", number("measurements", 0, "erased", "value"),
     r"report\.json: pixels/ssim keep, erased, value is 0\.123;"),
    ("a limit", number("limits", "max_target", to=0.9),
     r"report\.html says “.*10 %.*”; it follows that it says “.*90 %"),
    ("a limit that cannot be", number("limits", "max_target", to=9), r"max_target is a share "),
    ("the command", number("command", to="unsee audit other"),
     r"report\.html says “.*”; it follows that it says “.*unsee audit other"),
    ("the suite's hash", number("suite", "sha256", to="0" * 64), r"report\.json: suite, sha256"),
    ("the model in the report", number("base", "model", "components", "unet", to="0" * 64),
     r"report\.json: base, model, components, unet is '0000"),
    ("a warning",
     lambda run: edit(run / "report.json", lambda page: page["warnings"].pop()),
     r"report\.json lacks the warning: "),
    ("something more", number("samples", 0, "more", to=1), r"has 'more', which is not known here"),
    ("steps of a gallery",
     lambda run: edit(run / "base/gallery.json", lambda p: p["made_by"].update(steps=9)),
     r"erased/ was made with another steps \(wanted 9, found 50\) than base/\."),
    ("a gallery's head removed", without("base/gallery.json"), r"it has no gallery\.json"),
    ("a number of the page", in_page(r"0 of 3\b", "3 of 3"),
     r"report\.html says “.*3 of 3.*”; it follows that it says “.*0 of 3"),
    ("a bar of the page", in_page(r'x1="[\d.]+%"', 'x1="55%"'), r"report\.html draws something"),
    ("an image of the page", in_page(r"data:image/png;base64,[^\"]+", "data:image/png;base64,A"),
     r"report\.html shows 1 image that the run does not have there"),
    ("the page removed", without("report.html"), r"report\.html is missing\."),
]  # fmt: skip


@pytest.mark.parametrize(
    ("tamper", "line"), [case[1:] for case in FOUND], ids=[c[0] for c in FOUND]
)
def test_what_was_tampered_with_is_found_and_named(
    tamper: Callable[[Path], None], line: str, run_: Path
) -> None:
    tamper(run_)
    found = unsee.verify(run_, look_at_model=False)
    assert found.exit_code == 1
    assert any(re.search(line, one) for one in found.differences), found.differences
    assert not any("\n" in one for one in found.differences)


@pytest.mark.parametrize(
    "tamper",
    [swap, swap_with_its_line, label, old_answers, without("erased/images/04.png"),
     number("samples", 1, "prompt", "seed", to=7), in_page(r"0 of 3\b", "3 of 3")],
)  # fmt: skip
def test_one_cause_is_not_named_by_all_that_follows_from_it(
    tamper: Callable[[Path], None], run_: Path
) -> None:
    tamper(run_)
    # The measurement, whose images are others, and the page, which shows them
    assert 1 <= len(unsee.verify(run_, look_at_model=False).differences) <= 6


def test_the_command_says_what_differs_and_exits_with_1(
    run_: Path, run: Callable[..., Any]
) -> None:
    swap(run_)
    code, out, _ = run("verify", str(run_), "--no-model")
    assert code == 1 and "Differs: base/images/02.png is not the file" in out
    assert "Not checked: The model's weights (--no-model)." in out
    assert re.search(r"\d things? differ", out)


def test_a_folder_that_is_no_run_is_the_users_mistake(
    made: Path, tmp_path: Path, run: Callable[..., Any]
) -> None:
    for folder in (tmp_path, made / "base", tmp_path / "nowhere"):
        code, _, err = run("verify", str(folder))
        assert code == 2 and "is no run: it has no report.json" in err
    (tmp_path / "report.json").write_text("{}")
    code, _, err = run("verify", str(tmp_path))
    assert code == 2 and "it has no base/" in err
    (tmp_path / "base").mkdir()
    code, _, err = run("verify", str(tmp_path))
    assert code == 2 and "it has no format" in err


# The model and the erasures


def test_another_model_at_the_same_path_is_found(
    another: Callable[..., Any], made: Path, model: Path, erasure: Path
) -> None:
    kept = model.with_name("kept")
    shutil.copytree(model, kept)
    try:
        other = another(seed=0)
        with torch.no_grad():
            next(other.vae.decoder.parameters()).add_(0.01)
        other.save_pretrained(model)
        twice: list[tuple[str, dict[str, Any]]] = [
            ("none was made again (--rerun).", {}),
            ("none was made again, as the above differs.", {"rerun": 4, "erasures": erasure}),
        ]
        for why, settings in twice:
            found = unsee.verify(made, **settings)
            assert [re.sub("[0-9a-f]{12}…", "X", line) for line in found.differences] == [
                f"The model {model} is not the one that made the images: another vae (wanted X, "
                "found X)."
            ]
            assert found.recorded[-1] == f"How the images were made: {why}"
        assert not unsee.verify(made, model=kept).differences
        assert not unsee.verify(made, look_at_model=False).differences
        shutil.rmtree(model)
        found = unsee.verify(made)
        assert not found.differences
        assert "The model's weights (it is not here)." in found.recorded
    finally:
        shutil.rmtree(model, ignore_errors=True)
        shutil.move(kept, model)


def test_another_erasures_file_is_found(made: Path, model: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    unsee.erase(model, Concept("cat"), check=False).save(other)
    found = unsee.verify(made, erasures=other, look_at_model=False)
    assert re.match(r"The erasures are not those of the run: it has bomb \(", found.differences[0])
    with pytest.raises(
        InputError, match=r"needs the erasures' files \(-e\), in order: uce of bom"
    ):
        unsee.verify(made, rerun=2)


def test_a_run_that_was_changed_to_fit_everywhere_is_found_when_images_are_made_again(
    made: Path, model: Path, erasure: Path, tmp_path: Path
) -> None:
    # Other seeds than it says
    forged = tmp_path / "forged"
    rows = tuple(p.__class__(**{**p.__dict__, "seed": p.seed + 50}) for p in ROWS)
    unsee.audit(
        model, erasure, out=forged, suite=Suite("tiny", rows, SUITE.source, SUITE.notes),
        detectors=["emoji/object", "emoji/style"], metrics=["pixels/ssim"],
    )  # fmt: skip
    for side in ("base", "erased"):
        shutil.copy(made / side / "samples.jsonl", forged / side / "samples.jsonl")
        head(forged, side)
    suite = json.loads((made / "report.json").read_text(encoding="utf-8"))["suite"]
    edit(forged / "report.json", lambda page: page.update(suite=suite))
    edit(forged / "report.json", lambda page: seeds(page, -50))
    galleries = [Gallery.open(forged / side) for side in ("base", "erased")]
    write(Report.load(forged / "report.json"), forged, *galleries)
    assert not unsee.verify(forged, ask=True).differences
    found = unsee.verify(forged, erasures=erasure, rerun=4)
    assert sum("made again, the image is another by up to" in x for x in found.differences) == 4


def seeds(page: Any, by: int) -> None:
    for sample in page["samples"]:
        sample["prompt"]["seed"] += by


def test_images_made_again_come_from_all_parts_of_a_suite() -> None:
    for count in (0, 1, 2, 5, 6, 9):
        chosen = drawn(ROWS, count, 0)
        assert len(chosen) == min(count, 6) and list(chosen) == sorted(chosen, key=lambda p: p.id)
        assert chosen == drawn(ROWS, count, 0)
    assert {p.id for s in range(40) for p in drawn(ROWS, 2, s)} == {p.id for p in ROWS}
    for s in range(10):
        first, second = drawn(ROWS, 2, s)
        assert first.id < "03" <= second.id


def shifted(run: Path, by: int) -> None:
    """Makes an image of the base brighter, in every file that names it but the answers' scores."""
    import hashlib

    file = run / "base/images/02.png"
    old = hashlib.sha256(file.read_bytes()).hexdigest()
    with Image.open(file) as image:
        image.convert("RGB").point(lambda x: x + by if x < 128 else x - by).save(file)
    new = hashlib.sha256(file.read_bytes()).hexdigest()
    for name in ("base/images.jsonl", "base/answers.jsonl", "report.json"):
        text = (run / name).read_text(encoding="utf-8")
        assert old in text
        (run / name).write_text(text.replace(old, new), encoding="utf-8")


@pytest.mark.parametrize("by", [LEVELS, LEVELS + 1])
def test_rounding_is_told_from_change(by: int, run_: Path, erasure: Path) -> None:
    shifted(run_, by)
    found = unsee.verify(run_, erasures=erasure, rerun=12)
    lines = [line for line in found.differences if "made again" in line]
    if by > LEVELS:
        assert lines == [
            f"base/images/02.png: made again, the image is another by up to {by} of 255 levels."
        ]
    else:
        # The same labels or it is named: the tiny model's images are noise to the judge
        assert all(f"differs by {by} of 255 levels, and emoji/" in line for line in lines)


# Detectors and metrics


class Moody:
    """Sees what it is told to."""

    name, kind, labels = "test/moody", "object", ("bomb", "hammer")
    protocol = {"classes": ["bomb", "hammer"]}

    def __init__(self, label: str = "bomb") -> None:
        self.label = label

    def __call__(self, images: Sequence[Image.Image]) -> list[Detection | Unscored]:
        return [Detection((self.label,), {self.label: 1.0}) for _ in images]


@pytest.fixture(scope="module")
def moody(model: Path, erasure: Path) -> Path:
    out = model.parent / "moody"
    return audited(model, erasure, out, detectors=[Moody()], metrics=["kid:emoji-clip"])


def test_detectors_and_metrics_that_a_name_does_not_find_are_asked_for(moody: Path) -> None:
    with pytest.raises(InputError, match=r"detector test/moody cannot be had .*--detector"):
        unsee.verify(moody)
    with pytest.raises(
        InputError, match=r"metric kid/emoji-clip cannot be had .*--as-recorded kid"
    ):
        unsee.verify(moody, detectors=[Moody()])
    with pytest.raises(InputError, match="was not measured with 'pixels/ssim', but with: test/mo"):
        unsee.verify(moody, detectors=[Moody()], metrics=["pixels/ssim"])
    with pytest.raises(InputError, match="was not measured with 'fid'"):
        unsee.verify(moody, as_recorded=["fid"])
    for settings in (
        {"detectors": [Moody()], "metrics": ["kid:emoji-clip"]},
        {"as_recorded": ["test/moody", "kid/emoji-clip"]},
    ):
        found = unsee.verify(moody, **settings)
        assert not found.differences
        assert any(line.startswith("The labels of test/moody") for line in found.recorded)
    edit_back = (moody / "report.json").read_bytes()
    try:
        number("verdict", "detail", to="gone")(moody)
        found = unsee.verify(moody, as_recorded=["test/moody", "kid/emoji-clip"])
        assert found.differences[0].startswith("report.json: verdict, detail is 'gone'")
    finally:
        (moody / "report.json").write_bytes(edit_back)


def test_a_detector_that_says_something_else_when_asked_again_is_named(moody: Path) -> None:
    told: dict[str, Any] = {"metrics": ["kid:emoji-clip"], "ask": True}
    assert not unsee.verify(moody, detectors=[Moody()], **told).differences
    found = unsee.verify(moody, detectors=[Moody("hammer")], **told)
    assert len(found.differences) == 12 and found.differences[0] == (
        "base/images/00.png: asked again, test/moody sees hammer, where it saw bomb."
    )


def test_the_rule_in_a_protocol_stands_for_a_detector_that_is_not_here(
    model: Path, erasure: Path, tmp_path: Path
) -> None:
    class Chooser(Moody):
        name = "test/chooser"
        protocol = {"classes": ["bomb", "hammer"], "threshold": "top-1"}  # type: ignore[dict-item]

        def __call__(self, images: Sequence[Image.Image]) -> list[Detection | Unscored]:
            return [Detection(("bomb",), {"bomb": 0.7, "hammer": 0.3}) for _ in images]

    out = audited(model, erasure, tmp_path / "run", detectors=[Chooser()], metrics=[])
    assert not unsee.verify(out).differences
    with pytest.raises(InputError, match="detector test/chooser cannot be had"):
        unsee.verify(out, ask=True)
    label(out)
    (line,) = unsee.verify(out).differences
    assert line.endswith(
        "test/chooser sees hammer, which does not follow from the scores beside it."
    )


def test_what_a_detector_could_not_score_is_taken_as_recorded_until_it_is_asked(
    model: Path, erasure: Path, tmp_path: Path
) -> None:
    class Blind(Moody):
        blind = True

        def __call__(self, images: Sequence[Image.Image]) -> list[Detection | Unscored]:
            if self.blind:
                return [Unscored("its lens is dirty") for _ in images]
            return super().__call__(images)

    out = audited(model, erasure, tmp_path / "run", detectors=[Blind()], metrics=[])
    assert not unsee.verify(out, detectors=[Blind()]).differences
    seeing = Blind()
    seeing.blind = False
    assert not unsee.verify(out, detectors=[seeing]).differences
    found = unsee.verify(out, detectors=[seeing], ask=True)
    assert len(found.differences) == 12
    assert found.differences[0].endswith("test/moody has an answer, where it had none.")


# Every value


def leaves(page: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = page.items() if isinstance(page, dict) else enumerate(page)
    for key, value in items:
        if isinstance(value, (dict, list)) and value:
            yield from leaves(value, (*path, key))
        else:
            yield (*path, key)


def other(value: Any) -> Any:
    """Another value that could stand there as well."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + 1 if isinstance(value, int) else value * 0.9 + 0.03
    return f"{value} " if isinstance(value, str) else "x"


def every_value_is_checked(
    run: Path, erasure: Path, step: int, others: Callable[[Any], Any] = other
) -> None:
    file = run / "report.json"
    text = file.read_text(encoding="utf-8")
    for path in list(leaves(json.loads(text)))[::step]:
        page = json.loads(text)
        *way, last = path
        at = page
        for key in way:
            at = at[key]
        at[last] = others(at[last])
        file.write_text(json.dumps(page), encoding="utf-8")
        try:
            found = unsee.verify(run, erasures=erasure, look_at_model=False)
        except InputError as error:
            assert path[0] in ("format", "detectors", "metrics"), (path, error)
            continue
        # How long it took is nobody's to check, and the page rounds it
        assert found.differences or path[0] in ("seconds", "peak_bytes"), (path, at[last])


def test_every_so_many_values_of_a_report_that_are_edited_are_found(
    run_: Path, erasure: Path
) -> None:
    every_value_is_checked(run_, erasure, 101)


def test_values_of_another_type_are_found_as_well(run_: Path, erasure: Path) -> None:
    for start in (None, {"x": [1]}, "x"):
        every_value_is_checked(run_, erasure, 307, lambda value, new=start: new)  # type: ignore[misc]


@pytest.mark.parametrize(
    "name", ["report.html", *(f"erased/{n}" for n in (
        "gallery.json", "samples.jsonl", "images.jsonl", "answers.jsonl", "images/00.png"))]
)  # fmt: skip
def test_a_file_of_something_else_is_named_in_one_line(name: str, run_: Path) -> None:
    for data in (b"", b"[]\n", b'{"id": 1}\n', b"\xff\x00\n", b"[" * 100_000 + b"\n"):
        (run_ / name).write_bytes(data)
        found = unsee.verify(run_, look_at_model=False)
        assert found.differences and not any("\n" in line for line in found.differences)
        assert any(Path(name).name in line for line in found.differences), found.differences


@pytest.mark.slow
def test_every_tenth_value_of_a_report_that_is_edited_is_found(run_: Path, erasure: Path) -> None:
    every_value_is_checked(run_, erasure, 10)


# Attacks


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return attacked_run(tmp_path_factory.mktemp("attacked") / "run")


@pytest.fixture
def attacked_(attacked: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(attacked, tmp_path / "copy"))


PLACE = "attacks/red/textual-inversion"


def test_a_run_with_attacks_holds_and_what_they_spent_is_as_recorded(attacked_: Path) -> None:
    found = unsee.verify(attacked_, detectors=[Hue()], ask=True)
    assert not found.differences
    # Base and erased, and four galleries of the target's rows
    assert f"{2 * 32 + 4 * 16} images" in found.checked
    assert f"{2 * 32 + 4 * 16} answers" in found.checked
    assert any(line.startswith("What attacks were given, spent") for line in found.recorded)


def rung(**change: Any) -> Callable[[Path], None]:
    def tamper(run: Path) -> None:
        edit(run / "report.json", lambda page: page["attacks"][0]["rungs"][1].update(change))

    return tamper


def outcome(at: int = 0, **change: Any) -> Callable[[Path], None]:
    def tamper(run: Path) -> None:
        edit(run / "report.json", lambda page: page["attacks"][at].update(change))

    return tamper


def fewer(run: Path) -> None:
    """Less comes back, with all that follows from the counts in the same place."""

    def change(page: Any) -> None:
        page["attacks"][0]["rungs"][1]["recovered"] |= {"hits": 1}

    edit(run / "report.json", change)


def acquitted(run: Path) -> None:
    """The verdict of before the attack."""

    def change(page: Any) -> None:
        for one in (page["verdict"], page["outcomes"][0]["verdict"]):
            one |= {"value": "forgotten", "headline": "“red” is forgotten"}

    edit(run / "report.json", change)


def dropped(run: Path) -> None:
    """The attack that brings it back, taken out of the report; the page and verdict stay."""
    edit(run / "report.json", lambda page: page["attacks"].pop(0))


def somebody_else(run: Path) -> None:
    def change(page: Any) -> None:
        page["attacks"][0]["rungs"][1]["controls"][1]["detector"] = "test/nobody"

    edit(run / "report.json", change)


def no_controls(run: Path) -> None:
    edit(run / "report.json", lambda page: page["attacks"][0]["rungs"][1].update(controls=[]))


def another_image(run: Path) -> None:
    images = run / PLACE / "attacked/images"
    shutil.copy(run / "erased/images/03.png", images / "03.png")


def another_image_in_a_control(run: Path) -> None:
    images = run / PLACE / "novel/images"
    shutil.copy(run / "base/images/03.png", images / "03.png")


def another_label(run: Path) -> None:
    def change(lines: list[Any]) -> None:
        lines[2]["found"]["labels"] = ["green"]
        lines[2]["found"]["scores"] = {"red": 0.1, "green": 0.9, "blue": 0.1}

    edit_lines(run / PLACE / "attacked/answers.jsonl", change)


def no_answer(run: Path) -> None:
    edit_lines(run / PLACE / "attacked/answers.jsonl", lambda lines: lines.pop(2))


def another_gallery(run: Path) -> None:
    shutil.rmtree(run / PLACE / "attacked")


def elsewhere(run: Path) -> None:
    shutil.move(run / PLACE / "attacked", run.parent / "attacked")
    rung(gallery="../attacked")(run)


def other_seeds(run: Path) -> None:
    """The attack's gallery, drawn at seeds at which it fails."""
    folder = run / PLACE / "attacked"
    rows = [Prompt(p.id, p.prompt, p.seed + 1, p.labels) for p in Gallery.open(folder)]
    shutil.rmtree(folder)
    gallery = Gallery.start(folder, None, rows)
    for i, row in enumerate(rows):
        gallery.put(row, hue("green")(i, row))


def made_otherwise(place: str, **change: Any) -> Callable[[Path], None]:
    def tamper(run: Path) -> None:
        edit(run / PLACE / place / "gallery.json", lambda page: page["made_by"].update(change))

    return tamper


TAMPERED: list[tuple[Callable[[Path], None], str]] = [
    (fewer, "textual-inversion on “red”, .*recovered"),
    (rung(seen=[]), "textual-inversion on “red”, .*seen"),
    (outcome(value="held"), "textual-inversion on “red”, value is 'held'.*'comes back'"),
    (outcome(value="probe"), "part in the verdict of textual-inversion is False; it is True"),
    (outcome(effort=None), "textual-inversion on “red”, effort"),
    (outcome(1, value="held"), "textual-inversion:cce on “red”, value is 'held'"),
    (outcome(needs=[]), "controls that it needs of textual-inversion"),
    (outcome(touches="text"), "the reach of textual-inversion is 'text'"),
    (outcome(detector="test/nobody"), "by test/nobody, who was not asked"),
    (outcome(concept="blue"), "of “blue” by test/hue, who was not asked"),
    (acquitted, "verdict, value is 'forgotten'; it follows that it is 'comes back'"),
    (dropped, "verdict, value is 'comes back'; it follows"),
    (somebody_else, f"{PLACE}/novel was looked at by test/nobody, which is none of"),
    (no_controls, "textual-inversion on “red”, value is 'comes back'; .*'not informative'"),
    (another_image, f"{PLACE}/attacked/images/03.png is not the file whose SHA-256"),
    (another_image_in_a_control, f"{PLACE}/novel/images/03.png is not the file whose SHA-256"),
    (another_label, "textual-inversion on “red”, .*recovered"),
    (no_answer, f"{PLACE}/attacked/answers.jsonl has no answer of test/hue on 02"),
    (another_gallery, f"names {PLACE}/attacked, which is no gallery"),
    (elsewhere, "names ../attacked, which is no gallery"),
    (made_otherwise("attacked", attack="b" * 64), "made under another attack than report.json"),
    (
        made_otherwise("attacked", steps=3),
        f"{PLACE}/attacked was made with another steps .* than er",
    ),
    (
        made_otherwise("positive", steps=3),
        f"{PLACE}/positive was made with another steps .* than b",
    ),
    (other_seeds, f"{PLACE}/attacked has no image of 00 by the seed of the suite"),
]


@pytest.mark.parametrize(("tamper", "says"), TAMPERED, ids=range(len(TAMPERED)))
def test_what_was_tampered_with_in_an_attack_is_found_and_named(
    tamper: Callable[[Path], None], says: str, attacked_: Path
) -> None:
    tamper(attacked_)
    found = unsee.verify(attacked_, detectors=[Hue()])
    assert any(re.search(says, line) for line in found.differences), found.differences


def test_an_image_that_was_exchanged_in_an_attack_is_named_once(attacked_: Path) -> None:
    another_image_in_a_control(attacked_)
    lines = unsee.verify(attacked_, detectors=[Hue()]).differences
    assert lines[0].startswith(f"{PLACE}/novel/images/03.png")
    assert not any("report.json" in line for line in lines[1:])


def test_attacks_that_the_report_does_not_name_are_said_to_be_there(attacked_: Path) -> None:
    edit(attacked_ / "report.json", lambda page: page["attacks"].pop(0))
    found = unsee.verify(attacked_, detectors=[Hue()])
    assert f"What came of {PLACE}: report.json does not name it." in found.recorded


@pytest.mark.slow
def test_every_third_value_of_an_attack_that_is_edited_is_found(attacked_: Path) -> None:
    file = attacked_ / "report.json"
    text = file.read_text(encoding="utf-8")
    checked = 0
    for path in list(leaves(json.loads(text)["attacks"], ("attacks",)))[::3]:
        page = at = json.loads(text)
        for key in path[:-1]:
            at = at[key]
        at[path[-1]] = other(at[path[-1]])
        file.write_text(json.dumps(page), encoding="utf-8")
        found = unsee.verify(attacked_, detectors=[Hue()])
        # What an attack that changes prompts alone came to, and how long it took to a tenth
        assert found.differences or path[-1] in ("sha256", "seconds"), path
        checked += 1
    assert checked > 40
