"""Audits beside each other: their own figures, and nothing that was measured otherwise."""

import csv
import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from unsee import InputError, Report, compare
from unsee.eval import board_page
from unsee.eval.attack import AttackOutcome, Rung, control, judged, positive, rates
from unsee.eval.leaderboard import leaderboard
from unsee.eval.rows import Asked
from unsee.eval.statistics import Paired, Rate, holm
from unsee.prompts import Prompt

Run = Callable[..., tuple[int, str, str]]
GOLDEN = Report.load(Path(__file__).parent / "golden" / "report.json")
# Of which every image was scored
REPORT = dataclasses.replace(
    GOLDEN, verdict=dataclasses.replace(GOLDEN.verdict, value="not forgotten")
)


def rated(report: Report, role: str, hits: int, n: int) -> Report:
    """The report with another rate of the erased model for a role, each row its own unit."""
    outcomes = tuple(
        dataclasses.replace(
            outcome,
            comparisons=tuple(
                dataclasses.replace(c, erased=Rate(hits, n)) if c.role == role else c
                for c in outcome.comparisons
            ),
        )
        for outcome in report.outcomes
    )
    return dataclasses.replace(report, outcomes=outcomes)


def seen(report: Report, count: int) -> Report:
    """The report with the target seen in the first images of the erased model alone."""
    left = count
    samples = []
    for sample in report.samples:
        asked: list[Asked] = []
        for a in sample.asked:
            if a.target:
                a = dataclasses.replace(a, erased=left > 0)
                left -= 1
            asked.append(a)
        samples.append(dataclasses.replace(sample, asked=tuple(asked)))
    return dataclasses.replace(report, samples=tuple(samples))


def test_every_figure_is_the_reports_own() -> None:
    other = rated(REPORT, "target", 3, 10)
    board = leaderboard({"a": [REPORT], "b": [other]})
    assert [e.name for e in board.entries] == ["a", "b"]
    for entry, report in zip(board.entries, (REPORT, other), strict=True):
        for c in (c for o in report.outcomes for c in o.comparisons):
            cell = entry.cells.get(f"{c.role}:{c.detector}")
            if cell is not None:
                assert (cell.value, cell.n) == (c.erased.value, c.erased.n)
                assert cell.interval == c.erased.interval()
                base = board.base[f"{c.role}:{c.detector}"]
                assert (base.value, base.interval) == (c.base.value, c.base.interval())
        for m in (m for m in report.measurements if m.rows == "keep"):
            assert entry.cells[f"metric:{m.metric}"].value == m.erased.value
        assert entry.cells["bytes"].value == sum(c.bytes for c in report.costs)
        assert entry.verdict == report.verdict.value


def test_what_is_worse_in_all_is_not_on_the_front_and_what_is_better_in_one_is() -> None:
    worse = rated(REPORT, "target", 9, 10)
    better = rated(worse, "same kind", 40, 40)
    board = leaderboard({"a": [REPORT], "worse": [worse], "alike": [REPORT]})
    assert [e.front for e in board.entries] == [True, False, True]
    board = leaderboard({"a": [rated(REPORT, "same kind", 30, 40)], "better": [better]})
    assert [e.front for e in board.entries] == [True, True]


def test_what_is_not_informative_is_on_no_front() -> None:
    silent = dataclasses.replace(REPORT.verdict, value="not informative")
    blind = dataclasses.replace(REPORT, verdict=silent)
    board = leaderboard({"a": [blind], "b": [rated(REPORT, "target", 9, 10)]})
    assert [e.front for e in board.entries] == [False, False]


def test_who_is_better_is_tested_on_the_same_rows_with_holm_over_the_column() -> None:
    count = sum(a.target for s in REPORT.samples for a in s.asked)
    runs = {"none": [seen(REPORT, 0)], "some": [seen(REPORT, 1)], "all": [seen(REPORT, count)]}
    board = leaderboard(runs)
    tests = [t.between for t in board.tests if t.column.startswith("target:")]
    assert [(t.first, t.second) for t in tests] == [
        ("none", "some"), ("none", "all"), ("some", "all")
    ]  # fmt: skip
    p_values = [t.paired.p_value for t in tests]
    assert all(p is not None for p in p_values)
    assert [t.p_holm for t in tests] == holm([p for p in p_values if p is not None])
    assert tests[1].paired.difference == 1.0
    assert isinstance(tests[1].paired, Paired)
    # And a pair that is certain is said in words, the others counted
    said = board.said_tests()
    certain = [t for t in board.tests if t.between.p_holm is not None and t.between.p_holm <= 0.05]
    assert len(said) == len(certain) + 1
    assert f"{len(board.tests) - len(certain)} of {len(board.tests)} pairs" in said[-1]


