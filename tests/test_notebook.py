"""The notebook runs from top to bottom."""

import json
from pathlib import Path

import pytest

QUICKSTART = Path(__file__).parents[1] / "notebooks" / "quickstart.ipynb"


@pytest.mark.slow
@pytest.mark.extra("dev")
def test_the_quickstart_runs_and_ends_with_its_report() -> None:
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(QUICKSTART, as_version=4)
    NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    last = "".join(output.get("text", "") for output in notebook.cells[-1].outputs)
    report = Path(last.rsplit("The report:", 1)[1].strip())
    assert report.is_file()
    shown = [o for cell in notebook.cells for o in cell.get("outputs", []) if "data" in o]
    assert sum("image/png" in o["data"] for o in shown) == 5


def test_it_is_kept_without_outputs() -> None:
    notebook = json.loads(QUICKSTART.read_text("utf-8"))
    assert not any(cell.get("outputs") for cell in notebook["cells"])
