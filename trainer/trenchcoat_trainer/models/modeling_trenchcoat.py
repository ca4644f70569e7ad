"""A Llama whose softmax attention is replaced, in all layers or most, by that of a student form.

An exported checkpoint carries this file, so it imports only torch, transformers and its neighbours. What the
attention computes stands in ``student_attention.py``.
"""

import inspect

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicLayer
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaDecoderLayer,
    LlamaForCausalLM,
    LlamaModel,
    LlamaPreTrainedModel,
    LlamaRotaryEmbedding,
)
from transformers.utils import cached_file

from .configuration_trenchcoat import TrenchcoatLlamaConfig
from .inference_trenchcoat import TrenchcoatMLP, TrenchcoatRMSNorm, apply_rope, is_inference
from .student_attention import layer_attention

PADDING_REFUSED = (
    "attention_mask hides tokens, but the student's attention counts tokens from the first, so padding would "
    "shift its window: pass prompts of equal length, or one at a time; for scores alone, pad on the right "
    "and pass use_cache=False"
)
PACKING_REFUSED = (
    "position_ids do not count on by one, as those of several sequences packed into one do not, but the "
    "student's attention would see across them: pass one sequence in a row"
)
ADAPTERS = "adapters.safetensors"
"""File of an export that holds what was trained alone."""
CACHE = next(
    name for name in ("cache", "past_key_values") if name in inspect.signature(LlamaModel.forward).parameters
)
"""What this transformers calls the cache in a call of a layer or a model; 5.24 renamed it."""


class StateLayer(CacheLayerMixin):
    """What decoding remembers of one student layer; constant in size however many tokens have passed."""

    is_croppable = False
    supports_early_init = False

    def __init__(self, attention, **kwargs):
        super().__init__(**kwargs)
        self.attention = attention
        self.state = attention.new_state()

    def lazy_initialization(self, key_states, value_states):
        """Nothing to do: the state takes its shape from the first tokens."""

    def update(self, key_states, value_states, *args, **kwargs):
        """Never called: the student's attention updates the state itself."""
        raise NotImplementedError("a student layer's state is updated by its attention")

    def get_mask_sizes(self, query):
        """Return the key length and offset of a causal mask over all tokens so far.

        `query` is the number of new tokens; older transformers give their positions.
        """
        new_tokens = query if isinstance(query, int) else len(query)
        return self.state.tokens + new_tokens, 0

    def get_seq_length(self):
        """Return how many tokens have been seen."""
        return self.state.tokens

    def get_max_length(self):
        """There is no longest sequence."""
        return -1

    def get_max_cache_shape(self):
        """Older transformers' name for the same."""
        return self.get_max_length()

    def reset(self):
        """Forget everything."""
        self.state = self.attention.new_state()

    def reorder_cache(self, beam_idx):
        """Keep the rows of `beam_idx`, in that order."""
        self.state.reorder(beam_idx)

    def batch_select_indices(self, indices):
        """Keep the rows of `indices`, in that order."""
        self.state.reorder(indices)

    def batch_repeat_interleave(self, repeats):
        """Repeat every row `repeats` times."""
        self.state.reorder(torch.arange(self.state.batch_size).repeat_interleave(repeats))

    def crop(self, tokens_to_remove):
        """Refuse: tokens that were folded into the state cannot be taken out again."""
        raise NotImplementedError("a student layer cannot forget tokens: do not use assisted generation")


def student_attention(config, index):
    """Return the attention of a decoder layer, or None where it keeps softmax attention."""
    return None if index in config.keep_softmax_layers else layer_attention(config, index)


def cache_layers(config):
    """Return the cache's layers: the student's state, or all keys where a layer keeps softmax attention."""
    attentions = (student_attention(config, index) for index in range(config.num_hidden_layers))
    return [DynamicLayer() if attention is None else StateLayer(attention) for attention in attentions]


def parameter_names(config):
    """Return the names of what attention transfer trains, over all layers."""
    attentions = (student_attention(config, index) for index in range(config.num_hidden_layers))
    return sorted({name for attention in attentions if attention for name in attention.shapes})


class TrenchcoatCache(Cache):
    """Cache of a linearized Llama: constant in size, but for layers that keep softmax attention."""

    def __init__(self, config: TrenchcoatLlamaConfig):
        super().__init__(layers=cache_layers(config))


