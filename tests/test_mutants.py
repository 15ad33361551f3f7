"""Ten thousand changed erasure files: each is refused in one line, or is what it was.

A mutant is a right file with one thing done to it, by a seeded draw: to its bytes, to the header
that safetensors reads, to its tensors, or to its record. Those whose checksum is set right again
may also be read as what they then state; applied to the base, they are refused in one line or act.
"""

import copy
import json
import random
import resource
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

import unsee
from unsee import Erasure, InputError
from unsee._reading import plain
from unsee.pipelines.erasure import checksum
from unsee.records import FORMAT
from unsee.tests.test_components import by_hand
from unsee.tests.test_forger import BROKEN, places, put, same, text

ALL = 10_000
SOME = 400
SECONDS = 2.0
GROWTH = 256 * 2**20
"""Bytes by which the process may grow over all mutants of a run."""


@dataclass(repr=False)
class File:
    """A right erasure file, taken apart."""

    data: bytes
    tensors: dict[str, Tensor]
    page: dict[str, Any]
    read: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path) -> "File":
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}
            page = json.loads(file.metadata()["unsee"])
        return cls(path.read_bytes(), tensors, page)

    @property
    def header(self) -> dict[str, Any]:
        """What safetensors reads first."""
        (length,) = struct.unpack("<Q", self.data[:8])
        found: dict[str, Any] = json.loads(self.data[8 : 8 + length])
        return found

    def with_header(self, header: Any, length: int | None = None) -> bytes:
        (old,) = struct.unpack("<Q", self.data[:8])
        said = header if isinstance(header, bytes) else text(header).encode("utf-8", "replace")
        return struct.pack("<Q", len(said) if length is None else length) + said + self.body(old)

    def body(self, length: int) -> bytes:
        return self.data[8 + length :]


def signed(tensors: dict[str, Tensor], page: dict[str, Any]) -> str:
    """The checksum of a page, in format 1 of its record alone."""
    record = page.get("record")
    if isinstance(record, dict) and record.get("format") == 1:
        return checksum(tensors, record)
    return checksum(tensors, {key: value for key, value in page.items() if key != "sha256"})


def written(tensors: dict[str, Tensor], page: dict[str, Any], sign: bool) -> bytes:
    """A file of these, its checksum that of its contents or the old one."""
    if sign:
        page = page | {"sha256": signed(tensors, page)}
    return save(tensors, {"unsee": text(page)})


# Each gives the bytes of a mutant.


def cut(file: File, draw: random.Random) -> bytes:
    return file.data[: draw.randrange(len(file.data))]


def flipped(file: File, draw: random.Random) -> bytes:
    data = bytearray(file.data)
    for _ in range(draw.choice([1, 1, 2, 8, 64])):
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    return bytes(data)


def spliced(file: File, draw: random.Random) -> bytes:
    at, to = sorted(draw.randrange(len(file.data)) for _ in range(2))
    more = draw.choice([b"", draw.randbytes(1), draw.randbytes(100), file.data[at:to] * 2])
    return file.data[:at] + more + file.data[draw.choice([at, to]) :]


def length(file: File, draw: random.Random) -> bytes:
    """The header's length is absurd."""
    wanted = [0, 1, 7, 2**31, 2**63, 2**64 - 1, len(file.data), len(file.data) - 8, 100_000_001]
    return struct.pack("<Q", draw.choice(wanted)) + file.data[8:]


ABSURD: list[Any] = [
    None, True, -1, 2**40, 2**64, 10**30, 0.5, "", "F32", "F64", "I8", "F8_E4M3", "X", [], {},
    [0], [0, 0], [-1, 4], [2**40, 2**40], [0, 2**63], [1, 2, 3], [[]], ["a"], {"": {}},
]  # fmt: skip


