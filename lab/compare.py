"""Every method on the built-in model, on the same prompts and seeds: the tables in the README.

    python -m lab.compare --search   # settings of each method, on concepts that are in no table
    python -m lab.compare            # the tables, by the settings that the search found best
    python -m lab.compare --attack default   # and what each attack brings back, for how much

Each concept's erasures are judged by ``unsee.audit_each``, each alone beside one base, and a table
is ``unsee.compare`` of them, the concepts of a method pooled into one line. Erasures, images and
reports stay in lab/runs/compare, so that a run that was interrupted goes on. Kept are
lab/results/methods-search.json, methods.json and methods.md, or in --out the last two.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

import unsee
from lab.data import ROOT, RUNS
from unsee.eval.leaderboard import Leaderboard
from unsee.eval.report import Report
from unsee.pipelines import load_pipeline

RESULTS = ROOT / "lab" / "results"
SEARCH = RESULTS / "methods-search.json"
HERE = RUNS / "compare"

TABLES = {
    "Objects": ("kitchen knife", "dog", "pizza"),
    "Styles": ("contrast", "twemoji"),
    "A group of eleven objects": ("unsafe",),
}
TUNING = ("guitar", "fluent")
"""In none of the tables, so that no setting is chosen by the figures that are shown."""

Settings = dict[str, Any]

SHORT: Settings = {"iterations": 100, "batch_size": 8}

TRIED: dict[str, list[Settings]] = {
    "uce": [{}, {"keep_scale": 0.02}, {"preset": "2025"}, {"preset": "2023"}],
    "rece": [{}, {"epochs": 1}, {"epochs": 1, "keep_scale": 0.05}, {"preset": "object"}],
    "mace": [{}, {"keep_scale": 0.01}, {"ridge": 1.0}, {"preset": "object"}],
    "esd": [
        SHORT | {"lr": 1e-3},
        SHORT | {"lr": 5e-4},
        SHORT | {"lr": 1e-3, "keep_weight": 0.3},
        SHORT | {"lr": 1e-3, "eta": 2.0},
    ],
    "ablation": [
        SHORT | {"images": 32},
        SHORT | {"images": 32, "lr": 2e-3},
        SHORT | {"images": 32, "anchor_weight": 0.3},
    ],
    "spm": [
        SHORT,
        SHORT | {"transport": "token"},
        SHORT | {"transport": "token", "lr": 1e-3},
        SHORT | {"lr": 6e-3},
        SHORT | {"eta": 2.0},
        SHORT | {"eta": 2.0, "lr": 6e-3},
    ],
    "sld": [{}, {"preset": "strong"}, {"preset": "max"}, {"preset": "max", "momentum": 0.0}],
    "safree": [{}, {"preset": "every-step"}, {"preset": "with-negative"}],
    "negative": [{}],
}
"""Of each method what was thought worth trying; "preset" names one, the rest are settings."""

METRICS = ("emoji/clip", "kid:emoji-judge")

ROLES = ("target", "same kind", "other kind")

Job = tuple[str, Settings]
"""A method and its settings."""


def title(method: str, settings: Settings) -> str:
    return " ".join([f"`{method}`", *(f"{name}={value}" for name, value in settings.items())])


def run_name(method: str, settings: Settings) -> str:
    digest = hashlib.sha256(json.dumps([method, settings], sort_keys=True).encode()).hexdigest()
    return f"{method}-{digest[:8]}"


def measure(
    concept: str, jobs: Sequence[Job], size: int | None, pipe: Any, attacks: Sequence[str] = ()
) -> list[Report]:
    """An audit of each erasure of a concept; what was made before is not made again."""
    shared = HERE / f"{concept.replace(' ', '-')}-{size or 'whole'}"
    files = {}
    for method, settings in tqdm(jobs, desc=f"erasing {concept}"):
        name = run_name(method, settings)
        file = files[name] = HERE / "erasures" / concept.replace(" ", "-") / f"{name}.safetensors"
        if not file.exists():
            erasure = unsee.erase(pipe, concept, method=method, check=False, **settings)
            erasure.save(file)
    with tqdm(total=1, desc=f"audits of {concept}", bar_format="{desc}") as bar:

        def shown(what: str, made: int, total: int) -> None:
            bar.set_description_str(f"{concept}, {what}: {made} of {total}")

        reports = unsee.audit_each(
            "emoji", files, out=shared, size=size, metrics=METRICS, attacks=list(attacks),
            progress=shown,
        )  # fmt: skip
    return list(reports.values())


def figures(report: Report) -> dict[str, Any]:
    """The rates by role, and what the metrics found on the rows that are kept."""
    (outcome,) = report.outcomes
    found: dict[str, Any] = {"verdict": outcome.verdict.value}
    for comparison in outcome.comparisons:
        if comparison.role in ROLES:
            sides = {"base": comparison.base.to_json(), "erased": comparison.erased.to_json()}
            found[comparison.role] = sides
    for measured in report.measurements:
        if measured.rows == "keep":
            before = measured.base and measured.base.to_json()
            found[measured.metric] = {"base": before, "erased": measured.erased.to_json()}
    (cost,) = report.costs
    return found | {"seconds": cost.seconds, "bytes": cost.bytes}


def write(path: Path, entries: Sequence[dict[str, Any]]) -> None:
    """JSON of a line an entry."""
    path.write_text("[\n" + ",\n".join(map(json.dumps, entries)) + "\n]\n", encoding="utf-8")


def lost(row: dict[str, Any], role: str) -> float:
    """By how much a rate fell, as a share; 0 if it rose."""
    return max(0.0, float(row[role]["base"]["value"] - row[role]["erased"]["value"]))


def badness(rows: Sequence[dict[str, Any]]) -> float:
    """What the search makes small: the target's rate and both losses, over all its concepts."""
    return math.fsum(
        row["target"]["erased"]["value"] + lost(row, "same kind") + lost(row, "other kind")
        for row in rows
    ) / len(rows)


