"""Every method on the built-in model, on the same prompts and seeds: the tables in the README.

    python -m lab.compare --search   # settings of each method, on concepts that are in no table
    python -m lab.compare            # the tables, by the settings that the search found best

Erasures, galleries and rows stay in lab/runs/compare, so that a run that was interrupted goes on.
Kept are lab/results/methods-search.json, methods.json and methods.md.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

import unsee
from lab.data import ROOT, RUNS
from unsee.eval import DETECTORS, METRICS, Answers, Rate, Score, compare
from unsee.eval.report import Report
from unsee.pipelines import Erasure, load_pipeline
from unsee.prompts import find_suite

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

ROLES = ("target", "same kind", "other kind")


def title(method: str, settings: Settings) -> str:
    return " ".join([f"`{method}`", *(f"{name}={value}" for name, value in settings.items())])


def measure(
    concept: str, method: str, settings: Settings, size: int | None, pipe: Any
) -> dict[str, Any]:
    """One erasure against the base; what was made of it before is not made again."""
    digest = hashlib.sha256(json.dumps([method, settings], sort_keys=True).encode()).hexdigest()
    shared = HERE / f"{concept.replace(' ', '-')}-{size or 'whole'}"
    mine = shared / f"{method}-{digest[:8]}"
    if (file := mine / "row.json").exists():
        row: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return row
    if (saved := mine / "erasure.safetensors").exists():
        erasure = Erasure.load(saved)
    else:
        erasure = unsee.erase(pipe, concept, method=method, check=False, **settings)
        mine.mkdir(parents=True, exist_ok=True)
        erasure.save(saved)
    concepts = list(erasure.record.concepts)
    suite = find_suite("emoji", concepts, size)
    base = unsee.generate_gallery(pipe, [], suite, shared / "base")
    erased = unsee.generate_gallery(pipe, [erasure], suite, mine / "gallery")
    eyes = [DETECTORS[name]() for name in ("emoji/object", "emoji/style")]
    report = compare(
        base,
        erased,
        concepts,
        detectors=eyes,
        metrics=[METRICS[name]() for name in ("emoji/clip", "frechet/emoji-judge")],
        base_answers=Answers(shared / "answers.jsonl"),
    )
    row = {"concept": concept, "method": method, "settings": settings} | figures(report)
    row |= {"seconds": erasure.measured.seconds, "bytes": saved.stat().st_size}
    file.write_text(json.dumps(row), encoding="utf-8")
    return row


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
    return found


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
    found = [entry for entry in found if entry["method"] not in methods]
    jobs = [(method, settings) for method in methods for settings in TRIED[method]]
    for method, settings in tqdm(jobs, desc="search"):
        rows = [measure(concept, method, settings, size, pipe) for concept in TUNING]
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


def pooled(rows: Iterable[dict[str, Any]], role: str, side: str) -> Rate:
    """One rate over the images of several concepts."""
    return Rate.pooled(Rate.from_json(row[role][side]) for row in rows)


def say(rate: Rate) -> str:
    interval = rate.interval()
    if rate.value is None or interval is None:
        return "unscored"
    low, high = interval
    return f"{100 * rate.value:.1f} % ({100 * low:.1f} to {100 * high:.1f})"


def mean(scores: Sequence[Score]) -> str:
    """The mean of several concepts' scores; its interval as of independent ones."""
    values = [score.value for score in scores if score.value is not None]
    if len(values) < len(scores):
        return "unscored"
    text = f"{math.fsum(values) / len(values):.1f}"
    halves = [(s.interval[1] - s.interval[0]) / 2 for s in scores if s.interval]
    if len(halves) < len(scores):
        return text
    return f"{text} ± {math.sqrt(math.fsum(h * h for h in halves)) / len(halves):.1f}"


def table(rows: Sequence[dict[str, Any]], order: Sequence[str]) -> str:
    """One line a method, over all of the table's concepts."""
    head = (
        "method", "target seen ↓", "same kind kept ↑", "other kind kept ↑", "CLIP score of what "
        "is kept ↑", "Fréchet distance ↓", "seconds ↓", "MB ↓",
    )  # fmt: skip
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]

    def line(name: str, some: Sequence[dict[str, Any]], side: str, costs: tuple[str, str]) -> str:
        rates = [say(pooled(some, role, side)) for role in ROLES]
        clip = mean([Score.from_json(row["emoji/clip"][side]) for row in some])
        distance = "–"
        if side == "erased":
            distance = mean([Score.from_json(row["frechet/emoji-judge"][side]) for row in some])
        return f"| {' | '.join((name, *rates, clip, distance, *costs))} |"

    for method in order:
        some = [row for row in rows if row["method"] == method]
        if method == order[0]:
            lines.append(line("base model", some, "base", ("–", "–")))
        seconds = math.fsum(row["seconds"] for row in some) / len(some)
        megabytes = math.fsum(row["bytes"] for row in some) / len(some) / 1e6
        costs = (f"{seconds:.1f}", f"{megabytes:.2f}" if megabytes >= 0.01 else "< 0.01")
        lines.append(line(f"`{method}`", some, "erased", costs))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--search", action="store_true")
    parser.add_argument("--methods", nargs="+", default=list(TRIED), choices=list(TRIED))
    parser.add_argument(
        "--size", type=int, help="prompts an audit [default: the suite's own, search: 64]"
    )
    args = parser.parse_args()
    if args.search:
        return search(args.size or 64, args.methods)
    settings = chosen()
    pipe = load_pipeline("emoji")
    jobs = [
        (concept, method)
        for concepts in TABLES.values()
        for concept in concepts
        for method in args.methods
    ]
    rows = [
        measure(concept, method, settings[method], args.size, pipe)
        for concept, method in tqdm(jobs, desc="compare")
    ]
    write(RESULTS / "methods.json", rows)
    text = ""
    for name, concepts in TABLES.items():
        of = [row for row in rows if row["concept"] in concepts]
        n = pooled([row for row in of if row["method"] == args.methods[0]], "target", "base").n
        about = (
            f"{', '.join(concepts)}: {n} images of the target"
            if len(concepts) > 1
            else f"{n} images"
        )
        text += f"**{name}** ({about})\n\n{table(of, args.methods)}\n\n"
    text += "Settings: " + "; ".join(title(m, settings[m]) for m in args.methods) + "\n"
    (RESULTS / "methods.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
