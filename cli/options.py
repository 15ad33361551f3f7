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
    str, typer.Option(help="Rows of the suite, such as 'nudity_percentage > 50 and hard == 1'.")
]
Size = Annotated[
    int | None,
    typer.Option(
        min=4,
        help="Prompts of a suite made to measure. "
        "[default: 40 for each concept and 80 of what must stay]",
    ),
]
BatchSize = Annotated[int, typer.Option(min=1, help="Images at a time.")]
Guidance = Annotated[
    float | None, typer.Option(help="Scale of classifier-free guidance. [default: the model's]")
]
Steps = Annotated[int | None, typer.Option(min=1, help="Denoising steps. [default: the model's]")]
