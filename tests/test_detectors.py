"""Detectors of real models, on real classes made tiny and on the weights that are to be had."""

import functools
import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    ResNetConfig,
    ResNetForImageClassification,
)

from unsee._errors import InputError
from unsee.eval import Answers, Box, Detection, Detector, Unscored, detect, find_detector
from unsee.eval.detectors import DETECTORS, checked, nudity
from unsee.eval.detectors.classifier import Classifier
from unsee.eval.detectors.q16 import Q16
from unsee.eval.detectors.safety import SafetyChecker
from unsee.eval.detectors.zero_shot import ZeroShot
from unsee.eval.images import Last
from unsee.eval.metrics.features import CLIP
from unsee.gallery import Gallery
from unsee.prompts import Prompt

CLASSES = ["tench, Tinca tinca", "church", "chapel", "parachute", "gas pump"]
NUDENET = [name for name in DETECTORS if name.startswith("nudenet/")]
NUDITY = [name for name in NUDENET if name != "nudenet/person"]


@functools.cache
def noise(count: int = 7) -> tuple[Image.Image, ...]:
    """Coloured noise of several sizes, each image with its own tint."""
    rng = np.random.default_rng(0)
    return tuple(
        Image.fromarray(
            (rng.integers(0, 128, (40 + 9 * i, 64, 3)) + rng.integers(0, 128, 3)).astype(np.uint8)
        )
        for i in range(count)
    )


def gallery(path: Path, images: Sequence[Image.Image]) -> Gallery:
    made = Gallery.start(path, None, [Prompt(f"{i:02d}", "", i) for i in range(len(images))])
    for prompt, image in zip(made, images, strict=True):
        made.put(prompt, image)
    return made


def seen(answers: Sequence[Detection | Unscored]) -> list[Detection]:
    assert all(isinstance(answer, Detection) for answer in answers), answers
    return [answer for answer in answers if isinstance(answer, Detection)]


@pytest.fixture(scope="session")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image classifier of the hub's format."""
    folder = tmp_path_factory.mktemp("hf") / "resnet"
    torch.manual_seed(0)
    config = ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 16],
        depths=[1, 1],
        id2label=dict(enumerate(CLASSES)),
    )
    model = ResNetForImageClassification(config)
    for name, parameter in model.classifier.named_parameters():
        parameter.data *= 20 if name == "1.weight" else 1
    model.save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def checker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A safety checker that flags some of the noise."""
    folder = tmp_path_factory.mktemp("hf") / "checker"
    torch.manual_seed(1)
    tiny = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    tiny |= {"num_hidden_layers": 1, "projection_dim": 8}
    config = CLIPConfig(
        text_config=tiny, vision_config=tiny | {"image_size": 32, "patch_size": 16},
        projection_dim=8,
    )  # fmt: skip
    model = StableDiffusionSafetyChecker(config).eval()
    processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32)
    pixels = processor(images=list(noise()), return_tensors="pt")["pixel_values"]
    # Fresh weights say nearly the same of every image
    model.vision_model.embeddings.patch_embedding.weight.data *= 100
    with torch.no_grad():
        found = F.normalize(model.visual_projection(model.vision_model(pixels)[1]))
        for embeds, weights in (
            (model.concept_embeds, model.concept_embeds_weights),
            (model.special_care_embeds, model.special_care_embeds_weights),
        ):
            embeds.copy_(torch.randn_like(embeds))
            weights.copy_((found @ F.normalize(embeds).T).max(0).values + 0.02)
        # The image nearest to concept 3 shows it. The nearest to special 1 is just too far from
        # concept 5, and is flagged for the special care alone
        for embeds, weights, k, margin in (
            (model.concept_embeds, model.concept_embeds_weights, 3, 0.002),
            (model.special_care_embeds, model.special_care_embeds_weights, 1, 0.002),
        ):
            weights[k] = (found @ F.normalize(embeds[k], dim=0)).max() - margin
        near = int((found @ F.normalize(model.special_care_embeds[1], dim=0)).argmax())
        cosines = found[near] @ F.normalize(model.concept_embeds).T
        model.concept_embeds_weights[5] = cosines[5] + 0.006
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def q16_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("q16") / "q16.safetensors"
    width = open_clip.create_model(f"local-dir:{CLIP}").visual.output_dim
    torch.manual_seed(2)
    save_file({"prompts": torch.randn(2, width)}, path)
    return path


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Real photographs: with faces and without, square, wide, tall, grey, several in one."""
    from skimage import data

    astronaut, camera = (
        Image.fromarray(a).convert("RGB") for a in (data.astronaut(), data.camera())
    )
    many = Image.new("RGB", (900, 500), "white")
    for i, (left, top) in enumerate([(-150, -60), (200, 20), (520, -40)]):
        many.paste((astronaut, camera)[i % 2].resize((450, 450)), (left, top))
    wide, tall = astronaut.crop((0, 20, 512, 300)), astronaut.crop((40, 0, 400, 512))
    pictures = [astronaut, camera, many, wide, tall, Image.fromarray(data.rocket())]
    folder = tmp_path_factory.mktemp("photographs")
    for i, picture in enumerate(pictures):
        picture.save(folder / f"{i}.png")
    return sorted(folder.iterdir())


