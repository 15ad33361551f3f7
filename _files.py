"""Files: names that every system can hold, places that can be written to, and whole writes."""

import errno
import hashlib
import os
import re
import secrets
import shutil
import tempfile
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from ._errors import InputError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

# What Windows keeps for devices, whatever follows after a dot.
DEVICES = frozenset(
    ["CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$"]
    + [f"{port}{n}" for port in ("COM", "LPT") for n in "0123456789¹²³"]
)

LONGEST = 200
"""Bytes of a name: systems hold 255, and a file that is being written has a longer one."""

LARGEST = 4 * 2**20
"""Bytes of a file of settings, concepts or prompts."""

FREE = 32 * 2**20
"""Bytes that a disk must have left for work to begin."""


_WRITING = re.compile(r"\.(.+\.(png|webp|json|jsonl|html|rows))\.[a-z0-9_]{8}")
"""The name of a file that is being written, for as long as that takes."""


def is_file_name(name: object) -> bool:
    """Whether a text can be the stem of a file's name on every system.

    >>> [is_file_name(n) for n in ("a", "a.b", "../a", "con", "con.png", "a.", ".a", "a\\n")]
    [True, True, False, False, False, False, False, False]
    """
    return (
        isinstance(name, str)
        and name == name.strip(" ")
        and bool(name)
        and not name.startswith(".")
        and not name.endswith(".")
        and not set(name) & set('/\\:*?"<>|')
        and all(_visible(c) for c in name)
        and name.partition(".")[0].rstrip(" ").upper() not in DEVICES
        and len(name.encode("utf-8", "replace")) <= LONGEST
    )


def file_stem(names: Iterable[str]) -> str:
    """A file's name for some names, without its suffix.

    >>> [file_stem([n]) for n in ("kitchen knife", "Dr. Seuss", "St. Ives", "AC/DC", "CON")]
    ['kitchen-knife', 'Dr.-Seuss', 'St.-Ives', 'AC-DC', 'CON-']
    >>> file_stem(["cat", "dog"])
    'cat-dog'

    Raises:
        InputError: It would be longer than a file's name can be.
    """
    given = list(names)
    text = unicodedata.normalize("NFC", "-".join(given))
    text = "".join(c if _visible(c) and c not in '/\\:*?"<>|' else "-" for c in text)
    stem = re.sub(r"\s+", "-", text).strip("-. ") or "erasure"
    if stem.partition(".")[0].upper() in DEVICES:
        stem = re.sub(r"^([^.]*)", r"\1-", stem)
    if not is_file_name(stem):
        raise InputError(
            f"A file's name has at most {LONGEST} bytes, and that of {stem[:40]!r}… would have "
            f"{len(stem.encode())}: name a shorter one with -o."
        )
    return stem


def sha256_of(path: str | Path) -> str:
    """The SHA-256 of a file, of which no more than a part is in memory at a time."""
    sha = hashlib.sha256()
    with open(path, "rb") as file:
        while part := file.read(2**20):
            sha.update(part)
    return sha.hexdigest()


def write_atomically(path: Path, data: bytes | str | Callable[[], Iterable[str]]) -> None:
    """Writes a whole file or nothing: beside it first, then renamed over it.

    Args:
        path: The file.
        data: What it holds, or what gives it in parts.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                for part in data() if callable(data) else (data,):
                    file.write(part.encode() if isinstance(part, str) else part)
            try:
                os.chmod(name, 0o644)
                os.replace(name, path)
            except FileNotFoundError:
                # A run that starts in the same folder took it for half-written, and cleared it.
                if path.parent.is_dir():
                    continue
                raise
            return
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


_NO_LINKS = {errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK}
"""What a file system says that has no links, or no more of one file."""


def write_new(path: Path, text: str) -> bool:
    """Writes a whole file where there is none, and says whether there was none.

    Of several processes that do so at once, one does; on a file system without links it may be
    each of them.
    """
    while True:
        part = being_written(path)
        try:
            part.write_text(text, encoding="utf-8")
            try:
                os.link(part, path)
            except FileExistsError:
                return False
            except FileNotFoundError:
                # A run that starts in the same folder took it for half-written, and cleared it
                if path.parent.is_dir():
                    continue
                raise
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                os.replace(part, path)
            return True
        finally:
            part.unlink(missing_ok=True)


def being_written(path: Path) -> Path:
    """A name beside a file for what is to be renamed to it, which no file has."""
    while (name := path.with_name(f".{path.name}.{secrets.token_hex(4)}")).exists():
        pass
    return name


def append(path: Path, text: str) -> None:
    """Adds whole lines at a file's end; processes that do so at once take turns.

    The half of a line, which a run that was killed in the middle of it left, goes first.
    """
    with _at_the_end_of(path) as file:
        end = file.tell()
        if end and (file.seek(end - 1), file.read(1))[1] != b"\n":
            file.seek(0)
            end = file.read().rfind(b"\n") + 1
            file.truncate(end)
            file.seek(end)
        _write_all(file, text.encode())


def append_rows(path: Path, rows: bytes, size: int) -> None:
    """Adds whole rows at the end of a file of rows, as ``append`` does lines.

    Args:
        size: Bytes of each of the file's rows.
    """
    with _at_the_end_of(path) as file:
        end = file.tell() // size * size
        file.truncate(end)
        file.seek(end)
        _write_all(file, rows)


@contextmanager
def _at_the_end_of(path: Path) -> Iterator[IO[bytes]]:
    """A file that is open at its end, and no other process's meanwhile."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "r+b", buffering=0) as file:
        _wait_for(file)
        file.seek(0, os.SEEK_END)
        yield file


