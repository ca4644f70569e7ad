"""Copy sequences: where the copies stand, and that a cut layer sees none of the first one."""

import pytest
import torch
from trenchcoat_api.selection import SEQUENCES
from trenchcoat_trainer.seeds import generator
from trenchcoat_trainer.stages.select.copies import CopyLayout, copy_sequences


@pytest.mark.parametrize(
    ("length", "window", "first_tokens", "expected"),
    [
        (1024, 64, 4, CopyLayout(48, 64, (200, 400, 800))),
        (1024, 256, 4, CopyLayout(48, 64, (400, 800))),
        (64, 16, 4, CopyLayout(5, 4, (25, 50))),
        (64, 52, 4, CopyLayout(5, 4, (55,))),
        (64, 55, 4, CopyLayout(5, 4, ())),
        (1024, 64, 300, CopyLayout(48, 300, (200, 400))),
    ],
)
def test_a_layout_lies_outside_of_what_a_cut_layer_sees(length, window, first_tokens, expected):
    assert CopyLayout.fit(length, window, first_tokens) == expected


def test_a_sequence_is_text_with_the_same_run_twice():
    text = torch.arange(1000, 1000 + 7 * 64).view(7, 64)
    layout = CopyLayout.fit(64, 16, 4)
    sets = copy_sequences(text, layout, 300, generator(0))
    assert sum(map(len, sets)) == SEQUENCES
    for ids, distance in zip(sets, layout.distances, strict=True):
        assert ids.shape[1] == 4 + distance + 5
        run = ids[:, 4:9]
        assert (run < 300).all() and torch.equal(run, ids[:, 4 + distance :])
        assert (ids[:, :4] >= 1000).all() and (ids[:, 9 : 4 + distance] >= 1000).all()
    assert torch.equal(sets[0][0, :4], text[0, :4])
    assert torch.equal(sets[1][0, :4], text[12 % 7, :4])


def test_answers_are_told_from_the_first_run_and_lie_beyond_the_window():
    layout = CopyLayout.fit(1024, 64, 4)
    answers = range(2000)[layout.answers(64 + 200 + 48)]
    assert (answers[0], answers[-1]) == (64 + 200 + 3, 64 + 200 + 46)
    source = [answer + 1 - 200 for answer in answers]  # where the next token stood
    assert all(key <= answer - 64 for key, answer in zip(source, answers, strict=True))
