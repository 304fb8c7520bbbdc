"""Random numbers: detect the use of global generators, which all threads share."""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch

_UNUSUAL_SEED = 2_718_281_828  # a model that seeds with the same number would go unnoticed


@contextmanager
def watched_generators() -> Iterator[Callable[[], bool]]:
    """Seed every global generator; yield a function that returns whether any was used since."""

    def states() -> tuple[bytes, bytes, tuple[object, ...]]:
        legacy = pickle.dumps(np.random.get_state())  # noqa: NPY002 - what models may use
        return torch.get_rng_state().numpy().tobytes(), legacy, random.getstate()

    _, numpy_state, python_state = states()
    try:
        with torch.random.fork_rng(devices=[]):
            for seed in (torch.manual_seed, np.random.seed, random.seed):
                seed(_UNUSUAL_SEED)
            before = states()
            yield lambda: states() != before
    finally:
        np.random.set_state(pickle.loads(numpy_state))  # noqa: NPY002
        random.setstate(python_state)
