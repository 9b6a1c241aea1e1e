"""The attention function against its definition, by every path it may take."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from zoo.nn.attention import CHUNK, SMALL, Attention, ImageAttention, attend


def definition(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    q, k, v = q.double(), k.double(), v.double()
    scores = torch.einsum("bhqd,bhkd->bhqk", q, k) / q.shape[-1] ** 0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return torch.einsum("bhqk,bhkd->bhqd", scores.softmax(-1), v).float()


def qkv(queries: int, keys: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(2, 3, queries, 16, generator=generator).to(dtype),
        torch.randn(2, 3, keys, 16, generator=generator).to(dtype),
        torch.randn(2, 3, keys, 16, generator=generator).to(dtype),
    )


@pytest.mark.parametrize("upcast", [False, True])
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize(
    ("queries", "keys", "dtype", "tolerance"),
    [
        (9, 13, torch.float32, 1e-5),
        (9, 13, torch.bfloat16, 0.05),
        (CHUNK + 88, 256, torch.bfloat16, 0.02),  # in pieces, the last one shorter
    ],
)
def test_attend_as_defined(
    queries: int, keys: int, dtype: torch.dtype, tolerance: float, grad: bool, upcast: bool
) -> None:
    assert (queries > CHUNK) == (queries * keys > SMALL)
    q, k, v = (t.requires_grad_(grad) for t in qkv(queries, keys, dtype))
    per_key = torch.rand(2, 1, 1, keys, generator=torch.Generator().manual_seed(1)) < 0.7
    per_pair = torch.rand(2, 3, queries, keys, generator=torch.Generator().manual_seed(2)) < 0.7
    for mask in (None, per_key, per_pair):
        found = attend(q, k, v, mask, upcast=upcast)
        assert found.dtype == dtype
        torch.testing.assert_close(found.float(), definition(q, k, v, mask), atol=tolerance, rtol=0)
    if grad:
        attend(q, k, v, upcast=upcast).float().square().sum().backward()
        q2, k2, v2 = (t.detach().clone().requires_grad_() for t in (q, k, v))
        definition(q2, k2, v2).square().sum().backward()
        for found_leaf, exact in ((q, q2), (k, k2), (v, v2)):
            assert found_leaf.grad is not None
            assert exact.grad is not None
            similarity = torch.cosine_similarity(found_leaf.grad.flatten().float(), exact.grad.flatten().float(), dim=0)
            assert similarity > 0.99


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_query_that_may_look_nowhere_gets_the_mean(dtype: torch.dtype) -> None:
    q, k, v = qkv(4, 6, dtype)
    found = attend(q, k, v, torch.zeros(2, 1, 1, 6, dtype=torch.bool))
    mean = v.float().mean(2, keepdim=True).expand(found.shape)
    torch.testing.assert_close(found.float(), mean, atol=1e-2, rtol=0)


def test_upcast_keeps_scores_exact() -> None:
    q, k, v = qkv(16, 16, torch.bfloat16)
    q, k = q * 8, k * 8  # scores of about 60, which bfloat16 holds to a quarter only
    exact = definition(q, k, v)
    errors = [(attend(q, k, v, upcast=upcast).float() - exact).square().mean() for upcast in (False, True)]
    assert errors[1] < errors[0] / 4
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close((attend(q, k, v, upcast=True).float() - exact).square().mean(), errors[1])


def test_attention_to_a_context_ignores_masked_tokens() -> None:
    torch.manual_seed(0)
    attention = Attention(24, heads=3, head_width=8, context_width=10)
    x, context = torch.randn(2, 5, 24), torch.randn(2, 6, 10)
    mask = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    found = attention(x, context, mask)
    torch.testing.assert_close(found[1:], attention(x[1:], context[1:, :4]))
    torch.testing.assert_close(found[:1], attention(x[:1], context[:1]))
    torch.testing.assert_close(found, attention(x, context, mask.long()))  # as tokenizers write masks


def test_image_attention_knows_no_places() -> None:
    torch.manual_seed(0)
    attention = ImageAttention(16, heads=2, groups=4, eps=1e-6)
    x = torch.randn(2, 16, 3, 5)
    order = torch.randperm(15)
    shuffled = x.flatten(2)[:, :, order].view(x.shape)
    torch.testing.assert_close(attention(shuffled), attention(x).flatten(2)[:, :, order].view(x.shape))
