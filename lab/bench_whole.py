"""Whether erasing and auditing on the built-in model takes longer than it did at another commit.

    python -m lab.bench_whole COMMIT [--concept "kitchen knife"] [--size 64] [--repeats 1]

Checks the commit out into a temporary folder (git worktree) and runs `unsee erase` and
`unsee audit` of each, commands as a user types them, in turn: an audit as it is by default, which
may ask another number of images than the other commit's, and one of so many prompts on both
sides. Both run in this Python with what is installed; the least time of all repeats counts.

Prints a row for each command: images, seconds by the clock and of the processor on either side,
each in whole and an image, and the ratios of now to then. Where other programs run, the
processor's are what to go by.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lab.data import ROOT


@dataclass(frozen=True)
class Cost:
    """Of one command: by the clock, of the processor in all its threads, and its images."""

    clock: float
    processor: float
    images: int


@contextmanager
def checked_out(commit: str, folder: Path) -> Iterator[Path]:
    """A commit's files in a folder of their own; afterwards git knows nothing of it."""
    git = ["git", "-C", str(ROOT), "worktree"]
    subprocess.run([*git, "add", "--detach", str(folder), commit], check=True, capture_output=True)
    try:
        yield folder
    finally:
        subprocess.run([*git, "remove", "--force", str(folder)], check=True)


def unsee(package: Path, *arguments: str, images: Path | None = None) -> Cost:
    """Runs the command line of the package whose files lie there."""
    with tempfile.TemporaryDirectory() as home:
        # The root of the repository is the package itself.
        (Path(home) / "unsee").symlink_to(package, target_is_directory=True)
        start, before = time.perf_counter(), os.times()
        ran = subprocess.run(
            [sys.executable, "-m", "unsee", *arguments],
            env=os.environ | {"PYTHONPATH": home},
            cwd=home,
            capture_output=True,
            text=True,
        )
        clock, after = time.perf_counter() - start, os.times()
    # 1 is a verdict
    if ran.returncode not in (0, 1):
        raise SystemExit(f"unsee {' '.join(arguments)} of {package}: {ran.stderr}")
    processor = after.children_user + after.children_system
    processor -= before.children_user + before.children_system
    drawn = len(list(images.rglob("*.png"))) if images else 0
    return Cost(clock, processor, drawn)


def round_of(package: Path, concept: str, size: int, out: Path) -> dict[str, Cost]:
    """One erasure and both audits."""
    out.mkdir(parents=True)
    file, whole, same = out / "it.safetensors", out / "whole", out / "same"
    audit = ["audit", "emoji", "-e", str(file)]
    return {
        "erase": unsee(package, "erase", "emoji", concept, "-o", str(file)),
        "audit": unsee(package, *audit, "-o", str(whole), images=whole),
        f"audit --size {size}": unsee(
            package, *audit, "--size", str(size), "-o", str(same), images=same
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("commit")
    parser.add_argument("--concept", default="kitchen knife")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=1)
    arguments = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as temporary,
        checked_out(arguments.commit, Path(temporary) / "then") as then,
    ):
        packages = {"then": then, "now": ROOT}
        for package in packages.values():
            unsee(package, "list", "methods")  # read from the disk once, and compiled
        rounds = [
            {
                side: round_of(
                    package, arguments.concept, arguments.size, Path(temporary) / side / str(i)
                )
                for side, package in packages.items()
            }
            for i in range(arguments.repeats)
        ]
    for command in rounds[0]["now"]:
        row: dict[str, object] = {"command": command}
        costs = {side: [one[side][command] for one in rounds] for side in packages}
        for kind in ("clock", "processor"):
            then_s, now_s = (min(getattr(c, kind) for c in costs[side]) for side in packages)
            row |= {f"then_{kind}_s": round(then_s, 2), f"now_{kind}_s": round(now_s, 2)}
            row[f"{kind}_ratio"] = round(now_s / then_s, 3)
            images = [costs[side][0].images for side in packages]
            if all(images):
                each = [seconds / n for seconds, n in zip((then_s, now_s), images, strict=True)]
                row |= {"then_images": images[0], "now_images": images[1]}
                row[f"then_{kind}_s_an_image"] = round(each[0], 4)
                row[f"now_{kind}_s_an_image"] = round(each[1], 4)
                row[f"{kind}_ratio_an_image"] = round(each[1] / each[0], 3)
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
