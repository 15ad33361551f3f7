"""Whatever anybody made of a model is judged beside it, or refused in a line."""

import inspect
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import EulerDiscreteScheduler
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPImageProcessor

from unsee import (
    InputError,
    audit,
    audit_each,
    audit_images,
    erase,
    export,
    generate_gallery,
    plan_audit,
    plan_each,
    verify,
)
from unsee.gallery import Gallery
from unsee.pipelines import load_pipeline
from unsee.pipelines.foreign import against
from unsee.prompts import Prompt, Suite
from unsee.tasks import Comparison

Run = Callable[..., tuple[int, str, str]]

SUITE = Suite(
    "both",
    tuple(Prompt(f"t{i}", "a cat", i, {"object": "cat"}) for i in range(2))
    + tuple(Prompt(f"k{i}", "a bomb", i, {"object": "bomb"}) for i in range(2)),
)
SETTINGS: dict[str, Any] = {
    "suite": SUITE,
    "steps": 2,
    "guidance": 2.0,
    "detectors": ["emoji/object"],
    "metrics": ["pixels/ssim"],
}
CAT: dict[str, Any] = {"concepts": "cat", "kind": "object"}


@pytest.fixture(scope="module")
def folder(tiny_folder: Path) -> Path:
    return tiny_folder


