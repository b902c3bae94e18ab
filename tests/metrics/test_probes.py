import numpy as np
import pytest
import scipy.sparse

from amortjax.metrics import absorption, labels, probes
from amortjax.metrics.labels import Units
from amortjax.metrics.uncertainty import difference, interval


def units(n, rng, first_id, split=0.0, noise=0.05, m=20):
    """n documents of one unit each. Latent 3 tells class "a"; on a share `split` of its positives latent 7
    fires in its place. The other latents fire at random with rate `noise`."""
    y = rng.random(n) < 0.5
    z = (rng.random((n, m)) < noise) * rng.uniform(0.5, 1.5, (n, m))
    instead = y & (rng.random(n) < split)
    z[:, 3] = np.where(y & ~instead, 1.0, 0) + 0.01 * z[:, 3]
    z[:, 7] = np.where(instead, 1.0, 0)
    tasks = {"a": y, "rare": np.arange(n) < 3}
    return Units(scipy.sparse.csr_array(z), tasks, np.arange(first_id, first_id + n))


@pytest.fixture
def whole():
    rng = np.random.default_rng(0)
    return units(300, rng, 0), units(200, rng, 300)


@pytest.fixture
def shared():
    rng = np.random.default_rng(0)
    return units(300, rng, 0, split=0.3), units(200, rng, 300, split=0.3)


def test_a_latent_that_is_the_class_needs_no_second_one(whole):
    found = probes.evaluate_probes(*whole)
    assert found.reason is None and found.n_tasks == 1  # "rare" has 3 documents
    assert found.estimates["f1@1"].value == pytest.approx(1, abs=0.01)
    assert found.estimates["df1"].value == pytest.approx(0, abs=0.01)
    assert absorption.evaluate_absorption(*whole).estimates["absorption"].value == pytest.approx(0, abs=0.01)


def test_a_split_concept_shows_in_df1_and_absorption_with_intervals(shared):
    found = probes.evaluate_probes(*shared)
    assert found.estimates["df1"].value == pytest.approx(1 - 2 * 0.7 / 1.7, abs=0.06)  # recall .7, then 1
    lo, hi = interval(found.estimates["df1"]) or (0, 0)
    assert 0.05 < lo < (found.estimates["df1"].value or 0) < hi < 0.3
    assert found.spread["df1"] is not None and 0 < found.spread["df1"] < 0.1
    taken = absorption.evaluate_absorption(*shared)
    assert taken.estimates["absorption"].value == pytest.approx(0.3, abs=0.08)
    lo, hi = interval(taken.estimates["absorption"]) or (0, 0)
    assert lo < 0.3 < hi
    # Latents 3 and 7 exclude each other, so there is more absorption than independent latents would show.
    assert (taken.estimates["absorption_excess"].value or 0) > 0.1
    assert taken.row()["absorption_spread"] == taken.spread["absorption"]


def test_probes_of_two_modes_are_compared_on_the_same_resamples(whole, shared):
    a, b = probes.evaluate_probes(*shared).estimates["df1"], probes.evaluate_probes(*whole).estimates["df1"]
    d = difference(a, b)
    assert d is not None and d.clear and d.value > 0.1
    same = difference(a, probes.evaluate_probes(*shared).estimates["df1"])
    assert same == (0.0, 0.0, 0.0)


def test_correlations_are_those_of_numpy(shared):
    train, test = shared
    split = probes.join(train, test, ["a"])
    z, y = train.codes.toarray(), train.tasks["a"]
    for j in (0, 3, 7):
        want = np.corrcoef(z[:, j], y)[0, 1]
        assert probes.correlations(split)[j, 0] == pytest.approx(want, abs=1e-10)
    assert probes.rank_latents(split)[0][:2].tolist() == [3, 7]


def test_ranking_and_scaling_use_probe_train_only(shared):
    train, test = shared
    flipped = test._replace(tasks={"a": ~test.tasks["a"], "rare": test.tasks["rare"]})
    for other in (test, flipped):
        assert probes.rank_latents(probes.join(train, other, ["a"]))[0][0] == 3
    assert (probes.evaluate_probes(train, flipped, n_refits=0).estimates["f1@1"].value or 0) < 0.5


def test_constant_latents_are_never_ranked_and_dead_codes_score_zero():
    y = np.arange(120) % 2 == 0
    z = np.zeros((120, 4))
    z[:, 1] = 0.1  # constant
    train = Units(scipy.sparse.csr_array(z), {"a": y}, np.arange(120))
    test = train._replace(groups=np.arange(120, 240))
    assert probes.rank_latents(probes.join(train, test, ["a"]))[0].tolist() == []
    assert probes.evaluate_probes(train, test).estimates["f1@2"].value == 0
    assert absorption.evaluate_absorption(train, test).estimates["absorption"].value == 0


def test_too_few_documents_give_none_and_the_reason():
    rng = np.random.default_rng(0)
    train, test = units(300, rng, 0), units(60, rng, 300)
    found, taken = probes.evaluate_probes(train, test), absorption.evaluate_absorption(train, test)
    for result in (found, taken):
        assert result.reason is not None and "no class has 50 documents" in result.reason
        assert all(e.value is None for e in result.estimates.values())
        assert all(value is None for value in result.spread.values())
    none = train._replace(tasks={})
    assert "there are no labels" in (probes.evaluate_probes(none, none).reason or "")


