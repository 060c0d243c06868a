"""Vectors are the same everywhere and mean something."""

import subprocess
import sys

import numpy as np

from router.embedding import fit_embedding, ngrams

TEXTS = [
    "I lost my card yesterday",
    "my card was lost on the train",
    "where is my parcel",
    "the parcel has not arrived",
    "please reset my password",
    "I forgot the password of my account",
]


def test_the_hash_is_the_same_in_every_process() -> None:
    code = "from router.embedding import ngrams; print(ngrams('Grüße, 東京 42!')[0].tolist())"
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert outputs == {f"{ngrams('Grüße, 東京 42!')[0].tolist()}\n"}


def test_the_hash_never_changes() -> None:
    # A change of the arithmetic would void every saved router: raise artifact.FORMAT with it.
    keys, counts = ngrams("aa aa")
    assert keys.tolist() == [
        *(1236310863, 1447112614, 1498681621, 1621326482),
        *(2612814309, 2735459170, 3388717974, 4227071939),
    ]
    assert counts.max() == np.float32(1 + np.log(2))


def test_related_texts_are_nearer_than_unrelated_ones() -> None:
    embedding = fit_embedding(TEXTS, seed=1)
    card, other, parcel = embedding.many(["lost card", "I lost my card", "parcel not arrived"])
    assert card @ other > card @ parcel + 0.1


def test_unknown_words_shorten_the_vector() -> None:
    embedding = fit_embedding(TEXTS, seed=1)
    known, strange = (float(np.linalg.norm(embedding(t))) for t in (TEXTS[0], "Quantenphysik"))
    assert strange < 0.3 < 0.9 < known <= 1.0 + 1e-6


def test_fitting_is_deterministic_and_rows_equal_single_calls() -> None:
    one, other = fit_embedding(TEXTS, seed=1), fit_embedding(TEXTS, seed=1)
    assert (one.axes == other.axes).all() and (one.keys == other.keys).all()
    assert (one.many(TEXTS) == np.stack([one(text) for text in TEXTS])).all()


def test_case_digits_and_spacing_do_not_matter() -> None:
    for variant in ("ORDER 4711  lost", "order 1234 lost\n"):
        assert (ngrams(variant)[0] == ngrams("Order 0000 lost")[0]).all()


def test_any_text_has_a_vector() -> None:
    for texts in ([], [""], ["a"], ["same", "same"], TEXTS):
        embedding = fit_embedding(texts, seed=1)
        for text in ("", " ", "a", "👍", "\ud800", "x" * 1_000_000, "\x00"):
            assert np.isfinite(embedding(text)).all()
        assert embedding.many([]).shape == (0, embedding.axes.shape[1])
