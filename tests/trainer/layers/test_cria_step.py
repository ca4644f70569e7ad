"""Llama layers as functions equal Hugging Face's, and the steps of a Cria train what they say."""

from dataclasses import replace

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaModel, apply_rotary_pos_emb
from trenchcoat_trainer.layers import (
    Adapter,
    CriaLayers,
    Layer,
    LayerShape,
    LayerWeights,
    Rope,
    block_step,
    boundary_error,
    layerwise_step,
    student_forward,
    teacher_forward,
    transfer_step,
)
from trenchcoat_trainer.students import LossWeights, Student
from trenchcoat_trainer.students.lolcats.form import LolcatsLayer

TOKENS, LAYERS = 50, 3
ATTENTION = LolcatsLayer(heads=4, kv_heads=2, key_maps=4, head_dim=16, feature_dim=8, window_size=8)
NAIVE = replace(ATTENTION, backend="naive")
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32, "rope_theta": 10000.0,
}  # fmt: skip


class Cria:
    """A small Llama's layers, both as Hugging Face's model and as plain weights."""

    def __init__(self, dtype=torch.float64, rope=LLAMA3):
        torch.manual_seed(0)
        self.config = LlamaConfig(
            hidden_size=32, num_attention_heads=4, num_key_value_heads=2, intermediate_size=48, vocab_size=16,
            num_hidden_layers=LAYERS, head_dim=16, rope_parameters=rope, max_position_embeddings=256,
            attn_implementation="sdpa",
        )  # fmt: skip
        self.model = LlamaModel(self.config).to(dtype).eval()
        for parameter in self.model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        self.shape = LayerShape.from_config(self.config)
        self.layers = [
            LayerWeights.from_tensors(self.shape, layer.state_dict(), dtype, "cpu")
            for layer in self.model.layers
        ]
        self.rope = Rope.from_config(self.config, TOKENS, "cpu")
        self.hidden = torch.randn(2, TOKENS, 32, dtype=dtype)
        self.maps = [
            {
                "w_q": torch.randn(4, 16, 8, dtype=dtype).mul_(0.2).requires_grad_(),
                "w_k": torch.randn(4, 16, 8, dtype=dtype).mul_(0.2).requires_grad_(),
                "window_factor": torch.full((4,), -2.0, dtype=dtype, requires_grad=True),
            }
            for _ in range(LAYERS)
        ]
        self.adapters = [{"q_proj": self.adapter(64), "v_proj": self.adapter(32)} for _ in range(LAYERS)]
        self.weights = LossWeights()

    def adapter(self, out, rank=2):
        a, b = torch.randn(rank, 32), torch.randn(out, rank)
        a, b = (x.to(torch.float64).mul_(0.1).requires_grad_() for x in (a, b))
        return Adapter(a, b, scale=2.0)

    def student(self, maps=None, adapters=None):
        """Return the layers with the student's attention and no adapters, or with what is given."""
        students = [None if m is None else Student(ATTENTION, m) for m in maps or self.maps]
        rows = zip(self.layers, students, adapters or [{}] * LAYERS, strict=True)
        return CriaLayers(self.shape, [Layer(*row) for row in rows])

    def boundaries(self):
        """Return the residual stream before every layer and after the last, from Hugging Face's modules."""
        x, streams = self.hidden, [self.hidden]
        positions = self.model.rotary_emb(x, torch.arange(TOKENS)[None])
        for layer in self.model.layers:
            x = layer(x, position_embeddings=positions)
            streams.append(x)
        return streams

    def attention_of(self, layer, x):
        """Return q, k, v of one layer by Hugging Face's modules."""
        module = self.model.layers[layer].self_attn
        x = self.model.layers[layer].input_layernorm(x)
        q, k, v = (
            p(x).view(2, TOKENS, -1, 16).transpose(1, 2)
            for p in (module.q_proj, module.k_proj, module.v_proj)
        )

        return *apply_rotary_pos_emb(q, k, *self.model.rotary_emb(x, torch.arange(TOKENS)[None])), v


@pytest.mark.parametrize(
    "rope", [LLAMA3, {"rope_type": "default", "rope_theta": 10000.0}], ids=["llama3", "plain"]
)
def test_teacher_forward_equals_hugging_face(rope):
    cria = Cria(rope=rope)
    output = teacher_forward(cria.layers, cria.hidden, cria.rope, cria.shape)
    torch.testing.assert_close(output, cria.boundaries()[-1], rtol=1e-5, atol=1e-5)


