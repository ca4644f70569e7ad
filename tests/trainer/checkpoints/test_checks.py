"""Whether a checkpoint is the Llama that it says: as transformers and safetensors take the same files."""

import json
import logging
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM
from trenchcoat_trainer.checkpoints.checks import check_teacher
from trenchcoat_trainer.checkpoints.teacher import HEAD, INDEX, SINGLE, Teacher, open_teacher
from trenchcoat_trainer.errors import BadInputError
from trenchcoat_trainer.store import FolderStore

from tests.trainer.helpers.trainer_samples import make_config

Change = Callable[[Path], None]


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher in one file; do not change it."""
    folder = tmp_path_factory.mktemp("single")
    torch.manual_seed(1)
    LlamaForCausalLM(make_config(num_hidden_layers=2)).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(single: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(single, tmp_path / "teacher"))


@pytest.fixture
def check(make_spec) -> Callable[..., Teacher]:
    """Checks the teacher of a folder against a spec."""

    def check_it(folder: Path, **changes: Any) -> Teacher:
        spec = make_spec(model={"source": folder.as_uri()}, **changes)
        teacher = open_teacher(spec, FolderStore(folder))
        check_teacher(teacher, spec)
        return teacher

    return check_it


def rewrite(name: str, **changes: Any) -> Change:
    """Replace fields of a JSON file; None takes one away."""

    def change(folder: Path) -> None:
        fields = json.loads((folder / name).read_text()) if (folder / name).exists() else {}
        fields = {key: value for key, value in (fields | changes).items() if value is not None}
        (folder / name).write_text(json.dumps(fields))

    return change


def retensor(**changes: torch.Tensor | None) -> Change:
    """Replace tensors; names have __ for dots, None takes one away."""

    def change(folder: Path) -> None:
        tensors: dict[str, Any] = load_file(folder / SINGLE)
        tensors |= {name.replace("__", "."): tensor for name, tensor in changes.items()}
        save_file(
            {name: t for name, t in tensors.items() if t is not None}, folder / SINGLE, {"format": "pt"}
        )

    return change


def reheader(change: Callable[[dict[str, Any]], None], tail: int = 0) -> Change:
    """Change the header of the weights; `tail`: bytes to add at the end, or to cut off."""

    def apply(folder: Path) -> None:
        data = (folder / SINGLE).read_bytes()
        (length,) = struct.unpack("<Q", data[:8])
        header = json.loads(data[8 : 8 + length])
        change(header)
        text = json.dumps(header).encode()
        rest = data[8 + length :]
        rest = rest + b"\0" * tail if tail >= 0 else rest[:tail]
        (folder / SINGLE).write_bytes(struct.pack("<Q", len(text)) + text + rest)

    return apply


def nothing(header: dict[str, Any]) -> None:
    pass


def shift(name: str, by: int) -> Callable[[dict[str, Any]], None]:
    def change(header: dict[str, Any]) -> None:
        header[name]["data_offsets"] = [number + by for number in header[name]["data_offsets"]]

    return change


def test_a_whole_teacher_passes(check, folder: Path) -> None:
    check(folder)


def test_a_head_that_the_embedding_is_tied_to_in_name_only_is_refused(check, folder: Path) -> None:
    """transformers takes the head, and warns."""
    rewrite("config.json", tie_word_embeddings=True)(folder)
    head = load_file(folder / SINGLE)[HEAD]
    assert torch.equal(LlamaForCausalLM.from_pretrained(folder).lm_head.weight, head)
    with pytest.raises(
        BadInputError, match=r"tie_word_embeddings.* another lm_head\.weight, which transformers"
    ):
        check(folder)


def test_a_head_that_is_the_embedding_may_stand_there_too(check, folder: Path) -> None:
    rewrite("config.json", tie_word_embeddings=True)(folder)
    retensor(lm_head__weight=load_file(folder / SINGLE)["model.embed_tokens.weight"].clone())(folder)
    check(folder)


def test_of_one_file_beside_an_index_the_file_is_read_as_transformers_does(
    check, single: Path, folder: Path, teacher_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What a second save leaves; once the index's files are gone, too."""
    shutil.copytree(teacher_folder, folder, dirs_exist_ok=True)
    shutil.copy(single / SINGLE, folder)
    rewrite("config.json", num_hidden_layers=2)(folder)
    loaded = LlamaForCausalLM.from_pretrained(folder).model.norm.weight
    embedding = LlamaForCausalLM.from_pretrained(folder).model.embed_tokens.weight
    for _ in range(2):
        with caplog.at_level(logging.WARNING):
            teacher = check(folder)
        assert torch.equal(teacher.read_tensor("model.norm.weight", torch.float32), loaded)
        assert torch.equal(teacher.read_tensor("model.embed_tokens.weight", torch.float32), embedding)
        assert f"{SINGLE} beside {INDEX}: it alone is read" in caplog.text
        for part in folder.glob("model-*"):
            part.unlink()


