import base64
import json

import pytest
import yaml
from local_cluster import deploy, images, lifecycle
from local_cluster.layout import REPO, Layout


@pytest.fixture
def layout(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(deploy.components, "folder_of", lambda name: tmp_path / "cache" / name)
    return Layout("demo")


def test_kustomizations_name_bases_by_relative_path(layout):
    for made in (deploy.training_operator(layout), deploy.minio(layout), deploy.kueue_kustomization(layout)):
        assert all(not base.startswith("/") for base in made["resources"] + made.get("components", []))
    folder = layout.state / "deploy" / "minio"
    assert (folder / deploy.minio(layout)["resources"][0]).resolve() == REPO / "manifests" / "minio"


def test_what_all_rely_on_stays_on_the_first_node(layout):
    for made in (deploy.training_operator(layout), deploy.minio(layout), deploy.kueue_kustomization(layout)):
        first = json.loads(made["patches"][0]["patch"])[0]
        assert first["value"] == {"kubernetes.io/hostname": "node-1"}


def test_images_are_those_built_from_this_checkout(layout):
    named = {entry["name"]: entry for entry in deploy.minio(layout)["images"]}
    assert f"{named['minio/minio']['newName']}:{named['minio/minio']['newTag']}" == images.tag("minio")


def test_credentials_are_random_and_kept(layout, monkeypatch):
    monkeypatch.setattr(deploy, "kubectl", lambda *words, **more: "")
    first, second = deploy._credentials(layout), deploy._credentials(layout)
    assert first != second
    assert len(base64.b64decode(first["secretKey"])) >= 32
    monkeypatch.setattr(deploy, "kubectl", lambda *words, **more: json.dumps(first))
    assert deploy._credentials(layout) == first


def test_the_init_container_survives_html_escaping():
    text = (REPO / "manifests" / "training-operator" / "init-container.tpl").read_text()
    body = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    assert "<" not in body and ">" not in body
    assert "{{.MasterAddr}}" in body and "{{.MaxTries}}" in body


def test_the_init_container_passes_the_restricted_standard():
    text = (REPO / "manifests" / "training-operator" / "init-container.tpl").read_text()
    (container,) = yaml.safe_load(text.replace("{{.InitContainerImage}}", "busybox"))
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_optional_images_are_built_only_by_name():
    assert set(images.tags()) - set(images.usual()) == set(images.OPTIONAL)


def test_no_secret_is_part_of_a_manifest():
    for path in (REPO / "manifests").rglob("*.yaml"):
        for document in yaml.safe_load_all(path.read_text()):
            assert not document or document.get("kind") != "Secret", path


def test_a_stopped_cluster_is_told_apart_from_none(layout):
    assert lifecycle.leftovers(layout) == []
    layout.state.mkdir(parents=True)
    assert lifecycle.leftovers(layout) == [f"folder {layout.state}"]
    lifecycle.down(layout)
    assert lifecycle.leftovers(layout) == []