def _write_all(file: IO[bytes], data: bytes) -> None:
    # A write may take a part of it, on a disk that is nearly full
    left = memoryview(data)
    while left:
        left = left[file.write(left) :]


def _wait_for(file: IO[bytes]) -> None:
    """Waits until no other process has the file; it is ours until it is closed."""
    if fcntl is not None:
        with suppress(OSError):  # of a file system without locks
            fcntl.flock(file, fcntl.LOCK_EX)


class Claims:
    """Numbered pieces of work, shared out between processes by locks on one file that is there.

    A piece is ours until it is given back, the work is done, or this process ends, however it
    does. To be used as a context.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> "Claims":
        self._file = self._path.open("r+b")
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def take(self, number: int, *, wait: bool = False) -> bool:
        """Whether a piece is ours now.

        Args:
            wait: For a process that has it.
        """
        if fcntl is None:  # Windows: each process does it all
            return True
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB), 1, number)
        except OSError as error:
            # Anything else is a file system without locks
            return error.errno not in (errno.EACCES, errno.EAGAIN)
        return True

    def give_back(self, number: int) -> None:
        """Leaves a piece to others."""
        if fcntl is not None:
            with suppress(OSError):
                fcntl.lockf(self._file, fcntl.LOCK_UN, 1, number)


def is_half_written(path: Path) -> bool:
    return bool(_WRITING.fullmatch(path.name)) and path.is_file()


def clear(folder: Path) -> None:
    """Removes the files that a run that was killed left half-written in a folder."""
    for entry in folder.iterdir() if folder.is_dir() else ():
        if is_half_written(entry):
            entry.unlink(missing_ok=True)


def check_file(path: Path) -> None:
    """Makes sure that a file can be written at a place, before any work.

    Raises:
        InputError: It cannot: the place is a folder, or lies in something that is no folder or
            cannot be written to, its name is no file's, or the disk is full.
    """
    check_place(path)
    if path.is_dir():
        raise InputError(
            f"{path} is a folder: name the file to write, such as {path / 'it.safetensors'}."
        )


def check_folder(path: Path) -> None:
    """Makes sure that a folder can be made or filled at a place, before any work.

    Raises:
        InputError: As ``check_file``, or there is a file.
    """
    check_place(path)
    if path.exists() and not path.is_dir():
        raise InputError(f"{path} is a file: name a folder.")


def check_ours(out: Path, marks: Mapping[str, str], what: str) -> None:
    """Refuses to write over a file of somebody else's that has the name of one of ours.

    Args:
        marks: A file's name to what is in each of ours.
        what: What ours is.

    Raises:
        InputError: There is one.
    """
    for name, mark in marks.items():
        file = out / name
        try:
            ours = not file.exists() or mark.encode() in file.read_bytes()
        except OSError as error:
            raise InputError(f"{file} cannot be written over: {error.strerror}.") from error
        if not ours:
            raise InputError(
                f"{file} is there already and is no {what} of unsee: name another folder."
            )


def check_place(path: Path) -> None:
    """What a file and a folder have in common."""
    for name in path.parts:
        if not all(map(_visible, name)):
            raise InputError(f"{str(path)!r} has a character in it that no file's name has.")
        if name != path.anchor and len(os.fsencode(name)) > LONGEST:
            raise InputError(
                f"The name {name[:40]!r}… has {len(os.fsencode(name))} bytes, and a file's name "
                f"has at most {LONGEST}: name a shorter one."
            )
    try:
        # Of a file that is there, the folder: a new one is written beside it.
        there = path if path.is_dir() else next(p for p in path.absolute().parents if p.exists())
        if not there.is_dir():
            raise InputError(f"{path} cannot be written: {there} is a file and no folder.")
        # Tried, not asked: permissions alone know nothing of a file system that is read-only.
        with tempfile.TemporaryFile(dir=there):
            pass
        disk = shutil.disk_usage(there)
        # Some network file systems say nothing: 0 of 0.
        if disk.total and disk.free < FREE:
            raise InputError(
                f"{path} cannot be written: the disk has {disk.free / 2**20:.0f} MiB left, and "
                f"{FREE // 2**20} are wanted before work begins."
            )
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}.") from error


def read_text(path: Path) -> str:
    """A text file that somebody wrote by hand, in UTF-8.

    Raises:
        InputError: There is no such file, it is no file, not UTF-8, or larger than anybody writes.
    """
    try:
        if not path.is_file():
            what = "it is no file" if path.exists() else "there is no such file"
            raise InputError(f"{path} cannot be read: {what}.")
        if (size := path.stat().st_size) > LARGEST:
            raise InputError(
                f"{path} has {size / 2**20:.0f} MiB, and at most {LARGEST // 2**20} are read: "
                "prompts by the ten thousand go into a CSV or JSON lines."
            )
        # utf-8-sig: some editors begin their files with a byte-order mark
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not in UTF-8: {error.reason} at byte {error.start}."
        ) from error
    except InputError:
        raise
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}.") from error


def _visible(character: str) -> bool:
    """Whether it is no control character, no lone surrogate and no separator of lines."""
    return unicodedata.category(character) not in ("Cc", "Cs", "Zl", "Zp")
