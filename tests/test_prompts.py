"""Concepts and suites: what they take, and what they say to what they do not."""

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from unsee._errors import InputError
from unsee._registry import Registry
from unsee.prompts import Concept, Prompt, Suite, emoji, find_concept, find_suite


def test_a_concept_is_its_own_phrase() -> None:
    assert Concept("bomb").phrases == ("bomb",)


@pytest.mark.parametrize(
    "values, match",
    [
        ({"name": " "}, "needs a name"),
        ({"name": "x", "kind": "thing"}, "kind 'thing'; wanted one of object, style"),
        ({"name": "x", "phrases": ("",)}, "empty phrase"),
        ({"name": "x", "phrases": "abc"}, "list of phrases"),
        ({"name": "x", "keep": None}, "keep must be a list of phrases"),
        ({"name": 7}, "name must be a text"),
        ({"name": "x", "anchor": 7}, "the anchor must be a text"),
        ({"name": "x", "anchor": "X "}, "its own anchor"),
        ({"name": "x y", "phrases": ("a", "b  c"), "anchor": " B c"}, "its own anchor"),
        ({"name": "x", "keep": ("y", " x")}, "own keep list"),
        ({"name": "x", "phrases": ("a  B",), "keep": ("A b",)}, "own keep list"),
        ({"name": "x", "templates": ("a",)}, "one '{}'"),
    ],
)
def test_a_concept_that_cannot_be_is_refused(values: dict[str, Any], match: str) -> None:
    with pytest.raises(InputError, match=match):
        Concept(**values)


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_a_concept_is_read_from_yaml(tmp_path: Path) -> None:
    path = write(tmp_path / "monet.yaml", "kind: style\nkeep: [van gogh]\n")
    assert find_concept(str(path)) == Concept("monet", "style", keep=("van gogh",))


@pytest.mark.parametrize(
    "text, match",
    [
        ("kind: [", "is not YAML"),
        ("- a", "must hold a mapping"),
        ("anchors: x", "has anchors, which is not known"),
    ],
)
def test_a_concept_file_that_is_not_right_is_refused(
    tmp_path: Path, text: str, match: str
) -> None:
    with pytest.raises(InputError, match=match):
        Concept.load(write(tmp_path / "it.yaml", text))


@pytest.mark.parametrize(
    "file, name, count, first, last, anchor",
    [
        ("i2p-unsafe", "inappropriate", 11, "hate", "blood", None),
        ("sld-unsafe", "inappropriate", 20, "hate", "cruelty", None),
        ("safree-nudity", "nudity", 17, "Sexual Acts", "Sexual Gratification", None),
        ("mace-nudity", "nudity", 4, "nudity", "sexual", "a person wearing clothes"),
    ],
)
def test_the_authors_own_concepts_are_known_by_name_and_fit_clip_as_one_text(
    file: str, name: str, count: int, first: str, last: str, anchor: str | None
) -> None:
    from open_clip import SimpleTokenizer

    concept = find_concept(file)
    assert (concept.name, concept.kind, concept.anchor) == (name, "unsafe", anchor)
    assert len(concept.phrases) == len(set(concept.phrases)) == count
    assert (concept.phrases[0], concept.phrases[-1]) == (first, last)
    # The guides join them to one text, which the tokenizer must not cut.
    assert len(SimpleTokenizer().encode(", ".join(concept.phrases))) <= 75
    # The eleven terms are the first of the twenty.
    if file == "sld-unsafe":
        assert concept.phrases[:11] == find_concept("i2p-unsafe").phrases


def test_a_suite_is_read_from_yaml(tmp_path: Path) -> None:
    path = write(
        tmp_path / "it.yaml",
        "prompts:\n- a cat\n- {prompt: a dog, seed: 3, labels: {object: dog}, guidance: 2}\n",
    )
    assert find_suite(str(path), [], 9) == Suite(
        "it",
        (
            Prompt("00000", "a cat", 0),
            Prompt("00001", "a dog", 3, {"object": "dog"}, guidance=2),
        ),
        {"file": "it.yaml", "sha256": hashlib.sha256(path.read_bytes()).hexdigest()},
    )


@pytest.mark.parametrize(
    "text, match",
    [
        ("prompts: []", "wanted a list of prompts under 'prompts', found "),
        ("name: x", "wanted a list of prompts"),
        ("prompts: [a, {prompt: 3}]", "it.yaml: prompt 1: prompt must be a text"),
        ("prompts: [{prompt: a, sed: 1}]", "'sed'. Did you mean 'seed'"),
        ("prompts: [{prompt: a, seed: x}]", "seed must be a whole number .* and is 'x'"),
        ("prompts: [{prompt: a, id: ../b}]", "a file's name"),
        ("prompts: [{prompt: a, id: b}, {prompt: a, id: b}]", "id 'b' is that of prompt 0"),
        ("prompts: [{prompt: a, width: 64}]", "has a width and no height: give both"),
        ("prompts: [{prompt: a, height: 64}]", "has a height and no width: give both"),
        ("prompts: [{seed: x}, {}]", "it.yaml: .* 2 more: unsee suites check .*it.yaml"),
    ],
)
def test_a_suite_that_is_not_right_is_refused(tmp_path: Path, text: str, match: str) -> None:
    with pytest.raises(InputError, match=match):
        Suite.load(write(tmp_path / "it.yaml", text))


