"""What capturing all attention weights of a ViT costs, against a forward pass with eager attention.

Prints one table of ratios, measured side by side in one run:

    uv run python scripts/attention_cost.py
"""

from collections.abc import Callable

import torch
from measuring import medians, parser_of
from torch import Tensor

from pipeline.capture.hooks import capture, copied
from pipeline.models.timm import TimmModel


def main() -> None:
    """Measure timm's ViT-Tiny."""
    options = parser_of(__doc__).parse_args()
    rounds, batch = (1, 1) if options.quick else (9, 16)
    fused, eager = (TimmModel(name="vit_tiny_patch16_224", weights=None).load().module
                    for _ in range(2))  # fmt: skip
    for module in eager.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
    images = torch.randn(batch, 3, 224, 224)

    def captured(layers: list[str], process: Callable[[str, Tensor], Tensor] | None) -> None:
        with capture(fused, layers, process=process):
            fused(images)

    attention = ["blocks.*.attn@attention"]
    ways = {
        "fused": lambda: fused(images),
        "eager": lambda: eager(images),
        "outputs of 12 blocks": lambda: captured(["blocks.?", "blocks.1?"], None),
        "class token's row of 12 blocks": lambda: captured(
            attention, lambda _, weights: copied(weights[:, :, 0])
        ),
        "all weights of 12 blocks": lambda: captured(attention, None),
        "rollout": lambda: captured(["output@rollout"], None),
    }
    with torch.inference_mode():
        for way in ways.values():
            way()
        seconds = medians(ways, rounds)
    print(f"ViT-Tiny, {batch} images of 224×224 on {torch.get_num_threads()} threads")
    for way, duration in seconds.items():
        print(f"  {way:32} {duration / seconds['eager']:6.3f} of an eager forward pass")


if __name__ == "__main__":
    main()
