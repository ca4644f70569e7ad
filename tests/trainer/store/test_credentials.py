"""Secrets: what was put around them by accident goes, and they are in nothing that is said."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
from trenchcoat_api.exitcodes import ExitCode
from trenchcoat_trainer.cli import configure_log
from trenchcoat_trainer.errors import BadInputError
from trenchcoat_trainer.runtime.termination import write_termination_log
from trenchcoat_trainer.store import open_store
from trenchcoat_trainer.store.credentials import read_secret, redact

from tests.minio_server import ACCESS_KEY, SECRET_KEY
from tests.trainer.helpers.killing import write_spec

TOKEN = "hf_0123456789abcdefghijklmnopqrstuvwx"


@pytest.mark.parametrize("around", ["\n", " ", "\t", "\r\n"])
def test_line_breaks_and_blanks_around_a_secret_are_not_meant(
    monkeypatch: pytest.MonkeyPatch, around: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", f"{around}{TOKEN}{around}")
    assert read_secret("HF_TOKEN") == TOKEN
    monkeypatch.setenv("HF_TOKEN", around)
    assert read_secret("HF_TOKEN") is None


@pytest.mark.parametrize("within", ["\n", " ", "ü", "\x7f"])
@pytest.mark.parametrize("variable", ["HF_TOKEN", "TRENCHCOAT_HF_DATA_TOKEN", "AWS_ACCESS_KEY_ID"])
def test_what_no_header_can_hold_is_told_without_it(
    monkeypatch: pytest.MonkeyPatch, variable: str, within: str
) -> None:
    monkeypatch.setenv(variable, f"first{within}second")
    with pytest.raises(BadInputError, match=f"{variable} holds a blank, a line break") as caught:
        read_secret(variable)
    assert "first" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        f"Illegal header value b'Bearer {TOKEN}\\n'",
        f"token {TOKEN} is wrong",
        "Invalid header value b'AWS4-HMAC-SHA256 Credential=KEY\\n/20260101/us-east-1/s3/aws4_request, "
        "SignedHeaders=host, Signature=0123abcd'",
        "GET https://cdn.example/x?X-Amz-Credential=KEY%2F2026&X-Amz-Signature=0123abcd&x=1",
        "the key 'not\\nsecret-at-all' is wrong",
        "http://me:secret-at-all@proxy.example:3128 answers 407",
        "https://sts.example/?Action=AssumeRoleWithWebIdentity&WebIdentityToken=KEY.0123abcd failed",
    ],
)
def test_no_secret_is_left_in_what_is_said(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not\nsecret-at-all")
    told = redact(text)
    assert "***" in told
    for secret in (TOKEN, "KEY", "0123abcd", "secret-at-all"):
        assert secret not in told


def test_other_words_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "minio")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a")
    text = "spec.store.endpoint http://minio.minio.svc:9000 cannot be reached: correct the address"
    assert redact(text) == text


def test_neither_log_nor_termination_message_has_a_secret(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN + "\n")
    monkeypatch.setenv("TRENCHCOAT_TERMINATION_LOG", str(tmp_path / "log"))
    before = logging.getLogger().handlers[:]
    try:
        configure_log()
        try:
            raise RuntimeError(f"Illegal header value b'Bearer {TOKEN}\\n'")
        except RuntimeError as error:
            logging.getLogger("test").exception("tokenize failed")
            write_termination_log(str(error))
    finally:
        logging.getLogger().handlers[:] = before
    told = capsys.readouterr()
    assert "Illegal header value" in told.err
    assert "Illegal header value" in (tmp_path / "log").read_text()
    assert TOKEN not in told.err + told.out + (tmp_path / "log").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("around", ["\t{} \n", "{}\n{}"])
def test_a_stage_with_a_token_from_a_file_says_it_nowhere(make_spec, tmp_path: Path, around: str) -> None:
    """The real hub library and its HTTP client, with an address where nobody answers."""
    file = write_spec(make_spec(model={"source": "hf://me/llama"}), tmp_path)
    told = tmp_path / "termination"
    environment = os.environ | {
        "HF_TOKEN": around.format(TOKEN, TOKEN),
        "HF_ENDPOINT": "http://127.0.0.1:9",
        "TRENCHCOAT_TERMINATION_LOG": str(told),
    }
    words = ["tokenize", "--spec", str(file), "--store", str(tmp_path / "store")]
    run = subprocess.run(
        [sys.executable, "-m", "trenchcoat_trainer", *words],
        env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    expected = ExitCode.BAD_INPUT if around.count("{}") == 2 else ExitCode.FAILED
    assert run.returncode == expected, run.stderr
    said = run.stdout + run.stderr + told.read_text()
    assert said and TOKEN not in said and "Illegal header" not in said


@pytest.mark.parametrize("around", ["{}\n", " {}"])
def test_the_stores_keys_may_have_line_breaks_around_them(
    make_spec, minio_server, monkeypatch: pytest.MonkeyPatch, around: str
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", around.format(ACCESS_KEY))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", around.format(SECRET_KEY))
    store = open_store(make_spec(store={"endpoint": minio_server.endpoint}))
    assert not store.exists("nothing")
