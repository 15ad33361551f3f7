"""A description that says something else than its pipeline does is found out."""

import dataclasses
from typing import Any

import diffusers
import pytest
from torch import Tensor

from unsee._errors import InputError
from unsee.contract import check
from unsee.pipelines.architectures import FAMILIES
from unsee.pipelines.architectures.pixart_sigma import PixArtSigma
from unsee.pipelines.parts import Stream
from unsee.tests.families import build


def stream(**said: Any) -> dict[str, Any]:
    def streams(self: PixArtSigma) -> tuple[Stream, ...]:
        (found,) = PixArtSigma.streams(self)
        return (dataclasses.replace(found, **said),)

    return {"streams": streams}


def shape(self: PixArtSigma, height: int | None = None, width: int | None = None) -> Any:
    channels, rows, columns = PixArtSigma.latent_shape(self, height, width)
    return (channels, rows, 2 * columns)


def predict(self: PixArtSigma, *given: Any) -> Tensor:
    return -PixArtSigma.predict(self, *given)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "shape": ({"latent_shape": shape}, "latents are of shape"),
    "sign": ({"predict": predict}, "its prediction is what the scheduler"),
    "order": ({"empty_first": False}, "a guide that does nothing"),
    "kind": ({"flow": True}, "another noise schedule"),
    "layer": (
        {"readers_by_name": {"sequence": r"caption_projection\.linear_2"}},
        "caption_projection.linear_1 reads the text first",
    ),
    "other": (
        {"readers_by_name": {"sequence": r"proj_out"}},
        "proj_out do not read the text alone",
    ),
    "none": ({"readers_by_name": {"sequence": r"no_such"}}, "readers_by_name fits no layer"),
    "masked": ({"masked": None}, "does not change the prediction: is it hidden by a mask"),
    "causal": (stream(causal=True), "the last word changes is 0, and the stream says"),
    "start": (stream(causal=True, start=1), "from which row on"),
    "room": (stream(room=310), "word 310 of a text is not read"),
    "empty": ({"empty_is_text": False}, "empty_is_text is False, and True is found"),
}


SLOW = {"order": pytest.mark.slow}


@pytest.mark.parametrize("wrong", [pytest.param(w, marks=SLOW.get(w, ())) for w in WRONG])
def test_a_wrong_description_is_told_what_is_wrong(wrong: str) -> None:
    said, message = WRONG[wrong]
    own = type("Own" + wrong, (diffusers.PixArtSigmaPipeline,), {})
    FAMILIES.register(own.__name__)(type("Wrong", (PixArtSigma,), said))
    pipe = own(**build("pixart-sigma").components)
    pipe.set_progress_bar_config(disable=True)
    with pytest.raises(InputError, match=message):
        check(pipe)
