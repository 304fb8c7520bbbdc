"""How images are loaded, as a configuration says it (`pipeline.loading` does the work)."""

from dataclasses import dataclass

from pipeline.decoding import Decoding


@dataclass(frozen=True, kw_only=True)
class Loader:
    """Batching and workers.

    Attributes:
        batch_size: samples per forward pass. Values may differ between batch sizes by rounding; it
            is part of the archive's fingerprint. None chooses: on a CPU 8 (larger batches leave
            its caches and are slower), on a GPU 64, or as many as keep the selected activations
            of a batch under 64 or 512 MiB and fit into the GPU's memory.
        num_workers: processes that decode; 0 decodes in the main process; None chooses (on a CPU
            one for every eight cores, none below; for a GPU all cores but one, 8 at most).
        prefetch: batches that each worker prepares ahead.
        timeout: seconds without a batch after which workers count as hung.
        decoding: what image files are accepted, and how.
    """

    batch_size: int | None = None
    num_workers: int | None = None
    prefetch: int = 2
    timeout: int = 300
    decoding: Decoding = Decoding()

    def __post_init__(self) -> None:
        for name, least in (("batch_size", 1), ("num_workers", 0), ("prefetch", 1), ("timeout", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
