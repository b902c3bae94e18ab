"""Contexts: where they come from, that they are what they are said to be, and that nothing leaks between them."""

import dataclasses

import numpy as np
import pytest
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st

from amortjax import interp
from amortjax.errors import AmortjaxError
from amortjax.interp.examples import NO_NEGATIVES, TOO_FEW, Examples, collect, column_of
from amortjax.interp.pipeline import documents_of
from tests.interp import known_latents as known

SETTINGS = interp.Settings()


@pytest.fixture(scope="module")
def acts():
    return known.store()


@pytest.fixture(scope="module")
def text(acts):
    return interp.text_of(acts, acts.rows("test"))


@pytest.fixture(scope="module")
def codes(acts):
    return known.codes(acts)


def examples(codes, text, latent, settings=SETTINGS, other=None):
    columns = scipy.sparse.csc_array(codes)
    chosen = None if other is None else column_of(columns, other)
    return collect(column_of(columns, latent), text, latent, settings, chosen)


def check(found: Examples, codes, text, latent, settings) -> None:
    """What must hold of any latent's contexts."""
    dense = np.abs(codes[:, [latent]].toarray().ravel())
    every = [*found.explain, *found.score]
    documents = [c.document for c in every]
    assert len(set(documents)) == len(documents)
    for c in every:
        start, stop = text.start[c.document], text.stop[c.document]
        strings = known.WORDS
        whole = [strings[i] for i in text.token_ids[start:stop]]
        # The window is where its tokens and values say: found by its values where it fires.
        places = [
            p
            for p in range(len(whole) - len(c.tokens) + 1)
            if tuple(whole[p : p + len(c.tokens)]) == c.tokens
            and np.allclose(dense[start + p : start + p + len(c.tokens)], c.values)
        ]
        assert places
        assert c.at <= settings.left and len(c.tokens) - 1 - c.at <= settings.right
        # Cut only by the document's ends.
        p = places[0]
        assert c.at == settings.left or 0 in places
        assert len(c.tokens) - 1 - c.at == settings.right or len(whole) - len(c.tokens) in places or p == 0
        assert c.fires == c.positive
        if c.positive:
            assert c.values[c.at] > 0
    asked = [c.positive for c in found.score]
    assert sum(asked) >= len(asked) - sum(asked) >= 2


@given(
    seed=st.integers(0, 10_000), left=st.integers(0, 12), right=st.integers(0, 6), top=st.integers(2, 12),
    quantile=st.integers(2, 12), rate=st.floats(0.002, 0.3),
)  # fmt: skip
@settings(max_examples=25, deadline=None)
def test_contexts_are_apart_and_what_is_silent_is_silent(acts, text, seed, left, right, top, quantile, rate):
    r = np.random.default_rng(seed)
    z = (r.random((len(text), 3)) < rate) * (r.exponential(size=(len(text), 3)) + 0.1)
    codes = scipy.sparse.csr_array(z.astype(np.float32))
    own = interp.Settings(left=left, right=right, top=top, quantile=quantile, seed=seed)
    for latent in range(3):
        found = examples(codes, text, latent, own)
        if isinstance(found, str):
            assert found in (TOO_FEW, NO_NEGATIVES)
            continue
        check(found, codes, text, latent, own)


def test_the_strongest_come_first_and_both_sides_have_both_kinds(codes, text):
    found = examples(codes, text, known.CAT)
    assert isinstance(found, Examples)
    check(found, codes, text, known.CAT, SETTINGS)
    positives = [c for c in found.explain if c.positive]
    for part in (positives, [c for c in found.score if c.positive]):
        assert [sum(c.source == s for c in part) for s in ("top", "quantile")] == [5, 5]
    assert sum(not c.positive for c in found.explain) == 10 == sum(not c.positive for c in found.score)
    dense = codes[:, [known.CAT]].toarray().ravel()
    best = sorted((dense[a:b].max() for a, b in zip(text.start, text.stop, strict=True)), reverse=True)
    tops = [c.values[c.at] for c in positives if c.source == "top"]
    np.testing.assert_allclose(tops, best[0:10:2])
    assert found.peak == pytest.approx(best[0])


