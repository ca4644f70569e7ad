"""Tokenization: honest counts, a clean split, and every kind of bad input named."""

import codecs
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM
from trenchcoat_api.artifacts import Manifest
from trenchcoat_api.stages import Stage
from trenchcoat_trainer.data import TokenData, layout, packing
from trenchcoat_trainer.errors import BadInputError, PreemptedError
from trenchcoat_trainer.runtime.context import StageContext
from trenchcoat_trainer.runtime.opening import open_context
from trenchcoat_trainer.sources import encoding
from trenchcoat_trainer.sources.text import TextFiles
from trenchcoat_trainer.stages import tokenize
from trenchcoat_trainer.stages.tokenize import reading
from trenchcoat_trainer.stages.tokenize.reading import is_held_out

from tests.trainer.helpers.trainer_samples import StopAfter, make_config, make_documents, save_teacher

ALL = 10_000_000


def finished(context: StageContext) -> Manifest:
    return Manifest.model_validate_json(context.store.read(context.artifact.manifest_path))


def test_facts_are_those_of_model_and_text(make_spec, open_stage) -> None:
    context = open_stage(make_spec(), Stage.TOKENIZE)
    tokenize.run(context)
    facts = finished(context).facts
    assert facts.model is not None and facts.data is not None
    assert (facts.model.layers, facts.model.kv_heads, facts.model.head_dim) == (5, 2, 16)
    assert facts.data.sequences == 100
    assert facts.data.tokens == 6400
    assert facts.data.held_out_sequences == 10


@pytest.mark.parametrize("tied", [False, True])
def test_parameters_are_counted_as_the_model_counts_them(tied: bool) -> None:
    from transformers import LlamaForCausalLM
    from trenchcoat_trainer.checkpoints.teacher import count_parameters

    config = make_config(tie_word_embeddings=tied, attention_bias=True, mlp_bias=True)
    assert count_parameters(config) == sum(weight.numel() for weight in LlamaForCausalLM(config).parameters())


def test_every_document_is_in_its_own_split_once(make_spec, open_stage) -> None:
    spec = make_spec(data={"tokens": ALL, "heldOutTokens": ALL})
    context = open_stage(spec, Stage.TOKENIZE)
    tokenize.run(context)
    facts = finished(context).facts.data
    assert facts is not None
    documents = make_documents(300)
    held_out = [text for text in documents if is_held_out(text, 10)]
    assert 15 < len(held_out) < 50
    assert (facts.documents, facts.held_out_documents) == (300 - len(held_out), len(held_out))
    tokenizer = AutoTokenizer.from_pretrained(spec.model.source.removeprefix("file://"))
    counts = [len(tokenizer(text)["input_ids"]) + 1 for text in held_out]
    assert facts.held_out_sequences == sum(counts) // 64
    ids = torch.cat(list(TokenData(context, "held_out").batches(epoch=0, batch_size=1000, shuffle=False)))
    text = tokenizer.decode(ids.flatten().tolist())
    assert text.startswith(
        next(t for part in (0, 1) for t in documents[part::2] if is_held_out(t, 10)) + "</s>"
    )
    assert sum(document in text for document in held_out) >= len(held_out) - 2
    assert not any(document in text for document in documents if document not in held_out)


def test_the_split_follows_the_text_alone() -> None:
    documents = make_documents(3000)
    share = sum(is_held_out(text, 10) for text in documents) / 3000
    assert 0.08 < share < 0.12
    assert all(is_held_out(text, 20) for text in documents if is_held_out(text, 10))


@pytest.mark.parametrize("looks", [0, 3, 20, 31])
@pytest.mark.parametrize("piece_characters", [60, 10**6])
def test_a_stopped_tokenization_goes_on_and_gives_the_same_bytes(
    make_spec,
    open_stage,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    looks: int,
    piece_characters: int,
) -> None:
    monkeypatch.setattr(encoding, "PIECE_CHARACTERS", piece_characters)
    monkeypatch.setattr(reading, "BATCH_DOCUMENTS", 7)
    monkeypatch.setattr(layout, "TOKEN_BYTES", 64 * 4 * 5)
    monkeypatch.setattr(packing, "SHUFFLE_TOKENS", 64 * 10)
    spec = make_spec(data={"tokens": ALL})
    context = open_stage(spec, Stage.TOKENIZE)
    tokenize.run(context)
    expected = finished(context)
    shutil.rmtree(tmp_path / "store")
    stopped = open_stage(spec, Stage.TOKENIZE, stop=StopAfter(looks))
    with pytest.raises(PreemptedError):
        tokenize.run(stopped)
    assert stopped.progress._saved_fraction == stopped.progress._fraction
    context = open_stage(spec, Stage.TOKENIZE)
    tokenize.run(context)
    assert finished(context).objects == expected.objects
    assert finished(context).facts == expected.facts
    assert not list(context.store.list(context.artifact.checkpoint_prefix))


