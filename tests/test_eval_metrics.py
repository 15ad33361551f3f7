"""The judge, CLIP score and the Fréchet distance, on real classes made tiny."""

import json
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import scipy.linalg
import scipy.ndimage
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchmetrics.image.kid import KernelInceptionDistance
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

from unsee._errors import InputError
from unsee.eval import Detection, Score, Unscored, detect, take, words
from unsee.eval.detectors import Detector
from unsee.eval.detectors.judge import EMOJI, Judge, JudgeDetector
from unsee.eval.folder import open_folder
from unsee.eval.metrics import (
    CLIP,
    ClipFeatures,
    ClipKernelDistance,
    ClipScore,
    Features,
    FrechetDistance,
    JudgeFeatures,
    KernelDistance,
    Metric,
    Rmse,
    Ssim,
    distances,
    find_metric,
)
from unsee.eval.metrics.distances import gaussian, mmd_squared, polynomial
from unsee.eval.metrics.features import emoji_clip, emoji_judge
from unsee.eval.statistics import mean_interval
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
    backbone: Any = timm.create_model("test_resnet", num_classes=0)
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


def gallery(
    path: Path, count: int, seed: int = 0, texts: Sequence[str] = (), first: int = 0
) -> Gallery:
    """Coloured noise, each image with its own tint."""
    rng = np.random.default_rng(seed)
    rows = [
        Prompt(f"{first + i:02d}", texts[i % len(texts)] if texts else f"a thing numbered {i}", i)
        for i in range(count)
    ]
    made = Gallery.start(path, None, rows)
    for prompt in made:
        tint = rng.integers(0, 128, 3)
        pixels = (rng.integers(0, 128, (40, 40, 3)) + tint).astype(np.uint8)
        made.put(prompt, Image.fromarray(pixels))
    return made


def images(of: Gallery) -> list[Image.Image]:
    return [Image.open(of.image_path(p)).convert("RGB") for p in of]


def test_the_judge_sees_what_its_weights_say(judge_file: Path, tmp_path: Path) -> None:
    backbone: Any = timm.create_model("test_resnet", num_classes=0)
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
        detect(made, eyes, batch_size=1), detect(made, eyes, batch_size=7), strict=True
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
    score = take(ClipScore(clip_folder), made, batch_size=4)
    assert score.value == pytest.approx(values.mean().item(), abs=1e-4)
    assert score.interval == pytest.approx(mean_interval([[v] for v in values.tolist()]), abs=1e-3)
    assert (score.n, score.unscored, score.note) == (9, 0, "")


def test_images_of_one_prompt_are_one_chance_in_the_interval(
    clip_folder: Path, tmp_path: Path
) -> None:
    made = gallery(tmp_path / "one", 6, texts=["a cat"])
    assert take(ClipScore(clip_folder), made).interval is None
    # Every image twice says no more than every image once
    single = gallery(tmp_path / "single", 6, texts=["cat", "bomb", "tree", "sky", "car", "house"])
    rows = [Prompt(f"{p.id}{k}", p.prompt, k) for p in single for k in (0, 1)]
    double = Gallery.start(tmp_path / "double", None, rows)
    for prompt in double:
        source = next(p for p in single if p.id == prompt.id[:2])
        double.put(prompt, images(single)[single.prompts.index(source)])
    low, high = take(ClipScore(clip_folder), single).interval or (0, 0)
    assert low < high
    assert take(ClipScore(clip_folder), double).interval == pytest.approx((low, high))


def test_a_prompt_longer_than_clip_reads_is_said(clip_folder: Path, tmp_path: Path) -> None:
    made = gallery(tmp_path / "g", 2, texts=["a cat", "a cat " * 9])
    assert "1 prompts are longer than the model reads" in take(ClipScore(clip_folder), made).note


def test_what_open_clip_would_make_up_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="needs pretrained weights. Known:.*laion2b"):
        ClipScore("ViT-B-32")
    with pytest.raises(InputError, match="is no folder, and no model that open_clip knows"):
        ClipScore(tmp_path / "nowhere")
    with pytest.raises(InputError, match="open_clip cannot load"):
        ClipScore(tmp_path)