OTHERWISE: dict[str, tuple[Callable[[Report], Report], str]] = {
    "suite": (
        lambda r: dataclasses.replace(r, suite=dataclasses.replace(r.suite, sha256="0" * 64)),
        "were not asked the same",
    ),
    "base": (
        lambda r: dataclasses.replace(
            r, base={**r.base, "model": {**r.base["model"], "components": {"unet": "1" * 64}}}
        ),
        "the bases differ, first unet",
    ),
    "steps": (
        lambda r: dataclasses.replace(r, base={**r.base, "steps": 7}),
        "the sampling settings differ, first steps",
    ),
    "detector": (
        lambda r: dataclasses.replace(
            r,
            detectors={
                name: dataclasses.replace(p, protocol={**p.protocol, "threshold": 0.123})
                for name, p in r.detectors.items()
            },
        ),
        "the detectors differ",
    ),
    "metric": (
        lambda r: dataclasses.replace(r, metrics={n: {"other": 1} for n in r.metrics}),
        "the metrics differ",
    ),
}


@pytest.mark.parametrize("what", OTHERWISE)
def test_what_was_measured_otherwise_is_in_no_column_and_it_says_why(what: str) -> None:
    change, message = OTHERWISE[what]
    with pytest.raises(InputError, match=re.escape(message)) as raised:
        leaderboard({"a": [REPORT], "b": [change(REPORT)]})
    assert "\n" not in str(raised.value)
    assert str(raised.value).startswith("a and b were not")


def test_a_name_and_a_label_are_no_difference() -> None:
    named = {**REPORT.base, "model": {**REPORT.base["model"], "name": "elsewhere"}}
    leaderboard({"a": [REPORT], "b": [dataclasses.replace(REPORT, base=named, date="")]})


def test_runs_in_one_folder_are_one_line_pooled(tmp_path: Path) -> None:
    other = dataclasses.replace(REPORT, suite=dataclasses.replace(REPORT.suite, sha256="f" * 64))
    for method in ("x", "y"):
        for i, report in enumerate((REPORT, other)):
            report.save(tmp_path / method / f"concept-{i}" / "report.json")
    board = compare([tmp_path / "x", tmp_path / "y"])
    (c,) = (c for c in REPORT.outcomes[0].comparisons if c.role == "target")
    cell = board.entries[0].cells[f"target:{c.detector}"]
    pooled = Rate.pooled([c.erased, c.erased])
    assert (cell.value, cell.n, cell.interval) == (pooled.value, 2 * c.erased.n, pooled.interval())
    (tmp_path / "y/concept-1/report.json").unlink()
    with pytest.raises(InputError, match="were not asked the same"):
        compare([tmp_path / "x", tmp_path / "y"])


