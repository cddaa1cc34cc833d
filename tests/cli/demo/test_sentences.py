import pytest
import torch

from embedl_deploy.cli.demo.sentences import (
    embed,
    load_minilm,
    mean_cosine,
    retrieval_agreement,
    standard_library_docstrings,
    tokenize,
)
from embedl_deploy.errors import ModelSourceError


def test_trained_weights_put_like_sentences_near_each_other() -> None:
    batch = tokenize(["A man is playing a guitar.", "Someone plays guitar.", "Stocks fell today."])

    vectors = embed(load_minilm(), batch)

    similarity = vectors @ vectors.T
    assert similarity[0, 1] > 0.6 > 0.3 > similarity[0, 2]


def test_docstrings_differ_and_are_long_enough() -> None:
    texts = standard_library_docstrings(500)

    assert len(set(texts)) == 500
    assert min(map(len, texts)) >= 60


def test_more_docstrings_than_there_are_is_an_error() -> None:
    with pytest.raises(ModelSourceError, match="need 1000000 docstrings"):
        standard_library_docstrings(1_000_000)


def test_cosine_and_agreement_see_a_vector_that_moved() -> None:
    reference = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]])
    moved = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.9, 0.15], [0.1, 0.9]])

    assert mean_cosine(reference, reference) == pytest.approx(1.0)
    assert mean_cosine(moved, reference) < 0.9
    assert retrieval_agreement(reference, reference) == 1.0
    assert retrieval_agreement(moved, reference) == 0.75
