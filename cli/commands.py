"""The commands, each a thin layer over the function of its name."""

import json
import shlex
import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .._errors import InputError
from .._registry import unknown
from .._settings import hints_of, read
from ..records import Measured

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
Where = Annotated[
    str, typer.Option(help="Rows of the suite, such as 'nudity_percentage > 50 and hard == 1'.")
]
BatchSize = Annotated[int, typer.Option(min=1, help="Images at a time.")]
Guidance = Annotated[
    float | None, typer.Option(help="Scale of classifier-free guidance. [default: the model's]")
]
Steps = Annotated[int | None, typer.Option(min=1, help="Denoising steps. [default: the model's]")]

LABELS = 20
"""How many labels of a detector a table in the terminal has."""

KEPT = 20
"""How many of the phrases that a concept keeps the terminal has."""

WARNINGS = 4
"""How many of a report's warnings the terminal has."""


@app.command()
def erase(
    model: Model,
    concept: Annotated[
        list[str] | None,
        typer.Argument(help="What goes: a phrase, a known concept or a YAML file."),
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="LECO's file of prompts in their place, for esd.")
    ] = None,
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
    check: Annotated[
        bool, typer.Option(help="Look at how far the concept moved; not looking is sooner.")
    ] = True,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="The file. [default: CONCEPT.safetensors]")
    ] = None,
) -> None:
    """Erase concepts from a model, into a small file."""
    from ..eval import words
    from ..flow import erase, make_eraser, trains

    if bool(concept) == bool(prompts):
        raise InputError("Say what goes: either CONCEPT or --prompts FILE.")
    settings = _settings(method, setting or [])
    concepts: list[Any] = list(concept or [])
    if prompts:
        if method != "esd":
            raise InputError("--prompts holds settings of esd: add --method esd.")
        from ..erasers.leco import leco

        with _warnings_in_words():
            concepts, theirs = leco(prompts, kind or "object")
        settings = theirs | settings
    eraser = make_eraser(method, preset, **settings)
    named = "-".join(Path(c).stem for c in concept or [str(prompts)])
    path = out or Path(named.replace(" ", "-") + ".safetensors")
    if path.is_dir():
        raise InputError(
            f"{path} is a folder: name the file to write, such as {path}/it.safetensors."
        )
    part = path.with_name(f"{path.name}.part") if trains(eraser) else None
    if part and part.exists():
        console.print(f"Found {escape(str(part))}, of a run that was interrupted.", soft_wrap=True)
    losses: deque[float] = deque(maxlen=20)
    _hush()
    with _warnings_in_words(), _progress() as bar:

        def shown(done: float) -> None:
            loss = f"loss {sum(losses) / len(losses):.3g}" if losses else ""
            bar(f"erasing with {method}", 100 * done, 100, loss)

        erasure = erase(
            model,
            concepts,
            method=method,
            preset=preset,
            keep=keep or (),
            anchor=anchor,
            kind=kind,
            seed=seed,
            check=check,
            checkpoint=part,
            progress=shown,
            watch=losses.append,
            **settings,
        )
    erasure.save(path)
    if part:
        part.unlink(missing_ok=True)
    ranks = [t.shape[0] for name, t in erasure.tensors.items() if "lora_A" in name]
    rank = f", rank {max(ranks)}" if ranks else ""
    console.print(
        f"Erased [bold]{escape(erasure.name)}[/] from {escape(model)} with {method} in "
        f"{erasure.measured.seconds:.1f} s: [bold]{escape(str(path))}[/] "
        f"({words.bytes_(path.stat().st_size)}{rank})",
        soft_wrap=True,
    )
    for line in _effects(erasure.measured):
        console.print(escape(line), soft_wrap=True)
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
    suite: Annotated[str | None, typer.Option(help="A suite's name or file.")] = None,
    where: Where = "",
    erasure: Erasures = None,
    images: Annotated[int, typer.Option(min=1, help="Images for each --prompt.")] = 1,
    seed: Annotated[int, typer.Option(help="Of each prompt's first image.")] = 0,
    guidance: Guidance = None,
    steps: Steps = None,
    batch_size: BatchSize = 8,
) -> None:
    """Make images, with or without erasures."""
    from ..flow import generate_gallery
    from ..prompts import Prompt, Suite, find_suite

    if bool(prompt) == bool(suite):
        raise InputError("Say what to make: either --prompt TEXT or --suite FILE.")
    made = (
        find_suite(suite, where=where)
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
        str | None, typer.Option(help="A suite's name or file. [default: the model's]")
    ] = None,
    size: Annotated[int, typer.Option(min=4, help="Prompts of a suite made to measure.")] = 192,
    where: Where = "",
    detector: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME, NAME:MODEL?setting=value or a YAML file; may be repeated. "
            "[default: the model's]"
        ),
    ] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(help="NAME or NAME:ARGUMENT; may be repeated. [default: the model's]"),
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
            where=where,
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
def score(
    folder: Annotated[Path, typer.Argument(help="A folder of PNG, JPEG or WebP, or a gallery.")],
    detector: Annotated[
        list[str] | None, typer.Option(help="See 'unsee list detectors'; may be repeated.")
    ] = None,
    metric: Annotated[
        list[str] | None, typer.Option(help="See 'unsee list metrics'; may be repeated.")
    ] = None,
    table: Annotated[
        Path | None,
        typer.Option(help="CSV or JSONL: file, prompt, category, object, style, person, unsafe."),
    ] = None,
    reference: Annotated[
        Path | None, typer.Option(help="The images that distances are taken to.")
    ] = None,
    concept: Annotated[str, typer.Option(help="A label whose rate is wanted.")] = "",
    kind: Annotated[
        str, typer.Option(help="What the concept is: object, style, person, unsafe.")
    ] = "object",
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="For the scores. [default: FOLDER]")
    ] = None,
    batch_size: BatchSize = 64,
    allow_unscored: Annotated[
        bool, typer.Option("--allow-unscored", help="Exit with 0 though images are unscored.")
    ] = False,
) -> None:
    """Measure images that came from anywhere. Exits with 1 if some could not be measured."""
    from ..eval import words
    from ..flow import score

    _hush()
    with _progress() as show:
        found = score(
            folder,
            out=out,
            table=table,
            detectors=detector or (),
            metrics=metric or (),
            reference=reference,
            concept=concept,
            kind=kind,
            batch_size=batch_size,
            command=_command(),
            progress=show,
        )
    for hole in found.holes:
        console.print(f"[bold yellow]Unscored:[/] {escape(hole)}", soft_wrap=True)
    if found.answer:
        console.print(f"[bold]{escape(found.answer)}[/]", soft_wrap=True)
    lines = _figures(("measure", "value", "interval", "n"))

    def row(what: str, rate: Any) -> None:
        interval = words.interval(rate.interval())
        lines.add_row(escape(what), words.share(rate), interval, f"{rate.hits} of {rate.n}")

    for name, rate in found.right.items():
        row(f"as labelled, by {name}", rate)
    for name, rates in found.rates.items():
        for label in list(rates)[:LABELS]:
            row(f"{label} by {name}", rates[label])
        if len(rates) > LABELS:
            lines.add_row(f"{len(rates) - LABELS} other labels by {escape(name)}: in score.json")
    for name, value in found.scores.items():
        interval = words.score_interval(value)
        lines.add_row(escape(name), words.score(value), interval, str(value.n))
    console.print(lines)
    _next(f"open {shlex.quote(str((out or folder) / 'score.json'))}")
    raise typer.Exit(1 if found.holes and not allow_unscored else 0)


