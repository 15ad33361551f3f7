"""The commands that do something, each a thin layer over the function of its name."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from .._errors import InputError
from .._files import check_file, check_folder, check_ours, file_stem
from .._reading import plain
from .._registry import unknown
from .._settings import Count, fit, hints_of, read
from ..pipelines.loading import Loading
from ..prompts import YAML
from . import looking, runs
from .options import (
    Against,
    AllowUnscored,
    BatchSize,
    Concepts,
    Control,
    Detectors,
    Erasures,
    Guidance,
    Kind,
    MaxTarget,
    Model,
    NoImages,
    Seed,
    Size,
    Steps,
    Suites,
    Where,
    loads,
)
from .terminal import (
    audit_of,
    command,
    effects,
    hush,
    look_at,
    next_,
    print_attacks,
    print_leaderboard,
    print_plan,
    print_report,
    print_score,
    print_verified,
    progress,
    say,
    warnings_in_words,
)

if TYPE_CHECKING:
    from ..pipelines import Erasure
    from ..prompts import Concept

app = typer.Typer(
    help="Make a text-to-image model forget a concept, and prove how well it forgot.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    epilog="Every command takes --debug, which shows the traceback of an error.",
)


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        say("unsee ", version("unsee"))
        raise typer.Exit


@app.callback(help=app.info.help)
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_version, is_eager=True, help="Say which version this is."
        ),
    ] = False,
) -> None:
    """What stands before a command."""


_PROMPTS = {"esd": "leco", "spm": None}
"""The methods that read a file of prompts, and the preset of whose training it is."""


@app.command()
@loads
def erase(
    model: Model,
    concept: Annotated[
        list[str] | None,
        typer.Argument(help="What to erase: phrases, known concepts or YAML files."),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(help="A LECO or SPM prompt file instead of CONCEPT (esd and spm only)."),
    ] = None,
    method: Annotated[str, typer.Option(help="The method: see 'unsee list methods'.")] = "uce",
    preset: Annotated[
        str | None, typer.Option(help="Named settings of the method, e.g. 2025.")
    ] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="NAME=VALUE", help="One setting of the method; may be repeated."
        ),
    ] = None,
    keep: Annotated[
        list[str] | None, typer.Option(help="A phrase that must stay; may be repeated.")
    ] = None,
    anchor: Annotated[str | None, typer.Option(help="What the concept becomes.")] = None,
    kind: Annotated[
        str | None,
        typer.Option(help="What a phrase of your own is: object, style, person, unsafe."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
    check: Annotated[
        bool, typer.Option(help="Measure how far the concept moved (--no-check is faster).")
    ] = True,
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", help="The file to write.", show_default="CONCEPT.safetensors"),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace an erasure of other concepts.")
    ] = False,
    *,
    loading: Loading,
) -> None:
    """Erase concepts from a model, into a small file."""
    from ..flow import erase, find_concepts, make_eraser

    if bool(concept) == bool(prompts):
        raise InputError("Say what goes: either CONCEPT or --prompts FILE.")
    settings = _settings(method, setting or [])
    given: list[Any] = list(concept or [])
    if prompts:
        if method not in _PROMPTS:
            raise InputError(
                "--prompts holds settings of esd or spm: add --method esd, or --method spm."
            )
        from ..erasers.leco import leco

        with warnings_in_words():
            given, theirs = leco(prompts, kind or "object", method)
        settings, preset = theirs | settings, preset or _PROMPTS[method]
    eraser = make_eraser(method, preset, **settings)
    concepts = find_concepts(given, model, keep=keep or (), anchor=anchor, kind=kind)
    path = out or Path(file_stem(_stems(concept or [str(prompts)])) + ".safetensors")
    check_file(path)
    if path.exists():
        _check_replaceable(path, concepts, force)
    part = path.with_name(f"{path.name}.part") if eraser.trains else None
    if part and part.exists():
        say("Found ", str(part), ", of a run that was interrupted.")
    losses: deque[float] = deque(maxlen=20)
    hush()
    with warnings_in_words(), progress() as bar:

        def shown(done: float) -> None:
            loss = f"loss {sum(losses) / len(losses):.3g}" if losses else ""
            bar(f"erasing with {method}", 100 * done, 100, loss)

        erasure = erase(
            model,
            concepts,
            method=method,
            preset=preset,
            # They are in the concepts already; here a method refuses what it cannot honour.
            keep=keep or (),
            anchor=anchor,
            seed=seed,
            check=check,
            checkpoint=part,
            loading=loading,
            progress=shown,
            watch=losses.append,
            **settings,
        )
    erasure.save(path)
    if part:
        part.unlink(missing_ok=True)
    say(
        *("Erased ", (erasure.name, "bold"), " from ", model, " with ", method),
        *(f" in {erasure.measured.seconds:.1f} s: ", (str(path), "bold")),
        _size(erasure, path),
    )
    for line in effects(erasure.measured):
        say(line)
    next_(*audit_of(model, path, [c.kind for c in concepts]))


@app.command()
@loads
def merge(
    erasure: Annotated[
        list[str],
        typer.Argument(metavar="ERASURE...", help="Erasures of one base model: files or hub ids."),
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="The file.")],
    how: Annotated[
        Literal["joint", "sum"],
        typer.Option(
            help="Add the files up (sum), or solve a closed form such as uce again for all of "
            "their concepts together (joint), which needs the base model."
        ),
    ] = "sum",
    model: Annotated[
        str | None,
        typer.Option(help="For joint: the base model.", show_default="as the files name it"),
    ] = None,
    residual: Annotated[
        float, typer.Option(help="For sum: share of the sum that a smaller file may leave out.")
    ] = 1e-3,
    force: Annotated[
        bool, typer.Option("--force", help="Replace an erasure of other concepts.")
    ] = False,
    *,
    loading: Loading,
) -> None:
    """Merge several erasures of one model into one file."""
    from ..erasers.merge import concepts_of
    from ..flow import merge
    from ..pipelines import Erasure

    loaded = [Erasure.load(path) for path in erasure]
    check_file(out)
    if out.exists():
        _check_replaceable(out, concepts_of(loaded), force)
    hush()
    with warnings_in_words(), progress() as bar:
        merged = merge(
            loaded,
            how=how,
            model=model,
            residual=residual,
            loading=loading,
            progress=lambda done: bar("solving", 100 * done, 100, ""),
        )
    merged.save(out)
    say(
        *("Merged ", (merged.name, "bold"), f" from {len(loaded)} files: ", (str(out), "bold")),
        _size(merged, out),
    )
    for line in effects(merged.measured):
        say(line)


@app.command()
@loads
def export(
    erasure: Annotated[
        str, typer.Argument(metavar="FILE", help="An erasure: a file, or OWNER/NAME on the hub.")
    ],
    to: Annotated[
        str,
        typer.Option(
            help="diffusers, kohya or comfyui: a LoRA for that tool; pipeline: the erased model "
            "as a diffusers folder; checkpoint: as one .safetensors file."
        ),
    ],
    out: Annotated[
        Path, typer.Option("-o", "--out", metavar="PATH", help="The file or folder to write.")
    ],
    model: Annotated[
        str | None,
        typer.Option(
            metavar="BASE",
            help="The base model (for pipeline and checkpoint, and for a Stable Diffusion XL of "
            "another size).",
            show_default="as the file names it",
        ),
    ] = None,
    license: Annotated[
        str, typer.Option(help="The base model's license, for the model card of a pipeline.")
    ] = "unknown",
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
    *,
    loading: Loading,
) -> None:
    """Write an erasure as other tools read it: a LoRA, a folder or a checkpoint."""
    from ..eval import words
    from ..pipelines import Erasure
    from ..pipelines.export import TARGETS, export

    loaded = Erasure.load(erasure)
    if to not in TARGETS:
        raise unknown("place to export to", to, TARGETS)
    hush()
    with warnings_in_words():
        export(
            loaded,
            out,
            to=to,  # type: ignore[arg-type]
            model=model,
            license=license,
            loading=loading,
            force=force,
        )
    size = out.stat().st_size if out.is_file() else sum(f.stat().st_size for f in out.rglob("*"))
    say(
        *("Exported ", (loaded.name, "bold"), f" to {to}: ", (str(out), "bold")),
        f" ({words.bytes_(size)}, {len(loaded.record.base.layers)} layers)",
    )


@app.command()
@loads
def generate(
    model: Model,
    out: Annotated[Path, typer.Option("-o", "--out", help="The folder to write.")],
    prompt: Annotated[
        list[str] | None, typer.Option("--prompt", "-p", help="A prompt; may be repeated.")
    ] = None,
    suite: Annotated[str | None, typer.Option(help="A suite's name or file.")] = None,
    where: Where = "",
    erasure: Erasures = None,
    images: Annotated[
        int, typer.Option(min=1, help="How many images to make of each --prompt.")
    ] = 1,
    seed: Annotated[int, typer.Option(help="Random seed of each prompt's first image.")] = 0,
    guidance: Guidance = None,
    steps: Steps = None,
    batch_size: BatchSize = 8,
    *,
    loading: Loading,
) -> None:
    """Make images, with or without erasures."""
    from ..flow import generate_gallery
    from ..prompts import Prompt, Suite, find_suite

    if bool(prompt) == bool(suite):
        raise InputError("Say what to make: either --prompt TEXT or --suite FILE.")
    # Before the list is made, which would fill the memory
    fit("images", images * len(prompt or [1]), Count)
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
    check_folder(out)
    hush()
    with warnings_in_words(), progress() as show:
        gallery = generate_gallery(
            model,
            erasure or [],
            made,
            out,
            batch_size=batch_size,
            guidance=guidance,
            steps=steps,
            loading=loading,
            progress=show,
        )
    say(f"{len(gallery)} images: ", (str(out / "images"), "bold"))
    next_("unsee", "show", out)


@app.command()
@loads
def audit(
    model: Annotated[
        str | None, typer.Argument(help="The base, as every command takes a model.")
    ] = None,
    erasure: Erasures = None,
    against: Against = None,
    each: Annotated[
        bool,
        typer.Option("--each", help="Judge each -e and each --against alone, in a folder each."),
    ] = False,
    plan: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="FILE.yaml",
            help="A whole comparison in a file, in place of MODEL and what else says what to do.",
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Only say what it would take: images, time, disk."),
    ] = False,
    images: Annotated[
        tuple[Path, Path] | None,
        typer.Option(
            metavar="BASE ERASED",
            help="Two finished folders of images in place of MODEL: the same prompts and seeds.",
        ),
    ] = None,
    table: Annotated[
        Path | None, typer.Option(help="For --images: CSV or JSONL with prompts and labels.")
    ] = None,
    concept: Concepts = None,
    kind: Kind = None,
    out: Annotated[
        Path, typer.Option("-o", "--out", help="The folder for images and report.")
    ] = Path("runs/audit"),
    suite: Suites = None,
    size: Size = None,
    where: Where = "",
    detector: Detectors = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(help="NAME or NAME:ARGUMENT; may be repeated.", show_default="the model's"),
    ] = None,
    attack: Annotated[
        list[str] | None,
        typer.Option(
            help="An attack to try as well: NAME, NAME:PRESET, NAME?setting=value, or default "
            "(words, textual-inversion and completion); may be repeated."
        ),
    ] = None,
    control: Control = None,
    seed: Seed = 0,
    guidance: Guidance = None,
    steps: Steps = None,
    batch_size: BatchSize = 8,
    max_target: MaxTarget = 0.10,
    max_keep_loss: Annotated[
        float, typer.Option(help="The share by which the rates of what must stay may fall.")
    ] = 0.10,
    allow_unscored: AllowUnscored = False,
    no_images: NoImages = False,
    *,
    loading: Loading,
) -> None:
    """Measure what is left of the concepts. Exits with 0 if they, and only they, are gone."""
    from ..audits import audit, audit_all, audit_each, audit_images
    from ..pipelines.erasure import weighted
    from ..plans import plan_all, plan_audit, plan_each
    from ..tasks import Comparison, named_subjects

    if plan:
        said = (model, erasure, against, images, each, concept, suite, detector, metric)
        if any((*said, attack, control)):
            raise InputError(
                "--from FILE says all of it: leave out MODEL and what is to be judged."
            )
        comparison = Comparison.load(plan)
        hush()
        with warnings_in_words(), progress() as show:
            if dry_run:
                planned = plan_all(comparison, out=out, loading=loading)
            else:
                every = audit_all(
                    comparison, out=out, loading=loading, command=command(), progress=show
                )
        if dry_run:
            print_plan(planned)
            raise typer.Exit
        for name, runs in every.items():
            for what, report in runs.items():
                say((f"{name}, {what}", "bold"), f": {report.answer}")
            if len(runs) > 1:
                look_at(out / name / "compare.html", browser=True)
        raise typer.Exit(max(r.exit_code for runs in every.values() for r in runs.values()))
    common: dict[str, Any] = {
        "detectors": detector,
        "max_target": max_target,
        "max_keep_loss": max_keep_loss,
        "allow_unscored": allow_unscored,
        "images": not no_images,
        "kind": kind,
        "command": command(),
    }
    if images:
        if dry_run:
            raise InputError(
                "--images are finished: leave out --dry-run, as nothing is to be made."
            )
        given = (model, erasure, against, suite, where, size, attack, control, guidance, steps)
        if any(value not in (None, "") for value in given) or each or loading != Loading():
            raise InputError(
                "--images judges what is finished: leave out MODEL and whatever says how images "
                "are made."
            )
        if not concept or not detector:
            raise InputError(
                "Finished images say neither what was erased nor who is to look: add --concept "
                "and --detector."
            )
        common["metrics"] = metric or ()
    else:
        if model is None:
            raise InputError(
                "Say what the base is, unsee audit MODEL -e FILE; or --images BASE ERASED."
            )
        if table is not None:
            raise InputError("--table is for --images: leave it out.")
        if len(against or []) > 1 and not each:
            raise InputError("Two models cannot be judged as one: add --each.")
        common |= {
            "suite": suite,
            "size": size,
            "where": where,
            "metrics": metric or None,
            "attacks": attack or (),
            "control": control,
            "seed": seed,
            "batch_size": batch_size,
            "guidance": guidance,
            "steps": steps,
            "loading": loading,
        }
    hush()
    with warnings_in_words(), progress() as show:
        if images:
            found = audit_images(
                *images, concept or [], out=out, table=table, progress=show, **common
            )
            reports = {"": found}
        elif each:
            # Of a hub id alone nobody could tell whether it is an erasure or a model
            files = erasure or []
            named = named_subjects([*files, *(against or [])])
            subjects = {n: weighted(one) if one in files else one for n, one in named.items()}
            common["concepts"] = concept or []
            if dry_run:
                planned = plan_each(model, subjects, out=out, **common)
            else:
                reports = audit_each(model, subjects, out=out, progress=show, **common)
        else:
            common["concepts"] = concept or []
            common["against"] = against[0] if against else None
            if dry_run:
                planned = plan_audit(model, erasure or [], out=out, **common)
            else:
                reports = {"": audit(model, erasure or [], out=out, progress=show, **common)}
    if dry_run:
        print_plan(planned)
        if attack:
            say("What the attacks would take is not counted: it shows while they search.")
        raise typer.Exit
    for name, report in reports.items():
        print_report(report)
        look_at(out / name / "report.html", browser=True)
    raise typer.Exit(max(report.exit_code for report in reports.values()))


@app.command()
@loads
def attack(
    model: Annotated[str, typer.Argument(help="The base, as every command takes a model.")],
    erasure: Erasures = None,
    attack: Annotated[
        list[str] | None,
        typer.Option(
            "-a",
            "--attack",
            help="NAME, NAME:PRESET or NAME?setting=value; may be repeated.",
            show_default="words, textual-inversion and completion",
        ),
    ] = None,
    given: Annotated[
        list[Path] | None,
        typer.Option(
            "--with",
            metavar="FILE",
            help="What an attack found before, on this model or on another; may be repeated.",
        ),
    ] = None,
    against: Against = None,
    concept: Concepts = None,
    kind: Kind = None,
    out: Annotated[
        Path, typer.Option("-o", "--out", help="The folder for images and report.")
    ] = Path("runs/attack"),
    suite: Suites = None,
    size: Size = None,
    where: Where = "",
    detector: Detectors = None,
    control: Control = None,
    seed: Seed = 0,
    guidance: Guidance = None,
    steps: Steps = None,
    batch_size: BatchSize = 8,
    max_target: MaxTarget = 0.10,
    allow_unscored: AllowUnscored = False,
    no_images: NoImages = False,
    *,
    loading: Loading,
) -> None:
    """Try to bring erased concepts back. Exits with 0 if every attack was held."""
    from ..audits import attack as tried

    if len(against or []) > 1:
        raise InputError("One model is attacked at a time: name one with --against.")
    hush()
    with warnings_in_words(), progress() as show:
        report = tried(
            model,
            erasure or [],
            against=against[0] if against else None,
            attacks=[*(attack or []), *(given or [])] or "default",
            concepts=concept or [],
            kind=kind,
            out=out,
            suite=suite,
            size=size,
            where=where,
            detectors=detector,
            control=control,
            seed=seed,
            guidance=guidance,
            steps=steps,
            batch_size=batch_size,
            max_target=max_target,
            allow_unscored=allow_unscored,
            images=not no_images,
            loading=loading,
            command=command(),
            progress=show,
        )
    print_attacks(report)
    look_at(out / "report.html", browser=True)
    decide = [one.value for one in report.attacks if one.value != "probe"]
    raise typer.Exit(int(any(value != "held" for value in decide)))


@app.command()
def compare(
    run: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...",
            help="Folders of audits; or folders with several, which are pooled into one line.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", help="A folder for compare.json, .csv, .md and .html."),
    ] = None,
) -> None:
    """Put audits beside each other. Exits with 2 if they were not measured alike."""
    from ..audits import compare

    print_leaderboard(compare(run, out=out))
    if out is not None:
        look_at(out / "compare.html", browser=True)


@app.command()
@loads
def verify(
    run: Annotated[Path, typer.Argument(help="The folder of an audit.")],
    rerun: Annotated[
        int, typer.Option(min=0, help="How many images to make again, half of them the base's.")
    ] = 0,
    erasure: Annotated[
        list[str] | None,
        typer.Option(
            "--erasure",
            "-e",
            help="An erasure that was measured: FILE, or OWNER/NAME on the hub; all of them, in "
            "their order.",
        ),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(metavar="OTHER", help="What was audited, where it was no erasure."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="The base model.", show_default="as the run names it"),
    ] = None,
    no_model: Annotated[
        bool, typer.Option("--no-model", help="Do not compare the model's weights (faster).")
    ] = False,
    ask: Annotated[
        bool, typer.Option("--ask", help="Ask the detectors about every image again.")
    ] = False,
    seed: Annotated[
        int, typer.Option(help="Random seed of the choice of images to make again.")
    ] = 0,
    detector: Annotated[
        list[str] | None,
        typer.Option(help="A detector of the run that takes an argument; may be repeated."),
    ] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(help="A metric of the run that takes an argument; may be repeated."),
    ] = None,
    as_recorded: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Believe this detector's labels, or this metric's figures; may be repeated.",
        ),
    ] = None,
    *,
    loading: Loading,
) -> None:
    """Recompute an audit from its images and answers. Exits with 1 if anything differs."""
    from ..verifying import verify

    hush()
    with warnings_in_words(), progress() as show:
        found = verify(
            run,
            model=model,
            against=against,
            erasures=erasure or [],
            rerun=rerun,
            seed=seed,
            ask=ask,
            detectors=detector or (),
            metrics=metric or (),
            as_recorded=as_recorded or (),
            look_at_model=not no_model,
            loading=loading,
            progress=show,
        )
    print_verified(found)
    raise typer.Exit(found.exit_code)


@app.command()
def push(
    file: Annotated[str, typer.Argument(help="An erasure: a file, or OWNER/NAME on the hub.")],
    repo: Annotated[
        str | None,
        typer.Argument(metavar="[OWNER/NAME]", help="Where to on the Hugging Face hub."),
    ] = None,
    folder: Annotated[
        Path | None, typer.Option(help="Write what would be put on the hub into a folder instead.")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="The file's name there.", show_default="its own")
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(help="The report.json of an audit of it, whose figures the card gets."),
    ] = None,
    license: Annotated[
        str | None, typer.Option(help="A licence for the card, by its name on the hub.")
    ] = None,
    private: Annotated[
        bool, typer.Option("--private", help="Let nobody else see a new repository.")
    ] = False,
) -> None:
    """Put an erasure on the Hugging Face hub, with a card that says what it is."""
    from ..flow import push

    place = push(
        file, repo, folder=folder, name=name, report=report, license=license, private=private
    )
    say("Put ", file, " and its card at ", (place, "bold"))


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
        Path | None, typer.Option(help="The images that distances are measured to.")
    ] = None,
    concept: Annotated[str, typer.Option(help="How often this label is seen is said first.")] = "",
    kind: Annotated[
        str, typer.Option(help="What the concept is: object, style, person, unsafe.")
    ] = "object",
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", help="The folder to write.", show_default="FOLDER"),
    ] = None,
    batch_size: BatchSize = 64,
    allow_unscored: Annotated[
        bool, typer.Option("--allow-unscored", help="Exit with 0 even if images are unscored.")
    ] = False,
) -> None:
    """Measure images that came from anywhere. Exits with 1 if some could not be measured."""
    from ..flow import score

    hush()
    with warnings_in_words(), progress() as show:
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
            command=command(),
            progress=show,
        )
    print_score(found)
    next_("unsee", "show", (out or folder) / "score.json")
    raise typer.Exit(1 if found.holes and not allow_unscored else 0)


DEMO_CONCEPT = "kitchen knife"

DEMO: dict[str, dict[str, Any]] = {
    "uce": {},
    "esd": {"iterations": 100, "batch_size": 8, "lr": 0.001, "eta": 2.0},
    "sld": {"preset": "max"},
}
"""The demo's methods with the settings that ``lab.compare`` found best, on other concepts."""


