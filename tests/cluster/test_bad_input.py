"""What cannot work is said at once, in the status and as an event, and no GPU is started."""

import json

import pytest
from demo.environment import BUCKET, Environment
from demo.inputs import client
from demo.watch import condition

from tests.cluster.objects import apply, delete, events, example, gpus_of, pods, wait
from tests.waiting import until

NOT_A_LLAMA = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_layer": 2, "vocab_size": 100}


@pytest.fixture(scope="module", autouse=True)
def odd_inputs(store: Environment):
    """A model that is no Llama and a text that is too short, in the bucket."""
    import io

    objects = {
        "teachers/gpt2/config.json": json.dumps(NOT_A_LLAMA).encode(),
        "corpora/short/one.jsonl": json.dumps({"text": "too short"}).encode(),
    }
    with store.store_address() as address:
        for name, data in objects.items():
            client(store, address).put_object(
                bucket_name=BUCKET, object_name=name, data=io.BytesIO(data), length=len(data)
            )
    wrong = {"accessKey": "somebody", "secretKey": "not-the-password"}
    store.kubectl(
        "apply",
        "-f",
        "-",
        stdin=json.dumps(
            {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "wrong"}, "stringData": wrong}
        ),
    )


CASES = [
    ("not-a-llama", {"model__source": "s3://trenchcoat/teachers/gpt2"}, r"gpt2"),
    ("no-such-model", {"model__source": "s3://trenchcoat/teachers/nobody"}, r"nobody"),
    ("no-bucket", {"store__bucket": "nowhere"}, r"bucket.*nowhere|nowhere.*bucket"),
    ("no-secret", {"store__credentialsSecretRef": {"name": "absent"}}, r"absent"),
    ("wrong-credentials", {"store__credentialsSecretRef": {"name": "wrong"}}, r"(?i)credentials|access"),
    ("short-text", {"data__source": "s3://trenchcoat/corpora/short/*.jsonl"}, r"(?i)sequence"),
    ("deep-crias", {"layersPerCria": 13}, r"layersPerCria.*13"),
    ("url-typo", {"store__endpoint": "http://minoi.minio.svc:9000"}, r"minoi"),
]


@pytest.mark.parametrize(("name", "changes", "message"), CASES, ids=[case[0] for case in CASES])
def test_told_and_not_started(store: Environment, name, changes, message):
    import re

    apply(store, example(name, **changes))
    try:
        body = wait(
            store, name, lambda body: condition(body, "Accepted").get("status") == "False", timeout=120
        )
        accepted = condition(body, "Accepted")
        assert re.search(message, accepted["message"]), accepted
        assert condition(body, "Stalled")["status"] == "True"
        assert condition(body, "Succeeded")["status"] == "False"
        until(
            lambda: any(re.search(message, event.get("message", "")) for event in events(store, name)),
            120,
            "an event says so, too",
        )
        assert sum(gpus_of(pod) for pod in pods(store, name)) == 0
    finally:
        delete(store, name)


def test_a_mended_secret_goes_on_by_itself(store: Environment):
    apply(store, example("mended", store__credentialsSecretRef={"name": "later"}, suspend=False))
    try:
        wait(
            store,
            "mended",
            lambda body: condition(body, "Accepted").get("reason") == "SecretNotFound",
            timeout=120,
        )
        secret = store.get("secret", "minio")
        secret["metadata"] = {"name": "later"}
        store.kubectl("apply", "-f", "-", stdin=json.dumps(secret))
        wait(
            store,
            "mended",
            lambda body: (
                any(
                    row["name"] == "tokenize" and row["state"] != "Blocked"
                    for row in body["status"].get("stages", [])
                )
                and condition(body, "Stalled").get("status") == "False"
            ),
            timeout=120,
        )
    finally:
        delete(store, "mended")
