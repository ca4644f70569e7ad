import hashlib
import io
import json
import tarfile

import pytest
from local_cluster import components, images
from local_cluster.layout import REPO
from local_cluster.shell import Failure, run


def test_a_tag_follows_contents_and_nothing_else(tmp_path):
    folder = tmp_path / "code"
    (folder / "__pycache__").mkdir(parents=True)
    (folder / "a.py").write_text("1")
    first = images.content_hash([folder])
    (folder / "__pycache__" / "a.pyc").write_text("left by Python")
    assert images.content_hash([folder]) == first
    (folder / "a.py").write_text("2")
    assert images.content_hash([folder]) != first
    (folder / "a.py").rename(folder / "b.py")
    assert images.content_hash([folder]) != first


def test_the_trainer_is_told_that_there_are_no_gpus(monkeypatch):
    """Its image alone, and under another name than one that is not told."""
    (argument,) = images.BUILD_ARGUMENTS["trainer"]
    name, _, value = argument.partition("=")
    recipe = (REPO / "trainer" / "Dockerfile").read_text()
    final = recipe.rpartition("\nFROM ")[2]
    assert f"ARG {name}=\n" in final and f"TRENCHCOAT_DEVICE=${{{name}}}" in final and value == "cpu"
    # Else buildah's cache takes the image that is told for one that is not, and a release computes on CPUs.
    assert final.index(f"ARG {name}=\n") < final.rindex("\nRUN ") < final.index("TRENCHCOAT_DEVICE=")
    told, other = images.tag("trainer"), images.tag("operator")
    monkeypatch.setattr(images, "BUILD_ARGUMENTS", {})
    assert images.tag("trainer") != told
    assert images.tag("operator") == other


def test_chain_ids_are_those_of_the_specification():
    lower, upper = "sha256:" + "a" * 64, "sha256:" + "b" * 64
    expected = "sha256:" + hashlib.sha256(f"{lower} {upper}".encode()).hexdigest()
    assert images.chain_ids([lower, upper]) == [lower, expected]


def test_layers_are_found_lowest_first(tmp_path):
    (tmp_path / "overlay-images").mkdir()
    (tmp_path / "overlay-layers").mkdir()
    (tmp_path / "overlay-images" / "images.json").write_text(
        json.dumps([{"names": ["other:1"], "layer": "x"}, {"names": ["wanted:1"], "layer": "top"}, {}])
    )
    (tmp_path / "overlay-layers" / "layers.json").write_text(
        json.dumps(
            [
                {"id": "top", "parent": "base", "diff-digest": "sha256:2"},
                {"id": "base", "diff-digest": "sha256:1"},
            ]
        )
    )
    layers = images.layers_of("wanted:1", tmp_path)
    assert [layer.digest for layer in layers] == ["sha256:1", "sha256:2"]
    assert layers[0].folder == tmp_path / "overlay" / "base" / "diff"


def test_an_archive_without_layers_holds_manifest_and_configuration():
    data = images.archive("localhost/x:1", b'{"config": {}}', b'{"rootfs": {}}')
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        index = json.load(tar.extractfile("index.json"))
        described = index["manifests"][0]
        blob = tar.extractfile("blobs/" + described["digest"].replace(":", "/")).read()
    assert blob == b'{"config": {}}'
    assert described["annotations"]["io.containerd.image.name"] == "localhost/x:1"


@pytest.mark.parametrize(
    ("mounts", "folder"),
    [
        ("mount -t bind /c/io.x/snapshots/7/fs /nowhere -o rw,rbind", "/c/io.x/snapshots/7/fs"),
        (
            "mount -t overlay overlay /nowhere -o index=off,workdir=/c/snapshots/9/work,"
            "upperdir=/c/snapshots/9/fs,lowerdir=/c/snapshots/8/fs:/c/snapshots/7/fs",
            "/c/snapshots/9/fs",
        ),
    ],
)
def test_the_writable_folder_of_a_snapshot(mounts, folder):
    assert images.writable_folder(mounts) == folder


def test_mounts_without_a_snapshot():
    with pytest.raises(Failure, match="cannot tell"):
        images.writable_folder("mount -t tmpfs tmpfs /nowhere")


def test_every_component_pins_its_versions():
    assert components.names()[0] == "kubernetes"
    for name in components.names():
        folder = components.COMPONENTS / name
        assert (folder / "go.sum").stat().st_size, name
        assert "tool" in (folder / "go.mod").read_text(), name


def test_kubernetes_learns_its_version():
    flags = components.linker_flags((components.COMPONENTS / "kubernetes" / "go.mod").read_text())
    assert "gitVersion=v1.34.4" in flags
    assert "gitMinor=34" in flags


def test_a_component_is_rebuilt_for_another_pin_or_compiler(tmp_path):
    (tmp_path / "go.mod").write_text("module a")
    (tmp_path / "go.sum").write_text("b")
    first = components.cache_key(tmp_path, "go1")
    assert components.cache_key(tmp_path, "go1") == first
    assert components.cache_key(tmp_path, "go2") != first
    (tmp_path / "go.sum").write_text("c")
    second = components.cache_key(tmp_path, "go1")
    assert second != first
    (tmp_path / "main.go").write_text("package main")
    assert components.cache_key(tmp_path, "go1") != second


def test_a_missing_pin_is_an_error():
    with pytest.raises(ValueError, match="does not require"):
        components.pinned_version("module a", "k8s.io/kubernetes")


def test_nothing_of_the_machine_is_written_into_the_recipes():
    for name in ("operator", "trainer"):
        text = (REPO / name / "Dockerfile").read_text()
        assert "USER 65532:65532" in text


def test_a_failed_command_tells_why():
    with pytest.raises(Failure, match=r"exited 3: gone"):
        run(["sh", "-c", "echo gone >&2; exit 3"])


@pytest.mark.parametrize(
    ("failures", "why", "found"),
    [(2, "image not known", True), (3, "image not known", False), (1, "no space", False)],
)
def test_an_image_that_another_process_removes_meanwhile_is_no_failure(monkeypatch, failures, why, found):
    said = iter([Failure(f"buildah exited 125: Error: {why}")] * failures)

    def buildah(*words: str) -> str:
        for failure in said:
            raise failure
        return "localhost/trenchcoat/base:1 docker.io/other:2"

    monkeypatch.setattr(images, "buildah", buildah)
    if found:
        assert images.built() == {"localhost/trenchcoat/base:1"}
    else:
        with pytest.raises(Failure, match=why):
            images.built()
