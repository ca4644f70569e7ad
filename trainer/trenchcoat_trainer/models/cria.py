"""One Cria as a module: consecutive decoder layers of the student, by their number in the whole model.

Shape letters: B batch, T tokens, E hidden size, H heads, D head dimension.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn
from trenchcoat_api.crias import CriaRange

from trenchcoat_trainer.checkpoints.rotary import Rope, RopeOnce
from trenchcoat_trainer.models.configuration_trenchcoat import TrenchcoatLlamaConfig
from trenchcoat_trainer.models.modeling_trenchcoat import TrenchcoatDecoderLayer
from trenchcoat_trainer.students import Heads
from trenchcoat_trainer.students.window.attention import WindowAttention

Piece = tuple[slice, torch.Tensor]
"""Rows of windowed attention, and which of the keys up to the last of them each sees, bool [rows, keys]."""
Attend = Callable[[Heads], torch.Tensor]
"""Attention of q, k and v: [B, H, T, D]."""
PIECE_ROWS = 512
"""Of windowed attention on a CPU: torch's kernel takes as many keys at a time, so that no piece adds one."""


class CriaModel(nn.Module):
    """The decoder layers of one Cria with the student's attention, weights frozen.

    Attributes:
        layers: the layers; a key is the layer's number in the whole model, as a string.
        rope: the rotary embedding for states like those given, from a start position on.
        softmax_window: keys that softmax attention sees in layers that do not keep it; None: all.
    """

    def __init__(self, config: TrenchcoatLlamaConfig, cria: CriaRange) -> None:
        super().__init__()
        self.config = config
        self.cria = cria
        self.softmax_window: int | None = None
        self.rope = RopeOnce(config)
        self.layers = nn.ModuleDict({str(n): TrenchcoatDecoderLayer(config, n) for n in cria.layers})

    @classmethod
    def build(
        cls,
        config: TrenchcoatLlamaConfig,
        cria: CriaRange,
        weights: dict[str, torch.Tensor],
        parameters: dict[str, torch.Tensor],
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> "CriaModel":
        """Make a Cria of a checkpoint's tensors, without ever holding random weights.

        Args:
            config: the student's configuration.
            cria: which layers.
            weights: by their names in a Hugging Face checkpoint, ``model.layers.N...``.
            parameters: what attention transfer trains, ``layers.N.NAME`` by the form's names.
            dtype: number format of the weights; `parameters` stay fp32.
            device: where the Cria will run.

        Raises:
            RuntimeError: a tensor is missing, unknown or of another shape; the message names it.
        """
        with torch.device("meta"):
            model = cls(config, cria)
        state = {
            name.removeprefix("model."): tensor.to(device, dtype)
            for name, tensor in weights.items()
            if not name.endswith("rotary_emb.inv_freq")  # old checkpoints store what is computed
        }
        for name, tensor in parameters.items():
            layer, parameter = name.rsplit(".", 1)
            # A copy, because they are trained in place.
            state[f"{layer}.self_attn.{parameter}"] = tensor.to(device, torch.float32, copy=True)
        model.load_state_dict(state, assign=True)
        model.requires_grad_(False)
        return model.eval()

    def student_layers(self) -> Iterator[tuple[int, TrenchcoatDecoderLayer]]:
        """Yield the number and the module of every layer that does not keep softmax attention."""
        for name, layer in self.layers.items():
            if layer.self_attn.student is not None:
                yield int(name), layer

    def form_parameters(self) -> dict[str, nn.Parameter]:
        """Return what attention transfer trains, by the names that `build` takes."""
        return {
            f"layers.{n}.{name}": parameter
            for n, layer in self.student_layers()
            for name, parameter in layer.self_attn.student_parameters().items()
        }

    @torch.no_grad()
    def set_form_parameters(self, values: dict[str, torch.Tensor]) -> None:
        """Copy in what attention transfer trains, by the names that `build` takes."""
        for name, parameter in self.form_parameters().items():
            parameter.copy_(values[name])

    def use(
        self, *, softmax: bool = False, keep_parts: str = "both", softmax_window: int | None = None
    ) -> None:
        """Choose the attention of student layers: the teacher's softmax, or the student's or a part of it.

        `softmax_window` cuts the teacher's to so many keys up to the query's own, and the first key of all.
        """
        self.softmax_window = softmax_window
        for _, layer in self.student_layers():
            layer.self_attn.softmax = softmax
            layer.self_attn.keep_parts = keep_parts

    def forward(self, hidden_BTE: torch.Tensor, start: int = 0) -> torch.Tensor:
        """Run the layers on a raw residual stream whose first token stands at position `start`.

        Returns:
            The same at the next boundary.
        """
        rope = self.rope(hidden_BTE, start)
        window = self.softmax_window
        attend = None if window is None else _windowed(hidden_BTE, window)
        for layer in self.layers.values():
            if attend is not None and layer.self_attn.student is not None:
                hidden_BTE = _layer_by(attend, layer, hidden_BTE, rope)
            else:
                hidden_BTE = layer(hidden_BTE, position_embeddings=rope)
        return hidden_BTE


def _windowed(like_BTE: torch.Tensor, window: int) -> Attend | None:
    """Return softmax attention over `window` keys up to the query's own and the first of all; None if all."""
    tokens = like_BTE.shape[1]
    if window + 1 >= tokens:
        return None
    if like_BTE.is_cuda:  # where the student form of that kind needs no mask
        return partial(_by_the_form, window)
    return partial(_by_pieces, list(_pieces(tokens, window)))


def _by_the_form(window: int, heads: Heads) -> torch.Tensor:
    q, k, _ = heads
    return WindowAttention(q.shape[1], k.shape[1], q.shape[3], window=window, first_tokens=1).attend(
        heads, {}
    )


def _by_pieces(pieces: Sequence[Piece], heads: Heads) -> torch.Tensor:
    q, k, v = heads
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    return torch.cat(
        [
            F.scaled_dot_product_attention(
                q[:, :, rows], k[:, :, : rows.stop], v[:, :, : rows.stop], attn_mask=seen
            )
            for rows, seen in pieces
        ],
        dim=2,
    )


def _pieces(tokens: int, window: int) -> Iterator[Piece]:
    """Cut rows into pieces, and say which keys each row sees: `window` up to its own, and the first of all.

    What lies after all of a piece's rows is then not computed.
    """
    for start in range(0, tokens, PIECE_ROWS):
        stop = min(start + PIECE_ROWS, tokens)
        seen = torch.ones(stop - start, stop, dtype=torch.bool).tril_(start).triu_(start + 1 - window)
        seen[:, 0] = True
        yield slice(start, stop), seen


def _layer_by(
    attend: Attend, layer: TrenchcoatDecoderLayer, hidden_BTE: torch.Tensor, rope: Rope
) -> torch.Tensor:
    """Run a layer as its forward does, with this attention."""
    attention = layer.self_attn
    y_BHTD = attend(Heads(*attention.project(layer.input_layernorm(hidden_BTE), rope)))
    hidden_BTE = hidden_BTE + attention.o_proj(y_BHTD.transpose(1, 2).flatten(2))
    return hidden_BTE + layer.mlp(layer.post_attention_layernorm(hidden_BTE))