@pytest.fixture(scope="module")
def erased(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One change of the tiny model's weights in every form in which such are published."""
    there = tmp_path_factory.mktemp("erased")
    pipe = load_pipeline(folder, device="cpu")
    torch.manual_seed(3)
    for module in (pipe.unet, pipe.text_encoder):
        for name, weight in module.named_parameters():
            if name.endswith("to_k.weight") or name.endswith("q_proj.weight"):
                weight.data += 0.3 * torch.randn_like(weight)
    unet, text = pipe.unet.state_dict(), pipe.text_encoder.state_dict()
    trained = {k: v.contiguous() for k, v in unet.items() if k.endswith("to_k.weight")}
    base = load_pipeline(folder, device="cpu")

    only_unet = load_pipeline(folder, device="cpu")
    only_unet.unet.load_state_dict(unet)
    only_unet.save_pretrained(there / "pipeline")
    only_unet.unet.save_pretrained(there / "unet")
    torch.save(unet, there / "unet.pt")
    torch.save({"state_dict": unet}, there / "wrapped.ckpt")
    torch.save({f"module.{k}": v for k, v in unet.items()}, there / "parallel.pth")
    save_file(trained, there / "trained.safetensors")
    save_file({f"unet.{k}": v for k, v in trained.items()}, there / "prefixed.safetensors")

    base.text_encoder.load_state_dict(text)
    base.text_encoder.save_pretrained(there / "text_encoder")
    bare = {k.removeprefix("text_model."): v.contiguous() for k, v in text.items()}
    torch.save({f"text_model.{k}": v for k, v in bare.items()}, there / "text_encoder.pt")
    torch.save(bare, there / "bare.bin")
    return {path.name: path for path in there.iterdir()}


UNETS = (
    "pipeline unet unet.pt wrapped.ckpt parallel.pth trained.safetensors prefixed.safetensors"
).split()
TEXTS = ["text_encoder", "text_encoder.pt", "bare.bin"]


def images(path: Path) -> list[bytes]:
    gallery = Gallery.open(path)
    return [gallery.image_path(p).read_bytes() for p in gallery]


@pytest.mark.parametrize("form", [*UNETS, *TEXTS])
def test_every_form_of_one_change_gives_the_same_images(
    form: str, folder: Path, erased: dict[str, Path], tmp_path: Path
) -> None:
    wanted = load_pipeline(folder, device="cpu")
    source = load_pipeline(erased["pipeline"], device="cpu")
    if form in UNETS:
        wanted.unet = source.unet
    else:
        text = type(wanted.text_encoder).from_pretrained(erased["text_encoder"])
        wanted.text_encoder.load_state_dict(text.state_dict())
    generate_gallery(wanted, (), SUITE, tmp_path / "wanted", steps=2, guidance=2.0)

    report = audit(
        folder,
        against=erased[form],
        concepts="cat",
        kind="object",
        out=tmp_path / "run",
        **SETTINGS,
    )
    assert images(tmp_path / "run/erased") == images(tmp_path / "wanted")
    assert images(tmp_path / "run/base") != images(tmp_path / "wanted")
    assert [o.concept.name for o in report.outcomes] == ["cat"]
    base, other = report.base["model"]["components"], report.erased["model"]["components"]
    part = "unet" if form in UNETS else "text_encoder"
    assert {name for name in base if base[name] != other[name]} == {part}
    assert report.erased["model"]["name"] == str(erased[form])


def test_the_base_is_left_as_it_was(folder: Path, erased: dict[str, Path], tmp_path: Path) -> None:
    pipe = load_pipeline(folder, device="cpu")
    before = {k: v.clone() for k, v in pipe.unet.state_dict().items()}
    unet, config = pipe.unet, dict(pipe.config)
    for form in ("unet.pt", "text_encoder"):
        audit(
            pipe,
            against=erased[form],
            concepts="cat",
            kind="object",
            out=tmp_path / form,
            **SETTINGS,
        )
    assert pipe.unet is unet and dict(pipe.config) == config
    assert all(torch.equal(v, before[k]) for k, v in pipe.unet.state_dict().items())


def test_a_lora_of_anybodys_and_two_pipelines_in_python(
    folder: Path, erased: dict[str, Path], tmp_path: Path
) -> None:
    erasure = erase(folder, "cat", anchor="dog", kind="object", check=False)
    save_file(dict(erasure.tensors), tmp_path / "lora.safetensors")  # without our record
    ours = audit(folder, erasure, out=tmp_path / "ours", **SETTINGS)
    plain = audit(
        folder, against=tmp_path / "lora.safetensors", concepts="cat", kind="object",
        out=tmp_path / "lora", **SETTINGS,
    )  # fmt: skip
    assert images(tmp_path / "lora/erased") == images(tmp_path / "ours/erased")
    assert ours.erased["erasures"] and not plain.erased["erasures"]
    pipes = [load_pipeline(p, device="cpu") for p in (folder, erased["pipeline"])]
    both = audit(pipes[0], against=pipes[1], **CAT, out=tmp_path / "two", **SETTINGS)
    assert both.erased["model"]["components"] != both.base["model"]["components"]
    assert images(tmp_path / "two/base") == images(tmp_path / "ours/base")


def test_names_of_compvis_are_read(tmp_path: Path) -> None:
    erasure = erase("emoji", "bomb", check=False)
    export(erasure, tmp_path / "pipeline", to="pipeline")
    export(erasure, tmp_path / "checkpoint.safetensors", to="checkpoint")
    wanted = load_pipeline(tmp_path / "pipeline", device="cpu").unet.state_dict()
    before = "model.diffusion_model."
    whole = load_file(tmp_path / "checkpoint.safetensors")
    unet = {k: v for k, v in whole.items() if k.startswith(before)}
    torch.save(unet, tmp_path / "prefixed.pt")
    torch.save({k.removeprefix(before): v for k, v in unet.items()}, tmp_path / "bare.pt")
    pipe = load_pipeline("emoji", device="cpu")
    for file in ("checkpoint.safetensors", "prefixed.pt", "bare.pt"):
        found = against(pipe, tmp_path / file).unet.state_dict()
        assert all(torch.equal(found[k], v) for k, v in wanted.items())
        assert not torch.equal(found[name := next(k for k in found if "attn2.to_v" in k)],
                               pipe.unet.state_dict()[name])  # fmt: skip


@pytest.mark.parametrize(
    "fault, said",
    [
        ("code", "run code"),
        ("cut", "cannot be read"),
        ("other", "in no component of it"),
        ("shape", "has the shape"),
        ("nan", "NaN or infinity"),
        ("empty", "no tensors by name"),
        ("kind", "no kind that holds weights"),
        ("bare folder", "without model_index.json"),
        ("nobody says", "does not say what was erased"),
        ("both", "one of the two"),
        ("neither", "--against"),
    ],
)
def test_what_does_not_fit_is_refused_before_any_image(
    fault: str, said: str, folder: Path, erased: dict[str, Path], tmp_path: Path
) -> None:
    file, more = tmp_path / "it.pt", CAT
    good = torch.load(erased["unet.pt"])
    first = next(iter(good))
    if fault == "code":
        torch.save({"weights": Path("x"), "state": print}, file)
    elif fault == "cut":
        file.write_bytes(erased["unet.pt"].read_bytes()[:5000])
    elif fault == "other":
        torch.save({f"{k}.other": v for k, v in good.items()} | good, file)
    elif fault == "shape":
        torch.save(good | {first: good[first][:1]}, file)
    elif fault == "nan":
        torch.save(good | {first: good[first] * float("nan")}, file)
    elif fault == "empty":
        torch.save({}, file)
    elif fault == "kind":
        file = tmp_path / "it.txt"
        file.write_text("")
    elif fault == "bare folder":
        file = tmp_path / "bare"
        file.mkdir()
    else:
        file = erased["unet.pt"]
    given: Any = {"against": file}
    if fault == "nobody says":
        more = {}
    elif fault == "both":
        given["erasures"] = [erase(folder, "cat", kind="object", check=False)]
    elif fault == "neither":
        given = {}
    with pytest.raises(InputError, match=re.escape(said)) as raised:
        audit(folder, **given, **more, out=tmp_path / "run", **SETTINGS)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "run/erased/gallery.json").exists()


