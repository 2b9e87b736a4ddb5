"""The README's picture: what its numbers are."""

import pytest
import torch

from benchmarks.credit.pictures import Group, shares


@pytest.fixture
def group():
    """A failed completion of four tokens and a right one of two."""
    return Group(["", ""], [[1, 2, 3, 4], [1, 2]], torch.tensor([0.0, 1.0]), torch.tensor([-1.2, 0.8]))


MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])


@pytest.mark.parametrize("name", ["grpo", "srpo 1x4"])
def test_equal_credit_is_shared_equally_with_the_sign_of_the_advantage(group, name):
    assert shares(name, group, MASK).tolist() == [[-25, -25, -25, -25], [50, 50, 0, 0]]


def test_a_trace_blames_uncertain_tokens_and_their_shares_sum_to_all(group):
    entropies = torch.tensor([[0.1, 0.9, 0.2, 0.8], [0.1, 0.1, 0.0, 0.0]])
    blamed = shares("s_trace", group, MASK, entropies)[0]
    assert blamed[[0, 2]].tolist() == [0, 0] and blamed[1] < blamed[3] < 0 and blamed.sum() == -100
