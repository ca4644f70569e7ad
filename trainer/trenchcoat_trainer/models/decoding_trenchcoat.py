"""Decoding with all shapes fixed, which `torch.compile` takes as one graph and a GPU as one CUDA graph.

An exported checkpoint carries this file; it imports torch alone.

    outputs = model(**prompt, use_cache=True)
    decoder = FixedDecoder(model, outputs.past_key_values, prompt["attention_mask"], max_new_tokens=200)
    decoder.compile()
    tokens = decoder.generate(outputs.logits[:, -1:].argmax(-1), 200)

Shape letters: B batch, H heads, K key/value heads, G heads of a group, D head size, X tokens that there is
room for, S pieces of C tokens over batch and heads, T tokens of the prompts, V vocabulary.
"""

import torch
import torch.nn.functional as F

PIECE = 256
"""Keys that are looked at together where a GPU attends from one token."""


def attend_from_one(q_BKGD, k_BKXD, v_BKXD, seen_BX):
    """Attend from one token; returns [B, K, G, D].

    On a GPU in pieces of the cache, for SDPA has one multiprocessor go through all keys of a group. Logits
    and sums are fp32, as in SDPA.
    """
    mask = seen_BX[:, None, None]
    if not q_BKGD.is_cuda or q_BKGD.dtype == torch.float32:
        return F.scaled_dot_product_attention(q_BKGD, k_BKXD, v_BKXD, mask)
    return attend_in_pieces(q_BKGD, k_BKXD, v_BKXD, mask, torch.bmm)


def attend_in_pieces(q_BKGD, k_BKXD, v_BKXD, mask_B11X, bmm):
    """Attend in pieces of `PIECE` keys, which divides X, by products `bmm(a, b, out_dtype=)`."""
    batch, kv_heads, groups, size = q_BKGD.shape
    pieces = k_BKXD.shape[2] // PIECE
    k_SCD, v_SCD = (x.reshape(-1, PIECE, size) for x in (k_BKXD, v_BKXD))
    q_SGD = q_BKGD[:, :, None].expand(-1, -1, pieces, -1, -1).reshape(-1, groups, size)
    logits_SGC = bmm(q_SGD, k_SCD.transpose(1, 2), out_dtype=torch.float32) * size**-0.5
    logits_BKGX = logits_SGC.view(batch, kv_heads, pieces, groups, PIECE).transpose(2, 3).flatten(3)
    shares_BKGX = logits_BKGX.masked_fill(~mask_B11X, -torch.inf).softmax(-1).to(v_SCD.dtype)
    shares_SGC = shares_BKGX.unflatten(3, (pieces, PIECE)).transpose(2, 3).reshape(-1, groups, PIECE)
    y_SGD = bmm(shares_SGC, v_SCD, out_dtype=torch.float32)
    return y_SGD.view(batch, kv_heads, pieces, groups, size).sum(2).to(q_BKGD.dtype)


class FixedSoftmax:
    """A layer that keeps softmax: keys and values of all tokens, with room for those to come."""

    def __init__(self, layer, hidden_BT, more):
        more += -(hidden_BT.shape[1] + more) % PIECE
        self.keys = F.pad(layer.keys, (0, 0, 0, more))  # [B, K, X, D]
        self.values = F.pad(layer.values, (0, 0, 0, more))
        self.seen = F.pad(~hidden_BT, (0, more), value=True)  # [B, X]
        self.tokens = torch.tensor([hidden_BT.shape[1]], device=hidden_BT.device)

    def step(self, heads):
        """Attend from the next token, [B, H, 1, D]."""
        q, k, v = heads
        self.keys.index_copy_(2, self.tokens, k)
        self.values.index_copy_(2, self.tokens, v)
        seen_BX = self.seen & (torch.arange(self.seen.shape[1], device=q.device) <= self.tokens)
        q_BKGD = q.reshape(q.shape[0], k.shape[1], -1, q.shape[3])
        y = attend_from_one(q_BKGD, self.keys, self.values, seen_BX)
        self.tokens.add_(1)
        return y.reshape(q.shape)