def test_what_was_read_before_a_stop_is_not_opened_again(
    make_spec, open_stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "BATCH_DOCUMENTS", 10)
    spec = make_spec(data={"tokens": ALL})
    with pytest.raises(PreemptedError):
        tokenize.run(open_stage(spec, Stage.TOKENIZE, stop=StopAfter(20)))  # a file has 150 documents
    opened = []
    original = TextFiles.part
    monkeypatch.setattr(TextFiles, "part", lambda text, index: opened.append(index) or original(text, index))
    tokenize.run(open_stage(spec, Stage.TOKENIZE))
    assert opened == [1]


def test_what_is_done_is_not_told_again_while_held_out_text_is_read(
    make_spec, open_stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "BATCH_DOCUMENTS", 7)
    context = open_stage(make_spec(data={"tokens": 64 * 10, "heldOutTokens": ALL}), Stage.TOKENIZE)
    told = []
    context.progress.listener = told.append
    tokenize.run(context)
    assert [progress.step for progress in told].count(10) == 1


def test_other_processes_are_for_a_long_text(make_spec) -> None:
    data = make_spec(data={"tokens": 8_000_000, "heldOutTokens": 131_072}).data
    assert tokenize.useful_processes(data) == 1
    data = make_spec(data={"tokens": 20_000_000, "heldOutTokens": 131_072}).data
    assert tokenize.useful_processes(data) == 323