def as_open_clip(model: CLIPModel, folder: Path) -> None:
    """Writes transformers' weights under open_clip's names; the mathematics are the same."""
    theirs, ours = model.state_dict(), {}
    for tower, there in (("visual.", "vision_model."), ("", "text_model.")):
        for layer in range(2):
            old, new = f"{there}encoder.layers.{layer}.", f"{tower}transformer.resblocks.{layer}."
            names = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc"}
            names |= {"mlp.fc2": "mlp.c_proj", "self_attn.out_proj": "attn.out_proj"}
            for kind in ("weight", "bias"):
                for name, ours_name in names.items():
                    ours[f"{new}{ours_name}.{kind}"] = theirs[f"{old}{name}.{kind}"]
                ours[f"{new}attn.in_proj_{kind}"] = torch.cat(
                    [theirs[f"{old}self_attn.{part}_proj.{kind}"] for part in "qkv"]
                )
    for kind in ("weight", "bias"):
        ours[f"visual.ln_pre.{kind}"] = theirs[f"vision_model.pre_layrnorm.{kind}"]
        ours[f"visual.ln_post.{kind}"] = theirs[f"vision_model.post_layernorm.{kind}"]
        ours[f"ln_final.{kind}"] = theirs[f"text_model.final_layer_norm.{kind}"]
    seen, said = "vision_model.embeddings.", "text_model.embeddings."
    ours["visual.conv1.weight"] = theirs[seen + "patch_embedding.weight"]
    ours["visual.class_embedding"] = theirs[seen + "class_embedding"]
    ours["visual.positional_embedding"] = theirs[seen + "position_embedding.weight"]
    ours["visual.proj"] = theirs["visual_projection.weight"].T
    ours["token_embedding.weight"] = theirs[said + "token_embedding.weight"]
    ours["positional_embedding"] = theirs[said + "position_embedding.weight"]
    ours["text_projection"] = theirs["text_projection.weight"].T
    ours["logit_scale"] = theirs["logit_scale"]
    config = {
        "embed_dim": 8,
        "quick_gelu": True,
        "vision_cfg": {
            "image_size": 32, "layers": 2, "width": 16, "head_width": 8, "patch_size": 16,
        },
        "text_cfg": {
            "context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2,
        },
    }  # fmt: skip
    tensors = {k: v.contiguous().clone() for k, v in ours.items()}
    save_file(tensors, folder / "open_clip_model.safetensors", {"format": "pt"})
    preprocess = {"size": [32, 32], "interpolation": "bicubic", "resize_mode": "shortest"}
    page = {"model_cfg": config, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(page))


