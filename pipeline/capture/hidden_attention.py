"""Kernels whose attention cannot be observed, with what helps."""

from __future__ import annotations

from types import CodeType

from torch import nn

_KERNELS = {
    "flash_attn": ("flash-attn", "use scaled_dot_product_attention in its place"),
    "memory_efficient_attention": ("xformers", "set XFORMERS_DISABLED=1 in the environment"),
    "flex_attention": ("FlexAttention", "use scaled_dot_product_attention in its place"),
}
"""Start of a function's or module's name → library and remedy."""


def why_hidden(module: nn.Module) -> str:
    """Return why no attention of a module was observed, and what helps."""
    for inner in module.modules():
        config = getattr(inner, "config", None)
        chosen = str(getattr(config, "_attn_implementation", None) or "")
        if "flash" in chosen or "flex" in chosen:
            return (
                f"{chosen} cannot be observed; load the model with "
                "model.arguments.attn_implementation=sdpa"
            )
        code = getattr(type(inner).forward, "__code__", None)
        called = code.co_names if isinstance(code, CodeType) else ()
        for name in (*called, *type(inner).__module__.split(".")):
            for start, (library, remedy) in _KERNELS.items():
                if name.startswith(start):
                    return f"attention by {library} cannot be observed; {remedy}"
    return (
        "no attention was observed (scaled_dot_product_attention, nn.MultiheadAttention, or a "
        "softmax of a matrix product that multiplies values)"
    )