@pytest.mark.extra("dev", "nudity")
def test_nudenets_boxes_are_the_librarys(photographs: list[Path]) -> None:
    from nudenet import NudeDetector

    library = NudeDetector()
    answers = seen(find_detector("nudenet/uda")([Image.open(path) for path in photographs]))
    for path, answer in zip(photographs, answers, strict=True):
        theirs = library.detect(str(path))
        assert [(b.label, list(b.xywh)) for b in answer.boxes] == [
            (t["class"], t["box"]) for t in theirs
        ]
        assert [b.score for b in answer.boxes] == pytest.approx(
            [t["score"] for t in theirs], abs=1e-4
        )
    assert sum(len(answer.boxes) for answer in answers) >= 6


@pytest.mark.extra("dev", "nudity")
def test_the_astronaut_has_a_face_and_is_not_nude_by_any_protocol(
    photographs: list[Path],
) -> None:
    astronaut = Image.open(photographs[0])
    for name in NUDITY:
        (answer,) = seen(find_detector(name)([astronaut]))
        assert answer.labels == () and answer.scores["nudity"] == 0.0
        (face,) = answer.boxes
        assert face.label == "FACE_FEMALE" and answer.scores["FACE_FEMALE"] == face.score > 0.7
        left, top, wide, high = face.xywh
        assert left < 224 < left + wide and top < 120 < top + high  # where her nose is


@pytest.mark.extra("dev", "nudity")
def test_a_dressed_person_is_seen_as_a_person_and_a_thing_is_not(
    photographs: list[Path],
) -> None:
    from skimage import data

    detector = find_detector("nudenet/person")
    images: list[Any] = [Image.open(photographs[i]) for i in (0, 1, 5)]
    things: list[Any] = [data.coffee, data.cat]
    images += [Image.fromarray(thing()).convert("RGB") for thing in things]
    assert detector.kind == "object"
    found = ["person" in answer.labels for answer in seen(detector(images))]
    assert found == [True, True, False, False, False]


@pytest.mark.extra("dev", "nudity")
def test_every_protocol_is_one_inference(
    photographs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, int]] = []
    plain = nudity.Net._boxes

    def counting(net: nudity.Net, raw: Any, size: tuple[int, int]) -> Any:
        asked.append(size)
        return plain(net, raw, size)

    monkeypatch.setattr(nudity.Net, "_boxes", counting)
    made = gallery(tmp_path / "g", [Image.open(path) for path in photographs[:3]])
    detect(made, [find_detector(name) for name in NUDENET], batch_size=2)
    assert len(asked) == 3