def test_importance_draws_parts_of_equal_weight(text):
    """One document holds most of z^2: it is drawn always; the rest about evenly by weight."""
    z = np.zeros((len(text), 1), np.float32)
    z[text.start, 0] = 1.0
    z[text.start[:3], 0] = 9.0  # taken by rank
    z[text.start[7], 0] = 8.0
    hits = np.zeros(text.n_documents)
    for seed in range(60):
        found = examples(
            scipy.sparse.csr_array(z), text, 0, interp.Settings(top=3, quantile=5, seed=seed, left=0, right=0)
        )
        drawn = [c.document for c in (*found.explain, *found.score) if c.source == "quantile"]
        assert len(drawn) == 5
        hits[drawn] += 1
    assert hits[7] == 60 and not hits[:3].any()
    rest = np.delete(hits, [0, 1, 2, 7])
    assert rest.sum() == 240 and (rest > 0).mean() > 0 and rest.max() < 12


def test_latents_without_enough_are_told_apart(codes, text):
    assert examples(codes, text, known.SILENT) == TOO_FEW
    assert examples(codes, text, known.RARE) == TOO_FEW
    assert examples(codes, text, known.ALWAYS) == NO_NEGATIVES


def test_literal_takes_the_other_latents_tops_unchecked(codes, text):
    own = interp.Settings(protocol="literal")
    found = examples(codes, text, known.CAT, own, known.AFTER_A)
    assert isinstance(found, Examples)
    assert [c.source for c in found.explain] == ["top"] * 5
    weakest = min(c.values[c.at] for c in found.explain)
    assert all(c.values[c.at] <= weakest for c in found.score if c.positive)
    others = [c for c in found.score if not c.positive]
    assert [len(others), len(found.score)] == [5, 10]
    dense = codes[:, [known.AFTER_A]].toarray().ravel()
    best = np.sort([dense[a:b].max() for a, b in zip(text.start, text.stop, strict=True)])[::-1]
    for c in others:
        here = dense[text.start[c.document] : text.stop[c.document]]
        assert here.max() > best[20]
    # " cat" is in the same documents as " a": some of the unchecked negatives fire.
    assert any(c.fires for c in others)


def test_the_same_seed_gives_the_same_contexts_and_another_gives_others(codes, text):
    assert examples(codes, text, known.CAT) == examples(codes, text, known.CAT)
    assert examples(codes, text, known.CAT) != examples(
        codes, text, known.CAT, dataclasses.replace(SETTINGS, seed=1)
    )


def test_picking_takes_latents_with_enough_examples_under_every_code(codes, text):
    picked = interp.pick_latents([codes, codes], text, 2)
    assert len(picked.latents) == 2 and picked.common == 4 and picked.eligible == [4, 4]
    assert interp.pick_latents([codes], text, 99).latents == [
        known.CAT, known.AFTER_A, known.RANDOM, known.ALWAYS,
    ]  # fmt: skip
    assert documents_of(codes, text)[known.RARE] == 3
    other = codes.copy()
    other.data[other.indices == known.CAT] = 0  # stored zeros are no firings
    assert interp.pick_latents([codes, other], text, 99).latents == [
        known.AFTER_A, known.RANDOM, known.ALWAYS,
    ]  # fmt: skip
    with pytest.raises(AmortjaxError, match="no latent fires in 500 of the 120 documents"):
        interp.pick_latents([codes], text, 9, interp.Settings(min_examples=500, top=500))


def test_a_store_without_text_and_codes_of_another_text_are_refused(acts, codes, text):
    bare = type(acts).build(acts.read(slice(None)), acts.doc_ids, ["test"] * known.DOCUMENTS)
    with pytest.raises(AmortjaxError, match="no vocabulary"):
        interp.text_of(bare, bare.rows("test"))
    with pytest.raises(AmortjaxError, match="do not belong"):
        interp.pick_latents([codes[:100]], text)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"left": -1}, "left=-1"), ({"min_examples": 1}, "min_examples=1"), ({"contexts_per_call": 0}, "at least 1"),
        ({"top": 1, "quantile": 1}, "every latent would be skipped"),
        ({"protocol": "literal", "top": 2}, "every latent would be skipped"),
        ({"protocol": "literal", "other_latents": (0,)}, "name two"),
    ],
)  # fmt: skip
def test_settings_that_can_not_be_are_refused(given, said):
    with pytest.raises(AmortjaxError, match=said):
        interp.Settings(**given)
