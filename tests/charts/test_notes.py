"""What is said after an installation: what the cluster lacks."""

import shutil
from pathlib import Path

import pytest
import yaml

from tests.charts.helm import CHART, render

PYTORCHJOB = "kubeflow.org/v1/PyTorchJob"
KUEUE = "kueue.x-k8s.io/v1beta2"
PROMETHEUS = "monitoring.coreos.com/v1/ServiceMonitor"
TRENCHCOAT = "trenchcoat.dev/v1alpha1/Trenchcoat"


@pytest.fixture(scope="module")
def chart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The chart with its notes as an object, for `helm template` leaves notes out."""
    copy = tmp_path_factory.mktemp("chart") / "trenchcoat"
    shutil.copytree(CHART, copy)
    notes = copy / "templates" / "NOTES.txt"
    text = (
        '{{- define "notes" -}}\n'
        + notes.read_text()
        + '{{- end }}\nnotes: {{ include "notes" . | quote }}\n'
    )
    (copy / "templates" / "notes.yaml").write_text(text)
    notes.unlink()
    return copy


def notes(chart: Path, *settings: str, has: tuple[str, ...] = ()) -> str:
    options = [word for setting in settings for word in ("--set", setting)]
    options += [word for name in has for word in ("--api-versions", name)]
    made = render("--show-only", "templates/notes.yaml", *options, chart=chart)
    assert made.returncode == 0, made.stderr
    text: str = yaml.safe_load(made.stdout)["notes"]
    return text


def test_a_cluster_that_has_all_is_not_warned_of(chart: Path) -> None:
    text = notes(chart, has=(PYTORCHJOB, KUEUE))
    assert "serves all namespaces" in text
    assert "WARNING" not in text
    assert "Kueue" not in text


@pytest.mark.parametrize(
    ("settings", "has", "said"),
    [
        ((), (KUEUE,), "knows no PyTorchJob"),
        ((), (KUEUE,), "spec.scheduling.distributed to IndexedJob"),
        ((), (PYTORCHJOB,), "has no Kueue"),
        (("crds.enabled=false",), (PYTORCHJOB, KUEUE), "knows no Trenchcoat"),
        (("crds.keep=false",), (PYTORCHJOB, KUEUE), "removes the CustomResourceDefinition"),
        ((), (PROMETHEUS,), "serviceMonitor.enabled=true"),
        (("countGpus=false",), (), "Pending pods"),
        (("watchNamespaces={a,b}",), (), "serves the namespaces a, b"),
    ],
)
def test_what_is_missing_is_said(
    chart: Path, settings: tuple[str, ...], has: tuple[str, ...], said: str
) -> None:
    assert said in notes(chart, *settings, has=has)
    other = ("crds.enabled=true", "serviceMonitor.enabled=true")
    assert said not in notes(chart, *other, has=(PYTORCHJOB, KUEUE, PROMETHEUS, TRENCHCOAT))


def test_of_kueue_an_older_version_counts(chart: Path) -> None:
    assert "has no Kueue" not in notes(chart, has=("kueue.x-k8s.io/v1beta1",))
