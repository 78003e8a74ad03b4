"""What stands on the encoder of two towers: the specification's numbers, and blocks of scores."""

from __future__ import annotations

import pytest
import torch
from kdhub_tasks.pairs.heads import ConcatHead, DotHead, pool

U, V = torch.tensor([[1.0, -2.0, 3.0]]), torch.tensor([[2.0, 2.0, -1.0]])


def test_features_and_product():
    assert ConcatHead.features(U, V).tolist() == [[1, -2, 3, 2, 2, -1, 2, -4, -3, 1, 4, 4]]
    assert DotHead()(U, V).tolist() == [[-5]]


def test_pooling_leaves_out_first_token_and_padding():
    states, mask = torch.tensor([[[9.0, 9], [1, 2], [3, 4], [7, 7]]]), torch.tensor([[1, 1, 1, 0]])
    assert pool([states], mask).tolist() == [[2, 3]]
    assert pool([states], mask, include_cls=True)[0].tolist() == pytest.approx([13 / 3, 5])
    assert pool([states, 2 * states], mask).tolist() == [[2, 3, 4, 6]]
    assert pool([states, 2 * states], mask, "average_top_mean").tolist() == [[3, 4.5]]
    assert pool([states], mask, "concat_top_sqrt_mean")[0].tolist() == pytest.approx([4 / 2**0.5, 6 / 2**0.5])
    assert pool([states, 2 * states], mask, "cls").tolist() == [[18, 18]]
    before = states.clone()
    assert pool([-states], mask, "concat_top_max").tolist() == [[-1, -2]]  # padding would be -7, no maximum of 0
    assert torch.equal(states, before)


@pytest.mark.parametrize("mode", ["mean", "sqrt_mean", "max"])
def test_a_text_of_one_token_is_that_token(mode):
    states = torch.tensor([[[9.0, -9], [7, 7]], [[1, 1], [3, -4]], [[8, 8], [8, 8]]])
    mask, how = torch.tensor([[1, 0], [1, 1], [0, 0]]), f"concat_top_{mode}"
    assert pool([states], mask, how).tolist() == [[9, -9], [3, -4], [0, 0]]
    assert pool([states[:1, :1]], mask[:1, :1], how).tolist() == [[9, -9]]


@pytest.mark.parametrize(("symmetric", "hidden", "number"), [(False, [5], 1), (True, [5, 4], 3), (True, [], 1)])
def test_blocks_score_as_rows_do(symmetric, hidden, number):
    torch.manual_seed(0)
    head, u, v = ConcatHead(6, number, hidden, symmetric), torch.randn(3, 6), torch.randn(4, 6)
    rows = torch.stack([head(one.expand(4, -1), v) for one in u])
    assert torch.allclose(head.block(u, v), rows, atol=1e-5)
    swapped = head(v[:3], u)
    assert torch.allclose(head(u, v[:3]), swapped, atol=1e-6) == symmetric


def test_dot_does_not_see_the_order():
    u, v = torch.randn(3, 6), torch.randn(3, 6)
    assert torch.equal(DotHead()(u, v), DotHead()(v, u))
    assert torch.allclose(DotHead().block(u, v)[..., 0].diagonal(), DotHead()(u, v)[:, 0], atol=1e-6)