def test_the_bytes_do_not_depend_on_processes_and_pieces(
    make_spec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A document of many pieces among others, encoded here, in two processes and in three."""
    monkeypatch.setattr(reading, "BATCH_DOCUMENTS", 16)
    long = " ".join(make_documents(60, seed=3))
    documents = [*make_documents(60), long, *make_documents(60, seed=1)]
    (tmp_path / "text.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in documents))
    source = (tmp_path / "text.jsonl").as_uri()
    spec = make_spec(data={"source": source, "tokens": ALL, "heldOutTokens": ALL})
    found = []
    for number, processes, piece_characters in ((0, 1, 10**6), (1, 1, 500), (2, 2, 500), (3, 3, 700)):
        monkeypatch.setenv(encoding.ENV_PROCESSES, str(processes))
        monkeypatch.setattr(encoding, "PIECE_CHARACTERS", piece_characters)
        context = open_context(spec, Stage.TOKENIZE, folder=tmp_path / str(number))
        tokenize.run(context)
        found.append(finished(context))
    assert all(manifest.objects == found[0].objects for manifest in found)
    assert all(manifest.facts == found[0].facts for manifest in found)
    facts = found[0].facts.data
    assert facts is not None
    assert facts.documents + facts.held_out_documents == 121


Change = Callable[[Path], None]


def rewrite_config(**changes: object) -> Change:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | changes))

    return change


def rewrite_tokenizer(**changes: object) -> Change:
    def change(folder: Path) -> None:
        tokenizer = json.loads((folder / "tokenizer.json").read_text())
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer | changes))

    return change


WORDS = {"type": "WordLevel", "vocab": {"<s>": 0, "</s>": 1, "the": 2}, "unk_token": "[UNK]"}
"""A model of tokenizers that knows one word, and no token for any other."""


def remove(pattern: str) -> Change:
    def change(folder: Path) -> None:
        for file in folder.glob(pattern):
            file.unlink()

    return change


WHOLE = ("config.json", "tokenizer.json", "tokenizer_config.json", "*.index.json", "model-00001*")
MARKED = ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json")


def emptied(pattern: str) -> Change:
    """As a copy that broke off at once leaves a file."""

    def change(folder: Path) -> None:
        for file in folder.glob(pattern):
            file.write_bytes(b"")

    return change


def marked(name: str) -> Change:
    """As some editors save a file."""

    def change(folder: Path) -> None:
        content = (folder / name).read_bytes() if (folder / name).exists() else b"{}"
        (folder / name).write_bytes(codecs.BOM_UTF8 + content)

    return change


def shrink_vocabulary(folder: Path) -> None:
    remove("*.safetensors*")(folder)
    LlamaForCausalLM(make_config(vocab_size=5)).save_pretrained(folder)


def pickle_only(folder: Path) -> None:
    remove("*.safetensors*")(folder)
    (folder / "pytorch_model.bin").write_bytes(b"")


def forget_a_layer(folder: Path) -> None:
    file = folder / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    del index["weight_map"]["model.layers.3.mlp.up_proj.weight"]
    file.write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (rewrite_config(model_type="mistral"), "a model of type 'mistral': only Llama"),
        (rewrite_config(quantization_config={"bits": 4}), "is quantized .quantization_config.: name"),
        (rewrite_config(quantization_config={"quant_method": "fp8"}), "is quantized .fp8.: name"),
        (rewrite_config(quantization_config={"quant_method": "bitsandbytes"}), "is quantized .bitsandbytes."),
        (
            rewrite_config(compression_config={"quant_method": "compressed-tensors"}),
            "is quantized .compressed-",
        ),
        *((emptied(name), f"{name.replace('*', '.*')} .*(is empty|too few)") for name in WHOLE),
        *((marked(name), f"{name} .* begins with a byte-order mark") for name in MARKED),
        (rewrite_config(num_hidden_layers=1), "spec.layersPerCria is 2, but the model has 1 decoder layers"),
        (shrink_vocabulary, "its embedding has 5 rows"),
        (remove("config.json"), "has no config.json"),
        (remove("tokenizer*"), "has no tokenizer"),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), "the tokenizer of .* cannot be loaded"),
        (rewrite_tokenizer(model={"type": "Nonesuch"}), "the tokenizer of .* cannot be loaded"),
        (rewrite_tokenizer(version="9.0"), "the tokenizer of .* cannot be loaded"),
        (rewrite_tokenizer(model=WORDS, pre_tokenizer=None), "tokenizer cannot encode the text .*UNK"),
        (lambda folder: (folder / "tokenizer_config.json").write_text("[]"), "tokenizer .* cannot be loaded"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json .* is not JSON"),
        (remove("model-00002-*"), r"lacks model-00002-of-\d+\.safetensors"),
        (remove("*.safetensors*"), "has no model.safetensors"),
        (remove("*"), "holds no files"),
        (pickle_only, "pickle files only, which are never opened"),
        (forget_a_layer, r"lacks the tensor model\.layers\.3\.mlp\.up_proj\.weight"),
    ],
)
def test_a_teacher_that_cannot_work_is_told(
    make_spec, open_stage, tmp_path: Path, teacher_folder: Path, change: Change, message: str
) -> None:
    folder = shutil.copytree(teacher_folder, tmp_path / "changed")
    change(folder)
    with pytest.raises(BadInputError, match=message):
        tokenize.run(open_stage(make_spec(model={"source": folder.as_uri()}), Stage.TOKENIZE))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], r"the training text of .* is shorter than one sequence of 64 tokens"),
        (['{"text": "short"}'], r"is shorter than one sequence of 64 tokens \([01] documents\)"),
        (['{"text": "fine"}', '{"body": "x"}'], r"line 2, has no field 'text': set spec\.data\.textField"),
        (['{"text": "fine"}', "{"], "line 2, is not JSON"),
        (['{"text": 3}'], "line 1: field 'text' is no string"),
    ],
)
def test_a_text_that_cannot_work_is_told(
    make_spec, open_stage, tmp_path: Path, lines: list[str], message: str
) -> None:
    (tmp_path / "text.jsonl").write_text("\n".join(lines))
    spec = make_spec(data={"source": (tmp_path / "text.jsonl").as_uri()})
    with pytest.raises(BadInputError, match=message):
        tokenize.run(open_stage(spec, Stage.TOKENIZE))


def test_halves_of_characters_become_the_mark_of_what_is_none(make_spec, open_stage, tmp_path: Path) -> None:
    """JSON may hold them; neither UTF-8 nor a tokenizer can."""
    stored = []
    for name, odd in (("escaped", "\\ud800"), ("replaced", "\ufffd")):
        lines = [json.dumps({"text": text}, ensure_ascii=False) for text in make_documents(300)]
        file = tmp_path / f"{name}.jsonl"
        file.write_text("\n".join([*lines, f'{{"text": "a{odd}b"}}']))
        context = open_stage(make_spec(data={"source": file.as_uri()}), Stage.TOKENIZE)
        tokenize.run(context)
        manifest = Manifest.model_validate_json(context.store.read(context.artifact.manifest_path))
        stored.append([item.sha256 for item in manifest.objects])
    assert stored[0] == stored[1]


def test_a_text_without_enough_held_out_documents_is_told(make_spec, open_stage, tmp_path: Path) -> None:
    text = next(
        text for text in (f"{'word ' * 1000}{number}" for number in range(100)) if not is_held_out(text, 10)
    )
    (tmp_path / "text.jsonl").write_text(json.dumps({"text": text}))
    spec = make_spec(data={"source": (tmp_path / "text.jsonl").as_uri()})
    with pytest.raises(BadInputError, match=r"the held-out text .* raise spec\.data\.heldOutPercent"):
        tokenize.run(open_stage(spec, Stage.TOKENIZE))


def test_nothing_need_be_held_out_where_nothing_is_evaluated(make_spec, open_stage, tmp_path: Path) -> None:
    text = next(
        text for text in (f"{'word ' * 1000}{number}" for number in range(100)) if not is_held_out(text, 10)
    )
    (tmp_path / "text.jsonl").write_text(json.dumps({"text": text}))
    source = (tmp_path / "text.jsonl").as_uri()
    context = open_stage(make_spec(data={"source": source}, evaluate={"enabled": False}), Stage.TOKENIZE)
    tokenize.run(context)
    facts = finished(context).facts.data
    assert facts is not None and facts.sequences > 0
    assert facts.held_out_sequences == facts.held_out_documents == 0


def test_the_bytes_do_not_depend_on_batches(
    make_spec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifests = []
    for size in (1, 1024):
        monkeypatch.setattr(reading, "BATCH_DOCUMENTS", size)
        context = open_context(make_spec(), Stage.TOKENIZE, folder=tmp_path / str(size))
        tokenize.run(context)
        manifests.append(finished(context))
    assert manifests[0].objects == manifests[1].objects


def test_llama_tokenizers_marks_are_kept(make_spec, open_stage, tmp_path: Path) -> None:
    """A tokenizer that puts a mark at the beginning of a document keeps doing so, and the end is marked."""
    from tokenizers import Tokenizer
    from tokenizers.processors import TemplateProcessing

    source = tmp_path / "teacher"
    save_teacher(source, make_config())
    tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer.save(str(source / "tokenizer.json"))
    context = open_stage(make_spec(model={"source": source.as_uri()}), Stage.TOKENIZE)
    tokenize.run(context)
    tensors = context.read_tensors(context.artifact, "train/00000.safetensors")
    rows, columns = tensors["document_starts"].long().unbind(1)
    assert len(rows) > 30
    assert tensors["tokens"][rows, columns].eq(0).all()
    inner = columns > 0
    assert tensors["tokens"][rows[inner], columns[inner] - 1].eq(1).all()


@pytest.mark.parametrize(
    ("field", "others", "message"),
    [
        ("otherText", {}, "matches no text file"),
        ("tasks", {"names": ["colours"]}, "has no YAML file of a task"),
    ],
)
def test_what_the_evaluation_would_miss_is_told_at_the_start(
    make_spec, open_stage, tmp_path, field, others, message
) -> None:
    asked = {field: {"source": f"{tmp_path.as_uri()}/nothing"} | others}
    with pytest.raises(BadInputError, match=rf"spec\.evaluate\.{field}\.source .* {message}"):
        tokenize.run(open_stage(make_spec(evaluate=asked), Stage.TOKENIZE))
    # Nobody reads it where nothing is evaluated.
    tokenize.run(open_stage(make_spec(evaluate=asked | {"enabled": False}), Stage.TOKENIZE))