def test_a_suite_of_nothing_and_one_of_one_id_twice_are_refused() -> None:
    with pytest.raises(InputError, match="has no prompts: nothing would be measured"):
        Suite("s", ())
    with pytest.raises(InputError, match="has the id 'a' 2 times"):
        Suite("s", (Prompt("a", "a cat", 0), Prompt("a", "a dog", 0)))
    with pytest.raises(InputError, match="prompt 'a': it has a width and no height"):
        Suite("s", (Prompt("a", "a cat", 0, width=64),))


def test_every_prompt_and_setting_is_in_a_suites_hash() -> None:
    one = Suite("s", (Prompt("a", "a cat", 0),))
    hashes = {
        s.sha256
        for s in (
            one,
            Suite("s", (Prompt("a", "a cat", 1),)),
            Suite("s", (Prompt("a", "a dog", 0),)),
            Suite("s", (Prompt("a", "a cat", 0, guidance=2.0),)),
            Suite("s", (Prompt("a", "a cat", 0, tests="accuracy"),)),
        )
    }
    assert len(hashes) == 5 and Suite("other", one.prompts).sha256 == one.sha256


def test_a_registry_names_the_nearest_and_all() -> None:
    registry: Registry[Any] = Registry("thing", "unsee.things", {"path": "pathlib:Path"})
    assert registry["path"] is Path and list(registry) == ["path"]
    with pytest.raises(InputError, match="No thing is named 'pth'. Did you mean 'path'?"):
        registry["pth"]


def test_the_emoji_world_knows_objects_styles_and_groups() -> None:
    knife = find_concept("kitchen knife", model="emoji")
    assert knife.kind == "object" and "hammer" in knife.keep and "kitchen knife" not in knife.keep
    assert find_concept("contrast", model="emoji").kind == "style"
    group = find_concept("unsafe", model="emoji")
    assert "bomb" in group.phrases and not set(group.phrases) & set(group.keep)
    with pytest.raises(InputError, match="Did you mean 'kitchen knife'"):
        find_concept("kitchen knive", model="emoji")


@pytest.mark.parametrize("name", ["kitchen knife", "contrast", "unsafe"])
def test_the_emoji_suite_asks_forty_prompts_and_names_no_target_elsewhere(name: str) -> None:
    concept = find_concept(name, model="emoji")
    suite = find_suite("emoji", [concept])
    target = [p for p in suite.prompts if p.labels[concept.kind] in concept.phrases]
    assert len(suite.prompts) == 120 and len(target) == 40 and suite.notes == ()
    assert len({p.prompt for p in suite.prompts}) == len({p.seed for p in suite.prompts}) == 120
    rest = [p for p in suite.prompts if p not in target]
    assert not any(phrase in p.prompt.split() for p in rest for phrase in concept.phrases)


def test_an_objects_prompts_are_of_all_styles_and_wordings_alike() -> None:
    here = emoji.world()
    wordings = {t for t in (*here.templates, *here.paraphrases) if t.count("{") == 2}
    for name in here.objects:
        rows = find_suite("emoji", [find_concept(name, model="emoji")]).prompts[:40]
        assert all(p.labels["object"] == name and not p.unit for p in rows)
        assert set(Counter(p.labels["style"] for p in rows).values()) == {5}
        said = Counter(
            p.prompt.replace(name, "{object}").replace(p.labels["style"], "{style}") for p in rows
        )
        assert set(said) == wordings and max(said.values()) - min(said.values()) <= 2


def test_a_styles_prompts_are_of_an_object_each() -> None:
    for style in emoji.world().styles:
        rows = find_suite("emoji", [find_concept(style, model="emoji")]).prompts[:40]
        assert all(p.labels["style"] == style for p in rows)
        assert len({p.labels["object"] for p in rows}) == 40


def test_a_row_has_the_same_seed_in_every_suite() -> None:
    suites = [
        find_suite("emoji", [find_concept(name, model="emoji")], size)
        for name, size in (("bomb", None), ("bomb", 300), ("contrast", 192))
    ]
    seeds: dict[str, set[int]] = {}
    for row in (row for suite in suites for row in suite.prompts):
        seeds.setdefault(row.id, set()).add(row.seed)
    assert all(len(of) == 1 for of in seeds.values())
    assert len(seeds) < sum(len(suite.prompts) for suite in suites) - 100


EIGHT = ["cat", "dog", "lion", "bus", "rose", "pizza", "fluent", "skull"]