@app.command()
def demo(
    out: Annotated[Path, typer.Option("-o", "--out", help="The folder for it all.")] = Path(
        "runs/demo"
    ),
    size: Annotated[int, typer.Option(min=4, help="Prompts of each audit.")] = 120,
) -> None:
    """Erase an object and a style from the built-in model, and measure both."""
    from ..flow import audit, erase
    from ..pipelines import load_pipeline

    _hush()
    pipe, reports = load_pipeline("emoji"), []
    for name in ("kitchen knife", "contrast"):
        stem = name.replace(" ", "-")
        path = out / f"{stem}.safetensors"
        with _warnings_in_words(), _progress() as show:
            label = f"erasing {name}"
            erasure = erase(
                pipe,
                name,
                progress=lambda done, s=show, t=label: s(t, round(100 * done), 100),  # type: ignore[misc]
            )
            erasure.save(path)
            reports.append(
                audit(
                    pipe,
                    path,
                    out=out / stem,
                    size=size,
                    batch_size=24,
                    command=_command(),
                    progress=show,
                )
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
        "detectors": lambda: _factories("DETECTORS"),
        "metrics": lambda: _factories("METRICS"),
        "suites": _suite_names,
        "concepts": _concept_names,
        "models": _model_names,
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


def _factories(registry: str) -> list[tuple[str, str]]:
    from .. import eval
    from .._registry import described

    return described(getattr(eval, registry))


def _methods() -> list[tuple[str, str]]:
    from ..erasers import ERASERS

    found = []
    for name, method in ERASERS.items():
        about = (method.__doc__ or "").partition("\n")[0]
        found.append((name, f"{about} Presets: {', '.join(method.presets) or 'none'}."))
    return found


def _suite_names() -> list[tuple[str, str]]:
    from ..prompts import SUITES

    return [(name, (SUITES[name].__doc__ or "").partition("\n")[0]) for name in SUITES]


def _model_names() -> list[tuple[str, str]]:
    from ..pipelines import MODELS

    return [(name, "ships inside") for name in MODELS]


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
    for concept in record.concepts:
        table.add_row("concept", f"{concept.name} ({concept.kind})")
        table.add_row("phrases", ", ".join(concept.phrases))
        anchor = concept.anchor
        table.add_row("anchor", "the method's own" if anchor is None else repr(anchor))
        kept = concept.keep
        more = f" and {len(kept) - KEPT} more" if len(kept) > KEPT else ""
        table.add_row("keep", escape(", ".join(kept[:KEPT])) + more or "nothing")
    table.add_row("method", record.method)
    table.add_row("settings", json.dumps(dict(record.settings)))
    table.add_row("base", f"{record.base.name} ({record.base.pipeline})")
    for component in record.base.components.values():
        table.add_row("fingerprint", component.digest)
    table.add_row("layers", str(len(record.base.layers)))
    for line in _effects(erasure.measured) or ["not looked at"]:
        table.add_row("effect", escape(line))
    table.add_row("versions", ", ".join(f"{k} {v}" for k, v in record.versions.items()))
    console.print(table)
    base = shlex.quote(record.base.name)
    _next(f"unsee audit {base} --erasure {shlex.quote(str(path))} -o runs/{path.stem}")


def _effects(measured: Measured) -> list[str]:
    """How far each concept moved, a line each; none where nobody looked."""
    lines = []
    for name, seen in (measured.effect or {}).items():
        kept = seen.kept_moved
        rest = "" if kept is None else f"; what is kept moved by {kept:.0%}"
        lines.append(
            f"The prediction on {name} went {seen.moved:.0%} of the way to its anchor's{rest}."
        )
    return lines


def _show_gallery(path: Path) -> None:
    from ..gallery import Gallery

    gallery = Gallery.open(path)
    missing = gallery.missing()
    console.print(f"{len(gallery)} prompts, {len(missing)} of their images still to be made")
    console.print_json(json.dumps(gallery.made_by))
    _next("the command that made it, to go on" if missing else f"open {path / 'images'}")


def _print_report(report: Any) -> None:
    from ..eval import words
    from ..eval.report import accuracies, summary

    console.print(f"\n[bold]{escape(report.answer)}[/]", soft_wrap=True)
    rows = summary(report)
    table = _figures(rows[0])
    for row in rows:
        table.add_row(*(escape(value) for value in row.values()))
    console.print(table)
    for outcome in report.outcomes:
        of = f" of “{outcome.concept['name']}”" if len(report.outcomes) > 1 else ""
        if line := accuracies(outcome):
            console.print(f"{line}{escape(of)}", soft_wrap=True)
    for erasure in report.erased["erasures"]:
        took = f"{erasure['seconds']:.1f} s, " if erasure["seconds"] is not None else ""
        what = escape(f"{erasure['method']} of {erasure['name']}")
        console.print(f"{what}: {took}{words.bytes_(erasure['bytes'])}", soft_wrap=True)
    for warning in report.warnings[:WARNINGS]:
        console.print(f"[yellow]With care:[/] {escape(warning)}", soft_wrap=True)
    if (more := len(report.warnings) - WARNINGS) > 0:
        console.print(f"[dim]{more} more in the report.[/]")


def _figures(columns: Iterable[str]) -> Table:
    """A table of what was measured, its first column ``measure``; figures are never broken."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for column in columns:
        left = column == "measure"
        table.add_column(column, justify="left" if left else "right", no_wrap=not left)
    return table


def _settings(method: str, pairs: list[str]) -> dict[str, Any]:
    """NAME=VALUE pairs, each value read as the type of the method's setting."""
    from ..erasers import ERASERS

    hints = hints_of(ERASERS[method])
    settings = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals:
            raise InputError(f"--set wants NAME=VALUE, and got {pair!r}.")
        if name not in hints:
            raise unknown(f"setting of {method}", name, hints)
        settings[name] = read(name, text, hints[name])
    return settings


@contextmanager
def _progress() -> Iterator[Callable[..., None]]:
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
        TextColumn("{task.fields[note]}"),
        console=Console(stderr=True),
        transient=True,
    )
    tasks: dict[str, TaskID] = {}

    def show(what: str, done: float, total: int, note: str = "") -> None:
        if what not in tasks:
            tasks[what] = bars.add_task(what, total=total, note="")
            bars.start()
        bars.update(tasks[what], completed=done, note=note)

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