@app.command()
def demo(
    out: Annotated[Path, typer.Option("-o", "--out", help="The folder to write.")] = Path(
        "runs/demo"
    ),
    size: Size = None,
) -> None:
    """Erase an object from the built-in model by three methods, and compare them."""
    from ..audits import COMPARISON, audit_each, compare
    from ..flow import find_concepts
    from ..pipelines import load_pipeline
    from ..tasks import REPORT

    (concept,) = find_concepts(DEMO_CONCEPT, "emoji")
    files = {method: out / f"{method}.safetensors" for method in DEMO}
    check_folder(out)
    check_ours(out, COMPARISON, "comparison")
    for method, path in files.items():
        check_file(path)
        if path.exists():
            _check_replaceable(path, [concept], force=False)
        check_folder(out / method)
        check_ours(out / method, REPORT, "report")
    hush()
    pipe = load_pipeline("emoji")
    with warnings_in_words(), progress() as show:
        for method, path in files.items():
            _erase_once(pipe, concept, method, DEMO[method], path, show)
        reports = audit_each(
            "emoji",
            files,
            out=out,
            size=size,
            batch_size=24,
            command=command(),
            progress=show,
        )
    board = compare(reports, out=out)
    say((f"Three methods erase “{concept.name}”, measured alike:", "bold"))
    print_leaderboard(board)
    for name, report in reports.items():
        say((name, "bold"), ": ", report.answer)
    look_at(out / "compare.html", browser=True)
    for name in reports:
        look_at(out / name / "report.html", browser=True)
    next_("unsee", "erase", "emoji", "bomb", *("--keep", "hammer"), *("--keep", "scissors"))


