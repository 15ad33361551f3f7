"""Suites: those that ship, public tables, filters, and what is said of a file's faults."""

import csv
import hashlib
import json
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import unsee
from unsee._errors import InputError
from unsee.flow import generate_gallery
from unsee.gallery import Gallery
from unsee.pipelines import generate
from unsee.prompts import (
    SUITES,
    TESTS,
    Concept,
    Prompt,
    check_suite,
    emoji,
    find_suite,
    find_suites,
    grid,
    join,
)
from unsee.prompts.where import Where

NUDITY = Concept("nudity", "unsafe", phrases=("nudity", "nude"))
MADE = ("artists", "brands", "figures", "objects", "unsafe")

I2P = {
    "prompt": "a portrait",
    "categories": "sexual, shocking",
    "hard": 1,
    "nudity_percentage": 72.5,
    "sd_seed": 2219463985,
    "sd_guidance_scale": 7.0,
    "sd_image_width": 512,
    "sd_image_height": 768,
    "sd_model": "1.4",
}
ATTACK = {
    "case_number": 4,
    "prompt": "a field",
    "evaluation_seed": 7,
    "evaluation_guidance": 7.5,
}
TABLES: dict[str, tuple[dict[str, Any], Prompt]] = {
    "I2P": (
        I2P,
        Prompt(
            *("00000", "a portrait", 2219463985, {"unsafe": "nudity"}, "sexual, shocking", 7.0),
            width=512,
            height=768,
            tests="accuracy",
        ),
    ),
    "UnlearnDiffAtk": (
        ATTACK,
        Prompt("4", "a field", 7, {"unsafe": "nudity"}, guidance=7.5, tests="accuracy"),
    ),
    "COCO": (
        {
            "case_number": 3,
            "source": "coco",
            "prompt": "a dog",
            "evaluation_seed": 9,
            "coco_id": 5,
        },
        Prompt("3", "a dog", 9, category="coco", tests="locality"),
    ),
    "COCO by image_id": (
        {"image_id": 3, "prompt": "a dog", "evaluation_seed": 9},
        Prompt("3", "a dog", 9, tests="locality"),
    ),
    "artists": (
        {"case_number": 0, "prompt": "wheat by Monet", "artist": "Monet", "evaluation_seed": 1},
        Prompt("0", "wheat by Monet", 1, {"style": "Monet"}, tests="accuracy"),
    ),
    "Imagenette": (
        {"prompt": "a church", "class": "church", "evaluation_seed": 1},
        Prompt("00000", "a church", 1, {"object": "church"}, tests="accuracy"),
    ),
    "EMMA": (
        {"type": "implicit", "prompt": "where one prays", "evaluation_seed": 3},
        Prompt("00000", "where one prays", 3, {"unsafe": "nudity"}, "implicit", tests="accuracy"),
    ),
    "Ring-A-Bell": (
        {"sensitive prompt": "xz undressed", "normal prompt": "xz dressed"},
        Prompt("00000", "xz undressed", 0, {"unsafe": "nudity"}, tests="generalizability"),
    ),
    "MMA-Diffusion": (
        {"target_prompt": "undressed", "adv_prompt": "undr zz", "sanitized_adv_prompt": "zz"},
        Prompt("00000", "undr zz", 0, {"unsafe": "nudity"}, tests="generalizability"),
    ),
}


TABLES |= {
    "Six-CD": (
        {"case_number": 7, "evaluation_seed": 3, "target": "nude", "prompt": "nude, tree, car"},
        Prompt("7", "nude, tree, car", 3, {"unsafe": "nude"}, tests="accuracy"),
    ),
    "HUB pinpoint-ness": (
        {"noun": "mare", "similarity": 0.8},
        Prompt("00000", "a photo of mare", 0, {"object": "mare"}, tests="locality"),
    ),
}

PARQUET = pytest.param("parquet", marks=pytest.mark.extra("suites"))


def table(path: Path, *rows: dict[str, Any]) -> str:
    """Rows as a file of the kind that the name's end says."""
    if path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path)
    return str(path)


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize("end", ["csv", "jsonl", PARQUET])
@pytest.mark.parametrize("shape", TABLES)
def test_every_public_suites_columns_are_known(tmp_path: Path, shape: str, end: str) -> None:
    row, prompt = TABLES[shape]
    suite = find_suite(table(tmp_path / f"it.{end}", row), [NUDITY])
    assert suite.prompts == (prompt,)
    assert suite.name == "it" and suite.source["shape"] == shape.partition(" by ")[0]
    assert ("attack" in suite.source) == (shape in ("Ring-A-Bell", "MMA-Diffusion"))
    assert check_suite(str(tmp_path / f"it.{end}"))[1] == []


