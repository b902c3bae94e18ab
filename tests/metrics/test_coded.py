"""Codes in parts: those of the modes, made once; and a gap-safe test that never excludes what an optimum uses."""

import numpy as np
import pytest
import scipy.sparse
from problems import toy_sae

from amortjax.inference import gaps, modes, objective
from amortjax.inference.api import encode_codes
from amortjax.metrics import coded
from amortjax.metrics.bench import Bench
from amortjax.metrics.coded import Coder
from amortjax.metrics.measure import Knobs
from amortjax.metrics.plan import make_plan, pose_subject

LAM = 0.35


@pytest.fixture
def coder(toy_store, tmp_path, monkeypatch) -> Coder:
    monkeypatch.setattr(coded, "PART_CHUNKS", 1)
    sizes = {"eval_tokens": 384, "probe_tokens": 384, "calibration_tokens": 384, "chunk": 128}
    plan = make_plan(conditions=("same_l0",), ista_steps=5, **sizes)
    return Coder(Bench(pose_subject(toy_sae(), toy_store, plan), plan, tmp_path, False), tmp_path)


def test_codes_are_the_modes_and_parts_are_made_once(coder, monkeypatch, tmp_path):
    subject = coder.subject
    z = coder.codes("test", "non_amortized", Knobs(LAM))
    x, t, _ = subject.batch(subject.test_rows)
    own = encode_codes(subject.sae, x, 128)
    wanted, _ = modes.solve("non_amortized", subject.problem, t, own, LAM, 1.0, subject.options)
    assert np.array_equal(z.toarray(), wanted.dense())
    assert np.array_equal(coded.as_codes(z).dense(), z.toarray())
    files = sorted(tmp_path.glob("part_*.npz"))
    assert len(files) == 3
    files[0].write_bytes(b"not a part")
    made, solve = [], coded._solve
    monkeypatch.setattr(coded, "_solve", lambda *a: made.append(len(a[3])) or solve(*a))
    assert np.array_equal(coder.codes("test", "non_amortized", Knobs(LAM)).toarray(), z.toarray())
    assert len(made) == 1
    for other in ({"tol": 1e-2}, {"knobs": Knobs(2 * LAM)}, {"split": "probe"}):
        given = {"split": "test", "mode": "non_amortized", "knobs": Knobs(LAM)} | other
        made.clear()
        coder.codes(**given)
        assert len(made) == 3, other


@pytest.mark.parametrize("tol", [1e-3])
def test_the_screen_keeps_what_any_optimum_uses_stage_by_stage(coder, tol):
    subject = coder.subject
    z = coder.codes("test", "optimal", Knobs(LAM), tol)
    stage = np.minimum(np.arange(z.shape[0]) // 16, 9)  # the last one is large, and in several chunks
    found = coder.screen(z, "test", LAM, stage, tol)
    fine = coder.codes("test", "optimal", Knobs(LAM), 1e-8).toarray() != 0
    t = subject.batch(subject.test_rows)[1]
    whole = objective.certify(subject.problem, t, coded.as_codes(z), LAM)
    for s in range(10):
        own = objective.Certificate(*(column[stage == s] for column in whole))
        assert np.array_equal(found.open[s], gaps.possibly_active(subject.problem, own, LAM).latents)
        assert not (fine[stage == s].any(axis=0) & ~found.open[s]).any()
    assert 0.1 < found.open[:9].mean() < 0.95, "the test excludes something and keeps something"
    assert found.certified == np.mean(whole.relative_gap <= tol) > 0.95
    assert np.array_equal(coder.screen(z, "test", LAM, stage, tol).open, found.open)


def test_no_tokens_are_no_codes(coder):
    empty = scipy.sparse.csr_array((0, 64), dtype=np.float32)
    assert coded.as_codes(empty).indices.shape[0] == 0