class TrenchcoatAttention(LlamaAttention):
    """Llama's attention, or what takes its place; B batch, T tokens, H heads, K key/value heads, D head size.

    Attributes:
        student: the student's attention; None in a layer that keeps softmax. What it trains are fp32
            parameters of this module, by the form's names.
        softmax: compute ordinary softmax attention instead (a layer that keeps it, or the teacher).
        keep_parts: "both", or a part of the student's attention to measure what it does by itself.
    """

    def __init__(self, config: TrenchcoatLlamaConfig, layer_idx: int):
        super().__init__(config, layer_idx)
        self.student = student_attention(config, layer_idx)
        self.softmax = self.student is None
        self.keep_parts = "both"
        if self.student is not None:
            for name, shape in self.student.shapes.items():
                setattr(self, name, nn.Parameter(torch.empty(shape, dtype=torch.float32)))

    def student_parameters(self):
        """Return what the student's attention trains, by the form's names."""
        return {} if self.student is None else {name: getattr(self, name) for name in self.student.shapes}

    def rotate(self, q_BTX, k_BTX, v_BTX, position_embeddings):
        """Split projected states into heads and apply RoPE: q [B, H, T, D], k and v [B, K, T, D]."""
        q, k, v = (x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for x in (q_BTX, k_BTX, v_BTX))
        q, k = apply_rope(q, k, *position_embeddings)
        return q, k, v

    def project(self, hidden_BTE, position_embeddings):
        """Return q [B, H, T, D], k and v [B, K, T, D] of normed hidden states, after RoPE."""
        projected = (self.q_proj(hidden_BTE), self.k_proj(hidden_BTE), self.v_proj(hidden_BTE))
        return self.rotate(*projected, position_embeddings)

    def forward(
        self,
        hidden_states,
        position_embeddings=None,
        attention_mask=None,
        past_key_values=None,
        visible=None,
        **kwargs,
    ):
        """Attend; returns the output after o_proj, [B, T, hidden], and None for the map.

        `visible`, bool [B, T], says of which tokens a student's attention may take notice; None: of all.
        """
        past_key_values = kwargs.pop("cache", past_key_values)
        if self.softmax and self._begins_prompt(hidden_states, attention_mask, past_key_values):
            return self._attend_to_prompt(hidden_states, position_embeddings, past_key_values), None
        if self.softmax:
            return super().forward(
                hidden_states=hidden_states,
                position_embeddings=position_embeddings,
                attention_mask=attention_mask,
                **{CACHE: past_key_values},
                **kwargs,
            )
        heads, parameters = self.project(hidden_states, position_embeddings), self.student_parameters()
        padding = {} if visible is None else {"visible": visible}
        if past_key_values is None:
            y = self.student.attend(heads, parameters, self.keep_parts, **padding)
        else:
            state = past_key_values.layers[self.layer_idx].state
            y = self.student.decode(state, heads, parameters, **padding)
        return self.o_proj(y.transpose(1, 2).flatten(2)), None

    def _begins_prompt(self, hidden_BTE, mask, cache):
        """Say whether softmax attention is asked for from a whole prompt, for inference, nothing hidden."""
        return (
            is_inference(hidden_BTE)
            and hidden_BTE.shape[1] > 1
            and mask is None
            and not self.training
            and self.config._attn_implementation == "sdpa"
            and (cache is None or cache.layers[self.layer_idx].get_seq_length() == 0)
        )

    def _attend_to_prompt(self, hidden_BTE, position_embeddings, cache):
        """Return softmax attention's output after o_proj: Llama's, with RoPE in one pass over memory."""
        q, k, v = self.project(hidden_BTE, position_embeddings)
        if cache is not None:
            k, v = cache.update(k, v, self.layer_idx)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1])
        return self.o_proj(y.transpose(1, 2).flatten(2))


class TrenchcoatDecoderLayer(LlamaDecoderLayer):
    """Llama's decoder layer with the student's attention."""

    def __init__(self, config: TrenchcoatLlamaConfig, layer_idx: int):
        # Not LlamaDecoderLayer's own: it would allocate an attention to throw away.
        GradientCheckpointingLayer.__init__(self)
        self.hidden_size = config.hidden_size
        self.self_attn = TrenchcoatAttention(config, layer_idx)
        self.mlp = TrenchcoatMLP(config)
        self.input_layernorm = TrenchcoatRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = TrenchcoatRMSNorm(config.hidden_size, eps=config.rms_norm_eps)


class TrenchcoatPreTrainedModel(LlamaPreTrainedModel):
    """What the models below share."""

    config: TrenchcoatLlamaConfig
    config_class = TrenchcoatLlamaConfig
    _no_split_modules = ["TrenchcoatDecoderLayer"]  # noqa: RUF012
    _can_compile_fullgraph = False

    def post_init(self):
        """Also keep in fp32 what the student's attention trains, whatever the weights' dtype."""
        self._keep_in_fp32_modules_strict = parameter_names(self.config)
        super().post_init()

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, TrenchcoatAttention):
            for name, parameter in module.student_parameters().items():
                module.student.initialize(name, parameter)


