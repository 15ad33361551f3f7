"""The commands, each a thin layer over the function of its name."""

import dataclasses
import json
import shlex
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .._errors import InputError
from .._registry import unknown

app = typer.Typer(
    help="Make a text-to-image model forget a concept, and prove how well it forgot.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    epilog="Every command takes --debug, which shows the traceback of an error.",
)
console = Console()

Model = Annotated[
    str, typer.Argument(help="A built-in model (emoji), a diffusers folder or a Hugging Face id.")
]
Erasures = Annotated[
    list[Path] | None, typer.Option("--erasure", "-e", help="An erasure file; may be repeated.")
]
BatchSize = Annotated[int, typer.Option(min=1, help="Images at a time.")]
Guidance = Annotated[
    float | None, typer.Option(help="Scale of classifier-free guidance. [default: the model's]")
]
Steps = Annotated[int | None, typer.Option(min=1, help="Denoising steps. [default: the model's]")]


@app.command()
def erase(
    model: Model,
    concept: Annotated[
        list[str], typer.Argument(help="What goes: a phrase, a known concept or a YAML file.")
    ],
    method: Annotated[str, typer.Option(help="See 'unsee list methods'.")] = "uce",
    preset: Annotated[
        str | None, typer.Option(help="Named settings of the method, such as 2025.")
    ] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="One setting; may be repeated."),
    ] = None,
    keep: Annotated[
        list[str] | None, typer.Option(help="What must stay; may be repeated.")
    ] = None,
    anchor: Annotated[str | None, typer.Option(help="What the concept becomes.")] = None,
    kind: Annotated[
        str | None,
        typer.Option(help="What a phrase of your own is: object, style, person, unsafe."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of every draw.")] = 0,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="The file. [default: CONCEPT.safetensors]")
    ] = None,
) -> None:
    """Erase concepts from a model, into a small file."""
    from ..flow import erase, make_eraser

    settings = _settings(method, setting or [])
    make_eraser(method, preset, **settings)
    path = out or Path("-".join(Path(c).stem for c in concept).replace(" ", "-") + ".safetensors")
    if path.is_dir():
        raise InputError(
            f"{path} is a folder: name the file to write, such as {path}/it.safetensors."
        )
    _hush()
    with _warnings_in_words(), _progress() as show:
        erasure = erase(
            model,
            concept,
            method=method,
            preset=preset,
            keep=keep or (),
            anchor=anchor,
            kind=kind,
            seed=seed,
            progress=lambda done: show(f"erasing with {method}", round(100 * done), 100),
            **settings,
        )
    erasure.save(path)
    ranks = [t.shape[0] for name, t in erasure.tensors.items() if "lora_A" in name]
    rank = f", rank {max(ranks)}" if ranks else ""
    console.print(
        f"Erased [bold]{escape(erasure.name)}[/] from {escape(model)} with {method} in "
        f"{erasure.record['seconds']:.1f} s: [bold]{escape(str(path))}[/] "
        f"({path.stat().st_size / 1e6:.2f} MB{rank})",
        soft_wrap=True,
    )
    for name, seen in erasure.record.get("effect", {}).items():
        kept = seen["kept_moved"]
        rest = "" if kept is None else f"; what is kept moved by {kept:.0%}"
        console.print(
            f"The prediction on {escape(name)} went {seen['moved']:.0%} of the way to its "
            f"anchor's{rest}.",
            soft_wrap=True,
        )
    _next(
        f"unsee audit {shlex.quote(model)} --erasure {shlex.quote(str(path))} -o runs/{path.stem}"
    )


@app.command()
def generate(
    model: Model,
    out: Annotated[Path, typer.Option("-o", "--out", help="The gallery's folder.")],
    prompt: Annotated[
        list[str] | None, typer.Option("--prompt", "-p", help="A prompt; may be repeated.")
    ] = None,
    suite: Annotated[Path | None, typer.Option(help="A suite's YAML file.")] = None,
    erasure: Erasures = None,
    images: Annotated[int, typer.Option(min=1, help="Images for each --prompt.")] = 1,
    seed: Annotated[int, typer.Option(help="Of each prompt's first image.")] = 0,
    guidance: Guidance = None,
    steps: Steps = None,
    batch_size: BatchSize = 8,
) -> None:
    """Make images, with or without erasures."""
    from ..flow import generate_gallery
    from ..prompts import Prompt, Suite

    if bool(prompt) == bool(suite):
        raise InputError("Say what to make: either --prompt TEXT or --suite FILE.")
    made = (
        Suite.load(suite)
        if suite
        else Suite(
            "prompts",
            tuple(
                Prompt(id=f"{i:03d}-{k:03d}", prompt=text, seed=seed + k)
                for i, text in enumerate(prompt or [])
                for k in range(images)
            ),
        )
    )
    _hush()
    with _progress() as show:
        gallery = generate_gallery(
            model,
            erasure or [],
            made,
            out,
            batch_size=batch_size,
            guidance=guidance,
            steps=steps,
            progress=show,
        )
    console.print(f"{len(gallery)} images: [bold]{escape(str(out / 'images'))}[/]", soft_wrap=True)
    _next(f"unsee show {shlex.quote(str(out))}")


