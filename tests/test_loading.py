"""What is no model, no device or no pipeline is one line, before anything is drawn."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import unsee
from unsee import InputError, Prompt, Suite, load_pipeline
from unsee.eval.report import Report

WRONG: list[Any] = [None, 0, 1.5, True, b"x", [], [None], {"a": 1}, object(), lambda: 0]


def refused(call: Callable[[], object], match: str) -> None:
    with pytest.raises(InputError, match=match) as error:
        call()
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


@pytest.mark.parametrize("value", WRONG, ids=lambda value: type(value).__name__)
def test_a_value_of_a_wrong_type_is_named(tiny_folder: Path, value: Any) -> None:
    refused(lambda: load_pipeline(value), "base is .*; it must be a text, or a Path")
    refused(lambda: load_pipeline(tiny_folder, value), "erasures is .*; it must be")
    refused(lambda: load_pipeline(tiny_folder, dtype=value), "dtype is .*; it must be a dtype")
    if value is not None:
        refused(lambda: load_pipeline(tiny_folder, device=value), "device is .*; it must be")
    for load in (unsee.Erasure.load, unsee.Gallery.open, Report.load):
        refused(lambda load=load: load(value), "path is .*; it must be a text, or a Path")  # type: ignore[misc]
    for call in (unsee.active, unsee.remove):
        refused(lambda call=call: call(value), "is no pipeline of diffusers")  # type: ignore[misc]


@pytest.mark.parametrize("device", ["", "gpu", "cpu:x", "meta:x", torch.device("cuda:77")])
def test_a_device_that_is_not_here_is_known_before_the_model_is_read(device: Any) -> None:
    refused(lambda: load_pipeline("no/model", device=device), "device is .* cannot be used here")


def test_the_name_of_an_erasure_is_a_text(pipe: Any) -> None:
    refused(lambda: unsee.remove(pipe, 5), "name is 5; it must be a text, or none")  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [*WRONG, "", "abc"], ids=lambda value: type(value).__name__)
def test_what_are_no_prompts_make_no_suite(value: Any) -> None:
    empty = isinstance(value, list) and not value
    refused(lambda: Suite("it", value), "has no prompts" if empty else "must be a list of Prompt")
    prompts = (Prompt("a", "a cat", 1),)
    if not isinstance(value, str):
        refused(lambda: Suite(value, prompts), "its name must be a text")


BROKEN = (b"", b"{}", b"[1]", b"{", b"null", b"\xff")
FILES = (
    "model_index.json",
    "unet/config.json",
    "vae/config.json",
    "text_encoder/config.json",
    "scheduler/scheduler_config.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer/tokenizer.json",
    "unet/diffusion_pytorch_model.safetensors",
    "text_encoder/model.safetensors",
)


@pytest.mark.parametrize("name", FILES)
def test_a_folder_whose_files_were_cut_or_edited_is_one_line_or_another_model(
    tiny_folder: Path, tmp_path: Path, name: str
) -> None:
    """Some files may say nothing, as libraries have defaults for what they lack."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    for data in BROKEN:
        (folder / name).write_bytes(data)
        try:
            load_pipeline(folder, device="cpu")
        except InputError as error:
            assert "\n" not in str(error) and "model" in str(error)
        else:
            assert data == b"{}"


def test_a_tokenizer_without_a_length_is_one_line(tiny_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_folder, tmp_path / "model")
    file = tmp_path / "model" / "tokenizer" / "tokenizer_config.json"
    settings = json.loads(file.read_text(encoding="utf-8"))
    del settings["model_max_length"]
    file.write_text(json.dumps(settings), encoding="utf-8")
    refused(lambda: load_pipeline(tmp_path / "model"), "lacks model_max_length")
