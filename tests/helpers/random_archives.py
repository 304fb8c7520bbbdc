"""Archives of random arrays."""

from pathlib import Path

import numpy as np

from scripts.synthetic_archive import layer_of, write_archive


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def archive_of(path: Path, arrays: dict[str, np.ndarray], shards: int = 1, **more: object) -> Path:
    count = len(next(iter(arrays.values())))
    ids = [f"{i:04d}" for i in range(count)]
    layers = {name: layer_of(values) for name, values in arrays.items()}
    return write_archive(path, layers, ids, shards=shards, **more)  # type: ignore[arg-type]


def correlated(n: int, widths: tuple[int, ...], seed: int = 0) -> dict[str, np.ndarray]:
    base = random(n, 5, seed=seed)
    return {
        f"l{i}": base @ random(5, width, seed=10 + i) + 0.5 * random(n, width, seed=20 + i)
        for i, width in enumerate(widths)
    }


def values_of(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((24, *shape)).astype(np.float32)