DAMAGES: list[tuple[Change, str]] = [
    (reheader(nothing, tail=-1), "is cut short"),
    (reheader(nothing, tail=8), "8 bytes follow its last tensor"),
    (
        reheader(lambda header: header.pop("model.layers.0.mlp.up_proj.weight")),
        "does not follow the one before",
    ),
    (reheader(shift("model.norm.weight", -4)), "overlaps the one before|does not follow"),
    (
        reheader(lambda header: header["model.norm.weight"].update(shape=[63])),
        r"tensor model\.norm\.weight has 256 bytes, which its shape and type do not make",
    ),
    (reheader(lambda header: header["model.norm.weight"].update(dtype="X9")), "has the unknown type X9"),
    (reheader(lambda header: header["model.norm.weight"].update(data_offsets=[0])), "header cannot be read"),
    (reheader(lambda header: header["model.norm.weight"].update(shape=["64"])), "header cannot be read"),
    (reheader(lambda header: header.update({"x": 3})), "header cannot be read"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGES)
def test_what_the_library_refuses_to_open_is_refused(
    check, folder: Path, damage: Change, message: str
) -> None:
    damage(folder)
    with pytest.raises(SafetensorError), safe_open(folder / SINGLE, "pt"):
        pass
    with pytest.raises(BadInputError, match=rf"{SINGLE} of .* is no whole safetensors file \(.*({message})"):
        check(folder)


INDEXED = "model-1.safetensors"


def indexed(**changes: Any) -> Change:
    """As if the weights had an index, of these fields; `weight_map` is whole unless told."""

    def change(folder: Path) -> None:
        names = load_file(folder / SINGLE)
        (folder / SINGLE).rename(folder / INDEXED)
        rewrite(INDEX, **({"weight_map": dict.fromkeys(names, INDEXED)} | changes))(folder)

    return change


def promise_too_much(folder: Path) -> None:
    retensor(model__norm__weight=None)(folder)
    indexed()(folder)
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"]["model.norm.weight"] = INDEXED
    (folder / INDEX).write_text(json.dumps(index))


def gguf_only(folder: Path) -> None:
    (folder / SINGLE).rename(folder / "llama-Q4_K_M.gguf")


def broken_link(name: str) -> Change:
    def change(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).symlink_to("../blobs/0123")

    return change


def first(name: str) -> str:
    return f"model__layers__0__{name.replace('.', '__')}"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (indexed(weight_map=None), "has no weight_map that names a file for every tensor"),
        (indexed(weight_map={"model.norm.weight": 3}), "has no weight_map that names a file"),
        (indexed(weight_map=[INDEXED]), "has no weight_map that names a file"),
        (promise_too_much, r"lacks the tensor model\.norm\.weight"),
        (gguf_only, "has its weights in GGUF only, which is not read"),
        (broken_link(SINGLE), "is no whole safetensors file"),
        (broken_link("config.json"), "config.json .* cannot be opened, though it is listed"),
        (lambda folder: (folder / "config.json").write_text("[" * 100_000), "config.json .* is not JSON"),
        (rewrite("config.json", hidden_size="x"), "cannot be that of a Llama .*hidden_size"),
        (rewrite("config.json", num_attention_heads=0), "cannot be that of a Llama"),
        (rewrite("config.json", hidden_act="nonesuch"), "a Llama that cannot be made .*nonesuch"),
        (rewrite("config.json", dtype="nonesuch"), "cannot be that of a Llama .*nonesuch"),
        (
            rewrite("config.json", rope_parameters={"rope_type": "nonesuch", "rope_theta": 1e4}),
            "a Llama that cannot be made .*nonesuch",
        ),
        (rewrite("config.json", intermediate_size=97), r"mlp\.\w+\.weight in .* by config.json it would be"),
        (
            rewrite("config.json", vocab_size=301),
            r"embed_tokens\.weight in .* is \[300, 64\], but .* \[301, 64\]",
        ),
        (
            rewrite("config.json", attention_bias=True),
            r"lacks the tensor model\.layers\.0\.self_attn\.\w+\.bias",
        ),
        (
            retensor(**{first("self_attn.q_proj.bias"): torch.zeros(64)}),
            r"has the tensor .*q_proj\.bias, which the Llama of its config.json has not",
        ),
        (
            retensor(**{first("mlp.up_proj.weight"): torch.zeros(96, 64, dtype=torch.int8)}),
            "has the type I8: name the checkpoint with 16- or 32-bit weights",
        ),
        (
            retensor(**{first("mlp.up_proj.weight"): torch.zeros(96, 64).to(torch.float8_e4m3fn)}),
            "has the type F8_E4M3: name the checkpoint with 16- or 32-bit weights",
        ),
    ],
)
def test_what_is_not_the_llama_that_it_says_is_refused(
    check, folder: Path, change: Change, message: str
) -> None:
    change(folder)
    with pytest.raises(BadInputError, match=message):
        check(folder)


def test_a_layer_that_is_to_keep_softmax_attention_must_exist(check, folder: Path) -> None:
    check(folder, attention={"keepSoftmaxLayers": [1]})
    with pytest.raises(BadInputError, match=r"keepSoftmaxLayers has 2, 7, but the model has .* 0 to 1"):
        check(folder, attention={"keepSoftmaxLayers": [1, 7, 2]})


@pytest.mark.parametrize("tied", [False, True])
def test_configurations_of_llama_pass(check, tmp_path: Path, tied: bool) -> None:
    config = LlamaConfig(**make_config(num_hidden_layers=2, attention_bias=True, mlp_bias=True).to_dict())
    config.tie_word_embeddings = tied
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(tmp_path / "other")
    check(tmp_path / "other")
