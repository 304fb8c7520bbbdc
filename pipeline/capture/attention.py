"""Attention weights and their rollout, from the torch functions that a module calls.

Fused kernels do not return their weights, so these are computed from the arguments of the call:

- `scaled_dot_product_attention`: `softmax(scale · q kᵀ + mask)`;
- `multi_head_attention_forward` (`nn.MultiheadAttention`): a second call with `need_weights=True`,
  without dropout;
- explicit attention: the factor of a matrix product that derives, within one module, from a softmax
  over the last axis of another matrix product. It is what multiplies the values, so changes after
  the softmax (talking heads, dropout in training) are included.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.capture.tensors import tensors_in

ATTENTION = "attention"
ROLLOUT = "rollout"
WINDOWED = "windowed"
"""Attribute of weights whose keys are the positions of a window."""
PRODUCTS = ("matmul", "bmm", "einsum", "baddbmm")
_HEADS = ("num_heads", "num_attention_heads", "n_heads", "heads")
_MULTI_HEAD = inspect.signature(F.multi_head_attention_forward)
_UNEQUAL = "computes attention whose weights times the values are not its result"
_SEVERAL = "needs one attention for each call of a module; several may be its heads, or blocks"
_NO_ROLLOUT = "needs blocks that attend from all tokens to all tokens"
_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-8}
_SHORT_TOLERANCE = 3e-2


@dataclass
class _Softmax:
    """A softmax over the last axis of scores; `used` once it has multiplied values."""

    shape: torch.Size
    used: bool = False


class AttentionCalls:
    """Finds attention among the calls of one module's forward.

    With `check`, weights times values are compared with the results of fused functions.
    """

    def __init__(self, module: nn.Module, samples: int, *, capture: bool, check: bool) -> None:
        self._module = module
        self._samples = samples
        self._wanted = capture
        self._check = check
        self._derived: dict[int, tuple[Tensor, _Softmax | None]] = {}
        """By id: tensors derived from a product of this module (None) or from its softmax."""
        self._multiplied = self._normalized = False
        self.rolled = False
        """Whether the rollout has weights of this call of the module."""

    def called(
        self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], output: Any
    ) -> Tensor | str | None:
        """Return the attention weights that a call computes or applies.

        Returns:
            `(sample, head, query, key)`; a text if they cannot be given so; None for other calls.
        """
        if name == "scaled_dot_product_attention":
            return self._fused(args, kwargs, output) if self._wanted else None
        if name == "multi_head_attention_forward":
            return self._of_module(args, kwargs, output) if self._wanted else None
        operands = _tensors((args, kwargs))
        if name in PRODUCTS:
            source = None
            for index, operand in enumerate(operands):
                softmax = self._derived.get(id(operand), (operand, None))[1]
                if softmax is None or softmax.used:
                    continue
                weights = _factor(name, args, operands, index, softmax.shape)
                if weights is not None:
                    softmax.used = True
                    return self._rows(weights) if self._wanted else None
                source = softmax  # heads are mixed
            self._multiplied = True
            self._derive(output, source)
        elif name == "softmax" and output.ndim > 2 and _over_last_axis(args, kwargs, output.ndim):
            self._normalized = True
            if any(id(operand) in self._derived for operand in operands):
                self._derive(output, _Softmax(output.shape))
        else:
            self._inherit(operands, output)
        return None

    def returned(self, arguments: object, output: object, inner: AttentionCalls | None) -> None:
        """Take note of a submodule's call; `inner` holds the calls of one without submodules."""
        operands = _tensors(arguments)
        if inner and inner._multiplied:
            self._derive(output, None)
        elif inner and inner._normalized and any(id(x) in self._derived for x in operands):
            for tensor in _tensors(output):
                self._derive(tensor, _Softmax(tensor.shape))
        else:
            self._inherit(operands, output)

    def _inherit(self, operands: Sequence[Tensor], output: object) -> None:
        sources = [self._derived[id(x)][1] for x in operands if id(x) in self._derived]
        if sources:
            self._derive(output, next((s for s in sources if s is not None), None))

    def _derive(self, output: object, source: _Softmax | None) -> None:
        for tensor in _tensors(output):
            self._derived[id(tensor)] = tensor, source

    def _of_module(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], output: tuple[Tensor, Any]
    ) -> Tensor | str:
        arguments = _MULTI_HEAD.bind(*args, **kwargs).arguments
        undropped = {"training": False, "need_weights": True, "average_attn_weights": False}
        again, weights = F.multi_head_attention_forward(**{**arguments, **undropped})
        unequal = self._check and not _equal(again, output[0])
        assert weights is not None
        return _UNEQUAL if unequal else self._rows(weights)

    def _fused(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], output: Tensor
    ) -> Tensor | str:
        weights = sdpa_weights(*args, **kwargs)
        if not self._check:
            return self._rows(weights)
        arguments = inspect.signature(sdpa_weights).bind(*args, **kwargs).arguments
        if arguments.get("dropout_p") and not self._module.training:
            return f"drops weights at random (dropout_p={arguments['dropout_p']:g})"
        value = arguments["value"]
        if value.ndim > 2 and value.shape[-3] != weights.shape[-3]:  # grouped queries
            value = value.repeat_interleave(weights.shape[-3] // value.shape[-3], -3)
        equal = _equal(weights.to(value.dtype) @ value, output)
        return self._rows(weights) if equal else _UNEQUAL

    def _rows(self, weights: Tensor) -> Tensor | str:
        """Return weights as `(sample, head, query, key)`.

        Windows that share the first axis with the samples, or have an axis of their own, are
        joined with the queries: window by window, in the model's order.
        """
        *lead, queries, keys = weights.shape
        shape = f"computes attention weights of shape {tuple(weights.shape)}"
        if not lead or not self._samples or lead[0] % self._samples:
            return f"{shape} for {self._samples} images: no rows per sample"
        heads = next(
            (n for name in _HEADS if isinstance(n := vars(self._module).get(name), int)), 0
        )
        axes = [lead[0] // self._samples, *lead[1:]]
        if len(axes) > 1 and axes[0] == 1:
            del axes[0]
        weights = weights.reshape(self._samples, *axes, queries, keys)
        if len(axes) == 1:
            return weights
        if len(axes) > 2 or (heads not in axes and lead[0] == self._samples):
            return f"{shape}, and which axis holds the heads is unknown"
        first = axes[0] == heads != axes[1]
        if not first:
            weights = weights.transpose(1, 2)
        rows = weights.reshape(self._samples, axes[0 if first else 1], -1, keys)
        setattr(rows, WINDOWED, True)
        return rows


def sdpa_weights(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Return the weights of `scaled_dot_product_attention`, whose arguments it takes, undropped."""
    if enable_gqa:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    scores = (query * scale) @ key.transpose(-2, -1)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if attn_mask is None:
        return scores.softmax(-1)
    if attn_mask.dtype is torch.bool:
        scores = scores.masked_fill(~attn_mask, -torch.inf)
    else:
        scores = scores + attn_mask
    hidden = (scores == -torch.inf).all(-1, keepdim=True)  # torch attends to nothing there
    return scores.softmax(-1).masked_fill(hidden, 0)


class Rollout:
    """Attention rollout: how much every token of the last block draws on every input token.

    The product of `(mean over heads + identity)` of all blocks, with rows normalized to 1 (Abnar
    and Zuidema, "Quantifying attention flow in transformers", 2020, equation 1).
    """

    def __init__(self) -> None:
        self._product: Tensor | str | None = None
        self._pooled = False

    def add(self, weights: Tensor | str, calls: AttentionCalls) -> None:
        """Add the next block's weights, `(sample, head, query, key)`, found among `calls`."""
        if isinstance(weights, str) or isinstance(self._product, str):
            self._product = weights if isinstance(weights, str) else self._product
            return
        queries, keys = weights.shape[-2:]
        if queries != keys:
            self._pooled = True  # pooling over tokens at the end of a model is not a block
            return
        if self._pooled or (self._product is not None and self._product.shape[-1] != keys):
            self._product = _NO_ROLLOUT
            return
        if calls.rolled:
            self._product = _SEVERAL
            return
        calls.rolled = True
        block = weights.float().mean(1) + torch.eye(keys, device=weights.device)
        block /= block.sum(-1, keepdim=True)
        self._product = block if self._product is None else block @ self._product

    def result(self) -> Tensor | str | None:
        """Return `(sample, 1, query, key)`, a text if there is no rollout, None without blocks."""
        if self._product is None and self._pooled:
            return _NO_ROLLOUT
        return self._product[:, None] if isinstance(self._product, Tensor) else self._product


def _factor(
    name: str, args: Sequence[Any], operands: Sequence[Tensor], index: int, shape: torch.Size
) -> Tensor | None:
    """Return a product's operand as weights of a softmax's shape, keys last; None if it is not."""
    if name == "einsum":
        terms, _, result = str(args[0]).replace(" ", "").partition("->")
        letters = terms.split(",")[index]
        if {*letters[-2:]} <= {*result}:
            return None  # nothing is summed over queries or keys
        transposed = letters[-1:] in result
    else:
        transposed = index == len(operands) - 1
    weights = operands[index].transpose(-2, -1) if transposed else operands[index]
    shape_matches = weights.shape[-2:] == shape[-2:] and weights.numel() == shape.numel()
    return weights.reshape(shape) if shape_matches else None


def _over_last_axis(args: Sequence[Any], kwargs: Mapping[str, Any], ndim: int) -> bool:
    dim = kwargs.get("dim", args[1] if len(args) > 1 else None)
    return dim in (-1, ndim - 1)


def _equal(one: Tensor, other: Tensor) -> bool:
    """Return whether two results differ only by rounding."""
    tolerance = _TOLERANCE.get(other.dtype, _SHORT_TOLERANCE)
    one, other = one.double().nan_to_num(), other.double().nan_to_num()
    return one.shape == other.shape and bool(
        ((one - other).abs() <= tolerance * other.abs().amax()).all()
    )


def _tensors(value: object) -> list[Tensor]:
    return list(tensors_in(value).values())