LANGUAGES = ("Original", "Spanish", "French", "German", "Italian", "Portuguese")


def test_a_row_of_hubs_languages_is_a_prompt_in_each_and_they_are_one_piece_of_evidence(
    tmp_path: Path,
) -> None:
    rows = [{of: f"{of} {i}" for of in LANGUAGES} | {"Index": 40 + i} for i in range(3)]
    mario = Concept("Mario", "person")
    suite = find_suite(table(tmp_path / "Mario.csv", *rows), [mario])
    assert suite.source["shape"] == "HUB languages" and len(suite.prompts) == 18
    assert suite.prompts[8] == Prompt(
        *("00001-french", "French 1", 8, {"person": "Mario"}, "French"),
        tests="generalizability",
        unit="00001",
    )
    assert Counter(p.category for p in suite.prompts) == dict.fromkeys(LANGUAGES, 3)
    assert [p.category for p in suite.prompts if p.tests == "accuracy"] == ["Original"] * 3
    assert len({p.seed for p in suite.prompts}) == 18
    kept = find_suite(str(tmp_path / "Mario.csv"), [mario], where="Index > 40")
    assert kept.prompts == suite.prompts[6:]
    name = table(tmp_path / "holes.csv", rows[0] | {"German": ""})
    assert check_suite(name)[1] == [
        "line 2, German: prompt must be a text that is not blank, and is ''."
    ]
    # Without one of the languages it is another file
    with pytest.raises(InputError, match="is no table of prompts .* 'noun' and 'similarity'"):
        find_suite(table(tmp_path / "five.csv", {k: v for k, v in rows[0].items() if k[0] != "G"}))


def test_six_cds_benign_prompts_are_not_taken_to_ask_for_what_was_erased(tmp_path: Path) -> None:
    """Their columns are those of its prompts that do, so that only the file's name tells."""
    row = {"case_number": 0, "prompt": "a field", "evaluation_seed": 3}
    for stem, shape in {
        "benign": "Six-CD benign", "clean": "Six-CD benign",
        "Nudity": "UnlearnDiffAtk", "malicious": "UnlearnDiffAtk",
    }.items():  # fmt: skip
        suite = find_suite(table(tmp_path / f"{stem}.csv", row), [NUDITY])
        (prompt,) = suite.prompts
        assert suite.source["shape"] == shape
        asks = shape != "Six-CD benign"
        assert prompt.labels == ({"unsafe": "nudity"} if asks else {})
        assert prompt.tests == ("accuracy" if asks else "locality")


def test_the_other_targets_of_six_cd_are_of_the_kind_of_the_one_that_was_erased(
    tmp_path: Path,
) -> None:
    row = {"case_number": 0, "evaluation_seed": 3, "target": "Ann", "prompt": "Ann skis"}
    other = row | {"case_number": 1, "target": "Bob", "prompt": "Bob skis"}
    name = table(tmp_path / "malicious.csv", row, other)
    suite = find_suite(name, [Concept("ann", "person")])
    assert [p.labels for p in suite.prompts] == [{"person": "Ann"}, {"person": "Bob"}]
    assert [p.labels for p in find_suite(name).prompts] == [{"object": "Ann"}, {"object": "Bob"}]


def test_a_text_file_has_a_prompt_in_every_line_and_says_for_what_they_are_taken(
    tmp_path: Path,
) -> None:
    name = write(tmp_path / "hub.txt", '\ufeffa {Mario}, in a "car"\n\n  Mario sits \n')
    suite = find_suite(name, [Concept("Mario", "person")])
    assert suite.source["shape"] == "lines"
    assert [(p.id, p.prompt, p.seed, dict(p.labels)) for p in suite.prompts] == [
        ("00000", 'a {Mario}, in a "car"', 0, {"person": "Mario"}),
        ("00001", "Mario sits", 1, {"person": "Mario"}),
    ]
    assert suite.notes == ("hub.txt has prompts alone: each is taken to ask for Mario.",)
    assert find_suite(name).notes == () and find_suite(name).prompts[0].labels == {}
    assert check_suite(name)[1] == []


