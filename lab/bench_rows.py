"""How much time, memory and room the answers and the report of many images take.

    python -m lab.bench_rows [--rows 5000 20000 100000] [--ways audit ours lines arrow sqlite]

Makes answers of six detectors, with 98 scores and 12 boxes an image in all, random and rounded as
a detector's are. Whatever is measured runs in a process of its own, and the CPU seconds are
without those of making the answers.

``audit`` is an audit's own way, of as many images, half of them the base's and half the erased
model's. The images are of 8 x 8 pixels, no two alike; how long they take to be read is said beside
the rest, and is no part of it. The memory is all that a process held at its most, its libraries
among it.

    save      answers.jsonl of both sides written, 64 images at a time
    load      and read, every line checked
    look      each image's answers looked up, and held against the detector's rule
    conclude  the figures, the verdict and the rows
    report    report.json written
    page      report.html made, without images
    reload    report.json read, every row checked

Of the other ways the answers alone are written and read. Memory is what the process held at its
most beyond what it held before.

    ours      answers.jsonl as audits write and read it, every line checked
    lines     JSON lines, a batch of 64 images written at a time so that a reader has it, and read
              back into ``Detection``s without a check
    arrow     the same in Arrow's stream, compressed by zstd
    sqlite    the same in SQLite
"""

import argparse
import hashlib
import json
import random
import resource
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from unsee.eval import Detection
from unsee.eval.answers import Answer, Answers, Side, look
from unsee.eval.audit import conclude
from unsee.eval.detectors import Box, checked, fingerprint, highest
from unsee.eval.images import read
from unsee.eval.page import render
from unsee.eval.report import Report
from unsee.eval.rows import divide
from unsee.gallery import Gallery
from unsee.prompts import Concept, Prompt

DETECTORS = {"objects": 40, "styles": 30, "scenes": 12, "people": 8, "nudity": 4, "hands": 4}
"""Detectors, and how many labels each scores: 98. The last two have six boxes each: 12."""

BATCH = 64

SIDES = ("base", "erased")


class Eye:
    """Stands for a detector that has been asked: sees the label of the highest score."""

    def __init__(self, name: str, count: int) -> None:
        self.name, self.kind = name, name.removesuffix("s")
        self.labels = tuple(f"{name} {i}" for i in range(count))
        self.protocol: Mapping[str, Any] = {"classes": list(self.labels), "threshold": "argmax"}

    def __call__(self, images: Sequence[Image.Image]) -> list[Any]:
        raise AssertionError("every answer is there")

    def follows(self, answer: Detection) -> bool:
        return highest(answer, self.labels, 1)


EYES = [Eye(name, count) for name, count in DETECTORS.items()]


def answers(rows: int, digests: Sequence[str] = (), seed: int = 0) -> Iterator[list[Answer]]:
    """A batch at a time.

    Args:
        rows: Of how many images.
        digests: The images' SHA-256; without them, some.
        seed: Of the scores.
    """
    draw = random.Random(seed)
    protocols = [fingerprint(eye.protocol) for eye in EYES]
    for start in range(0, rows, BATCH):
        batch = []
        for row in range(start, min(start + BATCH, rows)):
            digest = digests[row] if digests else hashlib.sha256(str(row).encode()).hexdigest()
            for eye, protocol in zip(EYES, protocols, strict=True):
                scores = {label: draw.random() for label in eye.labels}
                boxes = tuple(
                    Box(eye.labels[i % 4], draw.random(), (0.1, 0.2, draw.random(), 0.5))
                    for i in range(6 if len(eye.labels) == 4 else 0)
                )
                best = max(scores, key=lambda label: scores[label])
                found = checked(Detection((best,), scores, boxes))
                assert isinstance(found, Detection)
                batch.append(Answer(f"{row:06}", digest, eye.name, protocol, found))
        yield batch


def plain_row(answer: Answer) -> dict[str, Any]:
    found = answer.found
    return {
        "id": answer.id,
        "sha256": answer.sha256,
        "detector": answer.detector,
        "protocol": answer.protocol,
        "labels": list(found.labels),
        "names": list(found.scores),
        "scores": list(found.scores.values()),
        "boxes": [[b.label, b.score, *b.xywh] for b in found.boxes],
    }


def found_in(row: dict[str, Any]) -> Detection:
    boxes = tuple(Box(label, score, tuple(xywh)) for label, score, *xywh in row["boxes"])
    return Detection(
        tuple(row["labels"]), dict(zip(row["names"], row["scores"], strict=True)), boxes
    )


