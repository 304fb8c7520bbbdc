"""Settings: what an extraction is told, as typed objects."""

from __future__ import annotations

from enum import StrEnum

from pipeline.archive.format.codec import Codec, ready
from pipeline.capture.selector import LayerSelector
from pipeline.common.configured import Natural, Positive, configured
from pipeline.common.errors import ArchiveError
from pipeline.common.paths import PathText
from pipeline.datasets.base import ImageDataset
from pipeline.extraction.loader import Loader
from pipeline.extraction.reductions import NoReduction, Reduction
from pipeline.models.base import ModelSource


class Precision(StrEnum):
    """Arithmetic of the forward pass: float32, or autocast to a shorter type."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


class OnError(StrEnum):
    """What to do with an image that cannot be used."""

    RAISE = "raise"
    SKIP = "skip"


class OnNonfinite(StrEnum):
    """What to do with NaN or infinity in an activation."""

    KEEP = "keep"
    RAISE = "raise"


class StoredType(StrEnum):
    """Type of stored activations; bfloat16 and float16 halve the size."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


class Inputs(StrEnum):
    """What is stored of the inputs: all pixels, a JPEG file of each, or none."""

    FULL = "full"
    JPEG = "jpeg"
    NONE = "none"


@configured
class Storage:
    """How activations are stored.

    Attributes:
        dtype: `float32`; `bfloat16`, of the same range with 3 digits (browser viewers cannot read
            it); or `float16`, 4 digits up to 65504 (nor can netCDF-4).
        codec: `none`; `gzip`, which every reader has; `zstd`, faster, for readers with hdf5plugin
            (`pip install 'featuremaps[zstd]'`).
        inputs: `full` keeps the pixels that the model saw; `jpeg` a JPEG file of them (quality 90),
            an eighth to a fifth in size; `none` nothing, pictures then come without input.
        shard_samples: samples per shard, rounded up to whole batches; None chooses shards of about
            256 MB, 256 at most.
    """

    dtype: StoredType = StoredType.FLOAT32
    codec: Codec = Codec.NONE
    inputs: Inputs = Inputs.FULL
    shard_samples: Positive | None = None

    def __post_init__(self) -> None:
        try:
            ready([self.codec])
        except ArchiveError as error:
            raise ValueError(f"codec: {error}") from None


@configured
class Shard:
    """Which part of the work this process does: part `index` of `count`."""

    index: Natural = 0
    count: Positive = 1

    def __post_init__(self) -> None:
        if self.index >= self.count:
            raise ValueError(
                f"index must be in 0..count-1, got index {self.index} of count {self.count}"
            )


@configured
class Extraction:
    """What to extract, and how.

    Attributes:
        model: what runs.
        dataset: what it runs over.
        layers: whose activations are kept.
        reduction: what is kept of each.
        loader: how images are loaded.
        storage: how activations are stored.
        shard: the part of the work that is done here.
        archive: folder of the archive.
        device: `auto`, `cpu`, `cuda`, `cuda:n` or `mps`.
        precision: arithmetic of the forward pass.
        seed: of random weights.
        on_error: what to do with an image that cannot be used.
        max_errors: stop when more samples than this cannot be used; None sets no limit.
        on_nonfinite: what to do with NaN or infinity in an activation.
        resume: whether an unfinished archive is continued.
        channels_last: whether the model runs in the channels-last memory format; values differ by
            rounding. None takes it where it is faster and the dummy batch agrees.
        compile: whether the model goes through torch.compile; its activations are compared with the
            plain model's before the work begins.
        early_stop: whether a forward pass ends after the last selected layer.
    """

    model: ModelSource
    dataset: ImageDataset
    layers: LayerSelector = LayerSelector()
    reduction: Reduction = NoReduction()
    loader: Loader = Loader()
    storage: Storage = Storage()
    shard: Shard = Shard()
    archive: PathText | None = None
    device: str = "auto"
    precision: Precision = Precision.FLOAT32
    seed: int = 0
    on_error: OnError = OnError.RAISE
    max_errors: Natural | None = None
    on_nonfinite: OnNonfinite = OnNonfinite.KEEP
    resume: bool = True
    channels_last: bool | None = None
    compile: bool = False
    early_stop: bool = True