def headed(file: File, draw: random.Random) -> bytes:
    """The header of safetensors says another thing."""
    header = file.header
    at = draw.choice([where for where in places(header) if where])
    how = draw.randrange(5)
    if how == 0:
        return file.with_header(put(header, at, draw.choice(ABSURD)))
    if how == 1:
        first, other = (draw.choice(list(header)) for _ in range(2))
        header[first], header[other] = header[other], header[first]
        return file.with_header(header)
    if how == 2:
        old = draw.choice(list(header))
        header[draw.choice(["", "a", "__metadata__", old + ".x", "x" * 10_000])] = header.pop(old)
        return file.with_header(header)
    if how == 3:
        said = json.dumps(header)
        key = draw.choice(list(header))
        return file.with_header((said[:-1] + f', "{key}": {json.dumps(header[key])}}}').encode())
    return file.with_header(draw.choice([b"", b"{", b"[]", b"null", b"\xff" * 40, b"[" * 100_000]))


def tensors(file: File, draw: random.Random) -> bytes:
    """A tensor of another name, shape, type or value, its checksum set right or not."""
    found = dict(file.tensors) or {"unet.conv_in.lora_A.weight": torch.ones(2, 4)}
    name = draw.choice(list(found))
    tensor = found[name]
    value = draw.choice([torch.nan, torch.inf, -torch.inf])
    spot = draw.randrange(max(1, tensor.numel()))
    changes: list[Callable[[], Tensor]] = [
        lambda: tensor.flatten().index_fill(0, torch.tensor([spot]), value).view(tensor.shape),
        lambda: tensor.permute(*reversed(range(tensor.ndim))),
        lambda: tensor.flatten(),
        lambda: tensor[None],
        lambda: tensor[:0],
        lambda: tensor[..., :-1],
        lambda: torch.cat([tensor, tensor]),
        lambda: torch.tensor(1.0),
        lambda: torch.zeros(0, 0),
        lambda: tensor.to(draw.choice([torch.int8, torch.int64, torch.bool, torch.complex64])),
        lambda: tensor.to(draw.choice([torch.float8_e5m2, torch.uint8])),
        lambda: found[draw.choice(list(found))].clone(),
    ]
    how = draw.randrange(4)
    if how == 0:
        del found[name]
    elif how == 1:
        other = draw.choice(
            ["", "a", name.replace("lora_A", "lora_B"), name.replace("unet.", "transformer.")]
            + [
                name.replace(".weight", ".bias"),
                name.replace("lora_A.weight", "alpha"),
                name + "x",
            ]
        )
        found[other] = found.pop(name) if draw.random() < 0.5 else tensor.clone()
    else:
        found[name] = draw.choice(changes)()
    whole = {key: one.contiguous() for key, one in found.items()}
    return written(whole, file.page, sign=draw.random() < 0.7)


LIES: list[Any] = [*BROKEN, "lowrank", "dense", "guidance", "\0deep\0", [1, 2], [0], 2**31, 1, 2]


def lying(file: File, draw: random.Random) -> bytes:
    """A record with another thing in one place, its checksum set right."""
    page = copy.deepcopy(file.page)
    at = draw.choice([where for where in places(page) if where and where != ("sha256",)])
    here: Any = page
    for key in at[:-1]:
        here = here[key]
    how = draw.randrange(3)
    if how == 0 or not isinstance(here, dict):
        here[at[-1]] = draw.choice(LIES)
    elif how == 1:
        here[draw.choice(["", "more", "unet", "a b", "x" * 400])] = here.pop(at[-1])
    else:
        other = draw.choice(list(here))
        here[at[-1]], here[other] = here[other], here[at[-1]]
    return written(dict(file.tensors), page, sign=True)


MUTATIONS = (cut, flipped, spliced, length, headed, headed, tensors, tensors, lying, lying)


GOLDEN = Path(__file__).parent / "golden" / "erasures"
OTHERS = ("format-2/dense", "format-2/transported", "format-2/guidance", "format-1/lowrank")


