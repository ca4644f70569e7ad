"""What the evaluation computes."""

from dataclasses import replace

from trenchcoat_api.planning.evaluation import evaluation_sets, reads_of_weights

from tests.api.planning.models import outline


def test_a_text_of_which_nothing_was_held_out_has_no_sets():
    found = replace(outline(), held_out=0)
    assert all(item.sequences > 0 for item in evaluation_sets(found))
    assert reads_of_weights(found) <= reads_of_weights(outline())