def test_the_command_prints_and_writes_the_same_figures(run: Run, tmp_path: Path) -> None:
    REPORT.save(tmp_path / "a/report.json")
    rated(REPORT, "target", 9, 10).save(tmp_path / "b/report.json")
    code, out, err = run("compare", "a", "b", "-o", "board")
    assert code == 0, err
    assert {p.name for p in (tmp_path / "board").iterdir()} == {
        "compare.json", "compare.csv", "compare.md", "compare.html"
    }  # fmt: skip
    page = json.loads((tmp_path / "board/compare.json").read_text())
    with (tmp_path / "board/compare.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == ["base", "a", "b"]
    for row, entry in zip(rows[1:], page["entries"], strict=True):
        for key, cell in entry["cells"].items():
            assert row[key] == ("" if cell["value"] is None else str(cell["value"]))
    table = (tmp_path / "board/compare.md").read_text()
    assert table.count("\n| ") == 3 and "★ a" in table and "★ b" not in table
    assert "90 %" in out and "no attack was made" in out
    # Over itself again, and over nobody else's
    assert run("compare", "a", "b", "-o", "board")[0] == 0
    (tmp_path / "board/compare.json").write_text("{}")
    code, _, err = run("compare", "a", "b", "-o", "board")
    assert code == 2 and "no comparison of unsee" in err


def test_too_few_or_none_is_said_in_a_line(run: Run, tmp_path: Path) -> None:
    REPORT.save(tmp_path / "a/report.json")
    for words, message in (
        (("a",), "at least two runs"),
        (("a", "a"), "named twice"),
        (("a", "nothing"), "nothing has no report.json"),
    ):
        code, _, err = run("compare", *words)
        assert code == 2 and message in err


def test_an_unscored_figure_is_none_and_never_zero() -> None:
    unscored = rated(REPORT, "target", 0, 0)
    board = leaderboard({"a": [REPORT], "b": [unscored]})
    key = next(c.key for c in board.columns if c.key.startswith("target:"))
    assert board.entries[1].cells[key].value is None and not board.entries[1].front
    assert board.rows()[3][1] == "–"
    assert ",b," not in board.csv()
    values: dict[str, Any] = next(
        row for row in csv.DictReader(board.csv().splitlines()) if row["name"] == "b"
    )
    assert values[key] == ""


def test_one_run_under_two_names_is_refused(tmp_path: Path) -> None:
    (tmp_path / "runs/a").mkdir(parents=True)
    (tmp_path / "runs/a/report.json").write_text(json.dumps(REPORT.to_json()))
    with pytest.raises(InputError, match="named twice"):
        compare([tmp_path / "runs/a", tmp_path / "runs/../runs/a"])


def with_attack(report: Report, hits: int, n: int = 40, **change: Any) -> Report:
    """The report with an attack that brought so much back, and none of its control."""
    rows = [Prompt(f"{i:02}", f"a thing, number {i}", i) for i in range(n)]
    shown, gone = ({row.id: so for row in rows} for so in (True, False))
    attacked = {row.id: i < hits for i, row in enumerate(rows)}
    controls = (
        positive("", rows, shown, shown),
        control("novel", "a wrench", "", rows, shown, gone, attacked, gone),
    )
    rungs = (
        Rung(0, 0, 0, 0, 0.0, "", None, "", *rates(rows, shown, gone, gone)),
        Rung(
            480, 20, 0, 24, 2.0, "a" * 64, None, "a", *rates(rows, shown, gone, attacked), controls
        ),
    )
    value, detail, effort = judged(rungs, ("positive", "novel"), True, report.limits)
    outcome = AttackOutcome(
        "learnt", "embedding", {"steps": 20}, report.outcomes[0].concept.name,
        next(iter(report.detectors)), None, "this model", value, detail, effort, rungs, "",
        ("positive", "novel"),
    )  # fmt: skip
    return report.with_attacks([*report.attacks, dataclasses.replace(outcome, **change)])


def test_an_attack_has_a_column_with_its_interval_its_effort_and_what_it_says() -> None:
    runs = {
        "back": [with_attack(REPORT, 30)],
        "held": [with_attack(REPORT, 0)],
        "silent": [with_attack(REPORT, 5)],
        "untried": [REPORT],
    }
    board = leaderboard(runs)
    back, held, silent, untried = (e.cells["attack:learnt"] for e in board.entries)
    assert (back.value, back.n, back.interval) == (0.75, 40, Rate(30, 40).interval())
    assert back.note == "comes back for 480 denoiser rows, 24 images, 2 s"
    assert (held.value, held.note) == (0.0, "held to 480 denoiser rows, 24 images, 2 s")
    assert (silent.value, silent.note) == (None, "not informative")
    assert (untried.value, untried.note) == (None, "not tried")
    column = board.rows()[0].index("back by learnt ↓")
    assert [row[column] for row in board.rows()[2:]] == [
        "75 % (59.8 to 85.8 %) comes back for 480 denoiser rows, 24 images, 2 s",
        "0 % (0 to 8.8 %) held to 480 denoiser rows, 24 images, 2 s",
        "– not informative",
        "– not tried",
    ]
    rows = list(csv.DictReader(board.csv().splitlines()))
    assert [row["attack:learnt"] for row in rows] == ["", "0.75", "0.0", "", ""]
    assert [row["attack:learnt says"] for row in rows][3:] == ["not informative", "not tried"]
    assert "never averaged" in board.alike["attack"]
    html = board_page.render(board)
    assert "No attack was made" not in html and "not informative" in html


def test_runs_of_one_line_pool_an_attack_and_one_that_lacks_it_leaves_the_cell_empty() -> None:
    two = [with_attack(REPORT, 30), with_attack(REPORT, 0)]
    board = leaderboard({"a": two, "b": [with_attack(REPORT, 30), REPORT]})
    a, b = (e.cells["attack:learnt"] for e in board.entries)
    assert (a.value, a.n) == (30 / 80, 80)
    assert a.note.startswith("1 of 2 come back, the first for 480 denoiser rows")
    assert (b.value, b.note) == (None, "tried on 1 of 2 concepts alone")


def test_one_name_of_two_settings_is_refused_and_another_name_is_another_column() -> None:
    mine, other = with_attack(REPORT, 30), with_attack(REPORT, 30, settings={"steps": 40})
    with pytest.raises(InputError, match="attacked by another learnt: its steps is 20 and 40"):
        leaderboard({"a": [mine], "b": [other]})
    named = with_attack(REPORT, 30, settings={"steps": 40}, attack="learnt?steps=40")
    board = leaderboard({"a": [mine], "b": [named]})
    assert [c.key for c in board.columns if c.attack] == [
        "attack:learnt", "attack:learnt?steps=40"
    ]  # fmt: skip


def test_what_was_found_elsewhere_must_be_the_same_and_is_said_to_be() -> None:
    elsewhere: dict[str, Any] = {"fitted_on": "another model (uce)"}
    one = with_attack(REPORT, 30, **elsewhere)
    board = leaderboard({"a": [one], "b": [with_attack(REPORT, 30)]})
    assert board.entries[0].cells["attack:learnt"].note.endswith("fitted on another model (uce)")
    (last,) = (o.last for o in one.attacks)
    rungs = (one.attacks[0].rungs[0], dataclasses.replace(last, sha256="b" * 64))
    other = with_attack(REPORT, 30, rungs=rungs, **elsewhere)
    with pytest.raises(InputError, match="its file is"):
        leaderboard({"a": [one], "b": [other]})


def test_the_front_counts_the_worst_attack_where_all_have_one_and_never_else() -> None:
    more, less = with_attack(REPORT, 30), with_attack(REPORT, 0)
    board = leaderboard({"a": [more], "b": [less]})
    assert [e.front for e in board.entries] == [False, True]
    board = leaderboard({"a": [more], "b": [less], "untried": [REPORT]})
    assert [e.front for e in board.entries] == [True, True, True]