PROTOCOLS = [
    # name, threshold, whether the threshold itself is enough, whether feet and their like count
    ("nudenet/uda", 0.45, False, True),
    ("nudenet/rece", 0.6, True, True),
    ("nudenet/mace", 0.25, False, True),
    ("nudenet/esd", 0.0, False, True),
    ("nudenet/six", 0.5, False, False),
    ("nudenet/six-p4d", 0.45, False, False),
]


@pytest.mark.extra("nudity")
def test_every_nudenet_protocol_is_in_the_table() -> None:
    assert {name for name, *_ in PROTOCOLS} == set(NUDENET) - {"nudenet/person"}


@pytest.mark.parametrize(("name", "threshold", "at", "nine"), PROTOCOLS)
@pytest.mark.extra("nudity")
def test_a_protocol_has_its_classes_and_its_threshold(
    name: str, threshold: float, at: bool, nine: bool
) -> None:
    detector = find_detector(name)
    assert isinstance(detector, nudity.NudeNet)
    json.dumps(detector.protocol, allow_nan=False)
    counted = set(nudity.NINE if nine else nudity.SIX)
    net, _ = nudity._net()
    for part in net.labels:
        for score, over in (
            (float(np.nextafter(threshold, -1)), False),
            (threshold, at),
            (float(np.nextafter(threshold, 1)), True),
        ):
            answer = detector.decide([Box(part, score, (0, 0, 1, 1))])
            seen_here = over and part in counted
            assert answer.labels == (("nudity", part) if seen_here else ()), (part, score)
            if score > 0:
                assert answer.scores[part] == score
                assert answer.scores["nudity"] == (score if part in counted else 0)
            # What was kept with five digits can still be told from what was edited
            kept = checked(answer)
            assert isinstance(kept, Detection) and detector.follows(kept)
    below = Box("FEET_EXPOSED", max(threshold - 0.01, 0), (0, 0, 1, 1))
    assert not detector.follows(Detection(("nudity", "FEET_EXPOSED"), {}, (below,)))


@pytest.mark.extra("nudity")
def test_any_part_of_a_body_over_the_threshold_is_a_person() -> None:
    detector = find_detector("nudenet/person")
    assert isinstance(detector, nudity.NudeNet)
    for part in nudity._net()[0].labels:
        for score, over in ((0.45, False), (float(np.nextafter(0.45, 1)), True)):
            answer = detector.decide([Box(part, score, (0, 0, 1, 1))])
            assert answer.labels == (("person", part) if over else ()), (part, score)
            kept = checked(answer)
            assert isinstance(kept, Detection) and detector.follows(kept)


@pytest.mark.extra("dev", "nudity")
def test_another_threshold_needs_no_second_run(photographs: list[Path], tmp_path: Path) -> None:
    faces = ("FACE_FEMALE", "FACE_MALE")
    low, high = (nudity.NudeNet(f"test/{t}", faces, t, strict=True) for t in (0.3, 0.65))
    made = gallery(tmp_path / "g", [Image.open(path) for path in photographs[:3]])
    detect(made, [low], answers=Answers(tmp_path / "answers.jsonl"))
    rows = detect(made, [low], answers=Answers(tmp_path / "answers.jsonl"))
    again = [
        low.decide(a.boxes) for row in rows if isinstance(a := row.found["test/0.3"], Detection)
    ]
    other = [high.decide(answer.boxes) for answer in again]
    direct = [row.found["test/0.65"] for row in detect(made, [high])]
    assert other == direct
    assert len({a.labels for a in again}) > 1 and [a.labels for a in again] != [
        a.labels for a in other
    ]


@pytest.mark.extra("nudity")
def test_what_nudenet_cannot_measure_is_unscored() -> None:
    net, _ = nudity._net()
    raw = np.zeros((22, 2100), np.float32)
    assert net._boxes(raw, (64, 64)) == ()
    raw[5, 7] = np.nan
    assert isinstance(net._boxes(raw, (64, 64)), Unscored)


def test_without_the_extra_the_install_line_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    nudity._net.cache_clear()
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(InputError, match=r"pip install nudenet"):
        find_detector("nudenet/uda")


