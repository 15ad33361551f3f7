"""The commands that look at what is there and change nothing: show, list, suites."""

import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .._errors import InputError
from .._reading import plain
from .._registry import unknown
from .options import Size, Where
from .terminal import (
    audit_of,
    console,
    effects,
    look_at,
    next_,
    pairs,
    print_report,
    print_score,
    say,
)

if TYPE_CHECKING:
    from ..pipelines import Erasure

KEPT = 20
"""How many of an erasure's concepts, and of the phrases that one keeps, the terminal has."""

TOUCHED = {
    "text": "the prompt",
    "embedding": "a word's embedding",
    "latents": "the latents",
    "weights": "the weights",
}
"""What an attack changes, in words."""

suites = typer.Typer(help="Look at a suite, and find what is wrong in one.", no_args_is_help=True)


def show(
    name: Annotated[
        str,
        typer.Argument(
            metavar="FILE",
            help="An erasure, here or on the hub, what an attack found, a gallery's folder, a "
            "report.json or a score.json.",
        ),
    ],
    as_json: Annotated[
        bool, typer.Option("--json", help="Print it as JSON, for another program.")
    ] = False,
) -> None:
    """Say what a file holds."""
    file = Path(name)
    if file.is_dir() and not (file / "gallery.json").is_file():
        found = [file / name for name in ("report.json", "score.json") if (file / name).is_file()]
        file = found[0] if found else file
    if as_json:
        _show_json(name, file)
    elif file.is_dir():
        _show_gallery(file)
    elif is_attacked(file):
        _show_attacked(file)
    elif file.suffix != ".json":
        _show_erasure(name)
    elif file.name == "score.json":
        from ..eval.folder import FolderScore

        score = FolderScore.load(file)
        print_score(score)
        look_at(Path(score.folder))
    else:
        from ..eval.report import Report

        print_report(Report.load(file))
        look_at(file.with_name("report.html"), browser=True)


def list_(
    what: Annotated[
        str,
        typer.Argument(help="methods, attacks, detectors, metrics, suites, concepts or models"),
    ],
) -> None:
    """List what there is by name."""
    lists: dict[str, Callable[[], list[tuple[str, str]]]] = {
        "methods": _methods,
        "attacks": _attacks,
        "detectors": lambda: _factories("DETECTORS"),
        "metrics": lambda: _factories("METRICS"),
        "suites": _suite_names,
        "concepts": _concept_names,
        "models": _model_names,
    }
    if what not in lists:
        raise unknown("list", what, lists)
    pairs(lists[what](), "bold")
    hints = {
        "methods": "unsee erase emoji bomb --method NAME",
        "attacks": "unsee attack emoji --erasure FILE --attack NAME",
        "concepts": "unsee erase emoji NAME",
        "models": "unsee erase NAME CONCEPT",
    }
    next_(*hints.get(what, "unsee audit emoji --erasure FILE -o runs/audit").split())


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


def _attacks() -> list[tuple[str, str]]:
    from ..attacks import ATTACKS

    found = []
    for name, attack in ATTACKS.items():
        about = (attack.__doc__ or "").partition("\n")[0]
        presets = f" Presets: {', '.join(attack.presets)}." if attack.presets else ""
        found.append((name, f"{about} It changes {TOUCHED[attack.touches]}.{presets}"))
    return found


def _suite_names() -> list[tuple[str, str]]:
    from ..prompts import SUITES

    return [(name, (SUITES[name].__doc__ or "").partition("\n")[0]) for name in SUITES]


def _model_names() -> list[tuple[str, str]]:
    from ..pipelines import MODELS
    from ..pipelines.architectures import FAMILIES

    families = []
    for pipeline, family in FAMILIES.items():
        text = import_module(family.__module__).__doc__ or ""
        about = text.partition("\n\n")[0].partition(".\n")[0]
        families.append((pipeline, " ".join(about.split())))
    return [*((name, "ships inside") for name in MODELS), *families]


def _concept_names() -> list[tuple[str, str]]:
    from ..prompts import CONCEPTS
    from ..prompts.emoji import world

    here = world()
    return [
        *((path.stem, "for any model") for path in sorted(CONCEPTS.glob("*.yaml"))),
        *((style, "emoji: a style") for style in here.styles),
        *((group, f"emoji: {', '.join(names)}") for group, names in here.groups.items()),
    ]


def _show_json(name: str, file: Path) -> None:
    """Prints what a file holds as one JSON value, with nothing around it."""
    page: Any
    if file.is_dir():
        from ..gallery import Gallery

        gallery = Gallery.open(file)
        missing = [prompt.id for prompt in gallery.missing()]
        page = {"made_by": plain(gallery.made_by), "prompts": len(gallery), "missing": missing}
    elif is_attacked(file):
        from ..attacks.attacked import Attacked

        attacked = Attacked.load(file)
        page = {
            "sha256": attacked.sha256,
            "record": attacked.record.to_json(),
            "seconds": attacked.seconds,
        }
    elif file.suffix != ".json":
        from ..pipelines import Erasure

        erasure = Erasure.load(name)
        page = {
            "name": erasure.name,
            "sha256": erasure.sha256,
            "record": erasure.record.to_json(),
            "measured": erasure.measured.to_json(),
            "tensors": {
                key: {"dtype": str(t.dtype).removeprefix("torch."), "shape": list(t.shape)}
                for key, t in erasure.tensors.items()
            },
        }
    elif file.name == "score.json":
        from ..eval.folder import FolderScore

        page = FolderScore.load(file).to_json()
    else:
        from ..eval.report import Report

        page = Report.load(file).to_json()
    # ASCII alone, so that nothing in it can steer the terminal
    say(json.dumps(page))