def test_clip_score_is_that_of_transformers_on_the_same_weights(tmp_path: Path) -> None:
    shape = {
        "hidden_size": 16, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 2, "projection_dim": 8, "initializer_range": 0.5,
    }  # fmt: skip
    torch.manual_seed(3)
    config = CLIPConfig(
        text_config={**shape, "vocab_size": 49408, "max_position_embeddings": 12}
        | {"bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 0},
        vision_config={**shape, "image_size": 32, "patch_size": 16},
        projection_dim=8,
    )
    model = CLIPModel(config).eval()
    with torch.no_grad():
        # Fresh weights are too small to tell one text or image from another
        for name, value in model.named_parameters():
            if value.ndim > 1:
                value.copy_(torch.randn(value.shape) * (1 if "embed" in name else 0.4))
    folder = tmp_path / "clip"
    folder.mkdir()
    as_open_clip(model, folder)
    texts = "cat bomb tree sky car house".split()
    made = gallery(tmp_path / "g", 12, texts=texts)
    for prompt in made:
        # At the model's own size, so that nobody resizes
        Image.open(made.image_path(prompt)).crop((0, 0, 32, 32)).save(made.image_path(prompt))
    words = open_clip.get_tokenizer(f"local-dir:{folder}")([p.prompt for p in made])
    see = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    with torch.no_grad():
        pixels = see(images(made), return_tensors="pt").pixel_values
        found = model(input_ids=words, pixel_values=pixels)
    cosines = torch.cosine_similarity(found.image_embeds, found.text_embeds)
    assert cosines.std() > 0.05, "a test of a cosine needs different ones"
    score = take(ClipScore(folder), made)
    assert score.value == pytest.approx(100 * cosines.clamp(min=0).mean().item(), abs=1e-4)


class Colour:
    """Three features: the mean of each channel, and NaN for an image without red."""

    name, dim = "mean-colour", 3
    protocol: dict[str, Any] = {}

    def __call__(self, images: Sequence[Image.Image]) -> Tensor:
        means = torch.stack([
            torch.from_numpy(np.asarray(i, np.float64).mean((0, 1)) / 255) for i in images
        ])  # fmt: skip
        means[means[:, 0] == 0] = torch.nan
        return means


def frechet(x: np.ndarray, y: np.ndarray) -> float:
    """The formula as it stands, with scipy's square root of a matrix."""
    a, b = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = scipy.linalg.sqrtm(a @ b)
    return float(((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(a + b - 2 * root.real))


def test_the_frechet_distance_is_scipys(tmp_path: Path) -> None:
    ours, theirs = gallery(tmp_path / "a", 30), gallery(tmp_path / "b", 40, seed=1)
    score = take(FrechetDistance(Colour()), ours, theirs, batch_size=7)
    x, y = (Colour()(images(g)).numpy() for g in (ours, theirs))
    assert score.value == pytest.approx(frechet(x, y), rel=1e-9)
    assert (score.n, score.n_reference, score.pairs) == (30, 40, 30)
    assert score.note == "no floor: it needs several seeds of each prompt"


def seeded(path: Path, prompts: int, seeds: int, tint: int) -> Gallery:
    """Noise of each prompt and seed, lighter by the tint."""
    rows = [
        Prompt(f"{i:02d}-{k}", f"thing {i}", 10 * i + k)
        for i in range(prompts)
        for k in range(seeds)
    ]
    made = Gallery.start(path, None, rows)
    for prompt in made:
        rng = np.random.default_rng(prompt.seed)
        shade = rng.integers(0, 128, 3) + rng.integers(0, 64, (40, 40, 3)) + tint
        made.put(prompt, Image.fromarray(shade.astype(np.uint8)))
    return made


def test_the_floor_is_the_bases_own_distance_on_other_seeds(tmp_path: Path) -> None:
    # Of three seeds the last is in neither half
    base, erased = (seeded(tmp_path / f"{t}", 20, 3, tint=t) for t in (0, 30))
    score = take(FrechetDistance(Colour()), erased, base)
    x, y = (Colour()(images(g)).numpy() for g in (erased, base))
    first, second = (np.arange(20) * 3 + k for k in (0, 1))
    assert score.pairs == 60 and score.note == "" and score.floor is not None
    assert score.floor.n == 20
    assert score.floor.base == pytest.approx(frechet(y[second], y[first]), rel=1e-9)
    assert score.floor.erased == pytest.approx(frechet(x[second], y[first]), rel=1e-9)
    # What did nothing is at 0 on the same seeds, and on others where the base itself is
    same = take(FrechetDistance(Colour()), base, base)
    assert same.value == pytest.approx(0, abs=1e-9) and same.floor is not None
    assert same.floor.erased == same.floor.base > 1e-3


def test_a_floor_needs_seeds_enough_and_a_kernel_distance_needs_none(tmp_path: Path) -> None:
    base, erased = (seeded(tmp_path / f"{t}", 15, 2, tint=t) for t in (0, 30))
    few = take(FrechetDistance(Colour()), erased, base)
    assert few.value is not None and few.floor is None and few.note.startswith("no floor")
    kernel = take(KernelDistance(Colour()), erased, base)
    assert (kernel.floor, kernel.note, kernel.withheld, kernel.pairs) == (None, "", "", 30)


@pytest.mark.parametrize("count", [16, 19, 20, 40])
def test_under_two_images_a_feature_a_frechet_distance_is_withheld(
    count: int, tmp_path: Path
) -> None:
    class Ten(Colour):
        dim = 10

        def __call__(self, images: Sequence[Image.Image]) -> Tensor:
            rows = [np.asarray(i, np.float64)[0, :4].ravel()[:10] / 255 for i in images]
            return torch.from_numpy(np.stack(rows))

    ours = gallery(tmp_path / "a", count)
    score = take(FrechetDistance(Ten()), ours, gallery(tmp_path / "b", 50, seed=1))
    assert score.value is not None and score.value > 0
    assert bool(score.withheld) == (count < 20)
    assert (words.score(score) == "not shown") == (count < 20)
    if score.withheld:
        assert score.withheld.startswith(f"{count} images on a side are too few for 10 features")
    assert Score.from_json(json.loads(json.dumps(score.to_json()))) == score


def test_a_distance_says_paired_only_where_prompts_and_seeds_are_the_same(tmp_path: Path) -> None:
    ours = seeded(tmp_path / "a", 20, 1, tint=0)
    other = Gallery.start(
        tmp_path / "b", None, [replace(p, seed=p.seed + 1 + (p.seed < 100)) for p in ours]
    )
    for prompt, image in zip(other, images(ours), strict=True):
        other.put(prompt, image)
    metric = FrechetDistance(Colour())
    assert words.paired(take(metric, ours, ours)) == "paired"
    assert take(metric, ours, other).pairs == 0 and words.paired(take(metric, ours, other)) == ""
    # Files of one name need not be of one prompt
    named = [open_folder(g.path / "images") for g in (ours, other)]
    assert take(metric, *named).pairs == 0
    part = replace(ours, prompts=ours.prompts[:18])
    mixed = Gallery.start(
        tmp_path / "c", None, [*part.prompts, *(replace(p, seed=1) for p in ours.prompts[18:])]
    )
    for prompt, image in zip(mixed, images(ours), strict=True):
        mixed.put(prompt, image)
    assert words.paired(take(metric, ours, mixed)) == "18 of 20 paired"


def mmd(x: np.ndarray, y: np.ndarray, kernel: Any, without: bool) -> float:
    """The estimate as the papers write it: sums over i and j, one at a time."""
    m, n = len(x), len(y)
    own = sum(kernel(x[i], x[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    own += sum(kernel(y[i], y[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    cross = [kernel(x[i], y[j]) for i in range(m) for j in range(n) if not (without and i == j)]
    return float(own - 2 * sum(cross) / len(cross))


def cubic(a: np.ndarray, b: np.ndarray) -> float:
    return float((a @ b / len(a) + 1) ** 3)


def bell(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a / np.linalg.norm(a), b / np.linalg.norm(b)
    return math.exp(-((a - b) @ (a - b)) / (2 * 10**2))


@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize(
    ("distance", "kernel", "scale"), [(KernelDistance, cubic, 1), (ClipKernelDistance, bell, 1000)]
)
def test_kernel_distances_are_their_papers_sums(
    distance: Any, kernel: Any, scale: float, paired: bool, tmp_path: Path
) -> None:
    ours = gallery(tmp_path / "a", 17)
    theirs = gallery(tmp_path / "b", 20, seed=1, first=0 if paired else 50)
    score = take(distance(Colour()), ours, theirs, batch_size=7)
    x, y = (Colour()(images(g)).numpy() for g in (ours, theirs))
    assert score.value == pytest.approx(scale * mmd(x, y, kernel, paired), rel=1e-8)
    assert (score.n, score.n_reference, score.note) == (17, 20, "")


@pytest.mark.filterwarnings("ignore:Metric `Kernel Inception Distance` will save")
def test_kid_is_torchmetrics_over_one_subset_of_all(tmp_path: Path) -> None:
    ours, theirs = gallery(tmp_path / "a", 18), gallery(tmp_path / "b", 18, seed=1, first=50)
    module = nn.Identity()
    module.num_features = 3  # type: ignore[assignment]
    theirs_kid = KernelInceptionDistance(module, subsets=1, subset_size=18).set_dtype(
        torch.float64
    )
    theirs_kid.update(Colour()(images(theirs)), real=True)
    theirs_kid.update(Colour()(images(ours)), real=False)
    found, _ = theirs_kid.compute()
    assert take(KernelDistance(Colour()), ours, theirs).value == pytest.approx(
        float(found), rel=1e-5
    )


@pytest.mark.parametrize("distance", [KernelDistance, ClipKernelDistance])
def test_what_did_not_change_is_at_kernel_distance_0_exactly(
    distance: Any, tmp_path: Path
) -> None:
    made = gallery(tmp_path / "a", 20)
    assert take(distance(Colour()), made, made).value == 0
    assert abs(take(distance(Colour()), made, gallery(tmp_path / "b", 20, seed=1)).value or 0) > 0


@pytest.mark.parametrize("kernel", [polynomial, gaussian])
def test_mmd_of_pairs_that_depend_on_each_other_is_unbiased(kernel: Any) -> None:
    draw = torch.Generator().manual_seed(0)
    pairs = [(i, i) for i in range(8)]
    found, naive = [], []
    for _ in range(500):
        shared, *rest = torch.randn(3, 8, 4, dtype=torch.float64, generator=draw)
        x, y = (shared + 0.3 * other for other in rest)
        found.append(mmd_squared(x, y, kernel, pairs))
        naive.append(mmd_squared(x, y, kernel))
    error = np.std(found) / math.sqrt(len(found))
    assert abs(np.mean(found)) < 3 * error
    assert np.mean(naive) < -10 * error


def test_mmd_does_not_depend_on_its_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = torch.randn(2, 11, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    whole = mmd_squared(x, y, polynomial, [(2, 3)])
    monkeypatch.setattr(distances, "BLOCK", 4)
    assert mmd_squared(x, y, polynomial, [(2, 3)]) == pytest.approx(whole, rel=1e-12)


@pytest.mark.parametrize("features", ["judge", "clip"])
def test_a_gallery_is_at_distance_0_from_itself(
    features: str, judge_file: Path, clip_folder: Path, tmp_path: Path
) -> None:
    made, other = gallery(tmp_path / "a", 20), gallery(tmp_path / "b", 20, seed=1)
    extract = JudgeFeatures(judge_file) if features == "judge" else ClipFeatures(clip_folder)
    metric = FrechetDistance(extract)
    near, far = take(metric, made, made), take(metric, made, other)
    assert near.value is not None and far.value is not None
    assert near.value == pytest.approx(0, abs=1e-5) and near.value < far.value / 100
    # Of pairs that did not change there is no bias
    assert "biased" not in near.note and near.pairs == 20
    assert bool(near.withheld) == (2 * extract.dim > 20)
    free = [open_folder(g.path / "images") for g in (made, other)]
    assert ("biased upwards" in take(metric, *free).note) == (extract.dim >= 20)


@pytest.mark.parametrize("make", [emoji_judge, emoji_clip])
def test_features_are_the_same_bits_beside_any_other_images(
    make: Callable[[], Features], tmp_path: Path
) -> None:
    noise = images(gallery(tmp_path / "a", 35))
    whole = make()(noise)

    def copies(some: Sequence[Image.Image]) -> list[Image.Image]:
        return [image.copy() for image in some]  # which nothing remembers

    for size in (1, 7, 8, 9):
        parts = [make()(copies(noise[i : i + size])) for i in range(0, 35, size)]
        assert torch.equal(torch.cat(parts), whole)
    assert torch.equal(make()(copies(noise[::-1])), whole.flip(0))


DISTANCES: list[Callable[..., Metric]] = [FrechetDistance, KernelDistance, ClipKernelDistance]


@pytest.mark.parametrize("distance", DISTANCES)
def test_too_few_images_have_no_distance(distance: Any, tmp_path: Path) -> None:
    few = gallery(tmp_path / "few", 15)
    score = take(distance(Colour()), few, few)
    assert score.value is None and "15, and 16 are needed" in score.note
    assert (score.n, score.n_reference) == (15, 15)


@pytest.mark.parametrize("metric", [*(d(Colour()) for d in DISTANCES), Rmse(), Ssim()])
def test_a_distance_needs_a_reference(metric: Any, tmp_path: Path) -> None:
    assert metric.needs_reference
    with pytest.raises(InputError, match="is a distance: name a folder"):
        take(metric, gallery(tmp_path / "few", 2))


@pytest.mark.parametrize("distance", DISTANCES)
def test_features_that_are_not_finite_are_unscored(distance: Any, tmp_path: Path) -> None:
    made, whole = gallery(tmp_path / "a", 20), gallery(tmp_path / "b", 20)
    red, *others = images(made)[3].split()
    made.put(made.prompts[3], Image.merge("RGB", [red.point(lambda _: 0), *others]))
    made.image_path(made.prompts[4]).unlink()
    score = take(distance(Colour()), made, whole)
    assert score.value is not None and np.isfinite(score.value)
    assert (score.n, score.n_reference, score.unscored) == (18, 20, 2)


class Huge(Colour):
    """Finite features whose squares are not."""

    def __call__(self, images: Sequence[Image.Image]) -> Tensor:
        return super().__call__(images) * 1e200


@pytest.mark.parametrize("distance", [FrechetDistance, KernelDistance])
def test_a_distance_that_is_not_finite_is_none(distance: Any, tmp_path: Path) -> None:
    score = take(
        distance(Huge()), gallery(tmp_path / "a", 20), gallery(tmp_path / "b", 20, seed=1)
    )
    assert score.value is None and "the distance is" in score.note


def test_rmse_is_the_arithmetic(tmp_path: Path) -> None:
    texts = ["cat", "dog", "cat", "hat", "cat"]
    base, erased = (gallery(tmp_path / f"{k}", 5, seed=k, texts=texts) for k in (0, 1))
    score = take(Rmse(), erased, base)
    values = [
        float(np.sqrt(np.mean((np.asarray(a, np.float64) - np.asarray(b)) ** 2)) / 255)
        for a, b in zip(images(erased), images(base), strict=True)
    ]
    assert score.value == pytest.approx(np.mean(values), rel=1e-6)
    groups = [[values[0], values[2], values[4]], [values[1]], [values[3]]]
    assert score.interval == pytest.approx(mean_interval(groups), rel=1e-6)
    assert (score.n, score.n_reference, score.unscored, score.note) == (5, 5, 0, "")
    assert take(Rmse(), erased, replace(base, prompts=base.prompts[::-1])) == score


def test_ssim_is_its_papers(tmp_path: Path) -> None:
    base, other = (gallery(tmp_path / f"{k}", 4, seed=k) for k in (0, 1))
    for p in other:
        blend = Image.blend(images(base)[other.prompts.index(p)], images(other)[0], 0.3)
        other.put(p, blend)
    values = []
    for a, b in zip(images(base), images(other), strict=True):
        x, y = (np.asarray(i, np.float64) / 255 for i in (a, b))

        def blur(z: np.ndarray) -> np.ndarray:
            return np.asarray(
                scipy.ndimage.gaussian_filter(z, 1.5, mode="mirror", axes=(0, 1), radius=5)
            )

        mx, my = blur(x), blur(y)
        vx, vy, cov = blur(x * x) - mx**2, blur(y * y) - my**2, blur(x * y) - mx * my
        light = (2 * mx * my + 0.01**2) / (mx**2 + my**2 + 0.01**2)
        values.append(float((light * (2 * cov + 0.03**2) / (vx + vy + 0.03**2)).mean()))
    score = take(Ssim(), other, base)
    assert 0.1 < np.mean(values) < 0.99
    assert score.value == pytest.approx(np.mean(values), rel=1e-5)


def test_an_image_is_at_distance_0_from_itself(tmp_path: Path) -> None:
    made = gallery(tmp_path / "a", 66)
    rmse, ssim = take(Rmse(), made, made), take(Ssim(), made, made)
    assert rmse.value == 0 and rmse.interval == (0, 0) and rmse.n == 66
    assert ssim.value == pytest.approx(1)


@pytest.mark.parametrize("metric", [Rmse(), Ssim()])
def test_what_has_no_partner_is_unscored(metric: Any, tmp_path: Path) -> None:
    ours, theirs = gallery(tmp_path / "a", 6), gallery(tmp_path / "b", 8, seed=1, first=1)
    whole = take(metric, ours, theirs)
    assert (whole.n, whole.unscored) == (5, 1 + 3)
    ours.image_path(ours.prompts[2]).write_bytes(b"no image")
    theirs.image_path(ours.prompts[3]).unlink()
    # One pixel would be broadcast over all others
    theirs.put(ours.prompts[4], Image.new("RGB", (1, 1)))
    less = take(metric, ours, theirs)
    assert (less.n, less.n_reference, less.unscored) == (2, 2, 4 + 3)
    nothing = take(metric, ours, gallery(tmp_path / "c", 3, first=50))
    assert nothing.value is None and nothing.n == 0 and nothing.unscored == 9
    assert "no image of its id is on the other side" in nothing.note


def test_pairs_of_several_sizes_are_measured_each_at_its_own(tmp_path: Path) -> None:
    one, other = gallery(tmp_path / "a", 3), gallery(tmp_path / "b", 3, seed=1)
    for made, shade in ((one, 0), (other, 51)):
        half = Image.new("RGB", (30, 20), (shade,) * 3)
        half.paste((100 + shade,) * 3, (0, 0, 15, 20))
        made.put(made.prompts[1], half)
    score = take(Rmse(), one, other)
    assert (score.n, score.unscored) == (3, 0)
    single = [replace(g, prompts=g.prompts[1:2]) for g in (one, other)]
    assert take(Rmse(), *single).value == pytest.approx(0.2)


def test_a_clip_of_infinite_weights_scores_nothing(clip_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "clip"
    shutil.copytree(clip_folder, folder)
    state = load_file(folder / "open_clip_model.safetensors")
    state["text_projection"][:] = torch.nan
    save_file(state, folder / "open_clip_model.safetensors", {"format": "pt"})
    score = take(ClipScore(folder), gallery(tmp_path / "g", 3))
    assert (score.value, score.n, score.unscored) == (None, 0, 3)
    assert score.note == "no image could be measured"


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ("clip:FOLDER", "clip/clip0"),
        ("frechet:clip:FOLDER", "frechet/clip0"),
        ("kid:clip:FOLDER", "kid/clip0"),
        ("cmmd:clip:FOLDER", "cmmd/clip0"),
        ("pixels/rmse", "pixels/rmse"),
    ],
)
def test_a_metric_is_found_by_its_name_and_argument(
    spec: str, name: str, clip_folder: Path
) -> None:
    metric = find_metric(spec.replace("FOLDER", str(clip_folder)))
    assert isinstance(metric, Metric) and metric.name == name
    json.dumps(metric.protocol, allow_nan=False)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("pixels/rmze", "No metric is named 'pixels/rmze'. Did you mean 'pixels/rmse'"),
        ("pixels/rmse:3", "'pixels/rmse' takes no argument: say pixels/rmse, not pixels/rmse:3"),
        ("pixels/rmse:", "takes no argument"),
        ("clip", "The metric 'clip' needs its argument: say clip:MODEL."),
        ("clip:", "needs its argument: say clip:MODEL."),
        ("fid:", "needs its argument: say fid:WEIGHTS."),
        ("kid", "needs its argument: say kid:FEATURES."),
        ("kid:judge", "No feature extractor is named 'judge'. Did you mean"),
        ("kid:emoji-judge:x", "The feature extractor 'emoji-judge' takes no argument"),
        ("cmmd:clip", "The feature extractor 'clip' needs its argument: say clip:MODEL."),
        ("clip:ViT-B-32", "open_clip's ViT-B-32 needs pretrained weights"),
        ("clip:ViT-B-32,nowhere", "open_clip cannot load ViT-B-32"),
    ],
)
def test_a_metric_that_is_not_there_is_one_line(spec: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        find_metric(spec)
    assert "\n" not in str(caught.value)


def test_what_ships_keeps_its_protocol(judge_file: Path, clip_folder: Path) -> None:
    for detector in (JudgeDetector("object", judge_file), JudgeDetector("style", judge_file)):
        assert isinstance(detector, Detector)
        json.dumps(detector.protocol, allow_nan=False)
    features = ClipFeatures(clip_folder)
    for metric in (ClipScore(clip_folder), *(distance(features) for distance in DISTANCES)):
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
    made = Gallery.start(tmp_path / "g", None, rows)
    for prompt in made:
        made.put(prompt, Image.effect_noise((64, 64), 50))
    score = take(ClipScore(), made)
    assert score.value is not None and score.note == "" and score.unscored == 0
