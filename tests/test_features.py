"""Networks whose weights are files: FID's Inception and LPIPS, real classes, random weights."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torchmetrics.functional.image import learned_perceptual_image_patch_similarity
from torchmetrics.image.fid import FrechetInceptionDistance, NoTrainInceptionV3

import unsee
from unsee._errors import InputError
from unsee.eval import take
from unsee.eval.metrics import FrechetDistance, InceptionFeatures, Lpips, Metric, find_metric
from unsee.eval.metrics.features import clean_resize
from unsee.gallery import Gallery
from unsee.prompts import Prompt


def gallery(path: Path, count: int, seed: int = 0, side: int = 64) -> Gallery:
    """Noise in blocks of eight pixels, about a tint of each image."""
    rng = np.random.default_rng(seed)
    made = Gallery.start(path, None, [Prompt(f"{i:02d}", f"thing {i}", i) for i in range(count)])
    for prompt in made:
        small = rng.integers(0, 128, (side // 8, side // 8, 3)) + rng.integers(0, 128, 3)
        made.put(prompt, Image.fromarray(small.astype(np.uint8).repeat(8, 0).repeat(8, 1)))
    return made


def pixels(of: Gallery) -> torch.Tensor:
    """Shape (n, 3, height, width), uint8."""
    rows = [np.asarray(Image.open(of.image_path(p)).convert("RGB")) for p in of]
    return torch.from_numpy(np.stack(rows)).permute(0, 3, 1, 2)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """torch's cache, empty, and every download refused."""
    for name in ("https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path / "torch" / "hub" / "checkpoints"


@pytest.fixture(scope="module")
def inception(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file such as torch-fidelity's, of random weights."""

    class Fresh(NoTrainInceptionV3):
        def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
            """Keeps the weights that it was made with."""

    folder = tmp_path_factory.mktemp("inception")
    torch.save({}, folder / "empty.pth")
    torch.manual_seed(0)
    network = Fresh("inception-v3-compat", ["64"], str(folder / "empty.pth"))
    path = folder / "inception.pth"
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def squeeze(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file such as torchvision's, of random weights."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("lpips") / "squeeze.pth"
    torch.save(torchvision.models.squeezenet1_1(weights=None).state_dict(), path)
    return path


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.extra("fid")
def test_fid_is_torchmetrics_with_its_own_inception(
    antialias: bool, inception: Path, tmp_path: Path
) -> None:
    # 400 pixels are shrunk, so that antialiasing matters; layer 64 is the quickest
    ours, theirs = (gallery(tmp_path / f"{k}", 4, seed=k, side=400) for k in (0, 1))
    features = InceptionFeatures(inception, layer=64, antialias=antialias, device="cpu")
    score = take(FrechetDistance(features, least=2), ours, theirs, batch_size=3)
    whole = FrechetInceptionDistance(
        64, feature_extractor_weights_path=str(inception), antialias=antialias
    )
    whole.update(pixels(theirs), real=True)
    whole.update(pixels(ours), real=False)
    # torchmetrics sums its features' squares in float32 here, and differently
    assert score.value == pytest.approx(float(whole.compute()), rel=1e-3)
    assert score.n == score.n_reference == 4 and score.unscored == 0


@pytest.mark.extra("fid")
@pytest.mark.parametrize("antialias", [False, True])
def test_inceptions_features_are_the_same_bits_beside_any_others_of_any_sizes(
    antialias: bool, inception: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = [gallery(tmp_path / f"{s}", 6, seed=s, side=s) for s in (64, 400)]
    noise = [Image.open(g.image_path(p)) for g in made for p in g]
    features = InceptionFeatures(inception, layer=64, antialias=antialias, device="cpu")
    given: list[int] = []
    forward = torch.nn.Conv2d.forward

    def counted(conv: Any, x: torch.Tensor) -> torch.Tensor:
        given.append(len(x))
        return forward(conv, x)

    monkeypatch.setattr(torch.nn.Conv2d, "forward", counted)
    whole = features(noise)
    # Not one by one, though they are of two sizes
    assert set(given) == {8} and len(given) == 2 * 3
    assert torch.equal(whole[3:10], features(noise[3:10]))
    assert torch.equal(whole[7:8], features(noise[7:8]))
    assert torch.equal(whole.flip(0), features(noise[::-1]))


@pytest.mark.extra("fid")
def test_fids_name_and_protocol_say_what_it_stands_on(inception: Path, tmp_path: Path) -> None:
    metric = find_metric(f"fid:{inception}")
    assert isinstance(metric, Metric) and metric.name == "fid/inception-2048"
    assert metric.protocol["layer"] == "2048" and metric.protocol["pixels"].startswith("[0, 255]")
    assert "not antialiased" in metric.protocol["resize"]
    assert len(metric.protocol["weights_sha256"]) == 64
    other = find_metric(f"kid:inception-2048-antialias:{inception}")
    assert other.name == "kid/inception-2048-antialias"
    assert other.protocol["resize"] == "bilinear, antialiased"
    features = InceptionFeatures(inception, device="cpu")
    [image] = [Image.open(p) for p in [gallery(tmp_path / "g", 1).path / "images" / "00.png"]]
    assert features([image]).shape == (1, features.dim) == (1, 2048)


@pytest.mark.parametrize("side", [64, 400, (299, 450)])
def test_a_clean_resize_is_pillows_bicubic_without_its_rounding(side: Any) -> None:
    rng = np.random.default_rng(0)
    width, height = side if isinstance(side, tuple) else (side, side)
    # Away from 0 and 255, beyond which the filter goes
    image = Image.fromarray(rng.integers(90, 166, (height, width, 3)).astype(np.uint8))
    pixels = clean_resize(image)
    assert pixels.shape == (3, 299, 299) and pixels.dtype == np.float32
    rounded = np.asarray(image.resize((299, 299), Image.Resampling.BICUBIC), float)
    # Pillow rounds to bytes after each of its two passes
    assert np.abs(pixels - rounded.transpose(2, 0, 1)).max() < 1.5
    assert (width, height) == (299, 299) or np.abs(pixels % 1).max() > 0.3
    ends = clean_resize(Image.fromarray(np.eye(64, dtype=np.uint8) * 255))
    assert ends.min() == 0 and ends.max() <= 255


@pytest.mark.extra("fid")
def test_clean_features_differ_from_legacy_ones_by_the_resize_alone(inception: Path) -> None:
    rng = np.random.default_rng(0)
    noise = [Image.fromarray(rng.integers(0, 256, (s, s, 3)).astype(np.uint8)) for s in (299, 400)]
    clean, legacy = (InceptionFeatures(inception, clean=c, device="cpu") for c in (True, False))
    assert clean.name == "inception-2048-clean" and "bicubic" in clean.protocol["resize"]
    same, other = (legacy(noise[i : i + 1]) for i in (0, 1))
    torch.testing.assert_close(clean(noise[:1]), same, rtol=1e-4, atol=1e-6 * float(same.max()))
    assert not torch.allclose(clean(noise[1:]), other, rtol=1e-3, atol=1e-5 * float(other.max()))


def test_a_published_fid_of_few_real_images_is_refused_before_anything_is_fetched(
    no_network: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="name their folder, as in fid:published.real=FOLDER"):
        find_metric("fid:published")
    few = gallery(tmp_path / "real", 3).path / "images"
    for resize in ("clean", "legacy"):
        with pytest.raises(InputError, match="is to 30000 real images, and .* has 3:") as caught:
            find_metric(f"fid:published?real={few}&resize={resize}")
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="resize is 'dirty'; it must be one of clean, legacy"):
        find_metric(f"fid:published?real={few}&resize=dirty")


@pytest.mark.slow
@pytest.mark.extra("fid")
def test_a_published_fid_of_few_prompts_is_refused_before_a_model_is_loaded(
    inception: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = tmp_path / "real"
    real.mkdir()
    for i in range(30_000):
        (real / f"{i:06d}.jpg").touch()
    spec = f"fid:published?real={real}&resize=clean&weights={inception}"
    metric = find_metric(spec)
    assert metric.name == "fid-published/inception-2048-clean" and not metric.needs_reference
    assert metric.protocol["real_images"] == 30_000 and "bicubic" in metric.protocol["resize"]

    def loaded(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("a model was loaded")

    bomb = unsee.erase("emoji", "bomb", check=False)
    monkeypatch.setattr("unsee.drawing.Source.of", loaded)
    with pytest.raises(InputError, match="on 30000 images, and the prompts that must stay are"):
        unsee.audit("emoji", bomb, out=tmp_path / "out", metrics=[spec])
    assert not (tmp_path / "out").exists()
    few = gallery(tmp_path / "few", 3)
    with pytest.raises(InputError, match="on 30000 images, and the folder's are 3: give as many"):
        unsee.score(few.path, metrics=[spec])


@pytest.mark.parametrize(
    "maker",
    [
        pytest.param(InceptionFeatures, marks=pytest.mark.extra("fid")),
        lambda f: Lpips("squeeze", f),
    ],
)
def test_a_file_of_no_weights_is_refused(maker: Any, squeeze: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not there"):
        maker(tmp_path / "nowhere.pth")
    bad = tmp_path / "bad.pth"
    bad.write_bytes(squeeze.read_bytes()[:1000])
    with pytest.raises(InputError, match="holds no weights"):
        maker(bad)
    torch.save({"whole": torch.nn.Linear(1, 1)}, bad)
    with pytest.raises(InputError, match="holds no weights"):
        maker(bad)
    torch.save({"epoch": 3}, bad)
    with pytest.raises(InputError, match="a mapping from name to tensor was wanted"):
        maker(bad)
    torch.save({"other.weight": torch.zeros(1)}, bad)
    with pytest.raises(InputError, match=r"cannot be loaded from|holds no squeeze") as caught:
        maker(bad)
    assert "\n" not in str(caught.value)


def test_weights_that_are_not_to_be_had_are_one_line(no_network: Path) -> None:
    with pytest.raises(InputError, match="Give a local copy of torchvision's weights, as in"):
        Lpips("squeeze")


@pytest.mark.extra("fid")
def test_fids_weights_that_are_not_to_be_had_are_one_line(no_network: Path) -> None:
    with pytest.raises(InputError, match="nor fetched: .* as in fid:FILE") as caught:
        find_metric("fid")
    assert "\n" not in str(caught.value)


def test_inception_without_torch_fidelity_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torch_fidelity", None)
    with pytest.raises(InputError, match=r"pip install torch-fidelity"):
        find_metric("fid")


def test_lpips_is_torchmetrics_image_by_image(
    squeeze: Path, no_network: Path, tmp_path: Path
) -> None:
    base, erased = (gallery(tmp_path / f"{k}", 5, seed=k) for k in (0, 1))
    no_network.mkdir(parents=True)
    (no_network / "squeezenet1_1-b8a52dc0.pth").write_bytes(squeeze.read_bytes())
    values = learned_perceptual_image_patch_similarity(
        pixels(erased) / 255, pixels(base) / 255, "squeeze", reduction="none", normalize=True
    )
    assert values.std() > 0
    for metric in (Lpips("squeeze", squeeze, device="cpu"), find_metric("lpips/squeeze")):
        score = take(metric, erased, base)
        assert score.value == pytest.approx(values.mean().item(), rel=1e-5)
        assert score.n == 5 and score.interval is not None and score.value is not None
        low, high = score.interval
        assert values.min() - 1e-6 <= low < score.value < high <= values.max() + 1e-6
    assert take(metric, base, base).value == 0


def test_lpips_reads_each_network_of_torchvisions(tmp_path: Path) -> None:
    torch.manual_seed(0)
    base, erased = (gallery(tmp_path / f"{k}", 2, seed=k) for k in (0, 1))
    whole = torchvision.models.alexnet(weights=None).features
    path = tmp_path / "alex.pth"
    torch.save({f"features.{k}": v for k, v in whole.state_dict().items()}, path)
    metric = find_metric(f"lpips/alex:{path}")
    assert metric.name == "lpips/alex" and isinstance(metric, Metric)
    kept = dict(metric._model.net.named_parameters())  # type: ignore[attr-defined]
    torch.testing.assert_close(kept["slice2.3.weight"].cpu(), whole[3].weight.detach())
    assert (take(metric, erased, base).value or 0) > 0
    with pytest.raises(InputError, match="holds no squeeze of torchvision's"):
        Lpips("squeeze", path)


def test_pairs_too_small_for_the_network_are_unscored(squeeze: Path, tmp_path: Path) -> None:
    tiny = gallery(tmp_path / "a", 3, side=8)
    score = take(Lpips("squeeze", squeeze, device="cpu"), tiny, tiny)
    assert score.value is None and score.unscored == 3


@pytest.mark.extra("fid")
def test_making_a_network_leaves_the_global_generator_alone(
    squeeze: Path, inception: Path
) -> None:
    before = torch.get_rng_state()
    Lpips("squeeze", squeeze, device="cpu")
    InceptionFeatures(inception, device="cpu")
    assert torch.equal(torch.get_rng_state(), before)
