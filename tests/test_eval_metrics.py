"""The judge, CLIP score and the Fréchet distance, on real classes made tiny."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import scipy.linalg
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from unsee._errors import InputError
from unsee.eval import Detection, Unscored, detect
from unsee.eval.detectors import Detector
from unsee.eval.detectors.judge import EMOJI, Judge, JudgeDetector
from unsee.eval.metrics import (
    CLIP,
    ClipFeatures,
    ClipScore,
    FrechetDistance,
    JudgeFeatures,
    Metric,
)
from unsee.gallery import Gallery
from unsee.prompts import Prompt

OBJECTS, STYLES = ["bomb", "cat", "dog"], ["noto", "flat"]
CONFIG: dict[str, Any] = {
    "model": "test_resnet",
    "settings": {},
    "objects": OBJECTS,
    "styles": STYLES,
    "size": 32,
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.25, 0.5],
    "resize": "bicubic, antialiased",
}


def save_judge(path: Path, config: dict[str, Any]) -> dict[str, Tensor]:
    """A judge of random weights, as the lab exports the trained one."""
    torch.manual_seed(0)
    backbone = timm.create_model("test_resnet", num_classes=0)
    whole = nn.ModuleDict(
        {
            "backbone": backbone,
            "object": nn.Linear(backbone.num_features, len(OBJECTS)),
            "style": nn.Linear(backbone.num_features, len(STYLES)),
        }
    )
    state = {
        k: (v.half() if v.is_floating_point() else v).contiguous()
        for k, v in whole.state_dict().items()
    }
    save_file(state, path, {"format": "pt", "config": json.dumps(config)})
    return state


@pytest.fixture(scope="module")
def judge_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("judge") / "judge.safetensors"
    save_judge(path, CONFIG)
    return path


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    config = {
        "embed_dim": 8,
        "vision_cfg": {
            "image_size": 32, "layers": 1, "width": 16, "head_width": 8, "patch_size": 16,
        },
        "text_cfg": {
            "context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1,
        },
    }  # fmt: skip
    torch.manual_seed(0)
    model = open_clip.CLIP(config["embed_dim"], config["vision_cfg"], config["text_cfg"])
    # Fresh weights say nearly the same of every text, all of which end alike
    model.token_embedding.weight.data *= 50
    model.token_embedding.weight.data[49407] = 0
    save_file(model.state_dict(), folder / "open_clip_model.safetensors", {"format": "pt"})
    preprocess = {"size": [32, 32], "interpolation": "bicubic", "resize_mode": "squash"}
    page = {"model_cfg": config, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(page))
    return folder


def gallery(path: Path, count: int, seed: int = 0, texts: Sequence[str] = ()) -> Gallery:
    """Coloured noise, each image with its own tint."""
    rng = np.random.default_rng(seed)
    rows = [
        Prompt(f"{i:02d}", texts[i % len(texts)] if texts else f"a thing numbered {i}", i)
        for i in range(count)
    ]
    made = Gallery.start(path, {}, rows)
    for prompt in made:
        tint = rng.integers(0, 128, 3)
        pixels = (rng.integers(0, 128, (40, 40, 3)) + tint).astype(np.uint8)
        made.put(prompt, Image.fromarray(pixels))
    return made


def images(of: Gallery) -> list[Image.Image]:
    return [Image.open(of.image_path(p)).convert("RGB") for p in of]


def test_the_judge_sees_what_its_weights_say(judge_file: Path, tmp_path: Path) -> None:
    backbone = timm.create_model("test_resnet", num_classes=0)
    state = {k: v.float() for k, v in load_file(judge_file).items()}
    backbone.load_state_dict(
        {k.removeprefix("backbone."): v for k, v in state.items() if k.startswith("backbone.")}
    )
    backbone.eval()
    given = images(gallery(tmp_path / "g", 5))
    # Torch's own antialiased bicubic stands beside Pillow's: the same filter, rounded to bytes
    pixels = [torch.from_numpy(np.array(i)).permute(2, 0, 1)[None].float() for i in given]
    small = torch.cat([
        nn.functional.interpolate(p, (32, 32), mode="bicubic", antialias=True) for p in pixels
    ])  # fmt: skip
    mean, std = (torch.tensor(CONFIG[k])[:, None, None] for k in ("mean", "std"))
    with torch.no_grad():
        features = backbone((small.clamp(0, 255) / 255 - mean) / std)
    for kind, labels in (("object", OBJECTS), ("style", STYLES)):
        logits = features @ state[f"{kind}.weight"].T + state[f"{kind}.bias"]
        found = JudgeDetector(kind, judge_file)(given)
        for answer, row in zip(found, logits.softmax(1), strict=True):
            assert isinstance(answer, Detection)
            assert list(answer.scores) == labels
            assert list(answer.scores.values()) == pytest.approx(row.tolist(), abs=5e-3)
            assert answer.labels == (max(labels, key=lambda label: answer.scores[label]),)


def test_a_judges_answer_does_not_depend_on_the_batch(judge_file: Path, tmp_path: Path) -> None:
    made, eyes = gallery(tmp_path / "g", 7), [JudgeDetector("object", judge_file)]
    for one, many in zip(
        detect(made, eyes, batch_size=1).rows, detect(made, eyes, batch_size=7).rows, strict=True
    ):
        a, b = one.found["emoji/object"], many.found["emoji/object"]
        assert isinstance(a, Detection) and isinstance(b, Detection)
        assert a.labels == b.labels
        # Another batch size is another order of summation in float32
        assert list(a.scores.values()) == pytest.approx(list(b.scores.values()), abs=1e-5)


def test_both_detectors_share_one_backbone(judge_file: Path) -> None:
    assert Judge.load(judge_file) is Judge.load(judge_file)
    protocol = JudgeDetector("object", judge_file).protocol
    assert protocol["classes"] == OBJECTS and protocol["threshold"] == "argmax"
    assert len(protocol["weights_sha256"]) == 64
    json.dumps(protocol)


def test_a_judge_of_infinite_weights_scores_nothing(tmp_path: Path) -> None:
    state = save_judge(tmp_path / "ok.safetensors", CONFIG)
    state["object.bias"] = torch.full_like(state["object.bias"], torch.inf)
    bad = tmp_path / "bad.safetensors"
    save_file(state, bad, {"config": json.dumps(CONFIG)})
    found = JudgeDetector("object", bad)(images(gallery(tmp_path / "g", 2)))
    assert all(isinstance(answer, Unscored) for answer in found)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda p: p.unlink(), "is not there"),
        (lambda p: p.write_bytes(p.read_bytes()[:200]), "holds no judge"),
        (lambda p: save_file({"a": torch.zeros(1)}, p), "holds no judge: 'config'"),
        (lambda p: save_judge(p, CONFIG | {"styles": ["noto"]}), "size mismatch for style"),
    ],
)
def test_a_file_that_is_no_judge_is_refused(tmp_path: Path, spoil: Any, message: str) -> None:
    path = tmp_path / "judge.safetensors"
    save_judge(path, CONFIG)
    spoil(path)
    with pytest.raises(InputError, match=message):
        JudgeDetector("object", path)


def test_clip_score_is_the_cosine(clip_folder: Path, tmp_path: Path) -> None:
    made = gallery(tmp_path / "g", 9, texts="cat bomb tree sky car house fire hat sun".split())
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{clip_folder}")
    model.eval()
    words = open_clip.get_tokenizer(f"local-dir:{clip_folder}")([p.prompt for p in made])
    with torch.no_grad():
        seen = model.encode_image(torch.stack([transform(i) for i in images(made)]))
        said = model.encode_text(words)
    cosines = torch.cosine_similarity(seen.double(), said.double())
    assert (cosines < 0).any() and (cosines > 0).any(), "a test of max(cos, 0) needs both"
    values = 100 * cosines.clamp(min=0)
    score = ClipScore(clip_folder, batch_size=4)(made)
    assert score.value == pytest.approx(values.mean().item(), abs=1e-4)
    half = 1.96 * values.std().item() / 3
    assert score.interval == pytest.approx(
        (values.mean().item() - half, values.mean().item() + half), abs=1e-3
    )
    assert (score.n, score.unscored, score.note) == (9, 0, "")


def test_images_of_one_prompt_are_one_chance_in_the_interval(
    clip_folder: Path, tmp_path: Path
) -> None:
    made = gallery(tmp_path / "one", 6, texts=["a cat"])
    assert ClipScore(clip_folder)(made).interval is None
    # Every image twice says no more than every image once
    single = gallery(tmp_path / "single", 6, texts=["cat", "bomb", "tree", "sky", "car", "house"])
    rows = [Prompt(f"{p.id}{k}", p.prompt, k) for p in single for k in (0, 1)]
    double = Gallery.start(tmp_path / "double", {}, rows)
    for prompt in double:
        source = next(p for p in single if p.id == prompt.id[:2])
        double.put(prompt, images(single)[single.prompts.index(source)])
    low, high = ClipScore(clip_folder)(single).interval or (0, 0)
    assert low < high
    assert ClipScore(clip_folder)(double).interval == pytest.approx((low, high))


def test_a_prompt_longer_than_clip_reads_is_said(clip_folder: Path, tmp_path: Path) -> None:
    made = gallery(tmp_path / "g", 2, texts=["a cat", "a cat " * 9])
    assert "1 prompts are longer than the model reads" in ClipScore(clip_folder)(made).note


def test_what_open_clip_would_make_up_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="needs pretrained weights. Known:.*laion2b"):
        ClipScore("ViT-B-32")
    with pytest.raises(InputError, match="is no folder, and no model that open_clip knows"):
        ClipScore(tmp_path / "nowhere")
    with pytest.raises(InputError, match="open_clip cannot load"):
        ClipScore(tmp_path)


class Colour:
    """Three features: the mean of each channel, and NaN for a black image."""

    name, dim = "mean-colour", 3
    protocol: dict[str, Any] = {}

    def __call__(self, images: Sequence[Image.Image]) -> Tensor:
        means = torch.stack([
            torch.from_numpy(np.asarray(i, np.float64).mean((0, 1)) / 255) for i in images
        ])  # fmt: skip
        means[means.sum(1) == 0] = torch.nan
        return means


def frechet(x: np.ndarray, y: np.ndarray) -> float:
    """The formula as it stands, with scipy's square root of a matrix."""
    a, b = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = scipy.linalg.sqrtm(a @ b)
    return float(((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(a + b - 2 * root.real))


def test_the_frechet_distance_is_scipys(tmp_path: Path) -> None:
    ours, theirs = gallery(tmp_path / "a", 30), gallery(tmp_path / "b", 40, seed=1)
    score = FrechetDistance(Colour(), batch_size=7)(ours, theirs)
    x, y = (Colour()(images(g)).numpy() for g in (ours, theirs))
    assert score.value == pytest.approx(frechet(x, y), rel=1e-9)
    assert (score.n, score.n_reference, score.note) == (30, 40, "")


@pytest.mark.parametrize("features", ["judge", "clip"])
def test_a_gallery_is_at_distance_0_from_itself(
    features: str, judge_file: Path, clip_folder: Path, tmp_path: Path
) -> None:
    made, other = gallery(tmp_path / "a", 20), gallery(tmp_path / "b", 20, seed=1)
    extract = JudgeFeatures(judge_file) if features == "judge" else ClipFeatures(clip_folder)
    metric = FrechetDistance(extract)
    near, far = metric(made, made), metric(made, other)
    assert near.value is not None and far.value is not None
    assert near.value == pytest.approx(0, abs=1e-5) and near.value < far.value / 100
    assert ("fewer images than features" in near.note) == (extract.dim >= 20)


def test_too_few_images_have_no_distance(tmp_path: Path) -> None:
    few = gallery(tmp_path / "few", 15)
    score = FrechetDistance(Colour())(few, few)
    assert score.value is None and "15, and 16 are needed" in score.note
    assert (score.n, score.n_reference) == (15, 15)
    with pytest.raises(ValueError, match="needs a reference"):
        FrechetDistance(Colour())(few)


def test_features_that_are_not_finite_are_unscored(tmp_path: Path) -> None:
    made, whole = gallery(tmp_path / "a", 20), gallery(tmp_path / "b", 20)
    made.put(made.prompts[3], Image.new("RGB", (40, 40)))
    made.image_path(made.prompts[4]).unlink()
    score = FrechetDistance(Colour())(made, whole)
    assert score.value is not None and np.isfinite(score.value)
    assert (score.n, score.n_reference, score.unscored) == (18, 20, 2)


def test_what_ships_keeps_its_protocol(judge_file: Path, clip_folder: Path) -> None:
    for detector in (JudgeDetector("object", judge_file), JudgeDetector("style", judge_file)):
        assert isinstance(detector, Detector)
        json.dumps(detector.protocol, allow_nan=False)
    for metric in (ClipScore(clip_folder), FrechetDistance(ClipFeatures(clip_folder))):
        assert isinstance(metric, Metric)
        assert metric.protocol["weights_sha256"] and metric.protocol["resize"]
        json.dumps(metric.protocol, allow_nan=False)


@pytest.mark.skipif(not EMOJI.exists(), reason="the judge has not been trained here")
def test_the_shipped_judge_reads_the_words_of_the_world() -> None:
    from unsee.prompts.emoji import world

    judge = Judge.load()
    assert set(judge.labels["object"]) >= set(world().objects)
    assert set(judge.labels["style"]) == set(world().styles)


@pytest.mark.skipif(not CLIP.exists(), reason="the CLIP has not been trained here")
def test_the_shipped_clip_reads_every_prompt_whole(tmp_path: Path) -> None:
    from unsee.prompts.emoji import concept, suite

    bomb = concept("bomb")
    assert bomb is not None
    rows = suite([bomb], 32).prompts
    made = Gallery.start(tmp_path / "g", {}, rows)
    for prompt in made:
        made.put(prompt, Image.new("RGB", (64, 64), "white"))
    score = ClipScore()(made)
    assert score.value is not None and score.note == "" and score.unscored == 0