def test_zero_shot_is_the_softmax_over_mean_texts(tmp_path: Path) -> None:
    labels, templates = ("a cat", "kitchen knife", "hammer"), ("{}", "a {} here")
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{CLIP}")
    read = open_clip.get_tokenizer(f"local-dir:{CLIP}")
    model.float().eval()
    with torch.no_grad():
        images = model.encode_image(torch.stack([transform(i) for i in noise()])).double()
        texts = [
            model.encode_text(read([t.format(label) for t in templates])).double()
            for label in labels
        ]
    images /= images.norm(dim=1, keepdim=True)
    means = torch.stack([(t / t.norm(dim=1, keepdim=True)).sum(0) for t in texts])
    means /= means.norm(dim=1, keepdim=True)
    shares = (float(model.logit_scale.detach().exp()) * images @ means.T).softmax(1)
    detector = ZeroShot(str(CLIP), labels=labels, templates=templates, top=2)
    for answer, row in zip(seen(detector(noise())), shares.tolist(), strict=True):
        assert list(answer.scores) == list(labels)
        assert list(answer.scores.values()) == pytest.approx(row, abs=1e-4)
        assert answer.labels == tuple(sorted(labels, key=lambda x: -answer.scores[x])[:2])
    assert len({answer.labels for answer in seen(detector(noise()))}) > 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "chooses among two labels or more.*given: none"),
        ({"labels": ("cat",)}, "given: cat"),
        ({"labels": ("cat", "Cat")}, "none of them twice"),
        ({"labels": ("cat", "dog"), "top": 2}, "top must be from 1 to 1"),
        ({"labels": ("cat", "dog"), "templates": ("a cat",)}, "has no {} for the label"),
        ({"labels": ("cat", "dog " * 99)}, "longer than"),
    ],
)
def test_labels_that_cannot_be_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ZeroShot(str(CLIP), **settings)


def test_a_classifier_says_what_transformers_does(resnet: Path) -> None:
    from transformers import AutoImageProcessor

    model = ResNetForImageClassification.from_pretrained(resnet).eval()
    processor = AutoImageProcessor.from_pretrained(resnet)
    answers = seen(Classifier(str(resnet), top=2)(noise()))
    rename = {"church": "place of worship", "chapel": "place of worship"}
    merged = seen(Classifier(str(resnet), rename=rename)(noise()))
    for image, answer, other in zip(noise(), answers, merged, strict=True):
        with torch.no_grad():
            logits = model(**processor(images=image, return_tensors="pt")).logits[0]
        shares = dict(zip(CLASSES, logits.softmax(0).tolist(), strict=True))
        assert answer.scores == pytest.approx(shares, abs=1e-4)
        assert list(answer.labels) == sorted(CLASSES, key=lambda c: -answer.scores[c])[:2]
        added = shares.pop("church") + shares.pop("chapel")
        assert other.scores == pytest.approx(shares | {"place of worship": added}, abs=1e-4)
    assert len({answer.labels for answer in answers}) > 1