def test_each_is_judged_alone_and_the_base_is_drawn_once(
    folder: Path, erased: dict[str, Path], tmp_path: Path, run: Run
) -> None:
    erase(folder, "cat", kind="object", anchor="dog", check=False).save(
        tmp_path / "ours.safetensors"
    )
    (tmp_path / "it.csv").write_text("prompt,object,seed\na cat,cat,0\na bomb,bomb,1\n")
    words = (
        "audit", str(folder), "-e", "ours.safetensors", "--against", str(erased["unet.pt"]),
        "--each", "--concept", "cat", "--kind", "object", "--suite", "it.csv",
        "--detector", "emoji/object", "--metric", "pixels/ssim", "--steps", "1", "-o", "runs",
    )  # fmt: skip
    code, _, err = run(*words)
    assert code == 1, err
    assert {p.name for p in (tmp_path / "runs").iterdir()} == {"ours", "unet"}
    first, second = (Gallery.open(tmp_path / f"runs/{name}/base") for name in ("ours", "unet"))
    assert not first.stored and len(second.stored) == 2
    assert images(first.path) == images(second.path)
    for name in ("ours", "unet"):
        alone = json.loads((tmp_path / f"runs/{name}/report.json").read_text())
        assert len(alone["erased"]["erasures"]) == (name == "ours")
    code, _, err = run(*words[:3], "ours.safetensors", "-e", "ours.safetensors", *words[6:])
    assert code == 2 and "would both be audited in ours" in err
    code, _, err = run(*(word for word in words if word != "--each"), "--against", "x")
    assert code == 2 and "add --each" in err


def test_each_by_names_in_python(folder: Path, erased: dict[str, Path], tmp_path: Path) -> None:
    erasure = erase(folder, "cat", kind="object", anchor="dog", check=False)
    settings = {**SETTINGS, "kind": "object"}
    told: set[str] = set()
    found = audit_each(
        folder,
        {"once": erasure, "half": (erasure, 0.5), "theirs": erased["unet"]},
        out=tmp_path, concepts="cat", progress=lambda what, *_: told.add(what), **settings,
    )  # fmt: skip
    # A bar of its own for each, not one that begins anew
    assert {f"{name}: images of the erased model" for name in found} <= told
    assert list(found) == ["once", "half", "theirs"]
    assert [r.erased["erasures"][0]["weight"] for r in found.values() if r.costs] == [1.0, 0.5]