@pytest.mark.parametrize("end", ["txt", "jsonl"])
def test_a_prompt_ends_at_its_line_and_at_no_other_sign(tmp_path: Path, end: str) -> None:
    prompt = "a cat\u2028 in\x85 the\x0c sun"
    line = prompt if end == "txt" else json.dumps({"prompt": prompt}, ensure_ascii=False)
    (tmp_path / f"it.{end}").write_bytes(f"{line}\r\n".encode() * 2)
    assert [p.prompt for p in find_suite(str(tmp_path / f"it.{end}")).prompts] == [prompt] * 2


def test_a_text_with_braces_is_put_into_a_template_as_it_is(tmp_path: Path) -> None:
    name = table(tmp_path / "near.csv", {"noun": "{0} {x}", "similarity": 1})
    assert find_suite(name).prompts[0].prompt == "a photo of {0} {x}"


def test_images_are_compared_with_the_clean_texts_of_another_table(tmp_path: Path) -> None:
    """Six-CD's in-prompt CLIP score: what was drawn, beside its prompt without the target."""
    texts = {"malicious": ["a bomb, a cat", "a bomb, a dog"], "clean": ["a cat", "a dog"]}
    for stem, prompts in texts.items():
        more = {"target": "bomb"} if stem == "malicious" else {}
        rows = [
            {"case_number": i, "evaluation_seed": i, "prompt": p} for i, p in enumerate(prompts)
        ]
        table(tmp_path / f"{stem}.csv", *(row | more for row in rows))
    made = tmp_path / "made"
    generate_gallery("emoji", (), find_suite(str(tmp_path / "malicious.csv")), made, steps=2)
    score = partial(unsee.score, made / "images", metrics=["emoji/clip"])
    found = {stem: score(table=tmp_path / f"{stem}.csv", out=tmp_path / stem) for stem in texts}
    same = table(tmp_path / "same.jsonl", {"file": "0.png", "prompt": "a cat"},
                 {"file": "1.png", "prompt": "a dog"})  # fmt: skip
    assert found["clean"].images == 2 and found["clean"].missing == 0
    assert found["clean"].scores == score(table=same, out=tmp_path / "same").scores
    assert found["clean"].scores != found["malicious"].scores


def test_the_source_has_the_files_own_hash_and_the_filter(tmp_path: Path) -> None:
    name = table(tmp_path / "i2p.csv", I2P, I2P | {"hard": 0}, I2P | {"hard": ""})
    suite = find_suite(name, where="hard == 1 and 'sexual' in categories")
    assert suite.source == {
        "file": "i2p.csv",
        "sha256": hashlib.sha256((tmp_path / "i2p.csv").read_bytes()).hexdigest(),
        "shape": "I2P",
        "where": "hard == 1 and 'sexual' in categories",
    }
    assert [p.id for p in suite.prompts] == ["00000"]
    with pytest.raises(InputError, match="has no row that --where 'hard == 7' fits"):
        find_suite(name, where="hard == 7")


def test_a_filter_does_not_change_the_ids_and_seeds_of_what_is_left(tmp_path: Path) -> None:
    rows = [{"prompt": f"cat {i}", "lives": i} for i in range(4)]
    name = table(tmp_path / "it.jsonl", *rows)
    assert find_suite(name, where="lives >= 2").prompts == find_suite(name).prompts[2:]
    assert [p.seed for p in find_suite(name).prompts] == [0, 1, 2, 3]


def test_a_tables_label_is_of_the_kind_of_the_concept_that_it_names(tmp_path: Path) -> None:
    name = table(tmp_path / "it.csv", {"prompt": "x", "concept": " Nude"}, {"prompt": "y"})
    one, two = find_suite(name, [NUDITY]).prompts
    assert one.labels == {"unsafe": "Nude"} and two.labels == {}
    name = table(tmp_path / "church.csv", ATTACK)
    church = Concept("church")
    assert find_suite(name, [church]).prompts[0].labels == {"object": "church"}
    # Which of two a row asks for, it does not say
    assert find_suite(name, [church, NUDITY]).prompts[0].labels == {}
    i2p = table(tmp_path / "i2p.csv", I2P)
    assert find_suite(i2p, [church]).prompts[0].labels == {}


@pytest.mark.extra("suites")
def test_a_dataset_is_read_by_its_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "set").mkdir()
    table(tmp_path / "set" / "train.jsonl", I2P, I2P | {"hard": 0})
    suite = find_suite(f"hf:{tmp_path}/set", [NUDITY], where="hard == 1")
    assert suite.prompts == (TABLES["I2P"][1],) and suite.name == "set"
    assert suite.source["split"] == "train" and len(suite.source["sha256"]) == 64
    table(tmp_path / "set" / "test.jsonl", I2P)
    with pytest.raises(InputError, match=r"has the splits .*: say which, such as hf:"):
        find_suite(f"hf:{tmp_path}/set")
    assert len(find_suite(f"hf:{tmp_path}/set:test").prompts) == 1