@app.command()
def audit(
    model: Model,
    erasure: Erasures = None,
    out: Annotated[
        Path, typer.Option("-o", "--out", help="The folder for images and report.")
    ] = Path("runs/audit"),
    suite: Annotated[
        str | None, typer.Option(help="A suite's name or YAML file. [default: the model's]")
    ] = None,
    size: Annotated[int, typer.Option(min=4, help="Prompts of a suite made to measure.")] = 192,
    detector: Annotated[
        list[str] | None, typer.Option(help="May be repeated. [default: the model's]")
    ] = None,
    metric: Annotated[
        list[str] | None, typer.Option(help="May be repeated. [default: the model's]")
    ] = None,
    guidance: Guidance = None,
    steps: Steps = None,
    batch_size: BatchSize = 8,
    allow_unscored: Annotated[
        bool, typer.Option("--allow-unscored", help="Let the verdict stand with images unscored.")
    ] = False,
) -> None:
    """Measure what is left of the concepts. Exits with 0 if they, and only they, are gone."""
    from ..flow import audit

    _hush()
    with _progress() as show:
        report = audit(
            model,
            erasure or [],
            out=out,
            suite=suite,
            size=size,
            detectors=detector,
            metrics=metric,
            batch_size=batch_size,
            guidance=guidance,
            steps=steps,
            allow_unscored=allow_unscored,
            command=_command(),
            progress=show,
        )
    _print_report(report)
    _next(f"open {shlex.quote(str(out / 'report.html'))}")
    raise typer.Exit(report.exit_code)


@app.command()
def demo(
    out: Annotated[Path, typer.Option("-o", "--out", help="The folder for it all.")] = Path(
        "runs/demo"
    ),
    size: Annotated[int, typer.Option(min=4, help="Prompts of each audit.")] = 144,
) -> None:
    """Erase an object and a style from the built-in model, and measure both."""
    from ..flow import audit, erase

    _hush()
    reports = []
    for name in ("kitchen knife", "contrast"):
        stem = name.replace(" ", "-")
        path = out / f"{stem}.safetensors"
        with _warnings_in_words(), _progress() as show:
            label = f"erasing {name}"
            erasure = erase(
                "emoji",
                name,
                progress=lambda done, s=show, t=label: s(t, round(100 * done), 100),  # type: ignore[misc]
            )
            erasure.save(path)
            reports.append(
                audit("emoji", path, out=out / stem, size=size, command=_command(), progress=show)
            )
    for report in reports:
        _print_report(report)
    for name in ("kitchen knife", "contrast"):
        page = out / name.replace(" ", "-") / "report.html"
        console.print(f"Report on {name}: [bold]{escape(str(page))}[/]", soft_wrap=True)
    _next('unsee erase emoji "bomb" --keep hammer --keep scissors -o bomb.safetensors')


@app.command()
def show(
    file: Annotated[Path, typer.Argument(help="An erasure, a gallery's folder or a report.json.")],
) -> None:
    """Say what a file holds."""
    if file.is_dir() and (file / "report.json").is_file():
        file = file / "report.json"
    if file.is_dir():
        _show_gallery(file)
    elif file.suffix == ".json":
        from ..eval.report import Report

        _print_report(Report.load(file))
        _next(f"open {shlex.quote(str(file.with_name('report.html')))}")
    else:
        _show_erasure(file)


@app.command("list")
def list_(
    what: Annotated[
        str, typer.Argument(help="methods, detectors, metrics, suites, concepts or models")
    ],
) -> None:
    """List what there is by name."""
    lists: dict[str, Callable[[], list[tuple[str, str]]]] = {
        "methods": _methods,
        "detectors": lambda: _names("..eval", "DETECTORS"),
        "metrics": lambda: _names("..eval", "METRICS"),
        "suites": lambda: _names("..prompts", "SUITES"),
        "concepts": _concept_names,
        "models": lambda: _names("..pipelines", "MODELS"),
    }
    if what not in lists:
        raise unknown("list", what, lists)
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for name, about in lists[what]():
        table.add_row(f"[bold]{escape(name)}[/]", escape(about))
    console.print(table)
    hints = {
        "methods": "unsee erase emoji bomb --method NAME",
        "concepts": "unsee erase emoji NAME",
        "models": "unsee erase NAME CONCEPT",
    }
    _next(hints.get(what, "unsee audit emoji --erasure FILE -o runs/audit"))


def _names(module: str, registry: str) -> list[tuple[str, str]]:
    from importlib import import_module

    return [(name, "") for name in getattr(import_module(module, __package__), registry)]