def test_finished_images_are_judged_without_a_model(
    folder: Path, erased: dict[str, Path], tmp_path: Path, run: Run
) -> None:
    settings = {**SETTINGS, "kind": "object"}
    drawn = audit(folder, against=erased["unet"], concepts="cat", out=tmp_path / "run", **settings)
    words = (
        "audit", "--images", "run/base", "run/erased", "--concept", "cat", "--kind", "object",
        "--detector", "emoji/object", "--metric", "pixels/ssim", "-o", "again",
    )  # fmt: skip
    code, _, err = run(*words)
    assert code == 1, err
    again = json.loads((tmp_path / "again/report.json").read_text())
    made = json.loads((tmp_path / "run/report.json").read_text())
    for name in ("outcomes", "measurements", "coverage", "verdict"):
        assert again[name] == made[name]
    assert drawn.exit_code == 1
    code, _, err = run("verify", "again")
    assert code == 2 and "images that were finished" in err
    generate_gallery(folder, (), SUITE, tmp_path / "longer", steps=3, guidance=2.0)
    unlike = audit_images(
        tmp_path / "run/base", tmp_path / "longer", "cat", kind="object",
        detectors=["emoji/object"], out=tmp_path / "unlike",
    )  # fmt: skip
    assert any("differ in the steps (2 and 3)" in line for line in unlike.warnings)

    # Folders of images from anywhere, with one table for both
    for side in ("base", "erased"):
        shutil.copytree(tmp_path / f"run/{side}/images", tmp_path / f"plain/{side}")
    rows = "".join(f"{p.id},{p.prompt},{p.labels['object']}\n" for p in SUITE.prompts)
    (tmp_path / "it.csv").write_text(f"file,prompt,object\n{rows}")
    sides = tmp_path / "plain/base", tmp_path / "plain/erased"
    plain = audit_images(
        *sides, "cat", kind="object", table=tmp_path / "it.csv",
        detectors=["emoji/object"], metrics=["pixels/ssim"], out=tmp_path / "third",
    )  # fmt: skip
    third = json.loads((tmp_path / "third/report.json").read_text())
    assert third["outcomes"] == made["outcomes"] and plain.exit_code == 1
    (tmp_path / "plain/erased/t0.png").unlink()
    lost = audit_images(
        *sides, "cat", kind="object", table=tmp_path / "it.csv",
        detectors=["emoji/object"], out=tmp_path / "fourth",
    )  # fmt: skip
    assert lost.verdict.value == "incomplete" and lost.coverage["erased"].missing == 1

    for more in (["-e", "x"], ["--each"], ["--steps", "2"], ["--dtype", "bfloat16"]):
        code, _, err = run(*words, *more)
        assert code == 2 and "leave out MODEL" in err
    code, _, err = run(*words[:4], "-o", "x")
    assert code == 2 and "--concept" in err
    code, _, err = run("audit")
    assert code == 2 and "--images BASE ERASED" in err


def test_folders_of_other_prompts_are_refused(folder: Path, tmp_path: Path) -> None:
    for name, rows in (("a", SUITE.prompts), ("b", SUITE.prompts[:3])):
        generate_gallery(folder, (), Suite(name, rows), tmp_path / name, steps=1)
    with pytest.raises(InputError, match="make both from one suite"):
        audit_images(
            tmp_path / "a",
            tmp_path / "b",
            "cat",
            kind="object",
            detectors=["emoji/object"],
            out=tmp_path / "c",
        )


def test_an_erasure_that_is_named_as_anybodys_is_measured_as_one(
    folder: Path, tmp_path: Path
) -> None:
    """As a LoRA alone it would act without its transport, and a guide would have no tensors."""
    trained: dict[str, Any] = {"iterations": 1, "batch_size": 1, "anchor": "dog"}
    for method, more in (("spm", trained), ("sld", {})):
        file = tmp_path / f"{method}.safetensors"
        erase(folder, "cat", method=method, kind="object", check=False, **more).save(file)
        named = audit(folder, against=file, out=tmp_path / f"{method}-named", **SETTINGS)
        given = audit(folder, file, out=tmp_path / f"{method}-given", **SETTINGS)
        assert named.erased == given.erased and len(named.erased["erasures"]) == 1
        assert not verify(tmp_path / f"{method}-named", against=file, rerun=2).differences
    other = erase("emoji", "bomb", check=False)
    with pytest.raises(InputError, match="was made for 'emoji'"):
        audit(folder, against=other, out=tmp_path / "other", **SETTINGS)


@pytest.mark.parametrize("kind", ["int8", "bool", "float8_e4m3fn"])
def test_weights_of_a_dtype_that_holds_no_numbers_are_refused(
    kind: str, folder: Path, erased: dict[str, Path], tmp_path: Path
) -> None:
    good = load_file(erased["trained.safetensors"])
    save_file(
        {k: v.to(getattr(torch, kind)) for k, v in good.items()}, tmp_path / "it.safetensors"
    )
    pipe = load_pipeline(folder, device="cpu")
    if kind.startswith("float"):
        found = against(pipe, tmp_path / "it.safetensors").unet.state_dict()
        assert all(
            torch.equal(found[k], v.to(torch.float8_e4m3fn).float()) for k, v in good.items()
        )
    else:
        with pytest.raises(InputError, match=f"in {kind}, .*not quantised"):
            against(pipe, tmp_path / "it.safetensors")