suites = typer.Typer(help="Look at a suite, and find what is wrong in one.", no_args_is_help=True)
app.add_typer(suites, name="suites")


@suites.command()
def check(
    file: Annotated[str, typer.Argument(help="YAML, CSV, TSV, Parquet, JSON lines, or hf:ID.")],
    where: Where = "",
    model: Annotated[
        str | None, typer.Option(help="Whose tokenizer cuts long prompts: a name, folder or id.")
    ] = None,
) -> None:
    """Say what is wrong with a suite, row by row. Exits with 2 if anything is."""
    from ..prompts import check_suite

    prompts, problems = check_suite(file, where=where)
    if model:
        tokenizer = _tokenizer(model)
        limit = tokenizer.model_max_length
        for prompt in prompts:
            length = len(tokenizer(prompt.prompt, verbose=False).input_ids)
            if length > limit:
                problems.append(
                    f"{prompt.id}: {model} reads {limit} tokens, and the prompt has {length}."
                )
    for problem in problems:
        console.print(problem, soft_wrap=True, markup=False, highlight=False)
    if problems:
        raise InputError(f"{file} has {len(problems)} fault{'s' if problems[1:] else ''}.")
    console.print(f"{escape(file)}: {len(prompts)} prompts, nothing wrong.", soft_wrap=True)
    _next(f"unsee suites show {shlex.quote(file)}")