def lines(path: Path, rows: int, writes: bool) -> int:
    if not writes:
        with path.open("rb") as file:
            return len([found_in(json.loads(line)) for line in file])
    with path.open("ab", buffering=0) as file:
        for batch in answers(rows):
            file.write("".join(json.dumps(plain_row(a)) + "\n" for a in batch).encode())
    return 0


def arrow(path: Path, rows: int, writes: bool) -> int:
    import pyarrow as pa

    word, number = pa.string(), pa.float64()
    box = pa.struct([("label", word), ("score", number), ("xywh", pa.list_(number, 4))])
    schema = pa.schema(
        [(name, word) for name in ("id", "sha256", "detector", "protocol")]
        + [("labels", pa.list_(word)), ("names", pa.list_(word)), ("scores", pa.list_(number))]
        + [("boxes", pa.list_(box))]
    )
    if not writes:
        loaded = []
        with pa.OSFile(str(path)) as file, pa.ipc.open_stream(file) as stream:
            for batch in stream:
                for row in batch.to_pylist():
                    row["boxes"] = [(b["label"], b["score"], *b["xywh"]) for b in row["boxes"]]
                    loaded.append(found_in(row))
        return len(loaded)
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with (
        pa.OSFile(str(path), "wb") as file,
        pa.ipc.new_stream(file, schema, options=options) as to,
    ):
        for batch in answers(rows):
            some = [plain_row(a) for a in batch]
            for row in some:
                row["boxes"] = [
                    {"label": b[0], "score": b[1], "xywh": b[2:]} for b in row["boxes"]
                ]
            to.write_batch(pa.RecordBatch.from_pylist(some, schema))
            file.flush()
    return 0


def sqlite(path: Path, rows: int, writes: bool) -> int:
    columns = ("id", "sha256", "detector", "protocol", "labels", "names", "scores", "boxes")
    with sqlite3.connect(path) as file:
        if not writes:
            loaded = []
            for row in file.execute(f"SELECT {', '.join(columns)} FROM answers"):
                page = dict(zip(columns, row, strict=True))
                page |= {name: json.loads(page[name]) for name in columns[4:]}
                loaded.append(found_in(page))
            return len(loaded)
        file.execute(
            f"CREATE TABLE answers ({', '.join(columns)}, "
            "PRIMARY KEY (sha256, detector, protocol))"
        )
        for batch in answers(rows):
            some = [[plain_row(a)[name] for name in columns] for a in batch]
            values = [[*row[:4], *map(json.dumps, row[4:])] for row in some]
            file.executemany(f"INSERT INTO answers VALUES ({', '.join('?' * 8)})", values)
            file.commit()
    return 0


def ours(path: Path, rows: int, writes: bool) -> int:
    if not writes:
        held = Answers(path)
        return 6 * rows if held else 0
    held = Answers(path)
    for batch in answers(rows):
        held.add(batch)
    return 0


def made_only(rows: int) -> float:
    """CPU seconds to make the answers, which are no part of writing them."""
    start = time.process_time()
    for _ in answers(rows):
        pass
    return time.process_time() - start


WAYS = {"ours": ours, "lines": lines, "arrow": arrow, "sqlite": sqlite}


def measure(way: str, path: Path, rows: int, what: str) -> None:
    """Prints the CPU seconds and the bytes of memory of one way."""
    if way == "arrow":
        import pyarrow  # noqa: F401

    writes = what == "write"
    base = made_only(rows) if writes else 0.0
    before, start = peak(), time.process_time()
    count = WAYS[way](path, rows, writes)
    seconds = time.process_time() - start - base
    assert writes or count == rows * len(DETECTORS), count
    print(json.dumps([seconds, peak() - before]))


def peak() -> int:
    """The most bytes that this process held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


# An audit, of half as many pairs as there are images


def prompts(pairs: int) -> list[Prompt]:
    """Prompts in five seeds each, of as many objects and styles as there are labels."""
    found = []
    for i in range(pairs):
        thing, style = f"objects {i % 40}", f"styles {i // 40 % 30}"
        text = f"a picture of {thing} in {style}, number {i // 6000}"
        labels = {"object": thing, "style": style}
        found.append(Prompt(f"{i:06}", text, i, labels, category=f"part {i % 7}"))
    return found


def pictures(folder: Path, pairs: int) -> None:
    """The galleries of an audit, and no answers."""
    draw = random.Random(0)
    for side in SIDES:
        gallery = Gallery.start(folder / side, None, prompts(pairs))
        digests = []
        for prompt in gallery:
            file = gallery.image_path(prompt)
            Image.frombytes("RGB", (8, 8), draw.randbytes(192)).save(file, compress_level=0)
            digests.append(hashlib.sha256(file.read_bytes()).hexdigest())
        (folder / f"{side}.txt").write_text("\n".join(digests), encoding="utf-8")


def save(folder: Path, pairs: int) -> dict[str, float]:
    """Writes both sides' answers."""
    seconds = 0.0
    for seed, side in enumerate(SIDES):
        held = Answers(folder / side / "answers.jsonl")
        for batch in answers(
            pairs, (folder / f"{side}.txt").read_text(encoding="utf-8").split(), seed
        ):
            start = time.process_time()
            held.add(batch)
            seconds += time.process_time() - start
    return {"save": seconds}