def test_few_test_documents_give_values_without_intervals():
    rng = np.random.default_rng(0)
    found = probes.evaluate_probes(units(100, rng, 0), units(40, rng, 100), min_documents=10, n_refits=0)
    assert found.estimates["f1@1"].value is not None and interval(found.estimates["f1@1"]) is None
    assert found.spread == {"f1@1": None, "f1@2": None, "df1": None}


@pytest.mark.parametrize(
    ("p", "want"), [(0.01, 0.049), (0.05, 0.215), (0.1, 0.369), (0.3, 0.582), (0.5, 0.484)]
)
def test_chance_of_independent_latents(p, want):
    assert float(absorption.chance(np.array(p), np.full(5, p))) == pytest.approx(want, abs=1e-3)


def test_independent_latents_absorb_as_often_as_chance_and_the_null_agree():
    rng = np.random.default_rng(0)
    fires = rng.random((40_000, 6)) < 0.1
    by_chance = absorption.chance(fires[:, 0].mean(), fires[:, 1:].mean(axis=0))
    assert absorption.absorbed(fires).mean() == pytest.approx(by_chance, abs=0.008)
    assert absorption.permuted(fires, 5, 0) == pytest.approx(by_chance, abs=0.004)
    together = np.repeat(fires[:, :1], 6, axis=1)  # all six fire at once
    assert absorption.absorbed(together).mean() == 0
    assert absorption.permuted(together, 5, 0) == pytest.approx(0.369, abs=0.02)
    assert absorption.permuted(together, 5, 0) == absorption.permuted(together, 5, 0)


def test_documents_are_means_over_their_tokens_however_the_stream_is_cut():
    rng = np.random.default_rng(0)
    doc_ids = np.sort(rng.integers(0, 9, 50))
    doc_ids[doc_ids == 4] = 5  # a document without tokens
    z = scipy.sparse.csr_array(scipy.sparse.random_array((50, 12), density=0.2, rng=rng))
    names = np.array(["x", "y", "", "x", "x", "y", "x", "y", "x"])
    got = labels.document_units(z, doc_ids, names)
    assert got.groups.tolist() == [0, 1, 3, 5, 6, 7, 8] and got.source == "document labels"
    assert got.tasks["y"].tolist() == [False, True, False, True, False, True, False]
    np.testing.assert_allclose(got.codes.toarray()[3], z.toarray()[doc_ids == 5].mean(axis=0))
    parts = [
        labels.pool_documents(scipy.sparse.csr_array(z[a:b]), doc_ids[a:b])
        for a, b in ((0, 13), (13, 14), (14, 50))
    ]
    again = labels.pooled_units(labels.merge_pooled(parts), names)
    np.testing.assert_allclose(again.codes.toarray(), got.codes.toarray())
    assert np.array_equal(again.groups, got.groups)


def test_token_properties():
    found = labels.token_properties([" The", "cat", " 9", "a1", "", " É", "\n"])
    assert found["leading space"].tolist() == [True, False, True, False, False, True, True]
    assert found["capitalised"].tolist() == [True, False, False, False, False, True, False]
    assert found["digit"].tolist() == [False, False, True, True, False, False, False]
    assert found["first letter t"].tolist() == [True] + [False] * 6
    assert found["first letter a"].tolist() == [False] * 3 + [True] + [False] * 3
    assert len(found) == 29


def test_a_property_needs_fifty_documents_on_each_side():
    strings = ["1"] * 49 + ["dog"] * 300
    documents = np.arange(349)
    z = scipy.sparse.csr_array(np.ones((349, 2)))
    one = labels.token_units(z, documents, strings)
    assert "digit" not in labels.usable_tasks(one, one)[0]
    two = labels.token_units(z, documents, ["1", *strings[1:49], "1", *strings[50:]])
    assert "digit" in labels.usable_tasks(two, two)[0]
    inside = labels.token_units(z, np.minimum(documents, 20), two.source and ["1", *strings[1:]])
    assert labels.usable_tasks(inside, inside)[0] == []  # 349 tokens, but 21 documents


def test_the_literal_protocol_scores_pseudo_labels_on_their_own_rows():
    rng = np.random.default_rng(0)
    norms = rng.uniform(1, 2, 400)
    z = (rng.random((400, 15)) < 0.1) * 1.0
    z[:, 2] = norms > np.median(norms)
    own = Units(scipy.sparse.csr_array(z), {"norm": norms > np.median(norms)}, np.arange(400) // 100)
    found = probes.evaluate_probes(own, own, min_documents=1)
    assert found.estimates["f1@1"].value == 1 and found.estimates["df1"].value == 0
    assert absorption.evaluate_absorption(own, own, min_documents=1).estimates["absorption"].value == 0
    assert found.spread["f1@1"] is None  # no refit: there are no other documents to score on


def test_merging_silent_units_does_not_change_the_fit(shared):
    from sklearn.linear_model import LogisticRegression

    split = probes.join(shared[0], shared[1], ["a"])
    y, train = split.tasks[:, 0], split.train
    for features in (probes.columns(split, np.array([3, 7])), probes.columns(split, np.array([0]))):
        scaled = (features - features[train].mean(axis=0)) / features[train].std(axis=0)
        whole = LogisticRegression(solver="liblinear", class_weight="balanced", max_iter=1000)
        want = whole.fit(scaled[train], y[train]).predict(scaled)
        assert np.array_equal(probes.predict(features, y, train), want) and 0 < want.mean() < 1
        units, weight = probes._silent_units_merged(features, y, train)
        assert len(units) < train.sum() and weight.sum() == train.sum()
