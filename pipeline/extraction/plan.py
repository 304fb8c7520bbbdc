"""Planning: prepare an extraction and the archive's manifest from a configuration.

The dummy batch goes through the model; nothing is written. Used by `extract` and by commands that
only inspect (`layers`, `plan`).
"""

import datetime as dt
import hashlib
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch

from pipeline.archive.format import schema
from pipeline.archive.format.jpeg import misfit
from pipeline.archive.format.layer_entry import LayerEntry
from pipeline.archive.format.manifest import Manifest
from pipeline.archive.format.row_ranges import shard_ranges
from pipeline.archive.format.size_estimate import input_bytes
from pipeline.capture.resolver import Layer, LayerResolver, some
from pipeline.common.arrays import Array
from pipeline.common.configured import to_dict, type_key_of
from pipeline.common.errors import ConfigError
from pipeline.common.places import uploads
from pipeline.datasets.base import content_digest, open_dataset
from pipeline.datasets.samples import Subset
from pipeline.extraction import environment, memory_format
from pipeline.extraction.batch_size import choose_batch_size
from pipeline.extraction.dummy_forward import ModelTrace, trace_model
from pipeline.extraction.filters import filters
from pipeline.extraction.missing_weights import refuse_random_layers
from pipeline.extraction.model_fingerprint import fingerprint_of, of_first_image, warn_of_dependence
from pipeline.extraction.pixels import decoder_difference
from pipeline.extraction.settings import Extraction

log = logging.getLogger(__name__)

