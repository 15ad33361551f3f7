"""The notebooks run from top to bottom."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[1] / "notebooks"
STORED = ("attack", "audit", "compare")
"""The notebooks that are kept with what they print."""


def ran(name: str) -> Any:
    """A notebook with the outputs of a run."""
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    return notebook


def kinds(cells: Any) -> list[set[str]]:
    """Of each code cell what it shows; what libraries say on stderr, such as bars, is no part."""
    found = []
    for cell in cells:
        if cell["cell_type"] == "code":
            data = [
                {"text": ""} if "data" not in o else o["data"]
                for o in cell["outputs"]
                if o.get("name") != "stderr"
            ]
            kinds = ("image/png", "text/markdown", "text")
            found.append({kind for d in data for kind in kinds if kind in d})
    return found


@pytest.mark.slow
@pytest.mark.extra("dev")
def test_the_quickstart_runs_and_ends_with_its_report() -> None:
    notebook = ran("quickstart")
    last = "".join(output.get("text", "") for output in notebook.cells[-1].outputs)
    report = Path(last.rsplit("The report:", 1)[1].strip())
    assert report.is_file()
    shown = [o for cell in notebook.cells for o in cell.get("outputs", []) if "data" in o]
    assert sum("image/png" in o["data"] for o in shown) == 5


@pytest.mark.slow
@pytest.mark.extra("dev")
@pytest.mark.parametrize("name", STORED)
def test_it_runs_and_each_cell_gives_what_it_gave_when_it_was_stored(name: str) -> None:
    stored = json.loads((FOLDER / f"{name}.ipynb").read_text("utf-8"))["cells"]
    # Its kinds, not its figures: another machine's rounding may change an image
    assert kinds(ran(name).cells) == kinds(stored)


@pytest.mark.parametrize("name", STORED)
def test_stored_outputs_are_of_every_cell_in_order_and_of_no_machine(name: str) -> None:
    text = (FOLDER / f"{name}.ipynb").read_text("utf-8")
    cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert all(cell["outputs"] for cell in cells[1:])
    assert not re.search(r"stderr|Traceback|/tmp|/home|/root", text)


def test_the_quickstart_is_kept_without_outputs() -> None:
    notebook = json.loads((FOLDER / "quickstart.ipynb").read_text("utf-8"))
    assert not any(cell.get("outputs") for cell in notebook["cells"])
