"""Shared fixtures: a small activation store, and where the optional real data lies. XLA compiles quickly rather than
well."""

import importlib.metadata
import os
from pathlib import Path

# Before JAX is imported; xdist's workers, launchers run as commands and notebooks' kernels inherit it.
# Nearly all of the tests' time would go into LLVM for programs that run for milliseconds.
# JAX_DISABLE_MOST_OPTIMIZATIONS=0 compiles as users do (the quickstart always does), in two to five times the time.
QUICK = "--xla_cpu_use_fusion_emitters=false"
# XLA ends the process at a flag that it doesn't know: only for versions that have it.
KNOWN = importlib.metadata.version("jaxlib").startswith("0.10.")
if os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1") == "1" and KNOWN:
    given = os.environ.get("XLA_FLAGS", "").split()
    os.environ["XLA_FLAGS"] = " ".join(given if QUICK in given else [*given, QUICK])

import numpy as np  # noqa: E402
import pytest  # noqa: E402
from problems import toy_sae  # noqa: E402

from amortjax.activations.store import MemoryStore  # noqa: E402

# A file is one worker's. Those that take longest go first, so that the other does not wait for them at the end.
LONGEST = ("test_notebooks.py", "test_bench_inference.py", "test_price.py", "test_train.py", "test_section43.py",
           "test_certificate.py", "test_decompose.py", "test_step_sweep.py")  # fmt: skip


def pytest_configure(config: pytest.Config) -> None:
    config.option.loadscopereorder = False  # xdist's own order: most tests first


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.fixture(scope="session")
def test_data() -> Path:
    """Folder of public models and texts; tests that need it skip without it."""
    path = os.environ.get("AMORTJAX_TEST_DATA", "")
    if not path or not Path(path).is_dir():
        pytest.skip("AMORTJAX_TEST_DATA names no folder of test models and texts")
    return Path(path)


@pytest.fixture(scope="session")
def toy_store() -> MemoryStore:
    """1 600 tokens of 400 documents in two classes, made of the atoms of `toy_sae`; class 1 fires latent 0."""
    return make_store(400, 4)


@pytest.fixture(scope="session")
def small_store() -> MemoryStore:
    """The same with 768 tokens of 384 documents. A split has 256: the solver's buffers hold that many, so that it is
    compiled for few shapes."""
    return make_store(384, 2)


def make_store(n_documents: int, per: int) -> MemoryStore:
    r, sae = np.random.default_rng(7), toy_sae()
    label = r.integers(0, 2, n_documents)
    z = np.zeros((n_documents * per, sae.n_latents))
    for i, row in enumerate(z):
        row[r.choice(np.arange(1, sae.n_latents), 4, replace=False)] = r.exponential(size=4) + 0.3
        row[0] = label[i // per] * (r.random() < 0.5) * 2.0
    x = z @ np.asarray(sae.W_dec) + np.asarray(sae.b_dec) + 0.02 * r.standard_normal((len(z), sae.d_in))
    splits = np.array(["calibrate", "probe_train", "test"])[np.arange(n_documents) % 3]
    doc_ids = np.repeat(np.arange(n_documents), per)
    return MemoryStore.build(x.astype(np.float32), doc_ids, list(splits), [f"class {i}" for i in label])
