"""What hack/same-losses says of two stores: real folders, in the layout that the trainer writes."""

import hashlib
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from trenchcoat_api.artifacts import Facts, Manifest, StoredObject
from trenchcoat_api.resource import Trenchcoat
from trenchcoat_api.stages import Stage

TOOL = Path(__file__).parents[2] / "hack" / "same-losses"
NOW = datetime(2026, 1, 1, tzinfo=UTC)
CURVE = ["3.5", "3.25"]


def save(
    store: Path,
    *,
    curve: list[str] = CURVE,
    tensor: bytes = b"maps",
    code: bytes = b"pass",
    key: str = "a" * 16,
    seconds: float = 1.0,
) -> Path:
    """One Cria in a folder store, complete."""
    folder = store / "bucket" / "trenchcoat" / "artifacts" / "cria" / key
    objects = {"maps.safetensors": tensor, "modeling.py": code}
    listed = []
    for name, content in objects.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
        listed.append(StoredObject(path=name, size=len(content), sha256=hashlib.sha256(content).hexdigest()))
    manifest = Manifest(
        stage=Stage.CRIA,
        cria=0,
        key=key,
        objects=listed,
        facts=Facts(losses={"transfer": curve[-1]}, curve=curve),
        started_at=NOW,
        completed_at=NOW,
        seconds=seconds,
    )
    (folder / "manifest.json").write_text(manifest.model_dump_json(by_alias=True))
    (folder / "progress.json").write_text(f'{{"seconds": {seconds}}}')
    return store


def compare(before: Path, after: Path) -> tuple[int, str]:
    command = [sys.executable, str(TOOL), "--stores", str(before), str(after)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def test_equal_numbers_are_the_same_however_long_they_took(tmp_path: Path) -> None:
    code, told = compare(save(tmp_path / "before"), save(tmp_path / "after", seconds=2.0))
    assert code == 0, told
    # How many numbers a manifest holds is no matter of the tool's.
    assert re.fullmatch(
        r"SAME: it computes the same; 0 of \d+ number, 1 bytes, 1 code, 1 key differ\n", told
    ), told


def test_a_point_of_a_curve_that_differs(tmp_path: Path) -> None:
    code, told = compare(save(tmp_path / "before"), save(tmp_path / "after", curve=["3.500001", "3.25"]))
    assert code == 1
    assert "number  cria-00   curve[0]  3.5     3.500001" in told
    assert "DIFFERENT" in told and "1 of" in told


def test_of_a_list_the_first_that_differs_stands_for_all(tmp_path: Path) -> None:
    code, told = compare(save(tmp_path / "before"), save(tmp_path / "after", curve=["3.6", "3.35"]))
    assert code == 1
    assert "number  cria-00   curve[0] and 1 more  3.5     3.6" in told
    assert "curve[1]" not in told
    assert "; 3 of" in told, "the loss at the end, too"


def test_bytes_are_those_of_the_file_not_of_its_manifest(tmp_path: Path) -> None:
    after = save(tmp_path / "after")
    next(after.rglob("maps.safetensors")).write_bytes(b"MAPS")
    code, told = compare(save(tmp_path / "before"), after)
    assert code == 1
    assert "bytes  cria-00   maps.safetensors" in told


def test_what_is_missing_differs(tmp_path: Path) -> None:
    after = save(tmp_path / "after")
    next(after.rglob("maps.safetensors")).unlink()
    code, told = compare(save(tmp_path / "before"), after)
    assert code == 1
    assert told.splitlines()[1].endswith("  -")


@pytest.mark.parametrize("change", [{"code": b"# the same, said otherwise"}, {"key": "b" * 16}])
def test_code_and_keys_are_told_and_do_not_decide(tmp_path: Path, change: dict) -> None:
    code, told = compare(save(tmp_path / "before"), save(tmp_path / "after", **change))
    assert code == 0
    assert told.startswith(" ") and "SAME" in told and "; 1 of" in told


def test_nothing_is_no_proof(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    code, told = compare(tmp_path / "empty", save(tmp_path / "after"))
    assert code == 2
    assert "empty has no complete artifact" in told


def test_a_store_of_two_specs_is_refused(tmp_path: Path) -> None:
    both = save(save(tmp_path / "both"), key="b" * 16)
    code, told = compare(both, both)
    assert code == 2
    assert "compare stores of one spec each" in told


@pytest.mark.parametrize("name", ["published", "options", "standard"])
def test_its_specs_can_be_run_and_compute_what_they_are_named_for(name: str) -> None:
    spec = Trenchcoat.from_yaml(TOOL.parent / "same_losses" / f"{name}.yaml").spec
    assert (spec.preset, spec.attention.form) == (
        ("standard", "window") if name == "standard" else ("shipped", "lolcats")
    )
    assert spec.stitch.long_sequences.are_on == (name == "standard")