@pytest.mark.parametrize(
    "module, name, extra",
    [("datasets", "hf:a/b", "datasets"), ("pyarrow.parquet", "it.parquet", "pyarrow")],
)
def test_an_extra_that_is_not_there_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, name: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.chdir(tmp_path)
    Path("it.parquet").touch()
    with pytest.raises(InputError, match=rf"need.* {extra}: pip install {extra}"):
        find_suite(name)


@pytest.mark.parametrize(
    "name, text, match",
    [
        ("a.csv", "text,seed\nx,1\n", "has the columns text, seed, and wanted is 'prompt', or "),
        ("a.csv", "", "has no row"),
        ("a.csv", "prompt\n", "has no row"),
        ("a.csv", "prompt,prompt\nx,y\n", "has a column twice"),
        ("a.csv", "prompt,seed\nx,1\ny\n", "line 3: wanted 2 cells, .* found fewer"),
        ("a.csv", "prompt,seed\nx,1,2\n", "line 2: wanted 2 cells, .* found more"),
        ("a.csv", 'prompt\n"x\n', "cannot be read"),
        ("a.jsonl", '{"prompt": "x"}\n{"prompt"\n', "line 2 is not JSON"),
        ("a.jsonl", "[1]\n", "line 1: wanted an object"),
        pytest.param("a.parquet", "x", "is no Parquet file", marks=pytest.mark.extra("suites")),
        ("a.doc", "x", "is no suite: wanted .yaml, .yml, .csv"),
        ("a.txt", "case_number,prompt\n0,a cat\n", "line 1: a text file .* name the file .csv"),
        ("a.txt", "a cat\na dog\t7\n", "line 2: a text file has a prompt in every line"),
        ("a.yaml", "promts: [a]", "has promts, which is not known"),
    ],
)
def test_a_file_that_is_no_suite_is_refused(
    tmp_path: Path, name: str, text: str, match: str
) -> None:
    with pytest.raises(InputError, match=match):
        find_suite(write(tmp_path / name, text))


def test_what_is_not_there_is_one_line() -> None:
    for name in ("none.csv", "none.jsonl", "none.parquet", "none.yaml"):
        with pytest.raises(InputError, match=f"{name} cannot be read"):
            find_suite(name)
    with pytest.raises(InputError, match="Did you mean 'artists'"):
        find_suite("artist")


ROW = {"a": "72.5", "b": 0, "c": "sexual, hate", "two words": True, "empty": "", "none": None}


@pytest.mark.parametrize(
    "text, fits",
    [
        ("a > 50", True),
        ("a>50 and b == 1", False),
        ("a > 50 or b == 1 and b == 2", True),
        ("(a > 50 or b == 1) and b == 2", False),
        ("not a > 50", False),
        ("not (b == 1 or b == 2)", True),
        ("'sexual' in c and 'violence' not in c", True),
        ("c == 'sexual, hate'", True),
        ('c != "x"', True),
        ("`two words` == 1", True),
        ("50 <= a", True),
        ("b > -1e3", True),
        ("a >= b", True),
        ("empty == 0 or empty != 0 or none < 1 or none != 'x'", False),
    ],
)
def test_a_filter_fits_what_it_says(text: str, fits: bool) -> None:
    assert Where(text, list(ROW))(ROW, "row 0") is fits


@pytest.mark.parametrize(
    "text, match",
    [
        ("a >> 50", "character 4: wanted a column, a number or a text in quotes, found '>'"),
        ("a = 50", r"character 3: '=' is not known here \(for equal, write ==\)"),
        ("a > 50 b == 1", "character 8: wanted 'and', 'or' or the end, found 'b'"),
        ("a > 50 and", "character 11: wanted a column.*found the end"),
        ("(a > 50", r"character 8: wanted '\)', found the end"),
        ("a", "character 2: wanted one of ==, "),
        ("", "character 1: wanted a column"),
        ("a > 50x", "character 5: '5' is not known"),
        ("'sexual", "character 1"),
        ("a not 5", "character 7: wanted 'in'"),
        ("ab > 5", "No column is named 'ab'. Did you mean '"),
        ("__import__('os') == 1", "No column is named '__import__'"),
        ("a.real == 1", "character 2: '.' is not known"),
    ],
)
def test_a_filter_that_cannot_be_read_says_where(text: str, match: str) -> None:
    with pytest.raises(InputError, match=match):
        Where(text, list(ROW))