def is_attacked(file: Path) -> bool:
    """Whether a file says that it is what an attack found."""
    from ..attacks.attacked import holds_attack

    return file.suffix == ".safetensors" and holds_attack(file)


def _show_attacked(file: Path) -> None:
    from ..attacks.attacked import Attacked

    found = Attacked.load(file)
    record, spent = found.record, found.record.spent
    words = [record.text] if record.text else list(record.prompts.values())
    fitted = [name for name in record.fitted_on if name != "model"]
    pairs(
        [
            ("attack", f"{record.attack}, which changes {TOUCHED[record.touches]}"),
            ("concept", f"{record.concept.name} ({record.concept.kind})"),
            ("words", ", ".join(words[:KEPT]) or "the prompt's own"),
            ("settings", json.dumps(dict(record.settings))),
            ("fitted on", ", ".join(fitted) or "the model without an erasure"),
            (
                "budget",
                f"{spent.rows:,} denoiser rows, {spent.looks} looks, {spent.images} images",
            ),
            ("seconds", f"{found.seconds:.1f}"),
            ("sha256", found.sha256),
        ]
    )
    next_("unsee", "attack", "MODEL", "--erasure", "FILE", "--with", file)


def _show_erasure(path: str) -> None:
    from ..pipelines import Erasure

    erasure = Erasure.load(path)
    record = erasure.record
    rows: list[tuple[str, str]] = []
    for concept in record.concepts[:KEPT]:
        more = f" and {len(concept.keep) - KEPT} more" if len(concept.keep) > KEPT else ""
        rows += [
            ("concept", f"{concept.name} ({concept.kind})"),
            ("phrases", ", ".join(concept.phrases)),
            ("anchor", "the method's own" if concept.anchor is None else repr(concept.anchor)),
            ("keep", (", ".join(concept.keep[:KEPT]) or "nothing") + more),
        ]
    if (further := len(record.concepts) - KEPT) > 0:
        rows.append(("concepts", f"and {further} more"))
    rows += [
        ("method", record.method),
        ("settings", json.dumps(dict(record.settings))),
        ("base", f"{record.base.name} ({record.base.pipeline})"),
        *(("fingerprint", c.digest) for c in record.base.components.values()),
        ("layers", _layers(erasure)),
        *(("effect", line) for line in effects(erasure.measured) or ["not measured (--no-check)"]),
        ("versions", ", ".join(f"{k} {v}" for k, v in record.versions.items())),
    ]
    pairs(rows)
    next_(*audit_of(record.base.name, path, [concept.kind for concept in record.concepts]))


def _layers(erasure: "Erasure") -> str:
    """How many layers are edited, and in which components."""
    from ..pipelines.kinds.lowrank import has_biases

    base = erasure.record.base
    parts = [f"{len(part.layers)} in the {name}" for name, part in base.components.items()]
    said = f"{len(base.layers)} ({', '.join(parts)})" if len(parts) > 1 else str(len(base.layers))
    return f"{said}, with biases" if has_biases(erasure.tensors) else said


def _show_gallery(path: Path) -> None:
    from ..gallery import Gallery

    gallery = Gallery.open(path)
    missing = gallery.missing()
    say(f"{len(gallery)} prompts, {len(missing)} of their images still to be made")
    # ASCII alone, so that nothing in it can steer the terminal
    console.print_json(json.dumps(plain(gallery.made_by)))
    if missing:
        say(("Next:", "dim"), " run the command that made it again, to make the others")
    else:
        look_at(path / "images")


@suites.command()
def check(
    file: Annotated[str, typer.Argument(help="YAML, CSV, TSV, Parquet, JSON lines, or hf:ID.")],
    where: Where = "",
    model: Annotated[
        str | None,
        typer.Option(help="The model whose tokenizer cuts long prompts: a name, folder or id."),
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
        say(problem)
    if problems:
        raise InputError(f"{file} has {len(problems)} fault{'s' if problems[1:] else ''}.")
    say(f"{file}: {len(prompts)} prompts, nothing wrong.")
    next_("unsee", "suites", "show", file)


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
        list[str] | None, typer.Option(help="A concept that was erased; may be repeated.")
    ] = None,
    kind: Annotated[
        str | None, typer.Option(help="What a phrase of your own is: object, style, ...")
    ] = None,
    size: Size = None,
    where: Where = "",
) -> None:
    """Count a suite's prompts by what they test, their labels and categories."""
    from collections import Counter

    from ..prompts import find_concept, find_suite

    model = "emoji" if name == "emoji" else ""
    concepts = [find_concept(c, model=model, kind=kind) for c in concept or []]
    suite = find_suite(name, concepts, size, where=where)
    say((suite.name, "bold"), f": {len(suite.prompts)} prompts")
    kinds = dict.fromkeys(kind for p in suite.prompts for kind in p.labels)
    counts: dict[str, Counter[str | None]] = {
        "tests": Counter(p.tests for p in suite.prompts),
        **{kind: Counter(p.labels.get(kind) for p in suite.prompts) for kind in kinds},
        "category": Counter(p.category for p in suite.prompts),
    }
    rows = []
    for what, counted in counts.items():
        said = [f"{value or 'none'} {n}" for value, n in counted.most_common(20)]
        more = f", {len(counted) - 20} more" if len(counted) > 20 else ""
        rows.append((what, ", ".join(said) + more))
    pairs([*rows, *suite.source.items()])
    for note in suite.notes:
        say(("With care:", "yellow"), " ", note)
    next_("unsee", "audit", "MODEL", "--erasure", "FILE", "--suite", name, "--detector", "NAME")