@pytest.fixture(scope="module")
def files(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[File]:
    """Of every kind and both formats; the first two are for the base."""
    pipe = unsee.load_pipeline(tiny_folder, device="cpu")
    path = tmp_path_factory.mktemp("right") / "it.safetensors"
    unsee.erase(pipe, "van gogh", check=False).save(path)
    spoken = path.with_name("components.safetensors")
    by_hand(pipe, ("unet", "text_encoder"), bias=True).save(spoken)
    found = []
    for right in (path, spoken, *(GOLDEN / f"{name}.safetensors" for name in OTHERS)):
        found.append(File.open(right))
        erasure = Erasure.load(right)
        found[-1].read = {
            "record": erasure.record.to_json(),
            "measured": erasure.measured.to_json(),
        }
    return found


@pytest.fixture(scope="module")
def base(tiny_folder: Path) -> Any:
    return unsee.load_pipeline(tiny_folder, device="cpu")


def one_line(error: InputError) -> None:
    assert "\n" not in str(error) and 10 < len(str(error)) < 1500, str(error)[:2000]


def outcome(path: Path, file: File, base: Any) -> str:
    """What becomes of a mutant: refused, the same, as it states, or refused by the base.

    Anything else is an error.
    """
    try:
        found = Erasure.load(path)
    except InputError as error:
        one_line(error)
        return "refused"
    assert all(bool(torch.isfinite(tensor).all()) for tensor in found.tensors.values())
    page = {"record": found.record.to_json(), "measured": found.measured.to_json()}
    same_tensors = found.tensors.keys() == file.tensors.keys() and all(
        torch.equal(tensor, file.tensors[name]) for name, tensor in found.tensors.items()
    )
    if same_tensors and same(page, file.read):
        return "the same"
    # Its checksum is right, so somebody has written it so: it is what it states.
    stated = File.open(path)
    assert stated.page["sha256"] == signed(stated.tensors, stated.page)
    if stated.page["record"]["format"] == FORMAT:
        assert same(page["measured"], stated.page["measured"])
        # Where there are no phrases, the name stands for them.
        if all(concept["phrases"] for concept in stated.page["record"]["concepts"]):
            assert same(page["record"], stated.page["record"])
    again = path.with_name("again.safetensors")
    found.save(again)
    assert plain(Erasure.load(again).record) == plain(found.record)
    try:
        with found.applied(base):
            pass
    except InputError as error:
        one_line(error)
        return "refused by the base"
    return "as it states"


def check(seeds: Iterator[int], folder: Path, files: list[File], base: Any) -> Counter[str]:
    path, counts = folder / "it.safetensors", Counter[str]()
    edited = [*base.unet.parameters(), *base.text_encoder.parameters()]
    before = [p.detach().clone() for p in edited]
    start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    for seed in seeds:
        draw = random.Random(seed)
        file = files[seed // len(MUTATIONS) % len(files)]
        path.write_bytes(MUTATIONS[seed % len(MUTATIONS)](file, draw))
        began = time.perf_counter()
        try:
            found = outcome(path, file, base)
        except Exception as error:
            raise AssertionError(f"mutant {seed}: {type(error).__name__}: {error}") from error
        assert time.perf_counter() - began < SECONDS, f"mutant {seed} took too long"
        counts[found] += 1
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - start
    assert grown < GROWTH, f"{grown / 2**20:.0f} MiB"
    assert all(map(torch.equal, before, edited))
    return counts


def test_a_changed_file_is_refused_in_one_line_or_is_what_it_was(
    tmp_path: Path, files: list[File], base: Any
) -> None:
    counts = check(iter(range(SOME)), tmp_path, files, base)
    assert counts["refused"] > SOME * 0.8
    # Some are no mutants after all, and some lies change what no checksum can tell from the truth.
    assert counts["the same"] < SOME * 0.1


@pytest.mark.slow
def test_ten_thousand_changed_files_are_refused_in_one_line_or_are_what_they_were(
    tmp_path: Path, files: list[File], base: Any
) -> None:
    counts = check(iter(range(ALL)), tmp_path, files, base)
    assert sum(counts.values()) == ALL
    assert set(counts) == {"refused", "the same", "as it states", "refused by the base"}
    assert counts["refused"] > ALL * 0.8
