"""Settings: the configuration of an extraction as dataclasses."""

from collections.abc import Mapping
from dataclasses import field
from typing import Literal

from pipeline.archive.format.codec import Codec, ready
from pipeline.capture.selector import LayerSelector
from pipeline.common.configured import Natural, Positive, Seed, Texts, configured
from pipeline.common.errors import ArchiveError, ConfigError, one_line
from pipeline.common.paths import PathText, PlaceText
from pipeline.common.places import Place, place
from pipeline.datasets.base import ImageDataset
from pipeline.datasets.decoding import Decoding
from pipeline.extraction.reductions.base import NoReduction, Reduction
from pipeline.models.base import ModelSource

Precision = Literal["float32", "bfloat16", "float16"]
"""Dtype of stored activations, or of the forward pass (shorter ones by autocast)."""


@configured
class Loader:
    """Batching and workers.

    Attributes:
        batch_size: samples per forward pass. Values differ between batch sizes by rounding, so it
            is part of the archive's fingerprint. None chooses: 8 on a CPU (larger batches exceed
            its caches and are slower), 64 on a GPU; fewer if a batch's selected activations would
            exceed 64 MiB (GPU: 512 MiB) or the GPU's memory.
        num_workers: processes that decode; 0 decodes in the main process. None chooses: on a CPU
            one for every eight cores (0 below eight), for a GPU all cores but one, at most 8.
        prefetch: batches that each worker prepares ahead.
        timeout: seconds without a batch after which workers count as hung.
        decoder: `pillow` decodes all pixels; `turbo` decodes JPEG files at 1/2, 1/4 or 1/8
            of their size if the transform makes them smaller still; `cuda` decodes and resizes
            ordinary JPEG files on the GPU. Both are faster, but the pixels differ; the manifest
            records by how much (`environment.decoder_difference`).
        decoding: which image files are accepted, and how they are decoded.
    """

    batch_size: Positive | None = None
    num_workers: Natural | None = None
    prefetch: Positive = 2
    timeout: Positive = 300
    decoder: Literal["pillow", "turbo", "cuda"] = "pillow"
    decoding: Decoding = Decoding()


@configured
class Storage:
    """How activations are stored.

    Attributes:
        dtype: `float32`; `bfloat16`, of the same range with 3 digits (browser viewers cannot read
            it); or `float16`, 4 digits up to 65504 (nor can netCDF4).
        codec: `none`; `gzip`, which every reader has; `zstd`, faster, for readers with hdf5plugin
            (`pip install 'featuremaps[zstd]'`).
        inputs: `full` keeps the model's input pixels; `jpeg` a JPEG file of them (quality 90), an
            eighth to a fifth of the size; `none` nothing, so pictures have no input image.
        shard_samples: samples per shard, rounded up to whole batches; None chooses shards of about
            256 MB, at most 256 of them.
        scratch: local folder for the shards that are not uploaded yet, up to four, if the archive
            is in an object store; None uses the system's temporary folder.
    """

    dtype: Precision = "float32"
    codec: Codec = "none"
    inputs: Literal["full", "jpeg", "none"] = "full"
    shard_samples: Positive | None = None
    scratch: PathText | None = None

    def __post_init__(self) -> None:
        try:
            ready([self.codec])
        except ArchiveError as error:
            raise ValueError(f"codec: {error}") from None


@configured
class Shard:
    """The part of the work that this process does.

    Attributes:
        index: number of the part, counted from 0.
        count: number of parts.
    """

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
        model: the model to run.
        dataset: the images it runs over.
        layers: the layers to store.
        reduction: reduction of every activation before it is stored.
        loader: how images are loaded.
        storage: how activations are stored.
        shard: the part of the work that this process does.
        archive: folder of the archive, or its URL in an object store (`s3://bucket/run1`, `gs://`,
            `az://`; needs `pip install 'featuremaps[remote]'`).
        storage_options: options of the object store by object_store's names, such as
            `aws_endpoint_url` and `aws_region`; they are not recorded. In configuration files and
            on the command line, credentials are refused: they go to the environment.
        device: `auto`, `cpu`, `cuda`, `cuda:n` or `mps`.
        devices: several of them, or `all` CUDA devices of this machine: a process for each extracts
            a part. Empty uses one `device`.
        precision: arithmetic of the forward pass.
        seed: seed of random weights.
        on_error: what to do with an image that cannot be used.
        max_errors: stop if more samples than this cannot be used; None sets no limit.
        on_nonfinite: what to do with NaN or infinity in an activation.
        resume: whether to continue an unfinished archive.
        channels_last: whether the model runs in the channels-last memory format; values differ by
            rounding. None uses it if it is faster and the dummy batch agrees.
        compile: whether to use torch.compile; its activations are first compared with the plain
            model's.
        early_stop: whether a forward pass ends after the last selected layer.
    """

    model: ModelSource
    dataset: ImageDataset
    layers: LayerSelector = LayerSelector()
    reduction: Reduction = NoReduction()
    loader: Loader = Loader()
    storage: Storage = Storage()
    shard: Shard = Shard()
    archive: PlaceText | None = None
    storage_options: Mapping[str, str] = field(
        default_factory=dict, repr=False, metadata={"recorded": None}
    )
    device: str = "auto"
    devices: Texts = field(default=(), metadata={"recorded": None})
    precision: Precision = "float32"
    seed: Seed = 0
    on_error: Literal["raise", "skip"] = "raise"
    max_errors: Natural | None = None
    on_nonfinite: Literal["keep", "raise"] = "keep"
    resume: bool = True
    channels_last: bool | None = None
    compile: bool = False
    early_stop: bool = True

    def __post_init__(self) -> None:
        if self.max_errors is not None and self.on_error == "raise":
            raise ValueError("max_errors: needs on_error=skip; the first error ends the run now")

    @property
    def place(self) -> Place | None:
        """Place of the archive, or None."""
        if self.archive is None:
            return None
        options, scratch = self.storage_options, self.storage.scratch or ""
        return place(self.archive, storage_options=options, scratch=scratch)


def checked(config: object) -> Extraction:
    """Return an extraction, or raise ConfigError for what a program gives in its place."""
    if not isinstance(config, Extraction):
        text = one_line(repr(config), limit=80)
        raise ConfigError(f"config: must be a pipeline.Extraction, got {text}")
    return config