def _erase_once(
    pipe: Any,
    concept: "Concept",
    method: str,
    settings: dict[str, Any],
    path: Path,
    show: Callable[..., None],
) -> None:
    """Makes an erasure's file, unless it is there already, of this model and these settings."""
    from ..flow import erase, make_eraser
    from ..pipelines import Erasure

    eraser = make_eraser(method, **settings)
    if path.exists():
        there = Erasure.load(path)
        wanted = (method, plain(eraser), (concept,), 0)
        record = there.record
        if (record.method, record.settings, record.concepts, record.seed) == wanted:
            with suppress(InputError):  # of another version's model: made again
                there.check_base(pipe)
                return
    part = path.with_name(f"{path.name}.part") if eraser.trains else None
    erasure = erase(
        pipe,
        concept,
        method=method,
        checkpoint=part,
        progress=lambda done: show(f"erasing with {method}", 100 * done, 100),
        **settings,
    )
    erasure.save(path)
    if part:
        part.unlink(missing_ok=True)


def _size(erasure: "Erasure", path: Path) -> str:
    """How large an erasure is: " (0.66 MB, rank 34)"."""
    from ..eval import words

    ranks = [t.shape[0] for name, t in erasure.tensors.items() if "lora_A" in name]
    rank = f", rank {max(ranks)}" if ranks else ""
    return f" ({words.bytes_(path.stat().st_size)}{rank})"