class FixedDecoder:
    """Goes on from a prompt's cache, one token of every sequence at a time.

    Attributes:
        positions: the next token's place in each sequence, [B].
    """

    def __init__(self, model, cache, attention_mask=None, max_new_tokens=256):
        """Take over a cache, which is of no use afterwards.

        Args:
            model: the student.
            cache: what it remembers of the prompts.
            attention_mask: of the prompts, [B, tokens]; None where none is padded.
            max_new_tokens: how many tokens may follow, where layers keep softmax attention.

        Raises:
            ValueError: the student's form has no steps of fixed shapes.
        """
        self.model, self.max_new_tokens = model, max_new_tokens
        layers = model.model.layers
        students = [layer.self_attn.student for layer in layers]
        if not all(student is None or hasattr(student, "fixed") for student in students):
            form = model.config.student_form
            raise ValueError(f"the form {form!r} has no steps of fixed shapes: use generate()")
        device, tokens = model.device, cache.get_seq_length()
        batch = (cache.layers[0].keys if students[0] is None else cache.layers[0].state.keys).shape[0]
        if attention_mask is None:
            attention_mask = torch.ones(batch, tokens, device=device)
        hidden_BT = ~attention_mask.bool()
        self.positions = tokens - hidden_BT.sum(1)
        self.states = [
            FixedSoftmax(layer, hidden_BT, max_new_tokens) if student is None else student.fixed(layer.state)
            for layer, student in zip(cache.layers, students, strict=True)
        ]
        self.left = self._steps_until_settled()
        for held in (self, *self.states):
            for tensor in vars(held).values():
                if isinstance(tensor, torch.Tensor) and tensor is not self.left:
                    torch._dynamo.mark_static_address(tensor)
        self.steps = 0
        self._step, self._settle = self.step, self.settle

    def compile(self, **options):
        """Compile step and settling, each as one graph; `options` as torch.compile's, such as mode."""
        self._step = torch.compile(self.step, fullgraph=True, dynamic=False, **options)
        self._settle = torch.compile(self.settle, fullgraph=True, dynamic=False, **options)

    def step(self, ids):
        """Return the logits that follow `ids`, [B, 1]: [B, V]; for `torch.compile`, within `torch.no_grad`.

        Shapes are always the same, and what is remembered stays at its address.
        """
        model = self.model.model
        hidden = model.embed_tokens(ids)
        rope = model.rotary_emb(hidden, position_ids=self.positions[:, None])
        for layer, state in zip(model.layers, self.states, strict=True):
            attention = layer.self_attn
            heads = attention.project(layer.input_layernorm(hidden), rope)
            if attention.student is None:
                y = state.step(heads)
            else:
                y = attention.student.step(state, heads, attention.student_parameters())
            hidden = hidden + attention.o_proj(y.transpose(1, 2).flatten(2))
            hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        self.positions.add_(1)
        return self.model.lm_head(model.norm(hidden))[:, -1]

    def settle(self):
        """Do what layers need between some steps; within `torch.no_grad` likewise."""
        for layer, state in zip(self.model.model.layers, self.states, strict=True):
            student = layer.self_attn.student
            if student is not None:
                student.settle(state, layer.self_attn.student_parameters())

    def _steps_until_settled(self):
        """Return how many steps are left to each sequence until its layers are settled, on the CPU; or None.

        All layers that need it are alike.
        """
        for layer, state in zip(self.model.model.layers, self.states, strict=True):
            if layer.self_attn.student is not None:
                return layer.self_attn.student.steps_until_settled(state)
        return None

    @torch.no_grad()
    def advance(self, ids):
        """Return the logits that follow `ids`, [B, 1]: [B, V].

        Raises:
            ValueError: there is no room for another token in the layers that keep softmax attention.
        """
        is_bounded = any(isinstance(state, FixedSoftmax) for state in self.states)
        if is_bounded and self.steps == self.max_new_tokens:
            raise ValueError(f"there is room for {self.max_new_tokens} tokens: raise max_new_tokens")
        logits = self._step(ids)
        self.steps += 1
        if self.left is not None:
            self.left -= 1
            if bool((self.left == 0).any()):
                self._settle()
                self.left = self._steps_until_settled()
        return logits

    def generate(self, ids, tokens):
        """Return `ids`, [B, 1], and the most likely tokens after them, [B, tokens] in all."""
        found = [ids]
        for _ in range(tokens - 1):
            # Cloned, for a CUDA graph writes its next result to the same place.
            found.append(self.advance(found[-1]).clone().argmax(-1, keepdim=True))
        return torch.cat(found, 1)
