"""A whole linearization in bf16: weights and activations are rounded, maps and their training are not."""

import pytest
import torch
from trenchcoat_api.spec import DType
from trenchcoat_api.stages import Stage
from trenchcoat_trainer.models.artifacts import stitch_adapters, trained_parameters
from trenchcoat_trainer.runtime.context import Place
from trenchcoat_trainer.runtime.opening import open_context
from trenchcoat_trainer.stages import collect, cria, evaluate, export, shard, stitch, tokenize

pytestmark = pytest.mark.slow


def test_every_stage_runs_in_bf16(training_spec, change, tmp_path):
    spec = change(training_spec, layersPerCria=5, criaLora={"epochs": 1}).model_copy(
        update={"dtype": DType.BFLOAT16}
    )

    def run(module, **options):
        stage = Stage(module.__name__.rsplit(".", 1)[1])
        context = open_context(spec, stage, folder=tmp_path, place=Place(), **options)
        module.run(context)
        return context

    run(tokenize)
    run(collect)
    run(shard)
    trained = run(cria, cria=0)
    maps = trained_parameters(trained, trained.cria)
    assert {tensor.dtype for tensor in maps.values()} == {torch.float32}
    assert not torch.equal(maps["layers.0.w_q"], maps["layers.0.w_q"].bfloat16().float())

    stitched = run(stitch)
    adapters = stitch_adapters(stitched)[0]
    a = adapters["base_model.model.model.layers.3.self_attn.q_proj.lora_A.weight"]
    assert not torch.equal(a, a.bfloat16().float())  # the masters, not the working copies
    losses = stitched.manifest(stitched.artifact).facts.losses
    assert float(losses["stitch"]) < float(losses["stitchInitial"])

    rows = run(evaluate).manifest(stitched.artifacts.evaluate(stitched.crias)).facts.perplexities
    measured = {row.name: float(row.perplexity) for row in rows}
    assert measured["stitched"] < measured["untrained"]
    exported = run(export)
    weights = exported.read_tensors(exported.artifact, "model-00001-of-00001.safetensors")
    assert weights["model.layers.4.self_attn.w_k"].dtype == torch.float32
    assert weights["model.layers.4.self_attn.q_proj.weight"].dtype == torch.bfloat16
