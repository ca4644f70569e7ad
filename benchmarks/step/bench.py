"""One Cria of random weights on the GPU, and every step that is measured over it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from materialised import materialised_loss
from shapes import attention, detached, llama_405b, random_maps
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding
from trenchcoat_trainer.layers import (
    Adapter,
    CriaLayers,
    Layer,
    LayerShape,
    LayerWeights,
    Rope,
    block_step,
    layerwise_step,
    teacher_forward,
    transfer_step,
)
from trenchcoat_trainer.layers.fused import add_rms_norm
from trenchcoat_trainer.layers.llama import after_attention, attention_inputs
from trenchcoat_trainer.students import LossWeights, Student


class Bench:
    """Random weights of one Cria on the GPU, and what the steps need beside them."""

    def __init__(self, layers: int, tokens: int, input_sets: int) -> None:
        torch.manual_seed(0)
        self.config = llama_405b(layers)
        self.shape = LayerShape.from_config(self.config)
        self.layers = [LayerWeights.empty(self.shape, torch.bfloat16, "cuda") for _ in range(layers)]
        for layer in self.layers:
            for name, part in layer.parts(self.shape).items():
                if part.ndim == 1:
                    part.fill_(1.0)
                else:
                    # scores and residual growth of the order of a trained model's
                    part.normal_(std=(1.0 if "self_attn.q" in name else 0.5) * part.shape[1] ** -0.5)
        self.rope = Rope.from_config(self.config, 32768, "cuda")
        heads, head_dim = self.shape.heads, self.shape.head_dim
        self.attention = attention(heads, self.shape.kv_heads, head_dim)
        self.maps = [random_maps(heads, head_dim) for _ in range(layers)]
        self.frozen_maps = [detached(maps) for maps in self.maps]
        kv = self.shape.kv_heads * head_dim
        self.adapters = [
            {"q_proj": self.adapter(heads * head_dim), "v_proj": self.adapter(kv)} for _ in range(layers)
        ]
        self.inputs = [self.input(1, tokens) for _ in range(input_sets)]
        self.target = self.input(1, tokens)
        self.weights = LossWeights()
        self.hugging_face, self.rotary = self.modules()

    def adapter(self, out: int, rank: int = 8) -> Adapter:
        a = torch.randn(rank, self.shape.hidden, device="cuda").mul_(self.shape.hidden**-0.5)
        b = torch.randn(out, rank, device="cuda").mul_(0.02)
        seeds = torch.arange(1, device="cuda")
        return Adapter(a.requires_grad_(), b.requires_grad_(), scale=2.0, dropout=0.05, seeds=seeds)

    def input(self, batch: int, tokens: int) -> torch.Tensor:
        return torch.randn(batch, tokens, self.shape.hidden, device="cuda", dtype=torch.bfloat16)

    def modules(self) -> tuple[list[LlamaDecoderLayer], LlamaRotaryEmbedding]:
        """Return Hugging Face's own decoder layers over views of the same weights."""
        modules = []
        for i, layer in enumerate(self.layers):
            with torch.device("meta"):
                module = LlamaDecoderLayer(self.config, i)
            layer.attach(module, self.shape)
            modules.append(module.eval())
        return modules, LlamaRotaryEmbedding(config=self.config).to("cuda")

    @torch.no_grad()
    def teacher(self, x: torch.Tensor) -> torch.Tensor:
        """Run Hugging Face's layers: plain products and SDPA."""
        positions = self.rotary(x, torch.arange(x.shape[1], device="cuda")[None])
        for module in self.hugging_face:
            x = module(x, position_embeddings=positions)
        return x

    def student(self, all_maps: list[dict[str, torch.Tensor]], adapters: list[dict]) -> CriaLayers:
        """Return the layers with the student's attention."""
        rows = zip(self.layers, all_maps, adapters, strict=True)
        layers = [Layer(weights, Student(self.attention, maps), own) for weights, maps, own in rows]
        return CriaLayers(self.shape, layers)

    @torch.no_grad()
    def fused_teacher(self, x: torch.Tensor) -> torch.Tensor:
        return teacher_forward(self.layers, x, self.rope.first(x.shape[1]), self.shape)

    def transfer(self, x: torch.Tensor) -> object:
        rope = self.rope.first(x.shape[1])
        return transfer_step(self.student(self.maps, [{}] * len(self.layers)), x, rope, self.weights)

    def layerwise(self, x: torch.Tensor) -> object:
        rope = self.rope.first(x.shape[1])
        return layerwise_step(self.student(self.frozen_maps, self.adapters), x, rope, self.weights)

    def block(self, x: torch.Tensor, recompute: bool = False) -> object:
        rope = self.rope.first(x.shape[1])
        student, target = self.student(self.frozen_maps, self.adapters), self.target[:, : x.shape[1]]
        return block_step(student, x, target, rope, recompute=recompute)

    @torch.no_grad()
    def materialised(self, x: torch.Tensor) -> None:
        """Attention transfer with every map materialised in plain torch, otherwise as `transfer`."""
        delta, rope = None, self.rope.first(x.shape[1])
        for i, (layer, maps) in enumerate(zip(self.layers, self.maps, strict=True)):
            x, normed = add_rms_norm(x, delta, layer.input_norm, self.shape.eps)
            q, k, v = attention_inputs(layer, normed, rope, self.shape)
            with torch.enable_grad():
                loss, y = materialised_loss(q, k, v, *maps.values())
                loss.backward()
            if i + 1 < len(self.layers):
                x, delta = after_attention(layer, x, y, self.shape)

    @torch.no_grad()
    def products(self, x: torch.Tensor) -> None:
        """Run the matrix products of `transfer` and nothing else."""
        rows = x.flatten(0, 1)
        wide = self.wide[: rows.shape[0]]
        for i, layer in enumerate(self.layers):
            F.linear(rows, layer.qkv)
            if i + 1 < len(self.layers):
                F.linear(rows, layer.out)
                F.linear(rows, layer.gate_up)
                F.linear(wide, layer.down)

    def product_flops(self, tokens: int, skip_last: bool) -> float:
        total = len(self.layers) * self.shape.products_per_token
        return 2.0 * tokens * (total - (self.shape.skipped_products_per_token if skip_last else 0))

    def clear(self) -> None:
        for m in self.maps:
            for t in m.values():
                t.grad = None
        for adapters in self.adapters:
            for adapter in adapters.values():
                adapter.a.grad = adapter.b.grad = None
