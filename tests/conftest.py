"""A real Stable Diffusion pipeline, made tiny: random weights, every class diffusers' own."""

import itertools
import logging
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from unsee.cli import main
from unsee.pipelines import load_pipeline

WORDS = (
    "a an the of in by style art photo painting picture van gogh monet bomb knife hammer cat dog"
)


def make_tokenizer(length: int = 16) -> CLIPTokenizer:
    vocab = {"<|startoftext|>": 0, "<|endoftext|>": 1}
    letters = sorted(set(WORDS) - {" "})
    for token in [*letters, *(letter + "</w>" for letter in letters)]:
        vocab[token] = len(vocab)
    merges = []
    for word in WORDS.split():
        parts = [*word[:-1], word[-1] + "</w>"]
        while len(parts) > 1:
            pair = (parts[-2], parts[-1])
            parts[-2:] = ["".join(pair)]
            if pair not in merges:
                merges.append(pair)
                vocab.setdefault("".join(pair), len(vocab))
    # annotated as texts, and handed on to a BPE that takes pairs
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=length)  # type: ignore[arg-type]


def make_pipeline(seed: int = 0, text_width: int = 32) -> StableDiffusionPipeline:
    torch.manual_seed(seed)
    tokenizer = make_tokenizer()
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=text_width,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=16,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=1,
        )
    )
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=text_width,
        attention_head_dim=4,
        norm_num_groups=8,
    )
    vae = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=16,
    )
    # Random weights hardly look at the text: make it matter, so that a test of an edit can fail.
    for name, module in unet.named_modules():
        if name.endswith("attn2.to_v"):
            module.weight.data *= 20
    pipe = StableDiffusionPipeline(
        vae=vae.eval(),
        text_encoder=text.eval(),
        tokenizer=tokenizer,
        unet=unet.eval(),
        scheduler=DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            steps_offset=1,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def another() -> Callable[..., StableDiffusionPipeline]:
    """Makes a tiny model of another seed or text width."""
    return make_pipeline


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model's folder."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    make_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture
def pipe(tiny_folder: Path) -> Any:
    """The tiny model, loaded."""
    return load_pipeline(tiny_folder, device="cpu")


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., tuple[int, str, str]]:
    """Runs ``unsee`` with arguments in an empty folder: exit code, output, errors."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["unsee", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        out, err = (re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text) for text in capsys.readouterr())
        return int(end.value.code or 0), out, err

    return call


STORES = Path(tempfile.mkdtemp(prefix="unsee-tests-"))
# Of what fixtures make that several tests have
os.environ["UNSEE_STORE"] = str(STORES / "shared")
_number = itertools.count()


@pytest.fixture(autouse=True)
def store(monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store of the test's own, with nothing in it yet."""
    path = STORES / str(next(_number))
    monkeypatch.setenv("UNSEE_STORE", str(path))
    return path


def pytest_sessionfinish() -> None:
    shutil.rmtree(STORES, ignore_errors=True)


@pytest.fixture(autouse=True)
def quiet() -> None:
    logging.getLogger("diffusers").setLevel(logging.ERROR)
