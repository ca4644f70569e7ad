"""Order of stages on one machine."""

from trenchcoat_api.artifacts import Artifacts
from trenchcoat_api.crias import cria_ranges
from trenchcoat_api.stages import Stage
from trenchcoat_trainer.local.schedule import Machine, admit, least_used, ready, visible_devices

from tests.api.specs import trenchcoat

SPEC = trenchcoat().spec
CRIAS = cria_ranges(12, 2)
WANTED = Artifacts(SPEC).all(CRIAS)


def keys(*stages):
    return {artifact.key for artifact in WANTED if artifact.stage in stages}


def names(artifacts):
    return [artifact.name for artifact in artifacts]


def test_only_tokenize_waits_for_nothing():
    assert names(ready(WANTED, set(), set())) == ["tokenize"]


def test_collection_and_sharding_run_side_by_side():
    candidates = ready(WANTED, keys(Stage.TOKENIZE), set())
    assert names(admit(candidates, {}, parallel_crias=1)) == ["collect", "shard"]


def test_crias_wait_for_both_and_share_the_machine_up_to_the_limit():
    done = keys(Stage.TOKENIZE, Stage.COLLECT)
    assert names(ready(WANTED, done, keys(Stage.SHARD))) == []
    candidates = ready(WANTED, done | keys(Stage.SHARD), set())
    assert names(admit(candidates, {}, parallel_crias=2)) == ["cria-00", "cria-01"]
    running = {candidates[0].key: Stage.CRIA}
    left = ready(WANTED, done | keys(Stage.SHARD), set(running))
    assert names(admit(left, running, parallel_crias=2)) == ["cria-01"]


def test_stitching_waits_for_every_cria():
    some = keys(Stage.TOKENIZE, Stage.COLLECT, Stage.SHARD) | {WANTED[3].key}
    assert "stitch" not in names(ready(WANTED, some, set()))
    every = keys(Stage.TOKENIZE, Stage.COLLECT, Stage.SHARD, Stage.CRIA)
    assert names(ready(WANTED, every, set())) == ["stitch", "adapt"]


def test_the_adapted_teacher_keeps_no_stage_of_the_student_waiting():
    some = keys(Stage.TOKENIZE, Stage.COLLECT, Stage.SHARD)
    candidates = ready(WANTED, some, set())
    assert "adapt" in names(candidates)
    assert set(names(admit(candidates, {}, parallel_crias=9))) == {f"cria-0{index}" for index in range(6)}
    candidates = ready(WANTED, some | keys(Stage.CRIA), set())
    assert names(admit(candidates, {}, parallel_crias=9)) == ["stitch"]
    candidates = ready(WANTED, some | keys(Stage.CRIA, Stage.STITCH), set())
    assert names(admit(candidates, {}, parallel_crias=9)) == ["adapt"]


def test_where_no_cria_reads_boundaries_none_are_collected():
    fields = {"spec.attention": {"form": "window"}, "spec.criaLora": {"epochs": 0}}
    wanted = Artifacts(trenchcoat(fields).spec).all(CRIAS)
    assert "collect" not in names(wanted)
    done = {item.key for item in wanted if item.stage in (Stage.TOKENIZE, Stage.SHARD)}
    assert "cria-00" in names(ready(wanted, done, set()))


def test_a_run_ends_from_wherever_it_begins():
    complete = keys(Stage.SHARD)
    for _ in range(len(WANTED)):
        for artifact in admit(ready(WANTED, complete, set()), {}, parallel_crias=3):
            complete.add(artifact.key)
    assert complete == {artifact.key for artifact in WANTED}


def test_ranks_fit_the_machine():
    spec = trenchcoat("spec.collect", {"nodes": 3, "gpusPerNode": 8}).spec
    assert Machine(gpus=2, cores=16).workers(Stage.COLLECT, spec) == 2
    assert Machine(gpus=0, cores=4).workers(Stage.COLLECT, spec) == 4
    assert Machine(gpus=8, cores=16).workers(Stage.CRIA, spec) == 1
    assert Machine(gpus=8, cores=16).workers(Stage.EVALUATE, spec) == 1
    spec = trenchcoat("spec.evaluate", {"nodes": 2, "gpusPerNode": 8}).spec
    assert Machine(gpus=8, cores=16).workers(Stage.EVALUATE, spec) == 8
    spec = trenchcoat("spec.stitch", {"nodes": 2, "gpusPerNode": 2}).spec
    assert Machine(gpus=8, cores=16).workers(Stage.ADAPT, spec) == 4


def test_crias_share_the_gpus_out():
    assert least_used(2, []) == 0
    assert least_used(2, [0]) == 1
    assert least_used(2, [0, 1, 1]) == 0
    assert visible_devices(1, None) == "1"
    assert visible_devices(1, "4, GPU-5e1f") == "GPU-5e1f"


def test_as_many_crias_run_as_fit_on_the_gpus():
    assert Machine(gpus=0, cores=4).parallel_crias(0) == 4
    machine = Machine(gpus=2, cores=16, gpu_memory=80 * 10**9)
    assert machine.parallel_crias(need=0) == 2  # before anything is known of them
    assert machine.parallel_crias(need=60 * 10**9) == 2
    assert machine.parallel_crias(need=31 * 10**9) == 4
    assert machine.parallel_crias(need=10**9) == 8
    assert machine.parallel_crias(need=100 * 10**9) == 2  # one all the same: the plan may be wrong
    assert Machine(gpus=1, cores=2, gpu_memory=80 * 10**9).parallel_crias(need=10**9) == 2
