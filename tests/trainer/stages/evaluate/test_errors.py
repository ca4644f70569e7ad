"""Standard errors: against many draws of the same samples."""

import pytest
import torch
from trenchcoat_trainer.stages.evaluate.errors import error_of_mean, error_of_share

DRAWS = 4000


def test_the_error_of_a_mean_is_its_spread_over_draws_of_whole_samples():
    source = torch.Generator().manual_seed(0)
    samples, tokens = 60, 12
    # Tokens of a sample have something in common, which counting them one by one would overlook.
    common = torch.randn(DRAWS, samples, 1, generator=source, dtype=torch.float64)
    values = common + torch.randn(DRAWS, samples, tokens, generator=source, dtype=torch.float64)
    spread = values.mean((1, 2)).std().item()
    counts = torch.full((samples,), tokens)
    found = [error_of_mean(draw.sum(1), counts) for draw in values[:200]]
    assert sum(found) / len(found) == pytest.approx(spread, rel=0.05)
    one_by_one = values.flatten(1).std(1).mean().item() / (samples * tokens) ** 0.5
    assert one_by_one < 0.5 * spread


def test_a_single_sample_has_no_error():
    assert error_of_mean(torch.ones(1), torch.ones(1)) is None


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_the_error_of_a_share_is_its_spread(share):
    source = torch.Generator().manual_seed(1)
    draws = (torch.rand(DRAWS, 200, generator=source) < share).double()
    found = sum(map(error_of_share, draws[:300])) / 300
    assert found == pytest.approx(draws.mean(1).std().item(), rel=0.08)


def test_all_alike_is_no_certainty():
    for shares in (torch.zeros(32), torch.ones(32)):
        assert error_of_share(shares) == pytest.approx(0.038, abs=1e-3)
    assert error_of_share(torch.zeros(3200)) < 0.001
