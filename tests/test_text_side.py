"""What is loaded of a model is what is needed of it: its text side, in whatever files it lies."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from unsee.erasers.uce import UCE
from unsee.pipelines import load_pipeline, load_text_side, parts_of
from unsee.pipelines.load import of_text
from unsee.prompts import Concept
from unsee.tests.families import PIPELINES, build

each = pytest.mark.parametrize("name", list(PIPELINES))
_built = functools.cache(build)
CONCEPT = Concept("van gogh", "style", keep=("monet",))

# How a folder is saved, and read again
SAVED: dict[str, tuple[dict[str, Any], str | None]] = {
    "one file": ({}, None),
    "shards": ({"max_shard_size": "20KB"}, None),
    "shards of a variant": ({"max_shard_size": "20KB", "variant": "fp16"}, "fp16"),
}


@each
@pytest.mark.parametrize("how", list(SAVED))
def test_the_text_side_of_a_folder_gives_the_erasure_of_the_whole_pipeline(
    name: str, how: str, tmp_path: Path
) -> None:
    pipe, (saving, variant) = _built(name), SAVED[how]
    pipe.save_pretrained(tmp_path, **saving)
    fit: Callable[[Any], Any] = functools.partial(
        lambda pipe: UCE().fit(parts_of(pipe), [CONCEPT], seed=0)
    )
    side = load_text_side(tmp_path, variant=variant)
    parts = parts_of(side)
    assert len(list((tmp_path / parts.prefix).glob("*.safetensors"))) > ("shards" in how)
    held = {n for n, p in parts.denoiser.named_parameters() if not p.is_meta}
    layers = {n for group in parts.readers().values() for n in group.layers}
    assert {n.rpartition(".")[0] for n in held} >= layers
    # And nothing besides but what stands in front of them
    assert held == {n for n, _ in parts.denoiser.named_parameters() if of_text(parts, n)}
    assert len(held) < len(list(parts.denoiser.parameters()))
    assert side.vae is None
    # As it is read again: not every tiny tokenizer is what it was before it was saved
    ours, whole = fit(side), fit(load_pipeline(tmp_path, variant=variant, device="cpu"))
    assert ours.tensors.keys() == whole.tensors.keys()
    for key, tensor in whole.tensors.items():
        assert torch.equal(ours.tensors[key], tensor), key
