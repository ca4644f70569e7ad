"""Heads divided among two ranks: the tokens stay those of generate."""

from tests.serving.conftest import run_engines
from tests.serving.exports import greedy, prompts, write_export
from tests.serving.test_engine import NARROW, RAGGED, SPEAK, STUDENTS

DIVIDED = ("window, one wide and one softmax layer", "lolcats, shared key maps, one softmax layer")


def test_tokens_are_those_of_generate(programs, environment, tmp_path):
    asked, expected = [], []
    for number, name in enumerate(DIVIDED):
        student = write_export(tmp_path / f"student-{number}", STUDENTS[name])
        settings = NARROW | {"enable_prefix_caching": False, "tensor_parallel_size": 2}
        rounds = [(prompts(RAGGED), SPEAK)]
        asked.append({"folder": str(tmp_path / f"student-{number}"), "settings": settings, "rounds": rounds})
        expected.append([greedy(student, *rounds[0])])
    # Each rank is a process of its own, and has to be told which cores are its own.
    several = {"VLLM_ENABLE_V1_MULTIPROCESSING": "1", "VLLM_CPU_OMP_THREADS_BIND": "0|1"}
    answers = run_engines(asked, programs, environment | several, tmp_path)
    assert [answer["tokens"] for answer in answers] == expected
