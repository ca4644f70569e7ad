"""Start positions: within their bounds, repeatable, and not past what the teacher has."""

import pytest
from trenchcoat_trainer.data import Starts
from trenchcoat_trainer.errors import BadInputError

from tests.trainer.helpers.trainer_samples import ROPE, make_config


def starts(make_spec, config=None, **settings) -> Starts:
    return Starts.of(make_spec(data={"startPositions": settings}), config or make_config())


def drawn(found: Starts, phase: str = "transfer") -> list[int]:
    return [found.start(phase, epoch, step, 0) for epoch in range(2) for step in range(500)]


def test_switched_off_every_micro_batch_starts_at_0(make_spec):
    assert set(drawn(starts(make_spec))) == {0}
    assert set(drawn(Starts())) == {0}


def test_a_share_starts_uniformly_below_the_bound(make_spec):
    positions = drawn(starts(make_spec, share="0.5", below=150))
    elsewhere = [position for position in positions if position]
    assert 430 < len(elsewhere) < 570
    assert max(positions) < 150
    assert 65 < sum(elsewhere) / len(elsewhere) < 85
    assert len(set(elsewhere)) > 130


def test_they_depend_on_the_seed_and_on_what_the_micro_batch_is(make_spec):
    found = starts(make_spec, share="0.5")
    positions = drawn(found)
    assert positions == drawn(starts(make_spec, share="0.5"))
    assert positions != drawn(found, "lora") != drawn(found, "stitch")
    other = Starts.of(make_spec(seed=1, data={"startPositions": {"share": "0.5"}}), make_config())
    assert positions != drawn(other)
    micro_batches = [found.start("transfer", 0, 0, index) for index in range(20)]
    assert len(set(micro_batches)) > 5


@pytest.mark.parametrize(
    ("positions", "rope", "below"),
    [
        (256, {}, 192),  # the teacher's positions less a sequence of 64
        (10_000, {}, 448),  # eight sequences less one
        (64, {}, 0),  # no room
        (32, {}, 0),
        (10_000, {"rope_type": "longrope", "original_max_position_embeddings": 128}, 64),
    ],
)
def test_by_default_sequences_end_within_the_teachers_positions(make_spec, positions, rope, below):
    config = make_config(max_position_embeddings=positions)
    config.rope_parameters = ROPE | rope
    found = starts(make_spec, config, share="0.5")
    assert found.below == below
    assert (set(drawn(found)) == {0}) is (below == 0)


def test_longer_sequences_end_no_further_back(make_spec):
    found = starts(make_spec, share="0.5", below=150)
    longer = found.of_longer(100)
    assert max(drawn(found)) + 64 <= 150 + 63
    assert 0 < max(drawn(longer)) + 164 <= 150 + 63
    assert set(drawn(found.of_longer(150))) == {0}
    assert found.of_longer(0) == found


def test_a_bound_of_the_specs_own_may_use_all_positions_and_no_more(make_spec):
    assert max(drawn(starts(make_spec, share="0.9", below=193))) + 64 <= 256
    with pytest.raises(BadInputError, match=r"startPositions\.below is 194, .* lower it to at most 193"):
        starts(make_spec, share="0.5", below=194)
    assert starts(make_spec, share="0", below=194).below == 0  # not used
