"""Erasure files on the Hugging Face hub: fetched by an id, or put there with a card."""

import re
from pathlib import Path, PurePosixPath

from .._errors import InputError

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
