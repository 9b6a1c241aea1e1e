"""What is drawn for a batch, whole and in shares."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from zoo.diffusion import draws

PIXELS = torch.rand(6, 3, 4, 4, generator=torch.Generator().manual_seed(0))
DRAWN: dict[str, tuple[Callable[[int], Tensor], Callable[[], Tensor]]] = {
    "rand": (lambda n: draws.rand((n, 5)), lambda: torch.rand(6, 5)),
    "randn": (lambda n: draws.randn((n, 5)), lambda: torch.randn(6, 5)),
    "randint": (lambda n: draws.randint(1000, (n,)), lambda: torch.randint(1000, (6,))),
    "randn_like": (lambda n: draws.randn_like(PIXELS[:n]), lambda: torch.randn_like(PIXELS)),
    "channels_last": (
        lambda n: draws.randn_like(PIXELS[:n].contiguous(memory_format=torch.channels_last)),
        lambda: torch.randn_like(PIXELS.contiguous(memory_format=torch.channels_last)),
    ),
    "bfloat16": (lambda n: draws.randn_like(PIXELS[:n].bfloat16()), lambda: torch.randn_like(PIXELS.bfloat16())),
}


@pytest.mark.parametrize("what", DRAWN)
def test_alone_it_is_what_torch_draws_and_shares_are_its_rows(what: str) -> None:
    ours, theirs = DRAWN[what]
    torch.manual_seed(3)
    whole = theirs()
    torch.manual_seed(3)
    assert torch.equal(ours(6), whole)
    for rank in range(3):
        torch.manual_seed(3)
        with draws.shared(rank, 3):
            assert torch.equal(ours(2), whole[rank::3])


def test_a_generator_draws_in_place_of_torchs_own() -> None:
    def seeded() -> torch.Generator:
        return torch.Generator().manual_seed(7)

    whole = torch.randn(4, 2, generator=seeded())
    state = torch.get_rng_state()
    with draws.shared(1, 2):
        assert torch.equal(draws.randn((2, 2), seeded(), "meta"), whole[1::2]), "where the generator is"
    assert torch.equal(torch.get_rng_state(), state)


def test_a_choice_is_that_of_multinomial_row_by_row() -> None:
    weights = PIXELS.flatten(1)
    torch.manual_seed(3)
    whole = torch.multinomial(weights, 1).squeeze(1)
    for rank in range(2):
        torch.manual_seed(3)
        with draws.shared(rank, 2):
            assert torch.equal(draws.choice(weights[rank::2]), whole[rank::2])
    never = torch.tensor([[0.0, 1.0, 0.0, 2.0]]).expand(4000, 4)
    counts = draws.choice(never).bincount(minlength=4)
    assert counts[[0, 2]].tolist() == [0, 0]
    assert counts[3] / counts[1] == pytest.approx(2, abs=0.25)


def test_a_share_ends_with_its_block() -> None:
    with pytest.raises(KeyError), draws.shared(0, 2):
        raise KeyError
    assert draws.rand((3,)).shape == (3,)
    with pytest.raises(ValueError, match="got 2 of 2"), draws.shared(2, 2):
        pass