def test_a_cell_that_should_be_a_number_is_named() -> None:
    with pytest.raises(InputError, match="row 3: 'sexual, hate' is no number"):
        Where("c > 5", list(ROW))(ROW, "row 3")


def test_a_suite_of_yaml_is_filtered_by_its_prompts_attributes(tmp_path: Path) -> None:
    text = "prompts: [{prompt: a, labels: {style: noto}, seed: 4}, {prompt: b, category: far}]"
    name = write(tmp_path / "it.yaml", text)
    assert [p.prompt for p in find_suite(name, where="seed > 2").prompts] == ["a"]
    assert [p.prompt for p in find_suite(name, where="style == 'noto'").prompts] == ["a"]
    assert find_suite(name, where="category == 'far'").source["where"] == "category == 'far'"
    with pytest.raises(InputError, match="fits none of the 2 prompts"):
        find_suite(name, where="seed > 5")


FAULTS = """
nme: x
prompts:
- a cat
- {prompt: " "}
- {prompt: a, id: same, seed: 1.5}
- {prompt: b, id: same}
- {prompt: c, sed: 1}
- {prompt: d, labels: {object: ""}}
- {prompt: e, labels: dog}
- {prompt: f, tests: acuracy}
- {prompt: g, width: 500, steps: 0, guidance: -1}
- {seed: 3}
- {prompt: h, id: ../up}
"""


def test_everything_wrong_with_a_suite_is_said_at_once(tmp_path: Path) -> None:
    prompts, faults = check_suite(write(tmp_path / "it.yaml", FAULTS))
    assert [p.prompt for p in prompts] == ["a cat"]
    wanted = [
        "No field of a suite is named 'nme'. Did you mean 'name'?",
        "prompt 1: prompt must be a text that is not blank, and is ' '",
        "prompt 2: seed must be a whole number from 0 to 2**64 - 1, and is 1.5",
        "prompt 3: its id 'same' is that of prompt 2 already",
        "prompt 4: No field of a prompt is named 'sed'. Did you mean 'seed'?",
        "prompt 5: labels must be a mapping from a kind, such as object, to a text",
        "prompt 6: labels must be",
        "prompt 7: tests must be one of accuracy, locality, generalizability, and is 'acuracy'",
        "prompt 8: width must be a multiple of 8 up to 8192, and is 500",
        "prompt 8: steps must be a whole number from 1 to 1000, and is 0",
        "prompt 8: guidance must be a number from 0 to 1000, and is -1",
        "prompt 9: it has no prompt",
        "prompt 10: id must be a text that can be a file's name on every system, and is '../up'",
    ]
    assert len(faults) == len(wanted)
    for fault in wanted:
        assert any(f.startswith(fault) for f in faults), fault


def test_faults_of_a_table_are_said_by_line(tmp_path: Path) -> None:
    text = "prompt,id,seed,guidence,labels\na,1,2.0,,\n,2,x,,\nb,1,3,,z\n"
    prompts, faults = check_suite(write(tmp_path / "it.csv", text))
    assert [(p.id, p.seed) for p in prompts] == [("1", 2)]
    assert [f.partition(" must")[0] for f in faults] == [
        "the column 'guidence' is not known. Did you mean 'guidance'?",
        "line 3: prompt",
        "line 3: seed",
        "line 4: labels",
        "line 4: its id '1' is that of line 2 already.",
    ]
    with pytest.raises(InputError, match="4 more: unsee suites check"):
        find_suite(str(tmp_path / "it.csv"))


@pytest.mark.parametrize("name", MADE)
def test_a_suite_that_ships_is_right_and_tests_all_three(name: str) -> None:
    suite = find_suite(name)
    assert 700 <= len(suite.prompts) <= 1100
    assert {p.tests for p in suite.prompts} == set(TESTS)
    assert all(p.category and len(p.labels) == 1 for p in suite.prompts)
    assert len({p.prompt for p in suite.prompts}) == len(suite.prompts)
    assert suite == find_suite(name) and (SUITES[name].__doc__ or "").count("\n") == 0
    path = Path(emoji.__file__).parent / "suites" / f"{name}.yaml"
    assert check_suite(str(path)) == (suite.prompts, [])


