"""Options that several commands have."""

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any, get_type_hints

import typer

from ..pipelines.loading import Dtype, Loading, Offload

Model = Annotated[
    str,
    typer.Argument(
        help="A built-in model (emoji), a diffusers folder, a Hugging Face id, or a single "
        ".safetensors checkpoint with --config."
    ),
]
Erasures = Annotated[
    list[str] | None,
    typer.Option(
        "--erasure",
        "-e",
        help="An erasure: FILE, or OWNER/NAME on the hub; FILE:0.8 multiplies it by a weight; may "
        "be repeated.",
    ),
]
Where = Annotated[
    str,
    typer.Option(
        help="Use only the rows that match, e.g. 'nudity_percentage > 50 and hard == 1'."
    ),
]
Size = Annotated[
    int | None,
    typer.Option(
        min=4,
        help="How many prompts to ask, of a suite that is made for the concepts.",
        show_default="40 for each concept and 80 of what must stay",
    ),
]
BatchSize = Annotated[int, typer.Option(min=1, help="How many images to make or read at a time.")]
Guidance = Annotated[
    float | None,
    typer.Option(help="Scale of classifier-free guidance.", show_default="the model's"),
]
Seed = Annotated[int, typer.Option(min=0, help="Random seed.")]
Steps = Annotated[
    int | None, typer.Option(min=1, help="Denoising steps.", show_default="the model's")
]

Against = Annotated[
    list[str] | None,
    typer.Option(
        metavar="OTHER",
        help="What anybody made of the base: a pipeline's folder, weights of a UNet, transformer "
        "or text encoder (diffusers' names or CompVis'), a LoRA, a checkpoint.",
    ),
]
Concepts = Annotated[
    list[str] | None,
    typer.Option(help="What was erased, where no erasure says it; may be repeated."),
]
Kind = Annotated[
    str | None, typer.Option(help="What a concept of your own is: object, style, ...")
]
Suites = Annotated[
    list[str] | None,
    typer.Option(help="A suite's name or file; may be repeated.", show_default="the model's"),
]
Detectors = Annotated[
    list[str] | None,
    typer.Option(
        help="NAME, NAME:MODEL?setting=value or a YAML file; may be repeated.",
        show_default="the model's",
    ),
]
Control = Annotated[
    str | None,
    typer.Option(
        metavar="NAME=FOLDER",
        help="Images of something that the model never saw, which no attack should bring back.",
        show_default="for emoji, a wrench",
    ),
]
MaxTarget = Annotated[
    float,
    typer.Option(help="The share of images in which the target may still be recognised."),
]
AllowUnscored = Annotated[
    bool, typer.Option("--allow-unscored", help="Give a verdict even if images are unscored.")
]
NoImages = Annotated[
    bool, typer.Option("--no-images", help="Leave images out of the report's page.")
]


def _loading(
    variant: Annotated[
        str | None, typer.Option(help="Which of the model's files to read, e.g. fp16.")
    ] = None,
    config: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER",
            help="For a single checkpoint: a diffusers folder that is built alike.",
        ),
    ] = None,
    dtype: Annotated[Dtype, typer.Option(help="The type of the model's weights.")] = "float32",
    device: Annotated[
        str | None,
        typer.Option(
            help="Where the model runs, e.g. cuda:1.", show_default="the accelerator, else the CPU"
        ),
    ] = None,
    offload: Annotated[
        Offload | None,
        typer.Option(help="Keep models, or their layers, on the CPU while they do not run."),
    ] = None,
    lora: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE:WEIGHT",
            help="A LoRA of your own, put on before the erasures; may be repeated.",
        ),
    ] = None,
) -> Loading:
    """How a model is loaded."""
    return Loading(variant, config, dtype, device, offload, tuple(lora or ()))


def loads(command: Callable[..., None]) -> Callable[..., None]:
    """A command with the options of ``Loading``, which it gets as its argument ``loading``."""
    ours, theirs = inspect.signature(_loading), inspect.signature(command)
    own = [p for p in theirs.parameters.values() if p.name != "loading"]

    @functools.wraps(command)
    def with_options(**given: Any) -> None:
        options = {name: given.pop(name) for name in ours.parameters}
        command(**given, loading=_loading(**options))

    made: Any = with_options
    made.__signature__ = inspect.Signature([*own, *ours.parameters.values()])
    made.__annotations__ = {
        **get_type_hints(command, include_extras=True),
        **get_type_hints(_loading, include_extras=True),
    }
    return with_options
