"""How much time, memory and room the answers of many images take.

    python -m lab.bench_rows [--rows 5000 20000 100000]

Makes answers of six detectors, with 98 scores and 12 boxes a row in all, random and rounded as a
detector's are, and writes and reads them in several ways, each in a process of its own. Prints
the CPU seconds, without those of making the answers; the MiB that the process held at its most
beyond what it held before; and the file's size.

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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from unsee.eval import Detection
from unsee.eval.answers import Answer, Answers
from unsee.eval.detectors import Box, checked

DETECTORS = {"objects": 40, "styles": 30, "scenes": 12, "people": 8, "nudity": 4, "hands": 4}
"""Detectors, and how many labels each scores: 98. The last two have six boxes each: 12."""

BATCH = 64


def answers(rows: int) -> Iterator[list[Answer]]:
    """A batch at a time."""
    draw = random.Random(0)
    for start in range(0, rows, BATCH):
        batch = []
        for row in range(start, min(start + BATCH, rows)):
            digest = hashlib.sha256(str(row).encode()).hexdigest()
            for name, count in DETECTORS.items():
                scores = {f"{name} {i}": draw.random() for i in range(count)}
                boxes = tuple(
                    Box(f"{name} {i % 4}", draw.random(), (0.1, 0.2, draw.random(), 0.5))
                    for i in range(6 if count == 4 else 0)
                )
                found = checked(Detection((f"{name} 0",), scores, boxes))
                assert isinstance(found, Detection)
                batch.append(Answer(f"{row}", digest, name, "0" * 16, found))
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


def measure(way: str, path: Path, rows: int, writes: bool) -> None:
    """Prints the CPU seconds and the bytes of memory of one way."""
    if way == "arrow":
        import pyarrow  # noqa: F401

    base = made_only(rows) if writes else 0.0
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    count = WAYS[way](path, rows, writes)
    seconds = time.process_time() - start - base
    assert writes or count == rows * len(DETECTORS), count
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps([seconds, (after - before) * 1024]))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rows", type=int, nargs="+", default=[5_000, 20_000, 100_000])
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        way, path, rows, writes = given.one
        measure(way, Path(path), int(rows), writes == "write")
        return
    print(
        f"{'rows':>7} {'way':8} {'write s':>8} {'MiB':>6} {'read s':>8} {'MiB':>6} {'file MB':>8}"
    )
    for rows in given.rows:
        for way in given.ways:
            with tempfile.TemporaryDirectory() as folder:
                path, cells = Path(folder) / "answers", []
                for what in ("write", "read"):
                    done = subprocess.run(
                        [sys.executable, "-m", "lab.bench_rows", "--one", way, str(path)]
                        + [str(rows), what],
                        capture_output=True,
                        text=True,
                        check=True,
                    )
                    cells.append(json.loads(done.stdout))
                size = path.stat().st_size
            (write, wrote), (read, held) = cells
            print(
                f"{rows:7} {way:8} {write:8.1f} {wrote / 2**20:6.0f} {read:8.1f} "
                f"{held / 2**20:6.0f} {size / 1e6:8.1f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
