"""The form behind the product's interface."""

from typing import Any

import torch
from trenchcoat_trainer.students.form import PUBLISHED, Card, Heads, TransferLoss

from tests.trainer.students.averaging import attention


class AveragingLayer(attention.Averaging):
    """One layer with its one loss."""

    def transfer_loss(
        self, heads: Any, parameters: Any, weights: Any = PUBLISHED, *, drop_window: bool = False
    ) -> TransferLoss:
        heads = Heads(*(x.detach() for x in heads))
        return self.distill_loss(heads, heads, parameters, weights)

    def distill_loss(
        self, student: Any, teacher: Any, parameters: Any, weights: Any = PUBLISHED
    ) -> TransferLoss:
        with torch.no_grad():
            output = torch.nn.functional.scaled_dot_product_attention(
                *teacher, is_causal=True, enable_gqa=True
            )
        mse = (self.attend(student, parameters) - output).square().mean()
        return TransferLoss(weights.mse * mse, mse, torch.zeros_like(mse), output)

    def share_outside(self, heads: Any, parameters: Any) -> None:
        return None


class AveragingForm:
    """Windows of 3, 4, 5, ... tokens, layer by layer."""

    name = "averaging"
    code = attention
    companions = ()
    has_window_dropout = False

    def config_fields(self, attention: Any, kinds: Any) -> dict[str, Any]:
        return {"windows": [3 + index for index, _ in enumerate(kinds)]}

    def parts(self, config: Any) -> dict[str, str]:
        return {"recentAlone": "window"}

    def narrowed(self, config: Any) -> dict[str, Any]:
        return {}

    def layer(self, config: Any, index: int) -> AveragingLayer:
        return AveragingLayer(**vars(attention.layer_attention(config, index)))

    def card(self, config: Any) -> Card:
        rows = (("windows", str(config.windows)),)
        return Card(tags=(), attention="averages", source="nobody", padding="None.", rows=rows)
