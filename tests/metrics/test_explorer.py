import dataclasses

import numpy as np
import pytest
import scipy.sparse
from problems import toy_sae

from amortjax.activations.store import MemoryStore
from amortjax.errors import AmortjaxError
from amortjax.inference import api
from amortjax.metrics import explorer, roles
from amortjax.metrics.plan import make_plan, pose_subject

LAM = 0.3


@pytest.fixture(scope="module")
def store(toy_store):
    """The toy store with a token text for each row, some of which is HTML, and one without a text."""
    ids = np.arange(toy_store.n_rows) % 5
    vocab = ["", " the", "<b>", " a", "\n"]
    return MemoryStore(toy_store._x, ids, toy_store.doc_ids, toy_store.documents, toy_store.manifest, vocab)


@pytest.fixture(scope="module")
def posed(store):
    sae = dataclasses.replace(toy_sae(), info=dataclasses.replace(toy_sae().info, name="toy"))
    # Two chunks of one shape: a shape more costs seconds of compiling.
    plan = make_plan(chunk=256, eval_tokens=512, probe_tokens=512)
    return pose_subject(sae, store, plan), plan


@pytest.fixture(scope="module")
def found(posed):
    return explorer.explore(*posed, LAM, n_latents=64)


def test_prices_of_all_latents_sum_to_what_the_encoder_is_above_the_optimum(posed, found):
    subject, _ = posed
    x = subject.acts.read(subject.test_rows)
    modes = ("amortized", "optimal")
    own, best = (api.infer(subject.sae, x, LAM, mode=mode, chunk=256).objective for mode in modes)
    assert found["n_tokens"] == len(x) and found["covered"] == pytest.approx(1)
    assert found["price"] == pytest.approx((own - best).mean(), rel=0.01)
    for latent in found["latents"]:
        assert sum(latent["parts"]) == pytest.approx(latent["price"], rel=1e-2, abs=1e-5)


def test_examples_show_what_they_say_within_their_document(posed, found):
    subject, _ = posed
    assert {"missed", "false fire", "amplitude"} <= {
        e["why"] for la in found["latents"] for e in la["examples"]
    }
    for latent in found["latents"]:
        n_own, n_best, n_both = latent["fires"]
        assert n_both <= min(n_own, n_best)
        for example in latent["examples"]:
            assert len(example["tokens"]) == 4  # documents have four tokens
            at = {place: (own, best) for place, own, best in example["fires"]}
            own, best = at.get(example["at"], (0, 0))
            if example["why"] == "missed":
                assert own == 0 < best
            if example["why"] == "false fire":
                assert best == 0 < own
            if example["why"] == "agree":
                assert abs(own - best) <= 0.11 * max(own, best)
            assert example["label"].startswith("class ")
    assert set(found["strings"]) <= {" the", "<b>", " a", "\n", " ⟨0⟩"}
    weights = np.asarray(subject.problem.weights)
    assert weights == pytest.approx(1, abs=1e-5)  # so activations are the codes themselves
    codes = api.encode_codes(subject.sae, subject.acts.read(subject.test_rows)).csr()
    for latent in found["latents"]:
        assert latent["fires"][0] == (codes[:, [latent["id"]]] != 0).sum()


def test_the_class_s_own_latent_has_its_role(posed, found):
    first = next(latent for latent in found["latents"] if latent["id"] == 0)
    assert found["probes"] == "document labels"
    assert any("class 1" in note and "main latent" in note for note in first["notes"])


def test_a_second_call_reads_what_was_kept_and_a_damaged_file_is_collected_again(
    posed, tmp_path, monkeypatch
):
    subject, plan = posed
    first = explorer.explore(subject, plan, LAM, 8, tmp_path)
    (path,) = tmp_path.glob("explorer_*.json")
    monkeypatch.setattr(explorer, "fire", None)
    assert explorer.explore(subject, plan, LAM, 8, tmp_path) == first and len(first["latents"]) == 8
    for damage in (path.read_text()[:-5], path.read_text().replace("missed", "messed", 1), "[]", "\xff"):
        path.write_text(damage, encoding="latin-1", errors="replace")
        with pytest.raises(TypeError):  # it sets out to collect, with the None above
            explorer.explore(subject, plan, LAM, 8, tmp_path)


@pytest.mark.parametrize(("lam", "n"), [(0.0, 8), (-1.0, 8), (float("nan"), 8), (0.3, 0)])
def test_what_cannot_be_explored_is_refused(posed, lam, n):
    with pytest.raises(AmortjaxError, match=r"above 0|at least 1"):
        explorer.explore(*posed, lam, n)


def fired(own, best, price):
    make = scipy.sparse.csr_array
    parts = np.stack([price.sum(axis=0), *np.zeros((2, price.shape[1]))])
    return explorer.Fired(np.arange(len(own)), make(own), make(best), make(price), parts)


def test_dead_latents_are_among_the_chosen_whatever_their_price():
    own, best, price = np.zeros((3, 6, 40))
    own[:, :30], best[:, :30] = 1.0, 1.0
    price[:, :30] = np.linspace(9, 1, 30)
    best[:2, 30] = own[:3, 31] = 1.0  # 30 is dead in the encoder, 31 in the optimum, 32 to 39 in both
    chosen = explorer.choose(fired(own, best, price), [], 16)
    assert len(chosen) == 16 and chosen[30] == ["dead in encoder"] and chosen[31] == ["dead in optimum"]
    assert [j for j, kinds in chosen.items() if kinds == ["price"]] == list(range(14))
    assert set(explorer.choose(fired(own, best, price), [], 200)) == set(range(32))
    assert len(explorer.choose(fired(own, best, price), [], 1)) == 1


def test_examples_are_the_dearest_and_do_not_share_a_window():
    n = 100
    own, best, price = np.zeros((3, n))
    best[[10, 15, 40, 70]] = 1.0
    price[[10, 15, 40, 70]] = 1.0, 5.0, 2.0, 3.0
    own[90] = best[90] = 2.0
    same, none = np.zeros(n, int), np.zeros(0, int)
    picked = explorer.pick(own, best, price, np.arange(n), same, none)
    assert picked == [("missed", 15), ("missed", 70), ("missed", 40), ("agree", 90)]
    other = np.arange(n) // 12  # 10 and 15 are in different documents
    assert ("missed", 10) in explorer.pick(own, best, price, np.arange(n), other, none)
    assert ("absorbed", 70) in explorer.pick(own, best, price, np.arange(n), same, np.array([70, 90]))


def test_a_role_counts_silent_main_latents():
    ranked, y = np.array([5, 8, 2]), np.array([1, 1, 1, 1, 0], bool)
    fires = np.array([[1, 0, 0], [0, 1, 0], [0, 1, 1], [0, 0, 0], [0, 1, 0]], bool)
    role = roles._role("letter", ranked, np.array([0.5, 0.7]), fires, np.ones((5, 3), bool), y, "tokens")
    assert role.absorption == 0.5 and role.absorption_optimum == 0 and role.absorbing == 8
    assert role.absorption_chance == pytest.approx(0.75 * (1 - 0.5 * 0.75))
    assert role.places.tolist() == [1, 2]
    notes = explorer._notes(8, [role])
    assert len(notes) == 2 and "latent 5" in notes[0] and "gain 0.20" in notes[1]
    assert explorer._of_roles([role]) == {"absorbed": [5], "absorbing": [8], "split": [5, 8]}
