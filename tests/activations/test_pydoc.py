from pathlib import Path

import pytest

from amortjax.activations import pydoc

LONG = "Returns the sum of all the numbers that were given, however many of them there may be, as one number."
SOURCE = f'''"""{LONG} One."""

class A:
    """
    {LONG}

        indented
    """

    def method(self):
        """too short"""
        if True:
            def inner():
                """{LONG} Three."""

VALUE = """{LONG} Not a documentation string, though it is long enough."""
'''


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two packages of our own in place of the installed ones."""
    for name in ("one", "two"):
        (tmp_path / name / "tests").mkdir(parents=True)
        (tmp_path / name / "a.py").write_text(SOURCE.replace("numbers", f"{name} things of this sort"))
        (tmp_path / name / "tests" / "b.py").write_text(f'"""{LONG} In a test."""')
        (tmp_path / name / "broken.py").write_text(f'"""{LONG} Broken."""\ndef (')
    monkeypatch.setattr(pydoc, "versions", lambda: {"one": "1", "two": "1"})
    monkeypatch.setattr(pydoc, "_folder", lambda package: tmp_path / package)
    return tmp_path


def test_documentation_strings_only(packages: Path):
    found = list(pydoc._docstrings(packages / "one" / "a.py"))
    assert len(found) == 3
    assert found[1].endswith("number.\n\n    indented")
    assert not any("though it is long" in text or "too short" in text for text in found)


def test_near_copies_are_removed(packages: Path):
    # Within a package the three strings differ by a word or an indented line.
    documents = pydoc.build()
    assert sorted(label for _, label in documents) == ["one", "two"]
    assert not any("In a test" in text for text, _ in documents)


def test_cache(packages: Path, monkeypatch: pytest.MonkeyPatch):
    built = pydoc.load(packages / "cache")
    assert built == pydoc.build()
    (file,) = (packages / "cache").iterdir()
    monkeypatch.setattr(pydoc, "build", lambda: pytest.fail("built again"))
    assert pydoc.load(packages / "cache") == built
    monkeypatch.setattr(pydoc, "build", lambda: built)
    file.write_bytes(file.read_bytes()[:-20])
    assert pydoc.load(packages / "cache") == built


def test_fingerprint_follows_the_versions(monkeypatch: pytest.MonkeyPatch):
    before = pydoc.fingerprint()
    assert before == pydoc.fingerprint()
    monkeypatch.setattr(pydoc, "versions", lambda: {"stdlib": "0"})
    assert pydoc.fingerprint() != before


def test_installed_packages_are_found():
    assert set(pydoc.versions()) == {"stdlib", *pydoc.PACKAGES}
    numpy = pydoc._folder("numpy")
    files = pydoc._source_files("numpy")
    assert numpy and numpy / "linalg" / "_linalg.py" in files
    assert numpy / "linalg" / "tests" / "test_linalg.py" not in files
    assert any("eigenvalues" in text for text in pydoc._docstrings(numpy / "linalg" / "_linalg.py"))


def test_any_number_of_documents_holds_every_split(tmp_path, monkeypatch):
    """The order must not be that of the hash that deals documents to splits."""
    from amortjax.activations.splits import uniform_of

    texts = [f"Document number {i} says {'something of its own ' * 5}{i * i}." for i in range(60)]
    monkeypatch.setattr(pydoc, "versions", lambda: {"one": "1"})
    monkeypatch.setattr(pydoc, "_source_files", lambda package: [tmp_path])
    monkeypatch.setattr(pydoc, "_docstrings", lambda path: texts)
    monkeypatch.setattr(pydoc.NearCopies, "find_or_add", lambda self, text: None)
    first = [uniform_of(text) for text, _ in pydoc.build()[:20]]
    assert min(first) < 0.3
    assert max(first) > 0.7
