"""Options that several commands have."""

from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[
    str, typer.Argument(help="A built-in model (emoji), a diffusers folder or a Hugging Face id.")
]
Erasures = Annotated[
    list[Path] | None, typer.Option("--erasure", "-e", help="An erasure file; may be repeated.")
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
Steps = Annotated[
    int | None, typer.Option(min=1, help="Denoising steps.", show_default="the model's")
]