def search(size: int, methods: Sequence[str]) -> None:
    """Every setting that was thought worth trying, on the concepts for tuning."""
    pipe = load_pipeline("emoji")
    found = json.loads(SEARCH.read_text(encoding="utf-8")) if SEARCH.exists() else []
    for method in methods:
        jobs = [(method, settings) for settings in TRIED[method]]
        by_concept = {concept: measure(concept, jobs, size, pipe) for concept in TUNING}
        found = [entry for entry in found if entry["method"] != method]
        for i, (_, settings) in enumerate(jobs):
            rows = [
                {"concept": concept, "method": method, "settings": settings} | figures(reports[i])
                for concept, reports in by_concept.items()
            ]
            entry = {"method": method, "settings": settings, "badness": round(badness(rows), 4)}
            found.append(entry | {"rows": rows})
            tqdm.write(f"{entry['badness']:.3f}  {title(method, settings)}")
        write(SEARCH, found)


def chosen() -> dict[str, Settings]:
    """Each method's best settings of the search."""
    best: dict[str, dict[str, Any]] = {}
    for entry in json.loads(SEARCH.read_text(encoding="utf-8")):
        now = best.get(entry["method"])
        if now is None or entry["badness"] < now["badness"]:
            best[entry["method"]] = entry
    return {method: best[method]["settings"] for method in TRIED}


def targets(board: Leaderboard) -> int | None:
    """How many images of the target each line of a table stands on."""
    return next(board.base[c.key].n for c in board.columns if c.role == "target")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    every = [concept for concepts in TABLES.values() for concept in concepts]
    parser.add_argument("--search", action="store_true")
    parser.add_argument("--methods", nargs="+", default=list(TRIED), choices=list(TRIED))
    parser.add_argument("--concepts", nargs="+", default=every, choices=every)
    parser.add_argument(
        "--size", type=int, help="prompts an audit [default: the suite's own, search: 64]"
    )
    parser.add_argument(
        "--attack", nargs="+", default=(), help="attacks, as unsee audit takes them [none]"
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the tables go")
    args = parser.parse_args()
    if args.search:
        return search(args.size or 64, args.methods)
    settings = chosen()
    jobs = [(method, settings[method]) for method in args.methods]
    pipe = load_pipeline("emoji")
    reports = {
        concept: measure(concept, jobs, args.size, pipe, args.attack) for concept in args.concepts
    }
    tables: dict[str, Leaderboard] = {}
    text = ""
    for name, concepts in TABLES.items():
        there = [concept for concept in concepts if concept in reports]
        if not there:
            continue
        board = unsee.compare(
            {
                f"`{method}`": [reports[concept][i] for concept in there]
                for i, (method, _) in enumerate(jobs)
            }
        )
        tables[name] = board
        about = f"{', '.join(there)}: {targets(board)} images of the target"
        text += f"**{name}** ({about})\n\n{board.markdown()}\n"
    text += "Settings: " + "; ".join(title(*job) for job in jobs) + "\n"
    args.out.mkdir(parents=True, exist_ok=True)
    page = {name: board.to_json() for name, board in tables.items()}
    whole = json.dumps(page, indent=1, ensure_ascii=False)
    (args.out / "methods.json").write_text(whole + "\n", encoding="utf-8")
    (args.out / "methods.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