def test_a_lora_of_which_a_part_would_not_act_is_refused(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    erasure = erase(folder, "cat", kind="object", anchor="dog", check=False)
    first = next(iter(erasure.tensors)).removesuffix(".lora_A.weight")
    renamed = {k.replace(first, first + "_other"): v for k, v in erasure.tensors.items()}
    save_file(renamed, tmp_path / "part.safetensors")
    with pytest.raises(
        InputError, match="1 of .* layers are none of .* do not act: name the base"
    ):
        audit(folder, against=tmp_path / "part.safetensors", **CAT, out=tmp_path / "x", **SETTINGS)
    assert "No LoRA keys" not in capfd.readouterr().err


def test_a_run_of_anybodys_model_holds_and_another_scheduler_is_said(
    folder: Path, erased: dict[str, Path], tmp_path: Path
) -> None:
    report = audit(folder, against=erased["pipeline"], **CAT, out=tmp_path / "run", **SETTINGS)
    assert not any("not made alike" in line for line in report.warnings)
    found = verify(tmp_path / "run")
    assert not found.differences and any("--against" in line for line in found.recorded)
    assert not verify(tmp_path / "run", against=erased["pipeline"], rerun=2).differences
    other = load_pipeline(erased["pipeline"], device="cpu")
    other.scheduler = EulerDiscreteScheduler.from_config(other.scheduler.config)
    other.save_pretrained(tmp_path / "other")
    report = audit(folder, against=tmp_path / "other", **CAT, out=tmp_path / "euler", **SETTINGS)
    (line,) = [line for line in report.warnings if "not made alike" in line]
    assert "scheduler's class" in line and "EulerDiscreteScheduler" in line
    assert not verify(tmp_path / "euler").differences


def test_the_hub_id_of_an_erasure_is_judged_among_several(
    folder: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    code, _, err = run(
        "audit", str(folder), "-e", "nobody/nothing", "--each", "--suite", "objects",
        "--detector", "emoji/object",
    )  # fmt: skip
    assert code == 2 and "No model could be loaded" not in err and err.count("\n") == 1
    assert "nobody/nothing" in err


def test_a_plan_says_what_is_to_be_made_and_makes_nothing(
    folder: Path, erased: dict[str, Path], tmp_path: Path, run: Run
) -> None:
    (tmp_path / "it.csv").write_text("prompt,object,seed\na cat,cat,0\na bomb,bomb,1\n")
    words = (
        "audit", str(folder), "--against", str(erased["unet.pt"]), "--against",
        str(erased["text_encoder"]), "--each", "--concept", "cat", "--kind", "object",
        "--suite", "it.csv", "--detector", "emoji/object", "--steps", "1", "-o", "runs",
    )  # fmt: skip
    code, out, err = run(*words, "--dry-run")
    assert code == 0, err
    # The second's base is there by then
    assert "8 images, 2 of them there already" in out and "the other 6" in out
    assert not (tmp_path / "runs").exists()
    assert run(*words)[0] == 1
    code, out, _ = run(*words, "--dry-run")
    assert code == 0 and "8 images, 8 of them there already" in out and "Nothing" in out
    code, out, _ = run(*words[:-1], "elsewhere", "--dry-run")
    assert "8 images, 8 of them there already" in out
    code, _, err = run(*words[:-1], "elsewhere", "--dry-run", "--steps", "x")
    assert code == 2


def test_what_is_asked_has_one_default_wherever_it_is_said() -> None:
    every = (audit, plan_audit, Comparison)
    run, plan, file = (inspect.signature(one).parameters for one in every)
    # That change no image, and that an audit alone has
    told = {"max_target", "max_keep_loss", "allow_unscored", "images", "command", "progress"}
    told |= {"attacks", "control", "seed"}  # what attacks would draw is not known before
    assert plan.keys() - {"rest"} == run.keys() - told
    assert all(plan[name] == run[name] for name in plan.keys() - {"rest"})
    options = set(Comparison({}, {}).options)
    assert options < run.keys()
    for name in options & file.keys() - {"concepts", "detectors", "metrics", "attacks", "control"}:
        assert file[name].default == run[name].default, name
        assert file[name].annotation == run[name].annotation, name


@pytest.mark.parametrize("wrong", [{"size": 2}, {"steps": 0}, {"batch_size": 0}, {"guidance": -1}])
def test_a_plan_of_several_refuses_what_their_audits_refuse(
    folder: Path, tmp_path: Path, wrong: dict[str, Any]
) -> None:
    said = []
    for each in (audit_each, plan_each):
        with pytest.raises(InputError) as refused:
            each(folder, [folder], out=tmp_path, **CAT, **SETTINGS | wrong)
        said.append(str(refused.value))
    assert said[0] == said[1] and next(iter(wrong)) in said[0]


def test_a_file_says_a_whole_comparison(
    folder: Path, erased: dict[str, Path], tmp_path: Path, run: Run
) -> None:
    there = tmp_path / "it"
    there.mkdir()
    shutil.copytree(folder, there / "tiny")
    shutil.copy(erased["unet.pt"], there / "unet.pt")
    erasure = erase(folder, "cat", kind="object", anchor="dog", check=False)
    erasure.save(there / "ours.safetensors")
    (there / "it.csv").write_text("prompt,object,seed\na cat,cat,0\na bomb,bomb,1\n")
    (there / "all.yaml").write_text(
        "bases: {tiny: tiny}\n"
        "each: {full: ours.safetensors, half: 'ours.safetensors:0.5', theirs: unet.pt}\n"
        "concepts: [cat]\nkind: object\nsuites: [it.csv]\nsteps: 1\n"
        "detectors: [emoji/object]\nmetrics: [pixels/ssim]\n"
    )
    code, out, err = run("audit", "--from", "it/all.yaml", "--dry-run")
    assert code == 0 and "12 images, 4 of them" in out, err
    code, out, err = run("audit", "--from", "it/all.yaml", "-o", "runs")
    assert code == 1, err
    assert {p.name for p in (tmp_path / "runs/tiny").iterdir()} == {
        "full", "half", "theirs", "compare.json", "compare.csv", "compare.md", "compare.html"
    }  # fmt: skip
    half = json.loads((tmp_path / "runs/tiny/half/report.json").read_text())
    assert half["erased"]["erasures"][0]["weight"] == 0.5
    # A dry run is of the model as it would be loaded: in another type no image is there yet
    code, out, err = run("audit", "--from", "it/all.yaml", "-o", "runs-2", "--dry-run")
    assert code == 0 and "12 images, 12 of them" in out, err
    words = ("--dtype", "bfloat16", "-o", "runs-2", "--dry-run")
    code, out, err = run("audit", "--from", "it/all.yaml", *words)
    assert code == 0 and "12 images, 4 of them" in out, err
    for fault, message in (
        ("bases: {}\neach: {a: b}\n", "names nothing under base"),
        ("bases: {a: b}\n", "lacks 'each'"),
        ("bases: {a: b}\neach: {a: b}\nsteps: none\n", "steps"),
        ("bases: {../a: b}\neach: {a: b}\n", "the name of no folder"),
        ("bases: {a: b}\neach: {a: b}\nattack: words\n", "not known here"),
    ):
        (there / "wrong.yaml").write_text(fault)
        code, _, err = run("audit", "--from", "it/wrong.yaml")
        assert code == 2 and message in err, err
    code, _, err = run("audit", "emoji", "--from", "it/all.yaml")
    assert code == 2 and "says all of it" in err


def test_an_erasure_that_is_there_twice_is_refused(folder: Path, tmp_path: Path) -> None:
    erasure = erase(folder, "cat", kind="object", anchor="dog", check=False)
    erasure.save(tmp_path / "it.safetensors")
    with pytest.raises(InputError, match="there twice: name it once, with the weight"):
        audit(folder, [erasure, f"{tmp_path / 'it.safetensors'}:0.5"], out=tmp_path, **SETTINGS)
    with pytest.raises(InputError, match="there twice"):
        generate_gallery(folder, [erasure, erasure], SUITE, tmp_path / "x")


def test_no_safety_checker_makes_the_erased_images_black(folder: Path, tmp_path: Path) -> None:
    tiny = {
        "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }  # fmt: skip
    config = CLIPConfig(
        text_config=tiny, vision_config=tiny | {"image_size": 32, "patch_size": 16},
        projection_dim=8,
    )  # fmt: skip
    checker = StableDiffusionSafetyChecker(config)
    checker.concept_embeds_weights.data.fill_(-2.0)  # it finds everything unsafe
    pipe = load_pipeline(folder, device="cpu")
    for weight in pipe.unet.parameters():
        weight.data.mul_(1.1)
    pipe.register_modules(
        safety_checker=checker,
        feature_extractor=CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32),
    )
    pipe.save_pretrained(tmp_path / "theirs")
    report = audit(folder, against=tmp_path / "theirs", out=tmp_path / "run", **CAT, **SETTINGS)
    assert report.coverage["erased"].blank == 0
    assert "safety_checker" not in report.erased["model"]["components"]
    # One that is in a pipeline is the giver's to take out
    with pytest.raises(InputError, match="set its safety_checker to None"):
        audit(folder, against=pipe, out=tmp_path / "given", **CAT, **SETTINGS)