@pytest.mark.parametrize(
    "name, concept",
    [
        ("artists", Concept("van-gogh", "style", phrases=("van gogh",))),
        ("objects", Concept("teapot")),
        ("figures", Concept("Marie Curie", "person")),
        ("brands", Concept("a brand of nobody")),
        ("unsafe", NUDITY),
    ],
)
def test_a_suite_made_to_measure_is_a_quarter_targets_with_neighbours(
    name: str, concept: Concept
) -> None:
    suite = find_suite(name, [concept], 160)
    names = {concept.name.lower(), *(p.lower() for p in concept.phrases)}
    target = [p for p in suite.prompts if p.labels.get(concept.kind, "").lower() in names]
    assert Counter(p.tests for p in target) == {"accuracy": 27, "generalizability": 13}
    kept = [p for p in suite.prompts if p not in target]
    assert {p.tests for p in kept} == {"locality"} and len(kept) == 120
    # How many are near is a third, where the concept is one that the suite knows
    near = [p for p in kept if p.category == target[0].category]
    assert len(near) == (0 if "nobody" in concept.name else 30 if name == "unsafe" else 40)
    assert len({p.category for p in kept}) > 2
    assert len({p.prompt for p in suite.prompts}) == len({p.seed for p in suite.prompts}) == 160


@pytest.mark.parametrize("name", MADE)
def test_every_entry_that_ships_is_asked_after_in_forty_different_prompts(name: str) -> None:
    made = grid.Grid.load(Path(grid.__file__).parent / "suites" / f"{name}.yaml")
    entries = [entry for names in made.entries.values() for entry in names]
    for entry in (*entries, "something of your own"):
        suite = find_suite(name, [Concept(entry, made.kind)])
        target = [p for p in suite.prompts if p.labels.get(made.kind) == entry]
        assert len({p.prompt for p in target}) == len(target) == 40
        assert len({p.prompt for p in suite.prompts}) == len(suite.prompts) == 120
        # Things, beside what is of the entry's kind
        assert sum("object" in p.labels for p in suite.prompts if p not in target) >= 20


def test_a_concept_is_found_by_alias_and_by_category() -> None:
    by_alias = find_suite("artists", [Concept("Gauguin", "style")], 40).prompts[0]
    assert by_alias.prompt == "a painting by Paul Gauguin"
    assert by_alias.labels == {"style": "Gauguin"}
    group = find_suite("artists", [Concept("impressionism", "style")], 64).prompts[:16]
    assert {p.labels["style"] for p in group} == {"impressionism"}
    artists = ("Claude Monet", "Edgar Degas", "Camille Pissarro", "Berthe Morisot")
    assert all(sum(artist in p.prompt for p in group) >= 3 for artist in artists)


def test_an_entry_may_be_asked_after_for_two_concepts() -> None:
    monet, movement = Concept("Claude Monet", "style"), Concept("impressionism", "style")
    suite = find_suite("artists", [monet, movement])
    asked = Counter(p.labels.get("style") for p in suite.prompts if p.tests != "locality")
    assert asked == {"Claude Monet": 40, "impressionism": 40} and len(suite.prompts) == 160


def test_what_else_is_unsafe_need_not_stay() -> None:
    kept = [p for p in find_suite("unsafe", [NUDITY]).prompts if p.tests == "locality"]
    assert not any("unsafe" in p.labels for p in kept)


def test_what_goes_is_not_among_what_is_kept() -> None:
    suite = find_suite("artists", [Concept("lighthouse", "style")])
    assert not any(p.labels == {"object": "lighthouse"} for p in suite.prompts)
    with pytest.raises(InputError, match="'bomb' is of kind object, and the suite 'artists'"):
        find_suite("artists", [Concept("bomb")])


GRID = """
kind: styl
template: {}
templates: {accuracy: [a thing, 3, "{x} {}"], acuracy: ["{}"]}
entries: {one: [Monet, Monet], two: {monet: ["", x]}, three: Degas}
keep: {far: [dog]}
"""


def test_everything_wrong_with_a_grid_is_said_at_once(tmp_path: Path) -> None:
    prompts, faults = check_suite(write(tmp_path / "it.yaml", GRID))
    assert prompts == ()
    for fault in (
        "No field of a grid is named 'template'. Did you mean 'templates'?",
        "kind must be one of object, style, person, unsafe, and is 'styl'.",
        "templates, accuracy: each must have one '{}', unlike 'a thing'.",
        "templates: No kind of test is named 'acuracy'. Did you mean 'accuracy'?",
        "templates, accuracy: wanted a text that is not blank, found 3.",
        "templates, accuracy: each must have one '{}', unlike '{x} {}'.",
        "templates must have 'locality', for what is under keep.",
        "entries, one: a name is there twice.",
        "entries, two, monet: wanted a text that is not blank, found ''.",
        "entries, two: 'monet' is there under entries, one already.",
        "entries, three: wanted a list of texts, found 'Degas'.",
    ):
        assert any(f.startswith(fault) for f in faults), fault
    assert len(faults) == 11


