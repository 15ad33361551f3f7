"""What the README says to type works."""

import re
from pathlib import Path

import pytest

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_the_python_runs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL)
    assert code
    # A smaller audit than the README's, for the test's time
    small = code[1].replace('out="runs/knife"', 'out="runs/knife", size=12')
    assert small != code[1]
    exec(compile(small, "README.md", "exec"), {})
    assert "kitchen knife" in capsys.readouterr().out
    assert (tmp_path / "runs/knife/report.html").is_file()


def test_its_links_lead_somewhere() -> None:
    root = Path(__file__).parents[1]
    for link in re.findall(r"\]\((?!http)([^)#]+)", README):
        assert (root / link).exists(), link
