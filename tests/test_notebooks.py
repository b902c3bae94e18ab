"""Every notebook runs from top to bottom on the embedded model, and keeps the house's rules."""

import os
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "colab").glob("*.ipynb"))
# Smaller runs of the same cells: assignments of the parameters cell.
SMALL = {
    "loca": {
        "DOCUMENTS": "400", "N_LATENTS": "128", "K": "8", "GROUP_K": '"4/3/2/1"', "STEPS": "30", "FINE_STEPS": "20",
        "EVAL_TOKENS": "1024", "CALIBRATION_TOKENS": "512", "PROBE_TOKENS": "512", "PRICE_TOKENS": "512",
        "CONTROLS": '("loca", "topk")', "MODES": "()",
    }
}  # fmt: skip


def _read(path: Path):
    nbformat = pytest.importorskip("nbformat")
    return nbformat.read(path, as_version=4)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_rules(path):
    cells = [cell for cell in _read(path).cells if cell.cell_type == "code"]
    assert len(cells) <= 12
    assert "pip install" in cells[0].source and "except ImportError" in cells[0].source
    assert any("image/png" in out.get("data", {}) for cell in cells for out in cell.outputs), (
        "no picture is kept"
    )
    assert all(cell.execution_count for cell in cells), "outputs are of no whole run"
    said = "".join(str(out) for cell in cells for out in cell.outputs)
    assert "Traceback" not in said and not re.search(r"/(home|root|tmp|work|opt)/", said)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_runs(path, tmp_path, monkeypatch):
    nbclient = pytest.importorskip("nbclient")
    notebook = _read(path)
    cell = next(cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ()))
    cell.source += "".join(f"\n{name} = {value}" for name, value in SMALL[path.stem].items())
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    ).execute()