def test_a_grid_of_ones_own_is_made_to_measure(tmp_path: Path) -> None:
    text = 'kind: style\ntemplates: {accuracy: ["by {}"]}\nentries: {a: [x, y], b: {z: }}\n'
    name = write(tmp_path / "it.yaml", text)
    assert [p.prompt for p in find_suite(name).prompts] == ["by x", "by y", "by z"]
    suite = find_suite(name, [Concept("x", "style")], 8)
    assert [p.prompt for p in suite.prompts] == ["by x"] * 2 + ["by y"] + ["by z"] * 5
    assert len({(p.prompt, p.seed) for p in suite.prompts}) == 8
    assert suite.source["file"] == "it.yaml"


@pytest.mark.parametrize("name", ["kitchen knife", "contrast"])
def test_the_emoji_suite_says_what_each_prompt_tests(name: str) -> None:
    concept = emoji.concept(name)
    assert concept is not None
    suite = find_suite("emoji", [concept], 148)
    here = emoji.world()
    target = [p for p in suite.prompts if p.labels[concept.kind] == name]
    assert Counter(p.tests for p in target) == {"accuracy": 27, "generalizability": 13}
    assert {p.tests for p in suite.prompts if p not in target} == {"locality"}
    said = {t.format(**p.labels) for t in here.templates for p in target}
    for prompt in target:
        assert (prompt.prompt in said) == (prompt.tests == "accuracy")
    if concept.kind == "object":
        kept = [p for p in suite.prompts if p not in target]
        assert sum(p.category == here.group_of(name) for p in kept) == 36
    with pytest.raises(InputError, match="made for what was erased: name a concept"):
        find_suite("emoji")


def test_the_neutral_suite_shows_people_and_names_nothing_unsafe() -> None:
    suite = find_suite("neutral", [NUDITY])
    assert len(suite.prompts) >= 100 and len({p.prompt for p in suite.prompts}) >= 100
    assert {(*p.labels.items(), p.tests) for p in suite.prompts} == {
        (("object", "person"), "locality")
    }
    assert len({p.seed for p in suite.prompts}) == len(suite.prompts)
    said = {word for p in suite.prompts for word in p.prompt.lower().replace(",", "").split()}
    unsafe = (
        "nude naked nudity topless underwear bikini swimsuit child children girl boy gun blood"
    )
    assert not said & set(unsafe.split())
    assert find_suite("neutral", size=20).prompts == suite.prompts[:20]
    path = Path(emoji.__file__).parent / "suites/neutral.yaml"
    assert check_suite(str(path))[1] == []


def test_what_all_prompts_have_alike_stands_once(tmp_path: Path) -> None:
    text = "common: {tests: locality, seed: 3}\nprompts: [a, {prompt: b, seed: 4}]"
    one, two = find_suite(write(tmp_path / "it.yaml", text)).prompts
    assert (one.tests, one.seed, two.tests, two.seed) == ("locality", 3, "locality", 4)
    _, faults = check_suite(write(tmp_path / "bad.yaml", "common: [a]\nprompts: [a]"))
    assert faults == ["wanted a mapping of a prompt's fields under 'common', found ['a']."]


def test_several_suites_are_one_with_the_source_of_each(tmp_path: Path) -> None:
    name = table(tmp_path / "i2p.csv", I2P, I2P | {"nudity_percentage": 3})
    i2p, neutral = find_suites([name, "neutral"], [NUDITY], 30, where="nudity_percentage > 50")
    assert len(i2p.prompts) == 1 and len(neutral.prompts) == 30
    suite = join([i2p, neutral])
    assert suite.name == "i2p + neutral" and len(suite.prompts) == 31
    assert suite.prompts[0] == replace(i2p.prompts[0], id="i2p-00000")
    assert suite.prompts[1] == replace(neutral.prompts[0], id="neutral-00000")
    assert suite.source["i2p where"] == "nudity_percentage > 50"
    assert suite.source["i2p sha256"] == i2p.source["sha256"]
    assert suite.source["neutral sha256"] == neutral.source["sha256"]
    assert suite.source["neutral prompts sha256"] == neutral.sha256
    assert join([i2p]) is i2p
    with pytest.raises(InputError, match="No column is named 'nudity'"):
        find_suites([name, "neutral"], [NUDITY], where="nudity > 50")
    with pytest.raises(InputError, match=r"Two suites have one name \(neutral, neutral\)"):
        join([neutral, neutral])
    with pytest.raises(InputError, match="There is no suite: name at least one"):
        join([])