def report(folder: Path, pairs: int) -> dict[str, float]:
    """Reads them, and writes the report and its page."""
    # Loaded at the first figure and page of any size
    import jinja2  # noqa: F401
    import scipy.stats  # noqa: F401

    phases: dict[str, float] = {}
    begun = time.process_time()

    def done(phase: str) -> None:
        nonlocal begun
        phases[phase], begun = time.process_time() - begun, time.process_time()

    base, erased = (Gallery.open(folder / side) for side in SIDES)
    done("galleries")
    before, after = (Answers(folder / side / "answers.jsonl") for side in SIDES)
    done("load")
    for gallery in (base, erased):
        for prompt in gallery:
            read(gallery, prompt)
    done("images")
    seen = look(Side(erased, EYES, (), after), Side(base, EYES, (), before))
    done("look")
    phases["look"] -= phases["images"]
    rows = divide([Concept("objects 3")], base.prompts, EYES)
    found = conclude(base, erased, seen[1], seen[0], rows, detectors=EYES)
    done("conclude")
    found.save(folder / "report.json")
    done("report")
    (folder / "report.html").write_text(
        render(found, base, erased, images=False), encoding="utf-8"
    )
    done("page")
    return phases


def reload(folder: Path, pairs: int) -> dict[str, float]:
    """Reads the report."""
    start = time.process_time()
    assert len(Report.load(folder / "report.json").samples) == pairs
    return {"reload": time.process_time() - start}


STEPS = {"save": save, "report": report, "reload": reload}

PHASES = ("save", "galleries", "load", "look", "conclude", "report", "page", "reload")


def step(name: str, folder: Path, images: int, _: str) -> None:
    """Prints the CPU seconds of an audit's step, by phase, and the most bytes that it held."""
    print(json.dumps([STEPS[name](folder, images // 2), peak()]))


def child(*given: object) -> Any:
    """What a process of its own prints."""
    done = subprocess.run(
        [sys.executable, "-m", "lab.bench_rows", "--one", *map(str, given)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def audit(rows: int) -> None:
    """Prints what an audit of as many images takes."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        pictures(folder, rows // 2)
        seconds: dict[str, float] = {}
        held = 0
        for name in STEPS:
            found, most = child(name, folder, rows, "")
            seconds |= found
            held = max(held, most)
        sizes = [
            sum((folder / side / "answers.jsonl").stat().st_size for side in SIDES),
            *((folder / name).stat().st_size for name in ("report.json", "report.html")),
        ]
        print(
            f"{rows:7} "
            + " ".join(f"{seconds[phase]:9.1f}" for phase in PHASES)
            + f" {sum(seconds[phase] for phase in PHASES):7.1f} {seconds['images']:7.1f}"
            + f" {held / 2**20:6.0f} "
            + " ".join(f"{size / 1e6:7.0f}" for size in sizes),
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rows", type=int, nargs="+", default=[5_000, 20_000, 100_000])
    parser.add_argument("--ways", nargs="+", choices=["audit", *WAYS], default=["audit", *WAYS])
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        way, path, rows, what = given.one
        (step if way in STEPS else measure)(way, Path(path), int(rows), what)
        return
    if "audit" in given.ways:
        heads = (*(f"{phase:>9}" for phase in PHASES), f"{'all s':>7}", f"{'images':>7}")
        print(" ".join((f"{'images':>7}", *heads, f"{'MiB':>6} answers  report    page, MB")))
        for rows in given.rows:
            audit(rows)
    if not (ways := [way for way in given.ways if way in WAYS]):
        return
    print(
        f"{'rows':>7} {'way':8} {'write s':>8} {'MiB':>6} {'read s':>8} {'MiB':>6} {'file MB':>8}"
    )
    for rows in given.rows:
        for way in ways:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "answers"
                (write, wrote), (again, held) = (
                    child(way, path, rows, what) for what in ("write", "read")
                )
                size = path.stat().st_size
            print(
                f"{rows:7} {way:8} {write:8.1f} {wrote / 2**20:6.0f} {again:8.1f} "
                f"{held / 2**20:6.0f} {size / 1e6:8.1f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
