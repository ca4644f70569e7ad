"""vLLM says of every prompt what transformers' generate says of it alone, token by token, in fp32."""

import pytest
from trenchcoat_api.spec import Attention, Form, KeyMaps, Wide

from tests.serving.conftest import run_engines
from tests.serving.exports import greedy, prompts, write_export

WINDOW = Attention(form=Form.WINDOW, window=8, first_tokens=2)
STUDENTS = {
    "window": WINDOW,
    "window, one wide and one softmax layer": WINDOW.model_copy(
        update={"wide": Wide(layers=[2], window=40), "keep_softmax_layers": [1]}
    ),
    "lolcats": Attention(window=8, feature_dim=16),
    "lolcats, shared key maps, one softmax layer": Attention(
        window=16, feature_dim=8, key_maps=KeyMaps.PER_KEY_VALUE_HEAD, keep_softmax_layers=[2]
    ),
    "softmax alone": WINDOW.model_copy(update={"keep_softmax_layers": [0, 1, 2, 3]}),
}
# Chunks of fewer tokens than a prompt has, and fewer sequences at once than there are.
NARROW = {"dtype": "float32", "max_model_len": 1280, "max_num_batched_tokens": 96, "max_num_seqs": 6}
ENGINES = {
    "plain": NARROW | {"enable_prefix_caching": False},
    "prefix caching": NARROW | {"enable_prefix_caching": True},
    # Four pages for a sequence of 120 tokens, so that five find room, and no fifth for all: some begin again.
    "little memory": NARROW | {"enable_prefix_caching": False, "num_gpu_blocks_override": 24},
}
RAGGED = [1, 63, 64, 65, 127, 128, 129, 1000]
SPEAK = [40, 3, 20, 11, 40, 7, 25, 30]


@pytest.fixture(scope="module")
def told(programs, environment, tmp_path_factory):
    """What every engine told of every student, and what generate says: one process, which starts slowly."""
    folder = tmp_path_factory.mktemp("engines")
    common = prompts([300], seed=5)[0]
    shared = [common + rest for rest in prompts([7, 40, 1, 90], seed=6)]
    rounds = [
        (prompts(RAGGED), SPEAK),
        (shared, [12] * 4),
        (shared, [12] * 4),
        (prompts([120] * 6, 7), [40] * 6),
    ]
    asked, expected = {}, {}
    for number, (name, attention) in enumerate(STUDENTS.items()):
        student = write_export(folder / f"student-{number}", attention)
        expected[name] = [greedy(student, *of_round) for of_round in rounds]
        for engine, settings in ENGINES.items():
            asked[name, engine] = {
                "folder": str(folder / f"student-{number}"),
                "settings": settings,
                "rounds": rounds,
            }
    student = str(folder / "student-0")
    guessing = NARROW | {
        "speculative_config": {"method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_max": 3}
    }
    asked["window", "guessing"] = {"folder": student, "settings": guessing, "rounds": rounds}
    answers = run_engines(list(asked.values()), programs, environment, folder)
    return dict(zip(asked, answers, strict=True)), expected


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("student", STUDENTS)
def test_tokens_are_those_of_generate(told, student, engine):
    answers, expected = told
    assert answers[student, engine]["tokens"] == expected[student]


@pytest.mark.parametrize("student", STUDENTS)
def test_a_prefix_that_was_seen_is_not_computed_again(told, student):
    answers, _ = told
    assert answers[student, "prefix caching"]["cached"][2] >= 4 * 128
    assert not any(answers[student, "plain"]["cached"])


def test_sequences_were_preempted_where_memory_is_little(told):
    answers, _ = told
    assert answers["window, one wide and one softmax layer", "little memory"]["preemptions"] > 0


def test_tokens_that_are_taken_back_are_refused(told):
    answers, _ = told
    assert "serve it without" in answers["window", "guessing"]["refused"]
