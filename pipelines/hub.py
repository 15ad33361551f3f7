"""Erasure files on the Hugging Face hub: fetched by an id, or put there with a card."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from .._errors import InputError
from ..prompts import Concept

if TYPE_CHECKING:
    from .erasure import Erasure

NAME = r"[A-Za-z0-9][\w.-]{0,95}"
ID = re.compile(rf"{NAME}/{NAME}(/.+\.safetensors)?")


def is_id(text: str) -> bool:
    """Whether a text is the id of a repository, or of a file in one: neither is a file here.

    >>> is_id("ada/van-gogh"), is_id("ada/erasures/van-gogh.safetensors"), is_id("a.safetensors")
    (True, True, False)
    """
    parts = PurePosixPath(text).parts
    return bool(
        ID.fullmatch(text)
        and not (len(parts) == 2 and text.endswith(".safetensors"))
        # As runs/demo/bomb.safetensors that was never written
        and not Path(parts[0]).exists()
        and not Path(text).exists()
    )


def file_of(given: str | Path) -> Path:
    """The file of an erasure, fetched from the hub where it is an id.

    Raises:
        InputError: There is no such file, here or there, or the hub cannot be reached.
    """
    path = Path(given)
    if path.is_file():
        return path
    if not isinstance(given, str) or not is_id(given):
        raise InputError(f"{path} is not there: wanted an erasure file (.safetensors).")
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    owner, name, *rest = given.split("/")
    repo, file = f"{owner}/{name}", "/".join(rest)
    api = HfApi()
    try:
        return Path(api.hf_hub_download(repo, file or _only_file(repo)))
    except LocalEntryNotFoundError as error:
        why = (
            "HF_HUB_OFFLINE is set and it is not in the cache: unset it, or name a file"
            if constants.HF_HUB_OFFLINE
            else "the hub cannot be reached and it is not in the cache: name a file, or try again"
        )
        raise InputError(f"{given} is no file here, and on the hub {why}.") from error
    except (HfHubHTTPError, OSError) as error:
        said = " ".join(str(error).split())
        raise InputError(f"{given} is no file here, and the hub says: {said}") from error


def _only_file(repo: str) -> str:
    """The one erasure of a repository.

    Raises:
        InputError: It has none, or several.
        LocalEntryNotFoundError: The hub cannot be reached, and it is not in the cache.
    """
    from huggingface_hub import HfApi, constants

    api = HfApi()
    if constants.HF_HUB_OFFLINE:
        folder = Path(api.snapshot_download(repo, local_files_only=True))
        names = [path.relative_to(folder).as_posix() for path in folder.rglob("*")]
    else:
        names = api.list_repo_files(repo)
    found = sorted(name for name in names if name.endswith(".safetensors"))
    if len(found) != 1:
        there = f"{len(found)} .safetensors files" if found else "no .safetensors file"
        like = found[0] if found else "FILE.safetensors"
        raise InputError(f"{repo} on the hub has {there}: name one, as in {repo}/{like}.")
    return found[0]


@dataclass(frozen=True)
class Audited:
    """What an audit says of an erasure, for its card.

    Attributes:
        answer: The verdict in words.
        rows: The chief figures: ``measure``, ``base``, ``erased``, ``interval`` and ``n`` each.
        sha256: Of the report's file.
        suite: Which prompts, in words.
    """

    answer: str
    rows: Sequence[Mapping[str, str]]
    sha256: str
    suite: str


def file_card(
    erasure: "Erasure", file: str, *, license: str | None = None, audited: Audited | None = None
) -> str:
    """A README.md as the hub reads it, of a repository that holds an erasure's file.

    Args:
        file: The file's name there.
        license: By its name on the hub, such as ``openrail++``; None leaves it out.
        audited: What an audit found.
    """
    from huggingface_hub import ModelCardData

    record, measured = erasure.record, erasure.measured
    base = record.base.name
    lowrank = record.kind == "lowrank" and record.transport is None
    head = ModelCardData(
        base_model=base if re.fullmatch(f"{NAME}/{NAME}", base) else None,
        license=license,
        library_name="diffusers",
        pipeline_tag="text-to-image",
        tags=["unsee", "concept-erasure", *(["lora"] if lowrank else [])],
    )
    effect = measured.effect or {}
    rows = [
        ("Base model", f"{_plain(base)} ({record.base.pipeline})"),
        ("Licence", "of the base model; see there" if license is None else _plain(license)),
        ("Method", f"{_plain(record.method)}, kind {record.kind}, seed {record.seed}"),
        *((f"Concept ({one.kind})", _concept(one)) for one in record.concepts),
        *(
            (f"Moved: {_plain(name)}", f"{seen.moved:.0%} of the way to its anchor's prediction")
            for name, seen in effect.items()
        ),
        ("Made with", ", ".join(f"{name} {v}" for name, v in record.versions.items())),
        ("SHA-256 of the erasure", erasure.sha256),
    ]
    plainly = (
        f'pipe.load_lora_weights("OWNER/NAME", weight_name="{file}")  # the same, without unsee'
        if lowrank
        else "# It needs unsee: no LoRA holds it."
    )
    lines = [
        "---",
        head.to_yaml().strip(),
        "---",
        "",
        f"# {_list(one.name for one in record.concepts)}, erased",
        "",
        "This file makes a text-to-image model forget. It was made with unsee, and holds the "
        "whole record of how.",
        "",
        "```python",
        "import unsee",
        "",
        f'pipe = unsee.load_pipeline({json.dumps(base)}, "OWNER/NAME/{file}")',
        plainly,
        "```",
        "",
        "| | |",
        "|---|---|",
        *(f"| {name} | {said} |" for name, said in rows),
        "",
        "## Audit",
        "",
    ]
    if audited is None:
        lines += ["None was given. Nothing here says how much of the concepts is left.", ""]
    else:
        columns = ("measure", "base", "erased", "interval", "n")
        lines += [
            _plain(audited.answer),
            "",
            f"| {' | '.join(columns)} |",
            "|---" * len(columns) + "|",
            *(f"| {' | '.join(_plain(row[name]) for name in columns)} |" for row in audited.rows),
            "",
            f"Measured on {_plain(audited.suite)}. SHA-256 of report.json: {audited.sha256}",
            "",
        ]
    settings = json.dumps(dict(record.settings), indent=2, sort_keys=True).splitlines()
    lines += [
        "## Limits",
        "",
        "- It was made for the weights of its base model, and is refused by unsee on others; "
        "plain diffusers puts it on any model of the same shapes.",
        "- An erasure is no promise: other words, a fine-tune or an attack may bring a concept "
        "back. Measure with `unsee audit` on prompts of your own.",
        "- What the base model draws beside the concepts may have changed too.",
        "- The licence and the limits of use of the base model hold for what is drawn with it.",
        "",
        "## Settings",
        "",
        *(f"    {line}" for line in settings),
        "",
    ]
    return "\n".join(lines)


def push(repo: str, file: str, data: bytes, card: str, *, private: bool = False) -> str:
    """Puts a file and its card into a repository on the hub, made if there is none.

    Args:
        repo: ``owner/name``.
        file: The file's name there.
        data: The file.
        card: Its README.md.
        private: Whether a new repository is to be seen by its owner alone.

    Returns:
        Where it is.

    Raises:
        InputError: The hub cannot be reached, refuses, or HF_HUB_OFFLINE is set.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError

    check_repo(repo)
    if constants.HF_HUB_OFFLINE:
        raise InputError(
            f"HF_HUB_OFFLINE is set, and {repo} is on the hub: unset it, or write what would be "
            "put there into a folder (--folder)."
        )
    api = HfApi()
    added = [
        CommitOperationAdd(file, data),
        CommitOperationAdd("README.md", card.encode()),
    ]
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        made = api.create_commit(repo, added, commit_message=f"Add {file}")
    except (HfHubHTTPError, OSError) as error:
        said = " ".join(str(error).split())
        raise InputError(
            f"{repo} could not be written. The hub says: {said} Log in with 'hf auth login', with "
            "a token that may write."
        ) from error
    return str(made.repo_url)


def check_repo(repo: str) -> None:
    """Makes sure that a text is a repository's id.

    Raises:
        InputError: It is none.
    """
    if not re.fullmatch(f"{NAME}/{NAME}", repo):
        raise InputError(f"{repo!r} is no repository on the hub: wanted OWNER/NAME.")


def _concept(concept: Concept) -> str:
    anchor = concept.anchor
    becomes = "what the method takes" if anchor is None else _plain(anchor) or "the empty prompt"
    keep = _list(concept.keep) or "nothing by name"
    return (
        f"{_plain(concept.name)}; phrases: {_list(concept.phrases)}; becomes: {becomes}; kept: "
        f"{keep}"
    )


def _list(texts: Iterable[str]) -> str:
    return ", ".join(map(_plain, texts))


def _plain(text: str) -> str:
    """A text as one line that Markdown and HTML read as nothing but text."""
    return re.sub(r"([\\`*_\[\]<>|#~&])", r"\\\1", " ".join(text.split()))