def _tokenizer(model: str) -> Any:
    from transformers import CLIPTokenizer

    from ..pipelines import MODELS

    folder = MODELS[model] if model in MODELS else model
    try:
        return CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer")
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"No tokenizer could be loaded from {model!r}: {reason}") from error


@suites.command("show")
def show_suite(
    name: Annotated[str, typer.Argument(help="A suite's name or file.")],
    concept: Annotated[
        list[str] | None, typer.Option(help="What was erased; may be repeated.")
    ] = None,
    kind: Annotated[
        str | None, typer.Option(help="What a phrase of your own is: object, style, ...")
    ] = None,
    size: Annotated[int, typer.Option(min=4, help="Prompts of a suite made to measure.")] = 192,
    where: Where = "",
) -> None:
    """Count a suite's prompts by what they test, their labels and categories."""
    from collections import Counter

    from ..prompts import find_concept, find_suite

    model = "emoji" if name == "emoji" else ""
    concepts = [find_concept(c, model=model, kind=kind) for c in concept or []]
    suite = find_suite(name, concepts, size, where=where)
    console.print(f"[bold]{escape(suite.name)}[/]: {len(suite.prompts)} prompts", soft_wrap=True)
    kinds = dict.fromkeys(kind for p in suite.prompts for kind in p.labels)
    counts: dict[str, Counter[str | None]] = {
        "tests": Counter(p.tests for p in suite.prompts),
        **{kind: Counter(p.labels.get(kind) for p in suite.prompts) for kind in kinds},
        "category": Counter(p.category for p in suite.prompts),
    }
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for what, counted in counts.items():
        said = [f"{value or 'none'} {n}" for value, n in counted.most_common(20)]
        more = f", {len(counted) - 20} more" if len(counted) > 20 else ""
        table.add_row(what, escape(", ".join(said) + more))
    for what, value in suite.source.items():
        table.add_row(what, escape(value))
    console.print(table)
    _next(f"unsee audit MODEL --erasure FILE --suite {shlex.quote(name)} --detector NAME")
