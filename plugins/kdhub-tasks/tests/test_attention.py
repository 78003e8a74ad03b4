"""Attention that does not grow with the square: what it sees, where it is exact, and what padding does to it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers
from kdhub_tasks import attention
from kdhub_tasks.layers import blocks, keep_blocks
from kdhub_tasks.long import further_inputs


def full(query, key, value, real=None):
    scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
    if real is not None:
        scores = scores.masked_fill(~real[:, None, None], -torch.inf)
    return torch.softmax(scores, -1) @ value


def draw(n, width=8, batch=2, heads=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, heads, n, width)
    return [torch.randn(shape, dtype=torch.float64, generator=generator) for _ in range(3)]


def seen(n, **how):
    """(n, n): which pairs block attention allows, read off the values that reach a query."""
    zero = torch.zeros(1, 1, n, 4, dtype=torch.float64)
    unit = torch.eye(n, dtype=torch.float64)[None, None]
    return attention.block_attention(zero, zero, unit, **how)[0, 0] > 0


def longformer(window, n, layers=1, first=1, seed=0):
    torch.manual_seed(seed)
    config = transformers.LongformerConfig(
        vocab_size=40, hidden_size=8, num_hidden_layers=layers, num_attention_heads=1, intermediate_size=8,
        max_position_embeddings=n + 2, attention_window=window, pad_token_id=1, initializer_range=0.5,
    )  # fmt: skip
    config.global_tokens = first
    return transformers.LongformerModel(config).eval()


def reached(model, n, at):
    """Which outputs change when token `at` does."""
    ids = torch.full((1, n), 7)
    mask = torch.ones_like(ids)
    other = ids.clone()
    other[0, at] = 9
    with torch.no_grad():
        a, b = (
            model(input_ids=x, attention_mask=mask, **further_inputs(model.config, mask)).last_hidden_state
            for x in (ids, other)
        )
    return (a - b).abs().amax(-1)[0] > 1e-6


def test_pairs_that_a_window_with_one_global_allows():
    """n = 8 and a window of 4 (of 2, where 34 are allowed, the library's cannot be built): 34 in the band, and 10 more
    of the global row and column. Of a window of 64 the shares of the specification."""
    model = longformer(4, 8)
    assert sum(int(reached(model, 8, at).sum()) for at in range(8)) == 44
    for n, expected in ((512, 0.126579), (1024, 0.064360), (4096, 0.016291)):
        model, mask = longformer(64, n), torch.ones(1, n, dtype=torch.long)
        with torch.no_grad():
            given = model(
                torch.full((1, n), 7), mask, **further_inputs(model.config, mask), output_attentions=True
            ).attentions[0]
        local = (given[0, 0, 1:] > 0).sum().item()  # of the global row all n
        assert (local + n) / n**2 == pytest.approx(expected, abs=5e-7)


@pytest.mark.parametrize("how", [{}, {"globals": 3}, {"sparsity": 4}, {"globals": 1, "sparsity": 7}])
def test_blocks_that_cover_the_text_are_full_attention(how):
    query, key, value = draw(50)
    real = torch.ones(2, 50, dtype=torch.bool)
    real[1, 30:] = False
    for block in (28, 56):  # two blocks, each the other's neighbour, and one
        out = attention.block_attention(query, key, value, real, block=block, **how)
        assert torch.allclose(out, full(query, key, value, real), atol=1e-12)


def test_all_random_blocks_together_are_full_attention():
    query, key, value = draw(48)
    chosen = torch.as_tensor(attention.random_blocks(12, 99, 1, 0, 0))[None].expand(2, -1, -1)
    out = attention.block_attention(query, key, value, block=4, globals=4, chosen=chosen)
    assert torch.allclose(out, full(query, key, value), atol=1e-12)


def test_block_sees_itself_and_its_neighbours_alone():
    pairs = seen(12, block=2)
    at = np.arange(12) // 2
    assert (pairs.numpy() == (abs(at[:, None] - at[None]) <= 1)).all()
    pairs = seen(12, block=2, globals=1)
    assert pairs[0].all() and pairs[:, 0].all()
    assert pairs.sum() == (abs(at[:, None] - at[None]) <= 1).sum() + 2 * 8


def test_no_key_counts_twice():
    """Values of one give one: weights of all keys sum to it, whatever parts they came by."""
    query, key, _ = draw(64)
    one = torch.ones_like(key)
    chosen = torch.as_tensor(attention.random_blocks(16, 3, 2, 1, 5))[None].expand(2, -1, -1)
    out = attention.block_attention(query, key, one, block=4, globals=8, chosen=chosen, sparsity=2)
    assert torch.allclose(out, one, atol=1e-12)
    same = torch.zeros_like(key)  # of equal keys each has one share: that of a key counted twice would be doubled
    unit = torch.eye(64, dtype=torch.float64).expand(2, 3, 64, 64)
    out = attention.block_attention(same, same, unit, block=4, globals=8, chosen=chosen)
    shares = out[0, 0]
    assert all(row[row > 0].unique().numel() == 1 for row in shares.round(decimals=12))


def test_sparse_part_is_the_mean_of_tokens_beyond_the_neighbours():
    query, key, value = draw(40, batch=1, heads=1)
    out = attention.block_attention(query, key, value, block=4, sparsity=2)
    i, rows = 4, range(16, 20)  # block 4 sees 3 to 5, and by means of two 1, 2, 6 and 7
    near = slice(12, 24)
    far = [slice(a, a + 2) for a in (*range(4, 12, 2), *range(24, 32, 2))]
    assert i * 4 == rows.start
    keys = torch.cat([key[0, 0, near], *(key[0, 0, s].mean(0, keepdim=True) for s in far)])
    values = torch.cat([value[0, 0, near], *(value[0, 0, s].mean(0, keepdim=True) for s in far)])
    expected = torch.softmax(query[0, 0, list(rows)] @ keys.T / 8**0.5, -1) @ values
    assert torch.allclose(out[0, 0, list(rows)], expected, atol=1e-12)


def test_padding_alone_gives_zeros_and_finite_gradients():
    query, key, value = draw(20)
    query.requires_grad_()
    out = attention.block_attention(query, key, value, torch.zeros(2, 20, dtype=torch.bool), block=4, globals=1)
    out.sum().backward()
    assert not out.any() and torch.isfinite(query.grad).all()


def test_random_blocks_are_others_and_stay_the_same():
    made = attention.random_blocks(20, 3, 1, 2, 7)
    for i, row in enumerate(made):
        assert len(set(row)) == 3 and all(abs(j - i) > 1 and j >= 1 for j in row)
    assert (made == attention.random_blocks.__wrapped__(20, 3, 1, 2, 7)).all()
    assert (made != attention.random_blocks(20, 3, 1, 3, 7)).any()
    assert (made != attention.random_blocks(20, 3, 1, 2, 8)).any()
    assert attention.random_blocks(3, 2, 0, 0, 0).tolist() == [[2, -1], [-1, -1], [0, -1]]


def test_nystrom_with_as_many_landmarks_as_tokens_is_softmax_attention():
    query, key, value = draw(16)
    out = attention.nystrom_attention(query, key, value, landmarks=16, pinv="exact")
    assert torch.allclose(out, full(query, key, value), atol=1e-10)
    real = torch.ones(2, 16, dtype=torch.bool)
    real[1, 9:] = False  # fewer tokens than landmarks: as many runs as tokens
    out = attention.nystrom_attention(query, key, value, real, landmarks=16, pinv="exact")
    assert torch.allclose(out[:, :, :9], full(query, key, value, real)[:, :, :9], atol=1e-8)


def test_nystrom_with_half_the_landmarks_is_an_approximation():
    """200 seeds of 6 x 4: rows sum to one, the largest error of an entry has quartiles of about .20, .35 and .65."""
    errors = []
    for seed in range(200):
        query, key, _ = draw(6, width=4, batch=1, heads=1, seed=seed)
        unit = torch.eye(6, dtype=torch.float64)[None, None]
        p = attention.nystrom_attention(query, key, unit, landmarks=3, pinv="exact")
        assert torch.allclose(p.sum(-1), torch.ones(6, dtype=torch.float64), atol=1e-8)
        errors.append(float((p - full(query, key, unit)).abs().max()))
    assert np.quantile(errors, [0.25, 0.5, 0.75]) == pytest.approx([0.20, 0.35, 0.65], rel=0.25)


def test_exact_inverse_is_not_rounded_on_its_way():
    query, key, value = (x.bfloat16() for x in draw(128, width=16))
    wide = [x.double() for x in (query, key, value)]
    expected = attention.nystrom_attention(*wide, landmarks=16, pinv="exact")
    with torch.autocast("cpu", torch.bfloat16):
        mixed = attention.nystrom_attention(*(x.float() for x in wide), landmarks=16, pinv="exact")
    for out, dtype in (
        (attention.nystrom_attention(query, key, value, landmarks=16, pinv="exact"), torch.bfloat16),
        (mixed, torch.float32),
    ):
        assert out.dtype == dtype and (out - expected).norm() < 1e-2 * expected.norm()


def test_newton_steps_come_near_the_inverse():
    a = torch.softmax(torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2, -1)
    assert (attention.newton_inverse(a, 30) @ a - torch.eye(8)).abs().max() < 1e-2
    assert (attention.newton_inverse(a, 6) @ a - torch.eye(8)).abs().max() > 1e-2


def test_window_reaches_half_of_it_a_layer_and_a_global_token_everything():
    model = longformer(4, 16, layers=2, first=0)
    assert reached(model, 16, 2).nonzero().max() == 2 + 2 * 2
    assert reached(longformer(4, 16, layers=2), 16, 2).all()


@pytest.mark.parametrize("kind", attention.DEFAULTS)
def test_model_keeps_its_attention_and_does_not_see_padding(kind, tmp_path):
    torch.manual_seed(0)
    given = {"kind": kind, **attention.DEFAULTS[kind]}
    given |= {"block": 8} if "block" in given else {"landmarks": 8, "conv": 5}
    config = attention.CONFIGS["bert"](
        vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=200, initializer_range=0.5, efficient_attention=given,
    )  # fmt: skip
    model = transformers.AutoModelForTokenClassification.from_config(config).eval()
    for module in model.modules():
        if hasattr(module, "conv"):
            torch.nn.init.normal_(module.conv.weight)
    model.save_pretrained(tmp_path)
    again = transformers.AutoModelForTokenClassification.from_pretrained(tmp_path).eval()
    ids = torch.randint(5, 40, (2, 150))
    mask = torch.ones_like(ids)
    mask[1, 60:] = 0
    ids[1, 60:] = 0
    with torch.no_grad():
        alone = model(input_ids=ids[1:, :60]).logits
        both = again(input_ids=ids, attention_mask=mask).logits
        as_full = transformers.BertForTokenClassification(transformers.BertConfig(**{
            k: v for k, v in config.to_dict().items() if k not in ("efficient_attention", "model_type")
        })).eval()  # fmt: skip
        as_full.load_state_dict({k: v for k, v in model.state_dict().items() if "conv" not in k})
        other = as_full(input_ids=ids, attention_mask=mask).logits
    assert torch.allclose(alone, both[1:, :60], atol=1e-5)
    assert not torch.allclose(other[0], both[0], atol=1e-3)  # another attention than full


def test_layers_of_longformer_keep_their_windows():
    model = longformer(4, 16, layers=3)
    model.config.attention_window = [2, 4, 6]
    keep_blocks(model, [0, 2])
    assert model.config.attention_window == [2, 6] and len(blocks(model)) == 2


def test_longformer_without_the_square_mask_is_the_same():
    model, ids = longformer(4, 16), torch.randint(5, 40, (2, 16), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 9:], ids[1, 9:] = 0, 1
    further = further_inputs(model.config, mask)
    with torch.no_grad():
        before = model(ids, mask, **further).last_hidden_state
        after = attention.without_square_mask(model)(ids, mask, **further).last_hidden_state
    assert model.config._attn_implementation == attention.LINEAR_MASK
    assert torch.equal(before[mask.bool()], after[mask.bool()])
