"""What a failed Job means."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trenchcoat_api.exitcodes import ExitCode
from trenchcoat_api.stages import Stage
from trenchcoat_operator.model.observed import Child, ChildKind, ChildPhase, Pod
from trenchcoat_operator.reconcile.assessment.failures import FailureClass, Outcome, classify

CHILD = Child(
    kind=ChildKind.JOB,
    name="tiny-cria-00-01234567-1",
    stage=Stage.CRIA,
    cria=0,
    key="0123456789abcdef",
    attempt=1,
    spec_name="tiny-spec-01234567",
    template="01234567",
    owned=True,
    phase=ChildPhase.FAILED,
)


def at(second: int) -> datetime:
    return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=second)


def verdict(child: Child) -> Outcome:
    return classify(child, at(130))


def ended(code: int, message: str = "", **more: object) -> Pod:
    return replace(
        Pod(name="pod", phase="Failed", node="gpu-1", exit_code=code, exit_message=message), **more
    )


@pytest.mark.parametrize(
    ("code", "failure"),
    [
        (ExitCode.FAILED, FailureClass.FAILED),
        (ExitCode.BAD_INPUT, FailureClass.BAD_INPUT),
        (ExitCode.DIVERGED, FailureClass.DIVERGED),
        (ExitCode.OUT_OF_MEMORY, FailureClass.OUT_OF_MEMORY),
        (ExitCode.STORE_UNAVAILABLE, FailureClass.STORE_UNAVAILABLE),
        (ExitCode.PREEMPTED, FailureClass.PREEMPTED),
        (ExitCode.TERMINATED, FailureClass.PREEMPTED),
        (137, FailureClass.FAILED),
        (2, FailureClass.FAILED),
    ],
)
def test_exit_codes(code: int, failure: FailureClass) -> None:
    outcome = verdict(replace(CHILD, pods=(ended(code, "first line\nwhat was at fault\n"),)))
    assert outcome.failure is failure
    assert outcome.message == "what was at fault"


def test_an_exit_without_a_word_names_pod_and_code() -> None:
    assert verdict(replace(CHILD, pods=(ended(3),))).message == "pod pod ended with exit code 3"
    starting = replace(CHILD, pods=(ended(ExitCode.TERMINATED),))
    assert verdict(starting).message == "pod pod was told to end while it started"


@pytest.mark.parametrize(
    "pod",
    [
        ended(137, disrupted=True),
        ended(137, reason="Evicted"),
        Pod(name="pod", phase="Failed", reason="NodeLost"),
        ended(1, disrupted=True),
    ],
)
def test_what_the_cluster_ends_is_preempted(pod: Pod) -> None:
    assert verdict(replace(CHILD, pods=(pod,))).failure is FailureClass.PREEMPTED


@pytest.mark.parametrize(
    ("reason", "message"),
    [
        ("UnexpectedAdmissionError", "Allocate failed due to no healthy devices present"),
        ("OutOfnvidia.com/gpu", "Node didn't have enough resource: nvidia.com/gpu, requested: 1, used: 1"),
        ("OutOfcpu", "Node didn't have enough resource: cpu, requested: 4000, used: 2000, capacity: 4000"),
        ("NodeAffinity", "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector"),
        ("TopologyAffinityError", "Resources cannot be allocated with Topology locality"),
    ],
)
def test_what_a_node_refuses_is_free_and_told_in_its_words(reason: str, message: str) -> None:
    refused = Pod(
        name="pod", phase="Failed", node="gpu-1", reason=reason, message=f"Pod was rejected: {message}"
    )
    outcome = verdict(replace(CHILD, pods=(refused,)))
    assert outcome.failure is FailureClass.NODE_REFUSED
    assert outcome.message == f"node gpu-1 refused pod pod: {reason}: Pod was rejected: {message}"


@pytest.mark.parametrize(("code", "reason"), [(255, "Unknown"), (137, "ContainerStatusUnknown")])
def test_a_node_that_was_restarted_under_a_pod_is_free(code: int, reason: str) -> None:
    assert verdict(replace(CHILD, pods=(ended(code, exit_reason=reason),))).failure is FailureClass.PREEMPTED
    assert verdict(replace(CHILD, pods=(ended(255, exit_reason="Error"),))).failure is FailureClass.FAILED


LOW = "The node was low on resource: {0}. Threshold quantity: 100Mi, available: 80Mi. "


@pytest.mark.parametrize(
    ("message", "remedy"),
    [
        ("Pod ephemeral local storage usage exceeds the total limit of containers 1Gi. ", "ephemeralStorage"),
        ('Container stage exceeded its local ephemeral storage limit "1Gi". ', "ephemeralStorage"),
        ('Usage of EmptyDir volume "scratch" exceeds the limit "1Gi". ', "sizeLimit"),
        (
            LOW.format("ephemeral-storage")
            + "Container stage was using 9Gi, request is 0, has larger consumption of ephemeral-storage. ",
            "ephemeralStorage",
        ),
        (
            LOW.format("memory")
            + "Container pytorch was using 9Gi, request is 256Mi, has larger consumption of memory. ",
            "memory",
        ),
    ],
)
@pytest.mark.parametrize("disrupted", [False, True])
def test_evicted_for_its_own_doing(message: str, remedy: str, disrupted: bool) -> None:
    pod = replace(ended(137, reason="Evicted", disrupted=disrupted), message=message)
    outcome = verdict(replace(CHILD, pods=(pod,)))
    assert outcome.failure is FailureClass.EVICTED
    assert message.strip(" .") in outcome.message
    assert remedy in outcome.message.removeprefix(message)


@pytest.mark.parametrize(
    "message",
    [
        LOW.format("memory"),
        LOW.format("memory")
        + "Container istio-proxy was using 1Gi, request is 0, has larger consumption of memory. ",
        "The node had condition: [DiskPressure]. ",
    ],
)
def test_evicted_for_what_others_did_is_free(message: str) -> None:
    evicted = replace(ended(137, reason="Evicted"), message=message)
    outcome = verdict(replace(CHILD, pods=(evicted,)))
    assert outcome.failure is FailureClass.PREEMPTED
    assert message.strip(" .") in outcome.message


def test_a_job_whose_disrupted_pod_is_gone_was_preempted() -> None:
    message = "Pod ml/x has condition DisruptionTarget matching FailJob rule at index 0"
    child = replace(CHILD, reason="PodFailurePolicy", message=message)
    assert verdict(child).failure is FailureClass.PREEMPTED


def test_out_of_memory_says_what_to_change() -> None:
    outcome = verdict(replace(CHILD, pods=(ended(137, exit_reason="OOMKilled"),)))
    assert outcome.failure is FailureClass.OUT_OF_MEMORY
    assert "spec.pods" in outcome.message


@pytest.mark.parametrize("code", [1, 64, 66, 75, 143])
def test_exit_codes_of_init_containers_mean_nothing_to_us(code: int) -> None:
    broken = ended(code, "no role", exit_of="vault-agent-init", exit_reason="Error")
    outcome = verdict(replace(CHILD, pods=(broken,)))
    assert outcome.failure is FailureClass.FAILED
    assert outcome.message == (
        f"init container vault-agent-init of pod pod failed (Error, exit code {code}): no role"
    )
    told = verdict(replace(CHILD, pods=(replace(broken, gone_by=at(60)),)))
    assert told.failure is FailureClass.PREEMPTED
    eaten = verdict(replace(CHILD, pods=(replace(broken, exit_reason="OOMKilled"),)))
    assert eaten.failure is FailureClass.FAILED, "spec.pods.cria.resources would not help"


def test_of_several_pods_the_one_that_explains_the_others_counts() -> None:
    pods = (ended(1, "connection closed by peer"), ended(65, "loss became NaN"), ended(75, "stopped"))
    assert verdict(replace(CHILD, pods=pods)).message == "loss became NaN"
    lost = (ended(1, "connection closed by peer"), ended(137, disrupted=True))
    assert verdict(replace(CHILD, pods=lost)).failure is FailureClass.PREEMPTED


def test_a_pod_killed_when_its_grace_period_was_over_is_preempted() -> None:
    late = ended(137, gone_by=at(120), ended_at=at(121))
    assert verdict(replace(CHILD, pods=(late,))).failure is FailureClass.PREEMPTED
    # What ended by itself may be deleted afterwards.
    before = ended(137, gone_by=at(120), ended_at=at(60))
    assert verdict(replace(CHILD, pods=(before,))).failure is FailureClass.FAILED
    eaten = replace(late, exit_reason="OOMKilled")
    assert verdict(replace(CHILD, pods=(eaten,))).failure is FailureClass.OUT_OF_MEMORY


@pytest.mark.parametrize("code", [ExitCode.PREEMPTED, ExitCode.TERMINATED, 137])
@pytest.mark.parametrize("grace", [0, 3])
def test_pods_told_to_end_because_another_failed_explain_nothing(code: int, grace: int) -> None:
    """The training-operator deletes the pods that still run, and a failure must not be tried for ever.

    Times are whole seconds: all may happen in one.
    """
    broken = ended(1, "what was at fault", ended_at=at(60))
    told = ended(code, told_at=at(60), gone_by=at(60 + grace), ended_at=at(60 + grace))
    assert verdict(replace(CHILD, failing_at=at(60), pods=(told, broken))).message == "what was at fault"
    assert verdict(replace(CHILD, pods=(told, broken))).message == "what was at fault"
    # The other way round, the first to be told to end explains the one that lost its connection to it.
    lost = replace(broken, ended_at=at(61))
    assert verdict(replace(CHILD, failing_at=at(62), pods=(told, lost))).failure is FailureClass.PREEMPTED


def test_a_pod_that_writes_a_checkpoint_explains_the_one_that_broke_meanwhile() -> None:
    told = ended(75, told_at=at(60), gone_by=at(180), ended_at=at(90))
    broken = ended(1, "connection closed by peer", ended_at=at(62))
    gang = replace(CHILD, gang=True, failing_at=at(63), reason="BackoffLimitExceeded", pods=(told, broken))
    assert verdict(gang).failure is FailureClass.PREEMPTED


@pytest.mark.parametrize("code", [75, 143])
def test_the_job_controller_knows_which_pod_ended_first_where_times_do_not(code: int) -> None:
    told = ended(code, told_at=at(60), gone_by=at(180), ended_at=at(60))
    broken = ended(1, "connection closed by peer", ended_at=at(60))
    message = f"Container stage for pod ml/x failed with exit code {code} matching FailJob rule at index 1"
    gang = replace(CHILD, gang=True, failing_at=at(60), reason="PodFailurePolicy", message=message)
    for pods in ((told, broken), (broken,)):
        assert verdict(replace(gang, pods=pods)).failure is FailureClass.PREEMPTED
    stands = ended(66, "does not fit into the GPU's memory", ended_at=at(60))
    assert verdict(replace(gang, pods=(told, stands))).failure is FailureClass.OUT_OF_MEMORY


def test_pods_told_to_end_because_another_was_refused_or_never_began_explain_nothing() -> None:
    told = ended(75, told_at=at(60), gone_by=at(180), ended_at=at(61))
    refused = Pod(name="pod", phase="Failed", node="gpu-1", reason="OutOfcpu", message="Pod was rejected")
    gang = replace(CHILD, gang=True, failing_at=at(60), reason="BackoffLimitExceeded")
    assert verdict(replace(gang, pods=(told, refused))).failure is FailureClass.NODE_REFUSED
    broken = ended(1, "what was at fault", ended_at=at(59))
    initializing = replace(told, exit_code=2, exit_of="vault-agent-init", exit_reason="Error")
    assert verdict(replace(gang, pods=(initializing, broken))).message == "what was at fault"


MOMENTS = st.floats(0, 5)
SKEW = st.floats(-2, 2)


@given(st.lists(st.tuples(MOMENTS, MOMENTS, SKEW), min_size=1, max_size=3), MOMENTS, SKEW, st.booleans())
@settings(max_examples=200, deadline=None)
def test_a_rank_that_fails_by_itself_counts_however_soon_the_others_end(
    others: list[tuple[float, float, float]], reported: float, skew: float, known: bool
) -> None:
    """All moments are seconds after the one before; each node's clock may be off, the cluster's is one."""
    failing = 60 + reported
    broken = ended(1, "what was at fault", ended_at=at(int(60 + skew)))
    pods = [
        ended(75, told_at=at(int(told)), gone_by=at(int(told) + 120), ended_at=at(int(told + took + off)))
        for later, took, off in others
        if (told := failing + later)
    ]
    gang = replace(CHILD, gang=True, failing_at=at(int(failing)) if known else None, pods=(*pods, broken))
    if known or skew <= 0:  # else a clock that is ahead says that it was told before it failed
        assert verdict(gang).failure is FailureClass.FAILED


@given(st.floats(0, 100), st.floats(1, 5), SKEW, SKEW)
@settings(max_examples=200, deadline=None)
def test_a_rank_that_is_told_to_end_a_while_before_another_breaks_is_preempted(
    took: float, broke: float, skew: float, off: float
) -> None:
    """However long it takes to end; as far apart as clocks may be."""
    told = ended(75, told_at=at(60), gone_by=at(180), ended_at=at(int(60 + took + skew)))
    broken = ended(1, "connection closed by peer", ended_at=at(int(60 + broke + 2 + off)))
    gang = replace(CHILD, gang=True, failing_at=at(int(60 + broke + 4)), pods=(told, broken))
    assert verdict(gang).failure is FailureClass.PREEMPTED


def test_of_a_gang_that_broke_the_lost_node_is_the_cause() -> None:
    broken = ended(1, "connection closed by peer", ended_at=at(2))
    silent = Pod(name="other", phase="Running", node="gpu-2", gone_by=at(123))
    gang = replace(CHILD, kind=ChildKind.PYTORCH_JOB, pods=(broken, silent))
    assert classify(gang, at(130)).failure is FailureClass.FAILED
    late = classify(gang, at(160))
    assert (late.failure, late.message) == (
        FailureClass.PREEMPTED,
        "node gpu-2 of pod other does not answer",
    )


def test_a_job_whose_pods_are_gone_is_judged_by_its_condition() -> None:
    message = "Container stage for pod ml/x failed with exit code 65 matching FailJob rule at index 1"
    child = replace(CHILD, reason="PodFailurePolicy", message=message)
    assert verdict(child).failure is FailureClass.DIVERGED
    assert verdict(replace(CHILD, reason="BackoffLimitExceeded")).failure is FailureClass.FAILED


def test_of_a_gang_that_broke_the_pod_that_the_cluster_ended_is_the_cause_though_it_is_gone() -> None:
    message = "Pod ml/x has condition DisruptionTarget matching FailJob rule at index 0"
    policy = replace(CHILD, gang=True, reason="PodFailurePolicy", message=message)
    broken = ended(1, "connection closed by peer", ended_at=at(2))
    assert verdict(replace(policy, pods=(broken,))).failure is FailureClass.PREEMPTED
    # What a rank says of itself stands all the same: another try would end like it.
    assert verdict(replace(policy, pods=(ended(64),))).failure is FailureClass.BAD_INPUT


def test_a_recorded_verdict_stands() -> None:
    child = replace(CHILD, outcome="Preempted", outcome_message="node lost", pods=(ended(1),))
    assert verdict(child).failure is FailureClass.PREEMPTED
    assert verdict(child).message == "node lost"


def test_an_unknown_recorded_verdict_is_found_out_anew() -> None:
    assert verdict(replace(CHILD, outcome="Newfangled", pods=(ended(64),))).failure is FailureClass.BAD_INPUT


def test_what_is_permanent_and_what_is_free() -> None:
    assert {item for item in FailureClass if item.permanent} == {
        FailureClass.BAD_INPUT,
        FailureClass.DIVERGED,
        FailureClass.OUT_OF_MEMORY,
    }
    assert {item for item in FailureClass if item.free} == {FailureClass.PREEMPTED, FailureClass.NODE_REFUSED}


def test_long_messages_are_cut() -> None:
    assert len(verdict(replace(CHILD, pods=(ended(1, "x" * 5000),))).message) == 1000
