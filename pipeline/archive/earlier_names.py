"""Names by which earlier versions called the parts of a configuration: import paths.

An archive that they have written is read as if it had been written with the names of today.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_KINDS = {
    "models.checkpoint.CheckpointModel": "checkpoint",
    "models.efficientnet_lite.EfficientNetLite": "efficientnet_lite",
    "models.hub.HubModel": "hub",
    "models.timm.TimmModel": "timm",
    "models.tiny.TinyModel": "tiny",
    "models.torchvision.TorchvisionModel": "torchvision",
    "models.transformers.TransformersModel": "transformers",
    "datasets.csv.CsvFile": "csv",
    "datasets.flat_folder.FlatFolder": "flat_folder",
    "datasets.huggingface.HuggingFaceDataset": "huggingface",
    "datasets.image_folder.ImageFolder": "image_folder",
    "datasets.sample_images.SampleImages": "sample_images",
    "datasets.sequence.FromSequence": "sequence",
    "datasets.synthetic.Synthetic": "synthetic",
    "datasets.torchvision.TorchvisionDataset": "torchvision",
    "datasets.webdataset.WebDataset": "webdataset",
    "reductions.NoReduction": "none",
    "reductions.SpatialMean": "spatial_mean",
    "reductions.SpatialMax": "spatial_max",
    "reductions.ChannelSubset": "channels",
    "reductions.AverageGrid": "average_grid",
    "reductions.PerLayer": "per_layer",
}
_PACKAGE = "pipeline."


def with_kinds(value: Any) -> Any:
    """Return nested plain values with the kinds of today in place of import paths.

    Parts of which there is one kind only have no name now.
    """
    if isinstance(value, Mapping):
        named = {
            key: _KINDS.get(item.removeprefix(_PACKAGE), "")
            if key in ("_target_", "source") and _is_path(item)
            else with_kinds(item)
            for key, item in value.items()
        }
        return {key: item for key, item in named.items() if key != "_target_" or item}
    return [with_kinds(item) for item in value] if isinstance(value, list) else value


def _is_path(text: object) -> bool:
    return isinstance(text, str) and text.startswith(_PACKAGE)