class TrenchcoatLlamaModel(TrenchcoatPreTrainedModel, LlamaModel):
    """Llama's decoder with the student's attention."""

    def __init__(self, config: TrenchcoatLlamaConfig):
        LlamaPreTrainedModel.__init__(self, config)
        self.padding_idx = config.pad_token_id
        self.vocab_size = config.vocab_size
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, self.padding_idx)
        self.layers = nn.ModuleList(
            TrenchcoatDecoderLayer(config, index) for index in range(config.num_hidden_layers)
        )
        self.norm = TrenchcoatRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = LlamaRotaryEmbedding(config=config)
        self.gradient_checkpointing = False
        self.post_init()

    def forward(self, input_ids=None, attention_mask=None, past_key_values=None, use_cache=None, **kwargs):
        """Run the decoder. `attention_mask`, [B, tokens so far], hides padding from every other token.

        Where the student's attention cannot leave tokens out, it may hide them only at the end, and only
        without a cache.

        Raises:
            ValueError: `attention_mask` hides what it may not, `position_ids` do not count on by one, or
                `past_key_values` is another model's.
        """
        use_cache = self.config.use_cache if use_cache is None else use_cache
        past_key_values = kwargs.pop("cache", past_key_values)
        if past_key_values is None and use_cache:
            past_key_values = TrenchcoatCache(self.config)
        if past_key_values is not None:
            self._adopt(past_key_values)
        shown, positions = None, kwargs.get("position_ids")  # causal, and nothing else is hidden
        if attention_mask is not None:
            shown = self._padding(attention_mask, cached=past_key_values is not None)
        if shown is not None:
            past = 0 if past_key_values is None else past_key_values.get_seq_length()
            if not bool(shown[:, past:].all()):
                kwargs["visible"] = shown[:, past:]
            if positions is None:
                kwargs["position_ids"] = (shown.cumsum(1) - 1).clamp_min(0)[:, past:]
        self._refuse_packing(positions, kwargs.get("visible"))
        return super().forward(
            input_ids=input_ids,
            attention_mask=shown,
            use_cache=use_cache,
            **{CACHE: past_key_values},
            **kwargs,
        )

    def _adopt(self, cache):
        """Give an empty cache, such as generate() makes for any model, the layers of this one."""
        needs_states = any(layer.self_attn.student is not None for layer in self.layers)
        if not needs_states or any(isinstance(layer, StateLayer) for layer in cache.layers):
            return
        if cache.get_seq_length() > 0:
            raise ValueError("past_key_values holds keys of ordinary attention: pass a TrenchcoatCache")
        cache.layers = cache_layers(self.config)

    @staticmethod
    def _refuse_packing(positions, visible):
        # Not of a single token, so that decoding does not wait for the device at every step.
        if positions is not None and positions.shape[-1] > 1:
            counts_on = positions.diff(dim=-1) == 1
            if visible is not None:
                counts_on = counts_on | ~(visible[:, 1:] & visible[:, :-1])
            if not bool(counts_on.all()):
                raise ValueError(PACKING_REFUSED)

    def _padding(self, mask, *, cached):
        """Return what of a mask the layers have to heed, bool [B, tokens]; None where it hides nothing."""
        if mask.ndim != 2:
            raise ValueError(f"attention_mask must be [batch, tokens], not {tuple(mask.shape)}")
        visible = mask.bool()
        if bool(visible.all()):
            return None
        students = [layer.self_attn.student for layer in self.layers]
        if all(student is None or student.takes_padding for student in students):
            return visible
        # Hidden tokens after all visible ones change nothing before them, unless they are remembered.
        if cached or not bool((visible[:, 1:] <= visible[:, :-1]).all()):
            raise ValueError(PADDING_REFUSED)
        return None


class TrenchcoatLlamaForCausalLM(TrenchcoatPreTrainedModel, LlamaForCausalLM):
    """A linearized Llama with its language-modelling head."""

    def __init__(self, config: TrenchcoatLlamaConfig):
        LlamaPreTrainedModel.__init__(self, config)
        self.model = TrenchcoatLlamaModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @classmethod
    def from_adapters(cls, folder, teacher=None, **kwargs):
        """Load a student whose export holds what was trained alone: the teacher's weights, changed by it.

        Args:
            folder: the export, a folder or a repository of the hub.
            teacher: the teacher's checkpoint likewise; by default the one that the export names.
            kwargs: what `from_pretrained` takes, for the teacher's checkpoint.
        """
        config = TrenchcoatLlamaConfig.from_pretrained(folder)
        if teacher is None:
            teacher = getattr(config, "teacher", None)  # of such exports alone
            if teacher is None:
                raise ValueError(f"{folder} names no teacher that could be fetched: pass teacher=FOLDER")
            kwargs.setdefault("revision", config.teacher_revision)
        kwargs.setdefault("dtype", config.dtype)
        model = cls.from_pretrained(teacher, config=config, **kwargs)
        model.change_by(load_file(cached_file(folder, ADAPTERS)))
        return model

    @torch.no_grad()
    def change_by(self, trained):
        """Put in what was trained: parameters by name, and B A of ``.lora_A`` and ``.lora_B``, in fp32."""
        parameters = dict(self.named_parameters())
        for name, tensor in trained.items():
            if name.endswith(".lora_A"):
                weight = parameters[name.removesuffix(".lora_A") + ".weight"]
                b = trained[name.removesuffix(".lora_A") + ".lora_B"]
                weight.copy_((b.to(weight.device) @ tensor.to(weight.device)).add_(weight))
            elif not name.endswith(".lora_B"):
                parameters[name].copy_(tensor)
