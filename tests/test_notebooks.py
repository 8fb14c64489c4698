"""The notebooks run from top to bottom, and are kept with what they showed."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[1] / "examples" / "notebooks").glob("*.ipynb"))
# Of what drives the notebooks, not of ours: sockets of a kernel that has ended.
pytestmark = pytest.mark.filterwarnings("ignore:::zmq", "ignore:::tornado", "ignore:::jupyter_client")


def code_of(book: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in book.cells if cell.cell_type == "code"]


def test_there_are_two_notebooks_and_they_are_small():
    assert [path.stem for path in NOTEBOOKS] == ["probe_your_model", "watch_clusters_form"]
    assert all(path.stat().st_size < 200_000 for path in NOTEBOOKS)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_from_top_to_bottom_and_shows_what_it_was_kept_with(path):
    """The same kinds of output, cell by cell; what they hold may differ in its last digits on another machine."""
    kept = nbformat.read(path, as_version=4)
    nbformat.validate(kept)
    assert [cell.execution_count for cell in code_of(kept)] == list(range(1, len(code_of(kept)) + 1))
    fresh = nbformat.read(path, as_version=4)
    NotebookClient(fresh, timeout=240, kernel_name="python3", resources={"metadata": {"path": path.parent}}).execute()
    for before, after in zip(code_of(kept), code_of(fresh), strict=True):
        assert {kind for out in after.outputs for kind in out.get("data", {})} == {
            kind for out in before.outputs for kind in out.get("data", {})
        }
    assert any("image/png" in out.get("data", {}) for cell in code_of(fresh) for out in cell.outputs)
