"""`pydoc`: the corpus that every machine has, the documentation strings of installed packages.

Read from the source files without importing them, cleaned as `inspect.cleandoc` does, labelled by package,
near-copies removed. The order is that of a hash of the text, so the first documents are a fair sample.
"""

import ast
import gzip
import hashlib
import importlib.metadata
import importlib.util
import inspect
import json
import platform
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

from amortjax.activations.splits import NearCopies, uniform_of
from amortjax.files import write_atomically

MIN_CHARACTERS = 80
# Import name and the name its version is registered under.
PACKAGES = {
    "numpy": "numpy",
    "scipy": "scipy",
    "sklearn": "scikit-learn",
    "pandas": "pandas",
    "jax": "jax",
}
STDLIB = "stdlib"
SKIPPED_FOLDERS = {"tests", "test", "idle_test", "site-packages", "dist-packages", "__pycache__"}
# Part of the fingerprint: a change of the rules makes another corpus.
RULES = 1


def versions() -> dict[str, str]:
    """{package: version}, with Python's own under `stdlib`; a package that is missing is left out."""
    found = {STDLIB: platform.python_version()}
    for name, distribution in PACKAGES.items():
        try:
            found[name] = importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def fingerprint() -> str:
    """16 hex digits that stand for the package versions, and so for the text."""
    record = json.dumps({"rules": RULES, **versions()}, sort_keys=True)
    return hashlib.blake2b(record.encode(), digest_size=8).hexdigest()


def _folder(package: str) -> Path | None:
    if package == STDLIB:
        return Path(sysconfig.get_paths()["stdlib"])
    spec = importlib.util.find_spec(package)
    return Path(spec.origin).parent if spec and spec.origin else None


def _docstrings(path: Path) -> Iterator[str]:
    """The documentation strings of one source file, in order; nothing where it can't be parsed."""
    try:
        source = path.read_bytes()
        if b'"""' not in source and b"'''" not in source:
            return
        with warnings.catch_warnings():
            # Invalid escapes in other people's strings.
            warnings.simplefilter("ignore")
            tree = ast.parse(source)
    except (OSError, SyntaxError, ValueError, RecursionError):
        return
    waiting: list[ast.AST] = [tree]
    # Only statements hold definitions; leaving expressions out is several times faster than ast.walk.
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node, clean=False)
            if text and len(text) >= MIN_CHARACTERS:
                text = inspect.cleandoc(text)
                if len(text) >= MIN_CHARACTERS:
                    yield text
        for field in ("body", "orelse", "handlers", "finalbody"):
            waiting.extend(reversed(getattr(node, field, [])))


def _source_files(package: str) -> list[Path]:
    folder = _folder(package)
    if folder is None:
        return []
    files = []
    for path in folder.rglob("*.py"):
        if not SKIPPED_FOLDERS.intersection(path.relative_to(folder).parts[:-1]):
            files.append(path)
    return sorted(files)


ORDER_SEED = 1


def build() -> list[tuple[str, str]]:
    """All documents as (text, label), read afresh; about half a minute on one core."""
    seen: set[str] = set()
    documents: list[tuple[str, str]] = []
    for package in versions():
        for path in _source_files(package):
            for text in _docstrings(path):
                if text not in seen:
                    seen.add(text)
                    documents.append((text, package))
    documents.sort(key=lambda document: (uniform_of(document[0]), document[0]))
    copies = NearCopies()
    kept = [document for document in documents if copies.find_or_add(document[0]) is None]
    # Another hash than the one that deals documents to splits: the first ones must hold some of every split.
    return sorted(kept, key=lambda document: (uniform_of(document[0], ORDER_SEED), document[0]))


def load(cache_dir: str | Path = "outputs/cache") -> list[tuple[str, str]]:
    """All documents as (text, label); built once per set of package versions, then read from `cache_dir`."""
    path = Path(cache_dir) / f"pydoc-{fingerprint()}.json.gz"
    if path.exists():
        try:
            return [(text, label) for text, label in json.loads(gzip.decompress(path.read_bytes()))]
        except (OSError, EOFError, ValueError):
            # A damaged cache is made again.
            path.unlink(missing_ok=True)
    documents = build()
    data = json.dumps(documents).encode()
    write_atomically(path, gzip.compress(data, compresslevel=3, mtime=0))
    return documents