def _methods() -> list[tuple[str, str]]:
    from ..erasers import ERASERS

    return [(name, f"presets: {', '.join(ERASERS[name].presets) or 'none'}") for name in ERASERS]


def _concept_names() -> list[tuple[str, str]]:
    from ..prompts import CONCEPTS
    from ..prompts.emoji import world

    here = world()
    return [
        *((path.stem, "for any model") for path in sorted(CONCEPTS.glob("*.yaml"))),
        *((style, "emoji: a style") for style in here.styles),
        *((group, f"emoji: {', '.join(names)}") for group, names in here.groups.items()),
    ]


def _show_erasure(path: Path) -> None:
    from ..pipelines import Erasure

    erasure = Erasure.load(path)
    record = erasure.record
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for concept in record["concepts"]:
        table.add_row("concept", f"{concept['name']} ({concept['kind']})")
        table.add_row("phrases", ", ".join(concept["phrases"]))
        table.add_row("anchor", repr(concept["anchor"] or ""))
        table.add_row("keep", ", ".join(concept["keep"]) or "nothing")
    table.add_row("method", record["method"])
    table.add_row("settings", json.dumps(record["settings"]))
    table.add_row("base", f"{record['base']['name']} ({record['base']['class']})")
    table.add_row("fingerprint", record["base"]["fingerprint"][0])
    table.add_row("layers", str(len(record["base"]["layers"])))
    table.add_row("effect", json.dumps(record.get("effect", "not looked at")))
    table.add_row("versions", ", ".join(f"{k} {v}" for k, v in record["versions"].items()))
    console.print(table)
    base = shlex.quote(record["base"]["name"])
    _next(f"unsee audit {base} --erasure {shlex.quote(str(path))} -o runs/{path.stem}")


def _show_gallery(path: Path) -> None:
    from ..gallery import Gallery

    gallery = Gallery.open(path)
    missing = gallery.missing()
    console.print(f"{len(gallery)} prompts, {len(missing)} of their images still to be made")
    console.print_json(json.dumps(gallery.made_by))
    _next("the command that made it, to go on" if missing else f"open {path / 'images'}")


def _print_report(report: Any) -> None:
    from ..eval.report import summary

    console.print(f"\n[bold]{escape(report.answer)}[/]", soft_wrap=True)
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    rows = summary(report)
    for column in rows[0]:
        table.add_column(column, justify="left" if column == "measure" else "right")
    for row in rows:
        table.add_row(*(escape(value) for value in row.values()))
    for erasure in report.erased["erasures"]:
        what = f"{erasure['method']} of {erasure['name']}"
        table.add_row(f"{what}, seconds", "", f"{erasure['seconds']:.1f}")
        table.add_row(f"{what}, MB", "", f"{erasure['bytes'] / 1e6:.2f}")
    console.print(table)


def _settings(method: str, pairs: list[str]) -> dict[str, Any]:
    """NAME=VALUE pairs, each value read as the type of the method's setting."""
    from typing import get_type_hints

    from ..erasers import ERASERS

    cls = ERASERS[method]
    hints = get_type_hints(cls)
    fields = {f.name: hints[f.name] for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    settings = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals:
            raise InputError(f"--set wants NAME=VALUE, and got {pair!r}.")
        if name not in fields:
            raise unknown(f"setting of {method}", name, fields)
        settings[name] = _value(name, text, fields[name])
    return settings


def _value(name: str, text: str, kind: Any) -> Any:
    if text == "none" and type(None) in get_args(kind):
        return None
    kinds = [k for k in get_args(kind) if k is not type(None)] or [kind]
    if get_origin(kind) is Literal:
        return text
    if kinds[0] is bool:
        if text not in ("true", "false"):
            raise InputError(f"{name} must be true or false, and is {text!r}.")
        return text == "true"
    try:
        return kinds[0](text)
    except ValueError as error:
        raise InputError(
            f"{name} must be of type {kinds[0].__name__}, and is {text!r}."
        ) from error


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar for each thing that is going on, with the time that is left."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TaskID,
        TextColumn,
        TimeRemainingColumn,
    )

    bars = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    tasks: dict[str, TaskID] = {}

    def show(what: str, done: int, total: int) -> None:
        if what not in tasks:
            tasks[what] = bars.add_task(what, total=total)
            bars.start()
        bars.update(tasks[what], completed=done)

    try:
        yield show
    finally:
        if tasks:
            bars.stop()


@contextmanager
def _warnings_in_words() -> Iterator[None]:
    """What our functions warn of, as a line of the output, after the work."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        yield
    for warning in caught:
        if warning.category is UserWarning:
            console.print(
                f"[bold yellow]Warning:[/] {escape(str(warning.message))}", soft_wrap=True
            )


def _hush() -> None:
    """Our progress bars stand for those of the libraries."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()


def _command() -> str:
    return shlex.join(["unsee", *sys.argv[1:]])


def _next(command: str) -> None:
    console.print(f"[dim]Next:[/] {escape(command)}", soft_wrap=True, highlight=False)
