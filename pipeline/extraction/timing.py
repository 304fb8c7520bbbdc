"""Timing: measure the model with batches of noise before an extraction."""

from __future__ import annotations

import time
from dataclasses import replace

import torch

from pipeline.extraction.loader import Batch
from pipeline.extraction.plan import Plan
from pipeline.extraction.replicas import ModelReplicas
from pipeline.extraction.settings import Extraction, OnNonfinite, StoredType

_BATCHES = 2
"""Per replica; all but the last are warm-up."""


def seconds_per_sample(config: Extraction, plan: Plan) -> float:
    """Return the seconds per sample of the model, reductions and statistics on all cores."""
    storage = replace(config.storage, dtype=StoredType.FLOAT32)  # noise may overflow float16
    config = replace(config, storage=storage, on_nonfinite=OnNonfinite.KEEP)
    size = plan.batch_size
    noise = torch.randint(
        256, (size, *plan.traced.image_shape), dtype=torch.uint8,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    with ModelReplicas(config, plan) as replicas:
        for _ in range(_BATCHES):
            start = time.monotonic()
            batches = [Batch(0, noise, [""] * size) for _ in range(replicas.count)]
            for rows in replicas.run(batches):
                rows.arrived()
                rows.release()
            seconds = time.monotonic() - start
    return seconds / (size * replicas.count)