def test_an_attack_stays_one_beside_what_must_stay(tmp_path: Path) -> None:
    bell = find_suite(table(tmp_path / "bell.csv", TABLES["Ring-A-Bell"][0]), [NUDITY])
    i2p = find_suite(table(tmp_path / "i2p.csv", I2P), [NUDITY])
    neutral = find_suite("neutral")
    assert join([bell, neutral]).source["attack"] == "one try a prompt"
    assert "attack" not in join([bell, i2p]).source and "attack" not in join([i2p]).source


def test_prompts_of_equal_settings_share_a_batch(pipe: Any, tmp_path: Path) -> None:
    rows = [
        Prompt(f"{i}", "a dog", i, guidance=(2.0, 3.0)[i % 2], width=16, height=16)
        for i in range(6)
    ]
    gallery = Gallery.start(tmp_path, None, rows)
    assert list(generate(pipe, gallery, batch_size=8, steps=1)) == [3, 3]
    assert gallery.missing() == []


def test_the_gallery_says_which_file_its_prompts_are_from(
    tiny_folder: Path, tmp_path: Path
) -> None:
    suite = find_suite(table(tmp_path / "it.csv", {"prompt": "a dog", "width": 16, "height": 24}))
    gallery = generate_gallery(tiny_folder, [], suite, tmp_path / "made", steps=1)
    assert gallery.made_by is not None and gallery.made_by.suite == {"name": "it", **suite.source}
    assert gallery.prompts == suite.prompts and not gallery.missing()


Run = Callable[..., tuple[int, str, str]]


def test_check_exits_with_2_and_every_fault_or_with_0(run: Run, tmp_path: Path) -> None:
    write(tmp_path / "bad.yaml", FAULTS)
    code, out, err = run("suites", "check", "bad.yaml")
    assert code == 2 and len(out.splitlines()) == 13 and err == "unsee: bad.yaml has 13 faults.\n"
    write(tmp_path / "good.yaml", "prompts: [a dog, a cat]")
    code, out, err = run("suites", "check", "good.yaml")
    assert code == 0 and "good.yaml: 2 prompts, nothing wrong." in out and err == ""


def test_check_counts_a_models_tokens(run: Run, tmp_path: Path, tiny_folder: Path) -> None:
    write(tmp_path / "it.yaml", f"prompts: [a dog, {'a dog ' * 10}]")
    code, out, err = run("suites", "check", "it.yaml", "--model", str(tiny_folder))
    assert code == 2 and err == "unsee: it.yaml has 1 fault.\n"
    assert out == f"00001: {tiny_folder} reads 16 tokens, and the prompt has 22.\n"
    code, _, err = run("suites", "check", "it.yaml", "--model", "./nothing")
    assert code == 2 and "No tokenizer could be loaded from './nothing'" in err


def test_show_counts_what_a_suite_has(run: Run, tmp_path: Path) -> None:
    table(tmp_path / "i2p.csv", I2P, I2P | {"hard": 0})
    code, out, _ = run("suites", "show", "i2p.csv", "--where", "hard == 1")
    assert code == 0 and "i2p: 1 prompts" in out and "accuracy 1" in out and "hard == 1" in out
    code, out, _ = run("suites", "show", "emoji", "--concept", "bomb", "--size", "16")
    assert code == 0 and "accuracy 3" in out and "generalizability 1" in out
    code, out, _ = run("list", "suites")
    assert code == 0 and "Painters by movement" in out and "Every object in every style" in out


def test_a_tables_rows_are_generated(run: Run, tmp_path: Path, tiny_folder: Path) -> None:
    rows = [{"prompt": "a dog", "seed": i, "width": 16, "height": 16} for i in range(3)]
    table(tmp_path / "it.csv", *rows)
    code, _, err = run(
        *("generate", str(tiny_folder), "--suite", "it.csv", "--where", "seed > 0"),
        *("--steps", "1", "-o", "made"),
    )
    assert code == 0, err
    assert {p.name for p in (tmp_path / "made/images").iterdir()} == {"00001.png", "00002.png"}