_RECORDED_APART = ("transform", "key", "prefix", "allow_random")
"""Keys of a model's configuration that the identity holds in another form: the transform in full,
the weights by digest."""
SHARD_BYTES = 256 * 2**20
MOST_SHARDS = 256


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that extraction needs."""

    config: Extraction
    traced: ModelTrace
    images: Subset
    layers: Sequence[Layer]
    manifest: Manifest
    channels_last: bool
    first_samples: Callable[[int], Mapping[str, Any]]
    filters: Mapping[str, Array] = field(default_factory=dict)

    @property
    def batch_size(self) -> int:
        """Samples of the largest batch; no batch crosses a shard boundary."""
        longest = max(stop - start for start, stop in self.manifest.shards)
        return min(self.manifest.batch_size, longest)


def make_plan(config: Extraction) -> Plan:
    """Open the dataset, run the dummy batch, select layers and build the manifest."""
    images = open_dataset(config.dataset)
    traced = trace_model(config, images)
    model, shape = traced.model, traced.image_shape
    if config.loader.decoder == "cuda":
        from pipeline.extraction.gpu_decoder import check_gpu_decoder  # with torchvision

        check_gpu_decoder(traced.device, model.transform)
    if config.storage.inputs == "jpeg" and (reason := misfit(shape)):
        raise ConfigError(f"storage.inputs=jpeg: {reason}; use full or none")
    layers = stored_layers(traced.selection, config)
    refuse_random_layers(traced, layers, seed=config.seed)
    entries = [layer_entry(layer, config) for layer in layers]
    first = of_first_image(traced, layers, seed=config.seed)
    agrees = (
        config.channels_last is None
        and memory_format.may_help(model.module, traced.device, config.precision)
        and memory_format.agrees(traced, layers, first)
    )
    if not agrees:  # which has not compared batches, or found a difference
        warn_of_dependence(traced, layers, first)
    channels_last = agrees if config.channels_last is None else config.channels_last
    rows = len(images.samples)
    batch_size = choose_batch_size(config, traced, layers, rows)
    inputs = input_bytes(config.storage.inputs, shape)
    row_bytes = inputs + sum(entry.sample_bytes for entry in entries)
    shards = -(-rows * row_bytes // SHARD_BYTES)
    if config.storage.shard_samples is not None:
        shards = -(-rows // config.storage.shard_samples)
    if not uploads(config.place):
        shards = min(shards, MOST_SHARDS)
    shards = max(shards, config.shard.count)
    manifest = Manifest(
        identity={
            **_identity(config, traced, images, entries, batch_size, channels_last),
            "behaviour": {name: fingerprint_of(activation) for name, activation in first.items()},
        },
        config=to_dict(config),
        command=sys.argv,
        created=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        samples=[sample.id for sample in images.samples],
        layers=entries,
        image_shape=shape,
        mean=model.transform.mean,
        std=model.transform.std,
        shards=shard_ranges(rows, batch_size, shards),
        environment={
            **environment.describe(traced.device),
            "decoder_difference": decoder_difference(
                images, model.transform, config.loader, traced.device
            ),
        },
        inputs=config.storage.inputs,
    )
    return Plan(
        config=config,
        traced=traced,
        images=images,
        layers=layers,
        manifest=manifest,
        channels_last=channels_last,
        filters=filters(traced),
        first_samples=partial(_dataset_identity, config, images),
    )


def stored_layers(selection: LayerResolver, config: Extraction) -> list[Layer]:
    """Return the selected layers without those that the reduction leaves out (logged)."""
    layers = selection.select(config.layers)
    config.reduction.check([layer.name for layer in layers])
    misfits = {
        layer.name: problem
        for layer in layers
        if (problem := config.reduction.of_layer(layer.name).misfit(layer.axes))
    }
    if misfits:
        reasons = " or ".join(dict.fromkeys(misfits.values()))
        text = f"{reasons} for {some([*misfits])}"
        if len(misfits) == len(layers):
            raise ConfigError(
                f"reduction: {text}; set model.prefix_tokens, or select layers that return tokens"
            )
        log.warning("reduction: left out: %s", text)
    return [layer for layer in layers if layer.name not in misfits]


def layer_entry(layer: Layer, config: Extraction) -> LayerEntry:
    """Return the manifest entry of a layer after the reduction."""
    reduction = config.reduction.of_layer(layer.name)
    try:
        reduced = reduction(torch.zeros((1, *layer.shape)), layer.axes)
    except ValueError as error:
        raise ConfigError(f"{error} ({layer.name}: {layer.shape})") from error
    axes = reduction.axes(layer.axes)
    kind = type(reduction).__name__
    arguments = ", ".join(f"{key}={value}" for key, value in to_dict(vars(reduction)).items())
    return LayerEntry(
        name=layer.name,
        alias=layer.alias,
        module_type=layer.module_type,
        call=layer.call,
        axes=axes.names,
        grid=axes.grid,
        prefix_tokens=axes.prefix_tokens,
        class_token=axes.class_token,
        shape=tuple(reduced.shape[1:]),
        dtype=config.storage.dtype,
        source_dtype=layer.source_dtype,
        reduction="none" if kind == "NoReduction" else f"{kind}({arguments})",
        codec=str(config.storage.codec),
        positions=reduction.positions(layer.axes),
        drawn=reduction.drawn(layer.axes, layer.shape),
    )


def _identity(
    config: Extraction,
    traced: ModelTrace,
    images: Subset,
    entries: Sequence[LayerEntry],
    batch_size: int,
    channels_last: bool,
) -> dict[str, Any]:
    """Return everything that affects stored values, except the model fingerprint."""
    model = traced.model
    return {
        "model": {
            **{k: v for k, v in to_dict(config.model).items() if k not in _RECORDED_APART},
            "weights_sha256": model.weights_sha256,
            "state_sha256": model.state_sha256,
            "missing_keys": list(model.missing_keys),
            "weights_dtype": model.weights_dtype or "float32",
        },
        "transform": model.transform.describe(),
        "decoding": to_dict(config.loader.decoding) | {"decoder": config.loader.decoder},
        "storage.inputs": config.storage.inputs,
        "layers": {entry.name: asdict(entry) for entry in entries},
        "dataset": _dataset_identity(config, images, len(images.samples)),
        "batch_size": batch_size,
        "precision": config.precision,
        "channels_last": channels_last,
        "compile": config.compile,
        **({"output_difference": d} if (d := traced.trace.difference) else {}),
        "device": traced.device.type,
        "seed": config.seed,
        "versions": environment.versions(environment.VALUE_AFFECTING),
        "format_version": schema.FORMAT_VERSION,
    }


def _dataset_identity(config: Extraction, images: Subset, count: int) -> dict[str, Any]:
    samples = images.samples[:count]
    content = content_digest(Subset(images.images, samples))
    digest = hashlib.sha256()
    for sample in samples:
        digest.update(f"{sample.id}\0{sample.label}\0{sample.label_name}\0".encode())
    settings = {key: value for key, value in to_dict(config.dataset).items() if key != "limit"}
    return {
        "source": type_key_of(type(config.dataset)),
        "samples": count,
        "sha256_of_ids_and_labels": digest.hexdigest(),
        "sha256_of_contents": content,
        "settings": settings if content is None else None,
    }
