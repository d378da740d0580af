"""Attention whose projections are linear layers of their own, in the place of torch's `nn.MultiheadAttention`."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from plywise.compressors.modules.assembly import assemble
from plywise.compressors.modules.projected_recurrence import ProjectedRecurrence, refusal_of_recurrence


class ProjectedAttention(nn.Module):
    """Computes what `nn.MultiheadAttention` computes, with layers that techniques can compress.

    torch keeps the projections of queries, keys and values in one parameter and calls no module for them, so they can
    be neither watched nor exchanged.

    Attributes:
        query, key, value, out_proj: the projections.
        head_dim: width of a head; as many heads run as the projections are wide, so that whole heads can be cut.
        num_heads: of the original; torch's encoder asks for it.
        batch_first: whether inputs are `(n, tokens, width)` rather than `(tokens, n, width)`.
        in_proj_bias: None, which tells torch's transformer layers not to take the fast path past the projections.
    """

    in_proj_bias = None

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        """Takes over a copy of the weights of an attention that `refusal` has no objection to."""
        super().__init__()
        packed, bias = attention.in_proj_weight, attention.in_proj_bias
        names = ("q_proj_weight", "k_proj_weight", "v_proj_weight")
        weights = packed.chunk(3) if packed is not None else [attention.get_parameter(name) for name in names]
        biases = [None] * 3 if bias is None else bias.chunk(3)
        self.query, self.key, self.value = map(_linear, weights, biases)
        self.out_proj = _linear(attention.out_proj.weight, attention.out_proj.bias)
        self.num_heads = attention.num_heads
        self.head_dim = attention.head_dim
        self.dropout = attention.dropout
        self.batch_first = attention.batch_first
        self.train(attention.training)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Arguments and results are those of `nn.MultiheadAttention`; `is_causal` is a hint that is not needed."""
        swap = query.dim() == 3 and not self.batch_first
        if swap:
            query, key, value = (tokens.transpose(0, 1) for tokens in (query, key, value))
        queries, keys, values = (
            layer(tokens).unflatten(-1, (-1, self.head_dim)).transpose(-3, -2)  # (n, heads, tokens, head_dim)
            for layer, tokens in ((self.query, query), (self.key, key), (self.value, value))
        )
        scores = queries @ keys.transpose(-2, -1) * self.head_dim**-0.5
        if attn_mask is not None:
            # (tokens, tokens), or one for each head of each sample
            scores = scores + _added(attn_mask.reshape(scores.shape) if attn_mask.dim() == 3 else attn_mask, scores)
        if key_padding_mask is not None:
            scores = scores + _added(key_padding_mask[..., None, None, :], scores)
        weights = torch.softmax(scores, -1)
        mixed = F.dropout(weights, self.dropout, self.training) @ values
        outputs = self.out_proj(mixed.transpose(-3, -2).flatten(-2))
        outputs = outputs.transpose(0, 1) if swap else outputs
        if not need_weights:
            return outputs, None
        return outputs, weights.mean(-3) if average_attn_weights else weights


def refusal(module: nn.Module) -> str | None:
    """Returns why an attention or a recurrence of torch's stays whole; None where it does not, and of other modules."""
    if isinstance(module, nn.RNNBase):
        return refusal_of_recurrence(module)
    if not isinstance(module, nn.MultiheadAttention):
        return None
    if type(module) is not nn.MultiheadAttention:
        return f"{type(module).__name__} is a layer of the user's own, which may compute something else"
    if module.bias_k is not None or module.add_zero_attn:
        return "attention with add_bias_kv or add_zero_attn cannot be taken apart into linear layers"
    return None


def with_projections(model: nn.Module) -> nn.Module:
    """Returns a network of the same function whose attention and recurrences hold linear layers.

    Args:
        model: left untouched; whatever else it holds is shared with the result. Returned itself where nothing changes.
    """
    kinds: dict[type[nn.Module], type[nn.Module]]
    kinds = {nn.MultiheadAttention: ProjectedAttention, nn.LSTM: ProjectedRecurrence, nn.GRU: ProjectedRecurrence}
    found = {
        name: module
        for name, module in model.named_modules(remove_duplicate=False)
        if type(module) in kinds and refusal(module) is None
    }
    made = {module: kinds[type(module)](module) for module in found.values()}  # one that has two names stays one
    replacements: dict[str, nn.Module] = {name: made[module] for name, module in found.items()}
    if not replacements:
        return model
    if "" in replacements:
        return replacements[""]
    new = assemble(model, replacements)
    for name, module in new.named_modules():
        inside = f"{name}." if name else ""
        if isinstance(module, nn.TransformerEncoder) and any(inner.startswith(inside) for inner in replacements):
            module.use_nested_tensor = False  # a copy, for it holds what was replaced
    return new


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.detach().clone(), weight.requires_grad)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone(), bias.requires_grad)
    return layer


def _added(mask: Tensor, scores: Tensor) -> Tensor:
    """Returns a mask as numbers to add: where a boolean one is True, nothing is seen."""
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=scores.dtype).masked_fill(mask, float("-inf"))