def _settings(method: str, texts: list[str]) -> dict[str, Any]:
    """NAME=VALUE texts, each value read as the type of the method's setting."""
    from ..erasers import ERASERS

    hints = hints_of(ERASERS[method])
    settings = {}
    for given in texts:
        name, equals, value = given.partition("=")
        if not equals:
            raise InputError(f"--set wants NAME=VALUE, and got {given!r}.")
        if name not in hints:
            raise unknown(f"setting of {method}", name, hints)
        settings[name] = read(name, value, hints[name])
    return settings


def _stems(given: Sequence[str]) -> Iterator[str]:
    """What a file's name says of each concept: of a file its own name, else the phrase."""
    for name in given:
        path = Path(name)
        yield path.stem if path.suffix in (*YAML, ".toml") else name


def _check_replaceable(path: Path, concepts: "Sequence[Concept]", force: bool) -> None:
    """Makes sure that what is there may be written over: it is ours, and of the same concepts."""
    from ..pipelines import Erasure

    try:
        there = Erasure.load(path)
    except InputError as error:
        raise InputError(
            f"{path} is there already and is no erasure that could be replaced ({error}) Name "
            "another file with -o, or remove it."
        ) from error
    if there.name != "+".join(c.name for c in concepts) and not force:
        raise InputError(
            f"{path} is there already and erases {there.name!r}: name another file with -o, or "
            "add --force to replace it."
        )


app.command()(looking.show)
app.command()(runs.runs)
app.command("list")(looking.list_)
app.add_typer(looking.suites, name="suites")
