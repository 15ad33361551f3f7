"""Erasures on the hub: a server on the loopback that answers as the hub does."""

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

import unsee
from unsee import Concept, Erasure, InputError, load_pipeline
from unsee.tests.families import build

Run = Callable[..., tuple[int, str, str]]


@dataclass
class Hub:
    """What is on the server: repositories, and which of their files were asked for."""

    url: str = ""
    repos: dict[str, dict[str, bytes]] = field(default_factory=dict)
    private: set[str] = field(default_factory=set)
    fetched: list[str] = field(default_factory=list)
    token: str | None = None

    def commit(self, repo: str) -> str:
        names = sorted((n, hashlib.sha1(d).hexdigest()) for n, d in self.repos[repo].items())
        return hashlib.sha1(json.dumps(names).encode()).hexdigest()


class Answer(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, *args: Any) -> None: ...

    def reply(self, page: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        data = page if isinstance(page, bytes) else json.dumps(page).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path, hub = self.path.partition("?")[0], self.hub
        if path == "/api/validate-yaml":
            return self.reply({"errors": [], "warnings": []})
        if hub.token and self.headers.get("Authorization") != f"Bearer {hub.token}":
            return self.reply({"error": "You may not write here."}, 403)
        if path == "/api/repos/create":
            asked = json.loads(data)
            repo = "/".join(filter(None, (asked.get("organization"), asked["name"])))
            status = 409 if repo in hub.repos else 200
            hub.repos.setdefault(repo, {})
            if asked.get("private") or asked.get("visibility") == "private":
                hub.private.add(repo)
            return self.reply({"url": f"{hub.url}/{repo}", "id": repo}, status)
        repo, _, what = path.removeprefix("/api/models/").rpartition("/main")[0].rpartition("/")
        if what == "preupload":
            files = json.loads(data)["files"]
            found = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files
            ]
            return self.reply({"files": found})
        for line in data.splitlines():
            one = json.loads(line)
            if one["key"] == "file":
                content = base64.b64decode(one["value"]["content"])
                hub.repos[repo][one["value"]["path"]] = content
        sha = hub.commit(repo)
        page = {"success": True, "commitOid": sha, "commitUrl": f"{hub.url}/{repo}/commit/{sha}"}
        return self.reply(page)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        parts, hub = self.path.partition("?")[0].strip("/").split("/"), self.hub
        if parts[0] == "api":
            repo, rest = "/".join(parts[2:4]), parts[4:]
        else:
            repo, rest = "/".join(parts[:2]), parts[2:]
        missing = {"X-Error-Code": "RepoNotFound"}
        if repo not in hub.repos:
            return self.reply({"error": "Repository Not Found"}, 404, missing)
        files, sha = hub.repos[repo], hub.commit(repo)
        if parts[0] == "api" and rest[:1] == ["tree"]:
            tree = [
                {"type": "file", "path": n, "size": len(d), "oid": hashlib.sha1(d).hexdigest()}
                for n, d in files.items()
            ]
            return self.reply(tree)
        if parts[0] == "api":
            siblings = [{"rfilename": name} for name in files]
            return self.reply({"id": repo, "sha": sha, "private": False, "siblings": siblings})
        name, commit = "/".join(rest[2:]), {"X-Repo-Commit": sha}
        if name not in files:
            lacking = {"X-Error-Code": "EntryNotFound"} | commit
            return self.reply({"error": "Entry not found"}, 404, lacking)
        if self.command == "GET":
            hub.fetched.append(name)
        etag = hashlib.sha1(files[name]).hexdigest()
        return self.reply(files[name], 200, commit | {"ETag": f'"{etag}"'})


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub on the loopback, and an empty cache."""
    from huggingface_hub import constants

    found = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Here", (Answer,), {"hub": found}))
    found.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", found.url)
    monkeypatch.setattr(
        constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        f"{found.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}",
    )
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.setattr(constants, name, str(tmp_path / "cache"), raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True, raising=False)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    yield found
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def erasure(tiny_folder: Path) -> Erasure:
    return unsee.erase(str(tiny_folder), Concept("van gogh", "style", keep=("monet",)))


@pytest.fixture
def file(erasure: Erasure, tmp_path: Path) -> Path:
    erasure.save(tmp_path / "van-gogh.safetensors")
    return tmp_path / "van-gogh.safetensors"


def test_what_was_pushed_is_taken_by_its_id_wherever_a_file_is(
    hub: Hub, run: Run, file: Path, erasure: Erasure, tiny_folder: Path, tmp_path: Path
) -> None:
    code, out, err = run("push", str(file), "ada/van-gogh", "--private")
    assert code == 0 and f"{hub.url}/ada/van-gogh" in out, err
    assert set(hub.repos["ada/van-gogh"]) >= {"van-gogh.safetensors", "README.md"}
    assert hub.private == {"ada/van-gogh"}
    assert hub.repos["ada/van-gogh"]["van-gogh.safetensors"] == file.read_bytes()
    for name in ("ada/van-gogh", "ada/van-gogh/van-gogh.safetensors"):
        assert Erasure.load(name).sha256 == erasure.sha256
        pipe = load_pipeline(tiny_folder, f"{name}:0.5", device="cpu")
        assert [(one.name, one.weight) for one in unsee.active(pipe)] == [("van gogh", 0.5)]
        code, out, err = run("show", name)
        assert code == 0 and "van gogh (style)" in out, err
    code, _, err = run(
        *("generate", str(tiny_folder), "-p", "a", "--steps", "2", "-o", "out"),
        *("-e", "ada/van-gogh"),
    )
    assert code == 0, err
    for name in ("ada/van-gogh", "ada/van-gogh/van-gogh.safetensors"):
        code, out, err = run("export", name, "--to", "kohya", "-o", "kohya", "--force")
        assert code == 0 and "Exported van gogh to kohya" in out, err
        unsee.export(erasure, tmp_path / "same", to="kohya", force=True)
        assert (tmp_path / "kohya").read_bytes() == (tmp_path / "same").read_bytes()
    # A second file: the repository alone says no more which
    code, _, err = run("push", str(file), "ada/van-gogh", "--name", "again.safetensors")
    assert code == 0, err
    with pytest.raises(InputError, match="has 2 .safetensors files: name one, as in"):
        Erasure.load("ada/van-gogh")


def test_a_folder_gets_what_the_hub_would(
    hub: Hub, run: Run, file: Path, erasure: Erasure, tmp_path: Path
) -> None:
    code, _, err = run("push", str(file), "ada/it", "--license", "openrail++")
    assert code == 0, err
    code, _, err = run("push", str(file), "--folder", "out", "--license", "openrail++")
    assert code == 0, err
    written = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert written == hub.repos["ada/it"]
    _, head, body = written["README.md"].decode().split("---\n", 2)
    page = yaml.safe_load(head)
    assert page["license"] == "openrail++" and {"unsee", "lora"} <= set(page["tags"])
    concept, record = erasure.record.concepts[0], erasure.record
    said = (concept.name, *concept.keep, record.method, erasure.sha256, record.base.pipeline)
    for words in (*said, "## Limits", "None was given", '"ridge": 0.5', "license", "Moved"):
        assert words in body or words in head, words


def test_the_card_has_the_figures_of_the_report_and_of_no_other(
    run: Run, file: Path, erasure: Erasure, tmp_path: Path
) -> None:
    golden = json.loads((Path(__file__).parent / "golden/report.json").read_text("utf-8"))
    used = golden["erased"]["erasures"]
    report = tmp_path / "report.json"
    for used_here, right in (
        ([], False),
        ([used[0]], False),
        ([used[0] | {"sha256": erasure.sha256}], True),
    ):
        golden["erased"]["erasures"] = used_here
        report.write_text(json.dumps(golden), encoding="utf-8")
        code, _, err = run("push", str(file), "--folder", "out", "--report", str(report))
        assert code == (0 if right else 2), err
        assert right or "is a report of" in err
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    loaded = unsee.Report.load(report)
    assert hashlib.sha256(report.read_bytes()).hexdigest() in card
    from unsee.eval.report import summary

    for row in summary(loaded):
        assert row["erased"] in card and row["n"] in card


def test_the_card_promises_plain_diffusers_only_what_it_loads(tmp_path: Path) -> None:
    said = 'pipe.load_lora_weights("OWNER/NAME"'
    for name, reads in (("flux", True), ("pixart-sigma", False)):
        pipe = build(name)
        assert hasattr(pipe, "load_lora_weights") == reads
        one = unsee.erase(pipe, "van gogh", check=False)
        unsee.push(one, folder=tmp_path / name, name="it.safetensors")
        text = (tmp_path / name / "README.md").read_text(encoding="utf-8")
        assert (said in text) == reads == ("- lora\n" in text)


def test_a_hostile_concept_writes_no_markdown(tiny_folder: Path, tmp_path: Path) -> None:
    name = "a|b](http://x) <script>\n# head `x`"
    erasure = unsee.erase(str(tiny_folder), Concept(name, "style", phrases=("cat",)), check=False)
    unsee.push(erasure, folder=tmp_path / "out", name="it.safetensors")
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert not re.search(r"(?<!\\)(<script|\]\(http|`x)", card) and "\n# head" not in card


@pytest.mark.parametrize(
    "words, said",
    [
        (("no-owner",), "is no repository on the hub: wanted OWNER/NAME"),
        ((), "either a repository, OWNER/NAME, or a folder"),
        (("a/b", "--folder", "out"), "either a repository, OWNER/NAME, or a folder"),
        (("a/b", "--name", "../x.safetensors"), "must be one of .safetensors"),
        (("a/b", "--name", "x.bin"), "must be one of .safetensors"),
    ],
)
def test_where_nothing_can_be_put_is_one_line(
    hub: Hub, run: Run, file: Path, words: tuple[str, ...], said: str
) -> None:
    code, _, err = run("push", str(file), *words)
    assert code == 2 and said in err and not hub.repos


def test_what_is_not_there_or_not_allowed_is_one_line(
    hub: Hub, run: Run, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match="ada/none is no file here, and the hub says: ") as error:
        Erasure.load("ada/none")
    assert "\n" not in str(error.value)
    hub.repos["ada/empty"] = {"README.md": b"x"}
    with pytest.raises(InputError, match="ada/empty on the hub has no .safetensors file"):
        Erasure.load("ada/empty")
    hub.token = "secret"
    code, _, err = run("push", str(file), "ada/mine")
    assert code == 2 and "Log in with 'hf auth login'" in err and len(err.splitlines()) == 1
    # A path that was never written is a path, and asks nobody
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    for path in ("runs/demo/a.safetensors", "./ada/a.safetensors", "ada/a.safetensors"):
        with pytest.raises(InputError, match="is not there: wanted an erasure file"):
            Erasure.load(path)


def test_offline_says_so_and_takes_what_is_in_the_cache(
    hub: Hub, run: Run, file: Path, erasure: Erasure, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    assert run("push", str(file), "ada/van-gogh")[0] == 0
    assert run("push", str(file), "ada/other")[0] == 0
    Erasure.load("ada/van-gogh")
    hub.fetched.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for name in ("ada/van-gogh", "ada/van-gogh/van-gogh.safetensors"):
        assert Erasure.load(name).sha256 == erasure.sha256
    for name in ("ada/other", "ada/other/van-gogh.safetensors"):
        with pytest.raises(InputError, match="HF_HUB_OFFLINE is set and it is not in the cache"):
            Erasure.load(name)
    code, _, err = run("push", str(file), "ada/van-gogh")
    assert code == 2 and "HF_HUB_OFFLINE is set" in err and len(err.splitlines()) == 1
    assert not hub.fetched


@pytest.mark.slow
def test_of_a_model_on_the_hub_the_text_side_alone_is_fetched(hub: Hub, tmp_path: Path) -> None:
    pipe = build("flux")
    pipe.save_pretrained(tmp_path / "model", max_shard_size="40KB")
    hub.repos["ada/flux"] = {
        path.relative_to(tmp_path / "model").as_posix(): path.read_bytes()
        for path in (tmp_path / "model").rglob("*")
        if path.is_file()
    }
    # Where the hub is, diffusers knows from when it was imported.
    env = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
    code = "import unsee; from unsee import Concept; unsee.erase('ada/flux', Concept('van gogh', \
        'style', keep=('monet',)), check=False).save('it.safetensors')"
    subprocess.run([sys.executable, "-c", code], env=os.environ | env, cwd=tmp_path, check=True)
    shards = [n for n in hub.repos["ada/flux"] if n.startswith("transformer/") and "-of-" in n]
    fetched = [name for name in hub.fetched if name in shards]
    assert 0 < len(fetched) <= 2 < len(shards)
    assert not [name for name in hub.fetched if name.startswith("vae/")]
    ours = Erasure.load(tmp_path / "it.safetensors")
    concept = Concept("van gogh", "style", keep=("monet",))
    whole = unsee.erase(pipe, concept, check=False)
    assert ours.record.base.name == "ada/flux" and ours.sha256 == whole.sha256


def test_show_prints_a_file_as_json(
    run: Run, file: Path, erasure: Erasure, tiny_folder: Path
) -> None:
    code, out, err = run("show", str(file), "--json")
    page = json.loads(out)
    assert code == 0, err
    assert page["sha256"] == erasure.sha256 and page["record"] == erasure.record.to_json()
    assert page["tensors"].keys() == erasure.tensors.keys()
    assert run("generate", str(tiny_folder), "-p", "a", "--steps", "2", "-o", "out")[0] == 0
    code, out, _ = run("show", "out", "--json")
    assert code == 0 and json.loads(out)["missing"] == []
    report = Path(__file__).parent / "golden/report.json"
    code, out, _ = run("show", str(report), "--json")
    page = json.loads(json.dumps(unsee.Report.load(report).to_json()))
    assert code == 0 and json.loads(out) == page
