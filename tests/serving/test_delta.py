"""An export of the teacher's own files beside what differs is served as the merged one is."""

from tests.serving.conftest import run_engines
from tests.serving.exports import greedy, prompts, write_export
from tests.serving.test_engine import NARROW, STUDENTS
from tests.versions.test_versions import take_apart

FORMS = ("window, one wide and one softmax layer", "lolcats")


def test_tokens_are_those_of_the_student(programs, environment, tmp_path):
    asked, expected, ids = [], [], prompts([5, 31, 70])
    for number, name in enumerate(FORMS):
        folder = tmp_path / f"student-{number}"
        student = write_export(folder, STUDENTS[name])
        expected.append([greedy(student, ids, [8] * 3)])
        take_apart(folder, "delta", student)
        settings = NARROW | {"enable_prefix_caching": False}
        asked.append({"folder": str(folder), "settings": settings, "rounds": [(ids, [8] * 3)]})
    told = run_engines(asked, programs, environment, tmp_path)
    assert [answer["tokens"] for answer in told] == expected
