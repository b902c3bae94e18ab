"""Every notebook runs from top to bottom on the embedded model, and keeps the house's rules."""

import os
import re
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "colab").glob("*.ipynb"))
# Smaller runs of the same cells: assignments of the parameters cell, of equal sizes, so that little is compiled twice.
SMALL = {"DOCUMENTS": "400", "N_LATENTS": "128", "STEPS": "30", "EVAL_TOKENS": "1024", "CALIBRATION_TOKENS": "512",
         "PROBE_TOKENS": "512"}  # fmt: skip
OWN = {
    "loca": {
        "K": "8", "GROUP_K": '"4/3/2/1"', "FINE_STEPS": "20", "PRICE_TOKENS": "512", "CONTROLS": '("loca", "topk")',
        "MODES": "()",
    },
    "compute_optimal": {
        "SEEDS": "2", "ITERATIONS": "50", "CONTROLLED": '("sae", "sparse_coding")',
        "THEOREM": '{"steps": 30, "dictionaries": 10, "sparsities": (2,)}',
    },
    "quickstart": {"SAES": '{"topk": {"k": 8}}', "MODES": '("amortized", "optimal", "optimal_refit")'},
    "section5_gpu": {
        "TRAIN": '{"topk": {"k": 8}}', "CKPTS": '(f"{OUT}/topk",)', "SWEEP": "(0, 5)",
        "MODES": '("amortized", "non_amortized", "optimal")',
    },
    "your_sae": {"K": "8", "EXPLORED": "8", "MODES": '("amortized", "optimal", "optimal_refit")'},
}  # fmt: skip


def _read(path: Path):
    nbformat = pytest.importorskip("nbformat")
    return nbformat.read(path, as_version=4)


def _parameters(notebook):
    return next(cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ()))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_rules(path):
    cells = [cell for cell in _read(path).cells if cell.cell_type == "code"]
    assert len(cells) <= 12
    assert "pip install" in cells[0].source and "except ImportError" in cells[0].source
    assert "constraints" not in cells[0].source  # they would replace Colab's jax
    assert any("image/png" in out.get("data", {}) for cell in cells for out in cell.outputs), (
        "no picture is kept"
    )
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1)), (
        "outputs of no whole run"
    )
    said = "".join(str(out) for cell in cells for out in cell.outputs)
    assert "Traceback" not in said and not re.search(r"/(home|root|tmp|work|opt)/", said)


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """The corpus is read from the installed packages, and the model run over it, once and not for each notebook."""
    folder = tmp_path_factory.mktemp("shared")
    (folder / "cache").mkdir()
    return folder


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_runs(path, shared, tmp_path, monkeypatch):
    nbclient = pytest.importorskip("nbclient")
    notebook = _read(path)
    cell = _parameters(notebook)
    acts = tmp_path / re.search(r'^OUT = "(.+)"', cell.source, re.M)[1] / "acts"
    acts.parent.mkdir(parents=True)
    (tmp_path / "outputs" / "cache").symlink_to(shared / "cache")
    if (shared / "acts").exists():
        acts.symlink_to(shared / "acts")
    cell.source += "".join(f"\n{name} = {value}" for name, value in (SMALL | OWN[path.stem]).items())
    monkeypatch.setenv("AMORTJAX_NOTEBOOK", "embedded")  # nothing from the hub
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    ).execute()
    if acts.exists() and not acts.is_symlink():  # a notebook without a language model has none
        shutil.copytree(acts, shared / "acts")