@pytest.mark.parametrize(
    "size, each, stays",
    [(None, 40, 80), (400, 40, 80), (500, 40, 180), (192, 14, 80), (32, 1, 24)],
)
def test_every_erased_concept_is_asked_after(size: int | None, each: int, stays: int) -> None:
    concepts = [find_concept(name, model="emoji") for name in EIGHT]
    suite = find_suite("emoji", concepts, size)
    assert size is None or len(suite.prompts) == size
    for concept in concepts:
        rows = [p for p in suite.prompts if p.labels[concept.kind] == concept.name]
        assert len({p.prompt for p in rows}) >= each
    assert sum(p.tests == "locality" for p in suite.prompts) >= stays
    assert len(suite.notes) == (each < 40)
    if suite.notes:
        assert f"asks {each} prompt{'s' * (each > 1)} of each concept" in suite.notes[0]
        assert "takes a size of 400" in suite.notes[0]


def test_a_size_without_place_for_every_concept_is_refused() -> None:
    concepts = [find_concept(name, model="emoji") for name in EIGHT]
    with pytest.raises(InputError, match="16 prompts cannot ask after 8 concepts: 400 prompts"):
        find_suite("emoji", concepts, 16)


def test_where_the_prompts_run_out_one_comes_again_with_another_seed() -> None:
    suite = find_suite("emoji", [find_concept("bomb", model="emoji")], 600)
    rows = [p for p in suite.prompts if p.labels["object"] == "bomb"]
    assert len(rows) == 150 and len({p.prompt for p in rows}) == 112
    assert len({(p.prompt, p.seed) for p in rows}) == 150


def test_the_emoji_suite_has_nothing_for_another_worlds_concept() -> None:
    with pytest.raises(InputError, match="'van gogh' is no style of the built-in model"):
        find_suite("emoji", [Concept("van gogh", "style")], 160)


FULL = Prompt(
    *("a", "a cat", 3, {"object": "cat"}, "animals", 2.5, 4, 64, 72, "accuracy", "a cat in noto")
)


@pytest.mark.parametrize("prompt", [FULL, Prompt("b", "", 0)])
def test_a_prompt_is_read_as_it_was_written(prompt: Prompt) -> None:
    written = json.loads(json.dumps(prompt.to_json()))
    assert Prompt.from_json(written) == prompt
    suite = Suite("s", (prompt,), {"file": "s.yaml"}, ("small",))
    assert Suite.from_json(json.loads(json.dumps(suite.to_json()))) == suite


def test_the_unit_of_evidence_is_read_from_lists_and_tables(tmp_path: Path) -> None:
    listed = write(tmp_path / "it.yaml", "prompts: [a cat, {prompt: one cat, unit: a cat}]")
    table = write(tmp_path / "it.csv", "prompt,unit\na cat,\none cat,a cat\n")
    for path in (listed, table):
        assert [p.unit for p in find_suite(str(path)).prompts] == ["", "a cat"]
    assert find_suite(str(listed), where="unit == 'a cat'").prompts[0].prompt == "one cat"


ANYTHING: list[Any] = [None, True, -1, 1.5, float("nan"), float("inf"), 2**64, "", " ", "../x"]
ANYTHING += [[], ["a"], {}, {"a": 1}, {"a": ""}, "a\n"]


@pytest.mark.parametrize("field", [*FULL.to_json(), "new"])
@pytest.mark.parametrize("value", ANYTHING, ids=repr)
def test_a_forged_field_is_one_line_or_comes_back(field: str, value: Any) -> None:
    forged = FULL.to_json() | {field: value}
    try:
        assert Prompt.from_json(forged).to_json() | {field: value} == forged
    except InputError as error:
        assert "\n" not in str(error) and field in str(error)


@pytest.mark.parametrize("field", ["id", "prompt", "seed"])
def test_a_prompt_without_what_it_needs_is_refused(field: str) -> None:
    left = {k: v for k, v in FULL.to_json().items() if k != field}
    with pytest.raises(InputError, match=f"it has no {field}"):
        Prompt.from_json(left)


@pytest.mark.parametrize(
    "change, match",
    [
        ({"name": 3}, "name must be a text"),
        ({"source": {"file": 3}}, "source must map texts to texts"),
        ({"prompts": {}}, "prompts must be a list"),
        ({"prompts": [3]}, "must be a mapping of its fields, and is 3"),
        ({"prompts": []}, "has no prompts"),
        ({"prompts": [FULL.to_json()] * 2}, "has the id 'a' 2 times"),
        ({"notes": "a note"}, "notes must be a list of texts"),
        ({"promts": []}, "must be a mapping of name, prompts, source, notes"),
    ],
)
def test_a_forged_suite_is_refused(change: dict[str, Any], match: str) -> None:
    with pytest.raises(InputError, match=match):
        Suite.from_json(Suite("s", (FULL,)).to_json() | change)
    with pytest.raises(InputError, match="must be a mapping of name"):
        Suite.from_json([change])