def test_transfer_step_is_every_layer_on_the_teachers_own_stream():
    cria = Cria()
    losses = transfer_step(cria.student(), cria.hidden, cria.rope, cria.weights)
    for i, stream in enumerate(cria.boundaries()[:-1]):
        maps = {name: t.detach().requires_grad_() for name, t in cria.maps[i].items()}
        expected = NAIVE.transfer_loss(cria.attention_of(i, stream), maps)
        expected.loss.backward()
        assert losses.loss[i].item() == pytest.approx(expected.loss.item(), rel=1e-4)
        assert losses.xent[i].item() == pytest.approx(expected.xent.item(), rel=1e-4)
        for name, theirs in maps.items():
            torch.testing.assert_close(cria.maps[i][name].grad, theirs.grad, rtol=1e-3, atol=1e-4)


def test_layers_kept_softmax_pass_the_teacher_on():
    cria = Cria()
    mixed = [cria.maps[0], None, cria.maps[2]]
    losses = transfer_step(cria.student(mixed), cria.hidden, cria.rope, cria.weights)
    full = transfer_step(cria.student(), cria.hidden, cria.rope, cria.weights)
    assert losses.loss[1] == 0
    assert torch.equal(losses.loss[[0, 2]], full.loss[[0, 2]])


def test_micro_batches_accumulate():
    cria, whole = Cria(), Cria()
    transfer_step(whole.student(), whole.hidden, whole.rope, whole.weights)
    for row in cria.hidden.split(1):
        transfer_step(cria.student(), row, cria.rope, cria.weights, gradient_scale=0.5)
    for mine, theirs in zip(cria.maps, whole.maps, strict=True):
        for name in mine:
            torch.testing.assert_close(mine[name].grad, theirs[name].grad)


def test_layerwise_step_without_adapters_is_attention_transfer():
    cria, other = Cria(), Cria()
    losses = layerwise_step(cria.student(), cria.hidden, cria.rope, cria.weights)
    expected = transfer_step(other.student(), other.hidden, other.rope, other.weights)
    torch.testing.assert_close(losses.loss, expected.loss)
    torch.testing.assert_close(cria.maps[1]["w_q"].grad, other.maps[1]["w_q"].grad)


@pytest.mark.parametrize("objective", ["layerwise", "block"])
def test_adapters_learn(objective):
    cria = Cria()
    leaves = [x for adapters in cria.adapters for a in adapters.values() for x in (a.a, a.b)]
    optimizer = torch.optim.Adam(leaves, lr=1e-2)
    target = cria.boundaries()[-1].detach()
    history = []
    for _ in range(25):
        optimizer.zero_grad()
        if objective == "layerwise":
            step = layerwise_step(cria.student(adapters=cria.adapters), cria.hidden, cria.rope, cria.weights)
            history.append(step.loss.mean().item())
        else:
            loss = block_step(cria.student(adapters=cria.adapters), cria.hidden, target, cria.rope)
            history.append(loss.item())
        assert all(x.grad is not None for x in leaves)
        optimizer.step()
    assert history[-1] < 0.9 * history[0]


def test_recomputing_changes_nothing():
    gradients = []
    for recompute in (False, True):
        cria = Cria()
        student = cria.student(adapters=cria.adapters)
        block_step(student, cria.hidden, cria.hidden, cria.rope, recompute=recompute)
        gradients.append([a.b.grad for adapters in cria.adapters for a in adapters.values()])
    for kept, again in zip(*gradients, strict=True):
        assert torch.equal(kept, again)


def test_softmax_layers_make_the_student_the_teacher():
    cria = Cria()
    student = student_forward(cria.student([None] * LAYERS), cria.hidden, cria.rope)
    teacher = teacher_forward(cria.layers, cria.hidden, cria.rope, cria.shape)
    assert torch.equal(student, teacher)
    assert boundary_error(student, teacher) == 0


def test_a_module_can_read_fused_weights():
    cria = Cria()
    before = cria.boundaries()[-1]
    for weights, layer in zip(cria.layers, cria.model.layers, strict=True):
        weights.attach(layer, cria.shape)
    assert torch.equal(cria.boundaries()[-1], before)
    assert cria.model.layers[0].mlp.gate_proj.weight.data_ptr() == cria.layers[0].gate_up.data_ptr()


def test_a_missing_or_misshapen_tensor_is_named():
    cria = Cria()
    tensors = dict(cria.model.layers[0].state_dict())
    with pytest.raises(ValueError, match=r"o_proj\.weight has shape"):
        LayerWeights.from_tensors(
            cria.shape, {**tensors, "self_attn.o_proj.weight": torch.zeros(1, 1)}, torch.float32, "cpu"
        )
    del tensors["mlp.up_proj.weight"]
    with pytest.raises(KeyError, match="up_proj"):
        LayerWeights.from_tensors(cria.shape, tensors, torch.float32, "cpu")
