"""Archives of numbers that are at hand, with true statistics: for tests and measurements."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.archive.format.archive_file import ArchiveFile
from pipeline.archive.format.layer_entry import LayerEntry
from pipeline.archive.format.manifest import Manifest
from pipeline.archive.format.row_ranges import shard_ranges
from pipeline.archive.format.statistics import Statistics
from pipeline.archive.writing.finalize import stitch
from pipeline.archive.writing.shard_writer import ActivationBatch, ShardWriter

Array = np.ndarray[Any, np.dtype[Any]]
AXES = {1: ("channel",), 2: ("token", "channel"), 3: ("channel", "height", "width")}


@dataclass(frozen=True, kw_only=True)
class SyntheticLayer:
    """A layer whose rows are made when they are written.

    Attributes:
        shape: of one sample: channels; tokens and channels; or channels, height and width.
        rows: start and stop → `(sample, …)` float32 or float16.
        more: of its `LayerEntry`.
        figures: number of samples → their statistics; computed without.
    """

    shape: tuple[int, ...]
    rows: Callable[[int, int], Array]
    dtype: str = "float32"
    more: Mapping[str, Any] | None = None
    figures: Callable[[int], Statistics] | None = None


def layer_of(values: Array, **more: Any) -> SyntheticLayer:
    """Return a layer of an array `(sample, …)`."""
    return SyntheticLayer(
        shape=values.shape[1:], rows=lambda start, stop: values[start:stop],
        dtype=str(values.dtype), more=more,
    )  # fmt: skip


def repeated(block: Array) -> SyntheticLayer:
    """Return a layer whose batches are the first rows of a block of maps, without statistics."""
    nothing = np.zeros(block.shape[:2], np.float32)
    count = np.full(nothing.shape, np.prod(block.shape[2:], dtype=int))
    figures = (count, nothing, nothing, nothing, nothing, count * 0, count * 0)
    return SyntheticLayer(
        shape=block.shape[1:], rows=lambda start, stop: block[: stop - start],
        figures=lambda n: Statistics(*(values[:n] for values in figures)),
    )  # fmt: skip


def write_archive(
    path: Path,
    layers: Mapping[str, SyntheticLayer],
    ids: Sequence[str],
    *,
    labels: Sequence[int] | None = None,
    names: Mapping[int, str] | None = None,
    skipped: Sequence[str] = (),
    shards: int = 1,
    images: Callable[[int, int], Array] | None = None,
    image_shape: tuple[int, int, int] = (3, 8, 8),
    model: str = "synthetic",
    block: int = 256,
) -> Path:
    """Write a complete archive and return its path.

    Args:
        path: a new folder.
        layers: in execution order.
        ids, labels: of the samples; without labels each is -1.
        names: of labels.
        skipped: ids of samples that hold nothing.
        shards: how many.
        images: start and stop → uint8 `(sample, channel, height, width)`; black without.
        image_shape: channel, height, width.
        model: its name.
        block: rows that are made at a time.
    """
    entries = [
        LayerEntry(**{
            "name": name, "alias": name, "module_type": "", "call": 0, "dtype": layer.dtype,
            "shape": layer.shape, "axes": AXES[len(layer.shape)], "source_dtype": layer.dtype,
            "reduction": "none", **(layer.more or {}),
        })
        for name, layer in layers.items()
    ]  # fmt: skip
    plan = Manifest(
        identity={
            "model": {"name": model}, "ids": len(ids), "seed": 0, "precision": "float32",
            "transform": {}, "dataset": {"source": "synthetic"},
        },
        config={"model": {"name": model}},
        command=[], created="2026-01-01T00:00:00Z", samples=list(ids), layers=entries,
        image_shape=image_shape, mean=(0.0,) * image_shape[0], std=(1.0,) * image_shape[0],
        shards=shard_ranges(len(ids), 1, shards), environment={},
    )  # fmt: skip
    (path / "shards").mkdir(parents=True)
    plan.write_once(path)
    written: dict[int, ArchiveFile] = {}
    for number, (first, last) in enumerate(plan.shards):
        writer = ShardWriter(path, number, plan, {})
        for start in range(first, last, block):
            stop = min(start + block, last)
            gone = np.array([id_ in skipped for id_ in ids[start:stop]])
            arrays = {name: layer.rows(start, stop) for name, layer in layers.items()}
            for name in arrays if gone.any() else ():
                arrays[name] = arrays[name].copy()
                arrays[name][gone] = np.nan
            pictures = np.zeros((stop - start, *image_shape), np.uint8)
            label = [-1] * (stop - start) if labels is None else list(labels[start:stop])
            writer.write(ActivationBatch(
                start=start,
                images=images(start, stop) if images else pictures,
                activations=arrays,
                statistics={
                    e.name: made(stop - start) if (made := layers[e.name].figures)
                    else _figures(arrays[e.name], e)
                    for e in entries
                },
                samples=[
                    (id_, int(of), (names or {}).get(int(of), ""), "")
                    for id_, of in zip(ids[start:stop], label, strict=True)
                ],
                errors=["skipped" if skip else "" for skip in gone],
            ))  # fmt: skip
        written[number] = writer.commit()
    stitch(path, checked=written)
    return path


def _figures(values: Array, entry: LayerEntry) -> Statistics:
    import torch  # not where an archive is only read

    from pipeline.extraction.statistics import arguments, of_batch

    return of_batch(*arguments(torch.from_numpy(np.ascontiguousarray(values)), entry))