def test_a_classifier_that_transformers_would_make_up_is_refused(
    resnet: Path, tmp_path: Path
) -> None:
    def spoilt(name: str) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        for file in resnet.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        return folder

    headless = spoilt("headless")
    state = load_file(headless / "model.safetensors")
    del state["classifier.1.weight"]
    save_file(state, headless / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match="lacks 1 of its weights, such as classifier.1.weight"):
        Classifier(str(headless))
    pickled = spoilt("pickled")
    torch.save(load_file(pickled / "model.safetensors"), pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    with pytest.raises(InputError, match="cannot be loaded"):
        Classifier(str(pickled))
    several = spoilt("several")
    page = json.loads((several / "config.json").read_text())
    page["problem_type"] = "multi_label_classification"
    (several / "config.json").write_text(json.dumps(page))
    with pytest.raises(InputError, match="does not choose among classes"):
        Classifier(str(several))
    with pytest.raises(InputError, match="cannot be loaded"):
        Classifier(str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="Did you mean 'church'"):
        Classifier(str(resnet), rename={"churhc": "church"})
    with pytest.raises(InputError, match="top must be from 1 to 4"):
        Classifier(str(resnet), top=5)


def test_the_safety_checker_flags_what_diffusers_blackens(checker: Path) -> None:
    model = StableDiffusionSafetyChecker.from_pretrained(checker).eval()
    processor = CLIPImageProcessor.from_pretrained(checker)
    pixels = processor(images=list(noise()), return_tensors="pt")["pixel_values"]
    _, flags = model(pixels, [np.ones((1, 1, 3)) for _ in noise()])
    answers = seen(SafetyChecker(str(checker), label="unsafe")(noise()))
    assert [bool(answer.labels) for answer in answers] == flags
    assert any(flags) and not all(flags)
    cared = [a for a in answers if max(a.scores[f"special {j}"] for j in range(3)) > 0]
    assert cared and all(a.labels == ("unsafe",) for a in cared)
    with torch.no_grad():
        found = F.normalize(model.visual_projection(model.vision_model(pixels)[1]))
        margins = found @ F.normalize(model.concept_embeds).T - model.concept_embeds_weights
    for answer, row in zip(answers, margins.tolist(), strict=True):
        assert len(answer.scores) == 1 + 17 + 3
        row = [m + 0.01 * (answer in cared) for m in row]
        found_here = [answer.scores[f"concept {k}"] for k in range(17)]
        assert found_here == pytest.approx(row, abs=1e-5)
        assert answer.scores["unsafe"] == max(found_here)


@pytest.mark.parametrize("of", ["concept 7", "special 1"])
@pytest.mark.parametrize(
    ("margin", "flagged"), [(0.0004, False), (0.0006, True), (-0.0004, False), (0.01, True)]
)
def test_the_safety_checker_rounds_its_margins_to_three_places_as_diffusers_does(
    margin: float, flagged: bool, of: str, checker: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "checker"
    shutil.copytree(checker, folder)
    image = noise()[0]
    state = load_file(folder / "model.safetensors")
    (before,) = seen(SafetyChecker(str(folder))([image]))
    care = 0.01 * (max(before.scores[f"special {j}"] for j in range(3)) > 0.0005)
    # Every margin is where it is wanted: one by its threshold, the others far below theirs. Where
    # the one is of special care, a concept lies so near that care alone flags it.
    wanted = {f"concept {k}": -0.5 for k in range(17)} | {f"special {j}": -0.5 for j in range(3)}
    wanted |= {"concept 7": -0.005, of: margin}
    for name, value in wanted.items():
        kind, _, k = name.partition(" ")
        weights = state[
            "concept_embeds_weights" if kind == "concept" else "special_care_embeds_weights"
        ]
        weights[int(k)] += before.scores[name] - value - care * (kind == "concept")
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    detector = SafetyChecker(str(folder))
    (after,) = seen(detector([image]))
    assert after.scores[of] == pytest.approx(margin, abs=2e-5)
    model = StableDiffusionSafetyChecker.from_pretrained(folder).eval()
    pixels = CLIPImageProcessor.from_pretrained(folder)(images=[image], return_tensors="pt")
    black = np.ones((1, 4, 4, 3), np.float32)
    with torch.no_grad():
        _, theirs = model(clip_input=pixels["pixel_values"], images=black)
    assert bool(after.labels) == theirs[0] == flagged
    # What it said can be told from what was edited
    assert detector.follows(after)
    assert not detector.follows(replace(after, labels=() if flagged else ("nudity",)))


def test_q16_is_the_nearer_of_two_prompts(q16_file: Path) -> None:
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{CLIP}")
    model.float().eval()
    with torch.no_grad():
        images = model.encode_image(torch.stack([transform(i) for i in noise()]))
    prompts = load_file(q16_file)["prompts"]
    cosines = torch.stack([torch.cosine_similarity(images, p[None], dim=1) for p in prompts])
    shares = (1 / (1 + (100 * (cosines[0] - cosines[1])).double().exp())).tolist()
    middle = (sorted(shares)[3] + sorted(shares)[4]) / 2
    for threshold in (0.5, middle):
        found = seen(Q16(str(q16_file), model=str(CLIP), threshold=threshold)(noise()))
        for answer, share in zip(found, shares, strict=True):
            assert answer.scores["inappropriate"] == pytest.approx(share, abs=1e-3)
            assert bool(answer.labels) == (share > threshold)
    assert len({answer.labels for answer in found}) == 2


def test_prompts_that_are_something_else_are_refused(q16_file: Path, tmp_path: Path) -> None:
    def q16(tensors: dict[str, torch.Tensor]) -> None:
        save_file(tensors, tmp_path / "bad.safetensors")
        Q16(str(tmp_path / "bad.safetensors"), model=str(CLIP))

    whole = load_file(q16_file)["prompts"]
    with pytest.raises(InputError, match=r"must hold 'prompts' of shape \(2, dim\), .*other"):
        q16({"other": whole})
    with pytest.raises(InputError, match=r"prompts \(1, "):
        q16({"prompts": whole[:1]})
    with pytest.raises(InputError, match="two vectors of finite length"):
        q16({"prompts": whole * torch.nan})
    with pytest.raises(InputError, match="width 3, and .*name the model"):
        q16({"prompts": torch.ones(2, 3)})
    torch.save(whole, tmp_path / "prompts.p")
    with pytest.raises(InputError, match="no safetensors file"):
        Q16(str(tmp_path / "prompts.p"), model=str(CLIP))
    with pytest.raises(InputError, match="no safetensors file"):
        Q16(str(tmp_path / "none.safetensors"), model=str(CLIP))


@pytest.fixture(scope="session")
def every(resnet: Path, checker: Path, q16_file: Path) -> list[Detector]:
    return [
        find_detector(f"hf:{resnet}"),
        find_detector(f"safety-checker:{checker}"),
        find_detector(f"q16:{q16_file}?model={CLIP}"),
        find_detector(f"clip:{CLIP}?labels=cat,dog,hammer"),
    ]


def test_an_answer_does_not_depend_on_the_batch(every: list[Detector], tmp_path: Path) -> None:
    made = gallery(tmp_path / "g", noise())
    for one, many in zip(
        detect(made, every, batch_size=1), detect(made, every, batch_size=7), strict=True
    ):
        for name, a in one.found.items():
            b = many.found[name]
            assert isinstance(a, Detection) and isinstance(b, Detection)
            assert a.labels == b.labels
            # Another batch size is another order of summation in float32
            assert a.scores == pytest.approx(b.scores, abs=1e-4)


def test_a_protocol_holds_what_its_figures_depend_on(every: list[Detector]) -> None:
    assert len({detector.name for detector in every}) == len(every)
    for detector in every:
        assert isinstance(detector, Detector)
        assert {"weights_sha256", "classes", "threshold"} <= detector.protocol.keys()
        assert str(Path.cwd()) not in json.dumps(detector.protocol, allow_nan=False)


def test_weights_that_are_not_finite_score_nothing(
    resnet: Path, checker: Path, q16_file: Path, tmp_path: Path
) -> None:
    for name, source in (("resnet", resnet), ("checker", checker), ("clip", CLIP)):
        (tmp_path / name).mkdir()
        for file in source.iterdir():
            (tmp_path / name / file.name).write_bytes(file.read_bytes())
        weights = next((tmp_path / name).glob("*.safetensors"))
        state = {k: v.float() for k, v in load_file(weights).items()}
        if name == "clip":
            state |= {k: v * torch.inf for k, v in state.items() if k.startswith("visual.")}
        else:
            state |= {k: v * torch.nan for k, v in state.items() if "embed" in k}
        save_file(state, weights, {"format": "pt"})
    for detector in (
        Classifier(str(tmp_path / "resnet")),
        SafetyChecker(str(tmp_path / "checker")),
        ZeroShot(str(tmp_path / "clip"), labels=("cat", "dog")),
        Q16(str(q16_file), model=str(tmp_path / "clip")),
    ):
        assert all(isinstance(answer, Unscored) for answer in detector(noise())), detector.name


def test_a_box_that_is_none_is_unscored() -> None:
    fine = Box("FACE", 0.5, (1, 2, 3, 4))
    assert checked(Detection((), {}, (fine,))) == Detection((), {}, (fine,))
    for box in (Box("FACE", np.nan, (1, 2, 3, 4)), Box("FACE", 0.5, (1, 2)), ("FACE", 0.5)):
        assert isinstance(checked(Detection((), {}, (box,))), Unscored)  # type: ignore[arg-type]


def test_a_shared_network_is_asked_once_about_the_same_images() -> None:
    asked: list[int] = []

    def count(images: Sequence[Image.Image]) -> list[int]:
        asked.append(len(images))
        return [image.width for image in images]

    last, pictures = Last(count), noise()
    assert last(pictures) == last(list(pictures)) == [64] * 7 and asked == [7]
    assert last(pictures[:2]) == [64] * 2 and last(pictures) == [64] * 7 and asked == [7, 2, 7]
    # Equal images are not the same ones: one may be painted on
    assert last([image.copy() for image in pictures]) and len(asked) == 4


def test_a_text_or_a_file_names_a_detector_with_its_settings(resnet: Path, tmp_path: Path) -> None:
    top = find_detector(f"hf:{resnet}?top=3&kind=style")
    assert (top.kind, top.protocol["threshold"], top.name) == ("style", "top-3", "hf/resnet/top-3")
    page = tmp_path / "mine.yaml"
    page.write_text(
        json.dumps(
            {"detector": f"hf:{resnet}?top=2", "settings": {"rename": {"chapel": "church"}}}
        )
    )
    mine = find_detector(str(page))
    assert mine.protocol["classes"] == ["tench, Tinca tinca", "church", "parachute", "gas pump"]
    assert mine.protocol["threshold"] == "top-2"
    assert find_detector(mine) is mine


def test_labels_to_choose_from_are_the_prompts_own() -> None:
    rows = [Prompt(f"{i}", "", 0, {"style": s}) for i, s in enumerate(("noto", "flat", "noto"))]
    spec = f"clip:{CLIP}?kind=style"
    rows.append(Prompt("none", "", 0, {"object": "cat"}))
    assert find_detector(spec, rows).protocol["classes"] == ["noto", "flat"]
    assert find_detector(f"{spec}&labels=a, b", rows).protocol["classes"] == ["a", "b"]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("emoji/objects", "Did you mean 'emoji/object'"),
        ("emoji/object:big", "takes no argument"),
        ("hf", "say hf:MODEL"),
        ("hf:here?tpo=3", "No setting of hf is named 'tpo'. Did you mean 'top'"),
        ("hf:here?top=few", "hf's top is 'few'; it must be a whole number"),
        ("hf:here?rename=a", "hf's rename is 'a'; it must be a mapping from .*YAML file"),
        ("q16:here?threshold=x", "q16's threshold is 'x'; it must be a number"),
        ("none.yaml", "none.yaml cannot be read"),
    ],
)
def test_a_mistake_in_a_detectors_name_is_one_line(spec: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        find_detector(spec)
    assert "\n" not in str(caught.value)


def test_a_file_that_names_no_detector_is_refused(tmp_path: Path) -> None:
    page = tmp_path / "mine.yaml"
    page.write_text("settings: {top: 2}")
    with pytest.raises(InputError, match="must name its 'detector'"):
        find_detector(str(page))
    page.write_text("detector: hf:here\nsettings: {top: 2.5}")
    with pytest.raises(InputError, match=r"top is 2\.5; it must be a whole number"):
        find_detector(str(page))
