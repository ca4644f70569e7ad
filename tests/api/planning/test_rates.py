"""Rates as they are read, and what nodes' labels tell."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trenchcoat_api import texts
from trenchcoat_api.planning.rates import PassRate, Rates, RatesError, labelled_memory

GPU = "nvidia.com/gpu"
RATE = PassRate(tflops=600, attention_ms={1024: 1.0, 4096: 8.0}, host_ms=1)


def test_attention_goes_through_what_was_measured_and_keeps_its_rate_beyond() -> None:
    assert RATE.attention_seconds(1024) == pytest.approx(1e-3)
    assert RATE.attention_seconds(4096) == pytest.approx(8e-3)
    assert RATE.attention_seconds(512) == pytest.approx(0.25e-3)
    assert RATE.attention_seconds(8192) == pytest.approx(32e-3)
    between = RATE.attention_seconds(2048)
    assert between == pytest.approx(8**0.5 * 1e-3)  # on the line between both, by logarithms


@given(st.integers(16, 10**6), st.integers(0, 10**5))
def test_longer_sequences_take_no_less(tokens: int, added: int) -> None:
    assert RATE.attention_seconds(tokens + added) >= RATE.attention_seconds(tokens) * (1 - 1e-9)


@pytest.mark.parametrize(
    ("labels", "size"),
    [
        ({f"{GPU}.memory": "81559"}, 81559 * 1024**2),
        ({}, None),
        ({f"{GPU}.memory": ""}, None),
        ({f"{GPU}.memory": "80GB"}, None),
        ({f"{GPU}.memory": "-1"}, None),
        ({f"{GPU}.memory": "9" * 40}, None),
        ({"nvidia.com/mig-1g.10gb.memory": "9856"}, None),
    ],
)
def test_what_a_node_tells_of_its_memory(labels: dict[str, str], size: int | None) -> None:
    assert labelled_memory(labels, GPU) == size


def test_a_slice_has_a_label_of_its_own() -> None:
    labels = {f"{GPU}.memory": "81559", "nvidia.com/mig-1g.10gb.memory": "9856"}
    assert labelled_memory(labels, "nvidia.com/mig-1g.10gb") == 9856 * 1024**2


def test_a_kind_by_its_product() -> None:
    rates = Rates.load()
    assert rates.by_product({f"{GPU}.product": "NVIDIA-H200"}, GPU) == "h200-141gb"
    assert rates.by_product({f"{GPU}.product": "NVIDIA-H100-80GB-HBM3-SHARED"}, GPU) == "h100-80gb"
    assert rates.by_product({f"{GPU}.product": "Tesla-T4"}, GPU) is None
    assert rates.by_product({}, GPU) is None


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[", "not YAML"),
        ("a: 2026-11-31", "not YAML"),
        ("[" * 5000, "not YAML"),
        ("[]", "dictionary"),
        ("default: x", "Field required"),
        ("{default: x, store: {bytesPerSecond: 0}}", "greater than 0"),
        ("{default: x, store: {bytesPerSecond: .inf}}", "store.bytesPerSecond"),
    ],
)
def test_rates_that_cannot_be_used(tmp_path: Path, text: str, told: str) -> None:
    file = tmp_path / "rates.yaml"
    file.write_text(text)
    with pytest.raises(RatesError) as failed:
        Rates.load(file)
    assert str(file) in str(failed.value)
    assert told in str(failed.value)


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("512Mi", 512 * 1024**2), ("80G", 80 * 10**9), ("1.5Ti", 3 * 1024**4 // 2), ("2k", 2000)],
)
def test_quantities(text: str, size: int) -> None:
    assert texts.quantity(text) == size
