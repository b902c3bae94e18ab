"""The house: which room may import which, what only one file may import, and what an import loads."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "amortjax"
MODULES = sorted(PACKAGE.rglob("*.py"))
# A room imports only from rooms to its left.
ROOMS = ("errors", "files", "activations", "saes", "inference", "metrics", "report", "price", "adapters")
_LEFT = {"errors", "files", "activations", "saes", "inference", "metrics"}
SIDE_ROOMS = {
    "training": _LEFT | {"training"},
    "interp": _LEFT | {"interp"},
    "synthetic": _LEFT | {"training", "interp", "synthetic"},
}
TORCH_MAY_BE_IMPORTED_IN = (
    "activations/export.py", "activations/models.py", "activations/splice.py", "adapters.py", "assets/train_lm.py",
    "interp/local.py", "launch/bench_", "saes/formats/dictionary_learning_writer.py", "saes/formats/loca_writer.py",
)  # fmt: skip
ONLY_IN = {"matplotlib": ("report/figures", "report/canvas"), "flax.nnx": ("training/",)}


def imports(path: Path, top_level_only: bool = False) -> set[str]:
    """Dotted names a module imports; with `top_level_only`, those that importing it runs."""
    tree = ast.parse(path.read_text())
    nodes = [n for n in tree.body] if top_level_only else list(ast.walk(tree))
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def room_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return parts[0]


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_rooms_import_only_from_their_left(path):
    room = room_of(path)
    if room in ("launch", "__init__", "assets"):
        return
    allowed = SIDE_ROOMS.get(room) or set(ROOMS[: ROOMS.index(room) + 1])
    for name in imports(path):
        if name.startswith("amortjax.") and name != "amortjax.__version__":
            assert name.split(".")[1] in allowed, f"{path} imports {name}"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_nothing_imports_launch(path):
    if room_of(path) not in ("launch", "assets"):  # the assets' script is a launcher of its own
        assert not any(name.startswith("amortjax.launch") for name in imports(path))


@pytest.mark.parametrize(
    "library", ["torch", "transformers", "datasets", "datasketch", "sklearn", "matplotlib"]
)
@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_heavy_libraries_are_imported_inside_functions(path, library):
    if "assets/" not in str(path):
        assert not any(name.split(".")[0] == library for name in imports(path, top_level_only=True))


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_sole_importers(path):
    where = str(path.relative_to(PACKAGE))
    for library, places in ONLY_IN.items():
        if any(name == library or name.startswith(library + ".") for name in imports(path)):
            assert where.startswith(places), f"{where} imports {library}"
    if "torch" in {name.split(".")[0] for name in imports(path)}:
        assert where.startswith(TORCH_MAY_BE_IMPORTED_IN), f"{where} imports torch"


def run(code: str) -> tuple[str, set[str]]:
    """What it prints, and the modules it loads."""
    out = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print('<<modules>>', ' '.join(sys.modules))"],
        capture_output=True,
        text=True,
        check=True,
    )
    said, modules = out.stdout.rsplit("<<modules>>", 1)
    return said, set(modules.split())


def test_import_amortjax_is_light_and_its_parts_need_no_torch():
    heavy = {"torch", "transformers", "sklearn", "matplotlib", "flax.nnx", "datasets"}
    assert not run("import amortjax")[1] & (heavy | {"jax", "pandas"})
    assert not run("import amortjax as aj; aj.load_sae, aj.infer, aj.encode, aj.price")[1] & heavy


LAUNCHERS = [
    p.stem for p in (PACKAGE / "launch").glob("*.py") if 'if __name__ == "__main__"' in p.read_text()
]


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_every_launcher_explains_itself_without_loading_anything_heavy(launcher):
    code = (
        f"import sys, runpy; sys.argv = ['x', '--help']\n"
        f"try: runpy.run_module('amortjax.launch.{launcher}', run_name='__main__')\n"
        f"except SystemExit as e: assert e.code == 0"
    )
    said, loaded = run(code)
    assert "usage:" in said
    assert not loaded & {"torch", "transformers", "jax", "sklearn", "matplotlib"}
