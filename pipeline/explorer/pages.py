"""The pages: the template of each, and its context as a function of what its URL names."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np

from pipeline.archive.format.statistics import channel_kinds
from pipeline.explorer import drawings, units
from pipeline.explorer.collection import NotFound
from pipeline.explorer.positions import position_grid, vector_at
from pipeline.explorer.site import Resource
from pipeline.rendering.drawing.text_and_resize import scaled_size
from pipeline.rendering.views import input_image, layer_view

SAMPLES = 50
CHANNELS = 100
DRIVEN = 8
_CLICKED = re.compile(r"(\d{1,5}),(\d{1,5})")
MEAN_SIDE = 448
PageContext = tuple[str, dict[str, Any]]


def archive(at: Resource) -> PageContext:
    """Return one page of the table of samples × layers."""
    text, label = at.query.text("q"), at.query.text("label")
    rows = at.archive_view.find(text, label)
    pages = max(1, -(-len(rows) // SAMPLES))
    page = at.query.whole("page", 1, 1, pages)
    return "archive.html", {
        "q": text, "label": label, "found": len(rows),
        "page": page, "pages": pages,
        "rows": rows[(page - 1) * SAMPLES : page * SAMPLES],
        "kinds": {
            folder: {name: int(mask.sum()) for name, mask in
                     channel_kinds(at.archive_view.statistics(layer)).items()}
            for folder, layer in at.archive_view.layers.items()
        },
    }  # fmt: skip


def sample(at: Resource) -> PageContext:
    """Return the page of a sample: the input beside every layer."""
    row = at.sample.index
    other_samples = [
        other for other in at.collection.archive_views.values()
        if other is not at.archive_view and at.sample.id in other.samples.rows
    ]  # fmt: skip
    return "sample.html", {
        "others": other_samples,
        "colormap": at.query.choice("colormap", drawings.COLORMAPS),
        "colormaps": drawings.COLORMAPS,
        "before": row - 1 if row else None,
        "after": row + 1 if row + 1 < len(at.archive_view.samples) else None,
    }  # fmt: skip


def maps(at: Resource) -> PageContext:
    """Return the page of all maps of a layer for one sample."""
    drawing, boxes = drawings.maps(at)
    number = at.query.whole("maps", 64, 1, max(drawings.MAPS))
    # One picture of all channels.
    bars = at.layer.entry.vector or at.layer.entry.spatial_shape == (1, 1)
    pages = 1 if bars else -(-at.layer.entry.channels // number)
    height, width = drawing.paper.shape[:2]
    return "maps.html", {
        "boxes": boxes, "height": height, "width": width,
        "page": at.query.whole("page", 1, 1, 10**6), "pages": pages,
        "number": number, "numbers": sorted({*drawings.MAPS, number}),
        "choices": {"colormap": drawings.COLORMAPS, "normalize": drawings.NORMALIZE,
                    "order": drawings.ORDERS},
    }  # fmt: skip


def layer(at: Resource) -> PageContext:
    """Return the page of a layer: its channels over the dataset."""
    figures = at.archive_view.statistics(at.layer)
    order = at.query.choice("order", ("channel", "mean", "std", "max", "zero_fraction"))
    channels = np.arange(at.layer.entry.channels)
    if order != "channel":
        channels = np.argsort(-np.nan_to_num(figures[order], nan=-np.inf), kind="stable")
    pages = -(-len(channels) // CHANNELS)
    page = at.query.whole("page", 1, 1, pages)
    folders = list(at.archive_view.layers)
    index = folders.index(at.folder)
    saturated, read = units.saturated(at.archive_view, at.layer)
    return "layer.html", {
        "figures": figures, "order": order, "page": page, "pages": pages,
        "channels": channels[(page - 1) * CHANNELS : page * CHANNELS].tolist(),
        "kinds": channel_kinds(figures), "saturated": saturated, "read": read,
        "before": folders[index - 1] if index else None,
        "after": folders[index + 1] if index + 1 < len(folders) else None,
    }  # fmt: skip


def unit(at: Resource) -> PageContext:
    """Return the page of a unit."""
    by = at.query.choice("by", ("max", "mean"))
    at.query.choice("crop", ("no", "yes"))
    rows = []
    count = max(1, min(DRIVEN, len(at.archive_view.stored) // 2))  # no sample in both rows
    for most in (True, False):
        samples = units.driven(at.archive_view, at.layer, at.channel, by, count, most=most)
        boxes = drawings.driven_boxes(at.archive_view, samples.rows)
        rows.append({"most": most, "found": samples, "boxes": boxes})
    neighbours, over = units.neighbours(at.archive_view, at.layer, at.channel, 12)
    return "unit.html", {
        "by": by, "rows": rows, "near": neighbours, "over": over,
        "places": units.places(at.archive_view.statistics(at.layer), at.channel),
        "others": [
            (other, other.folders[twin.name])
            for other in at.collection.archive_views.values()
            for twin in other.layers.values()
            if other is not at.archive_view and twin.alias == at.layer.alias
            and at.channel < twin.entry.channels
        ],
        "before": at.channel - 1 if at.channel else None,
        "after": at.channel + 1 if at.channel + 1 < at.layer.entry.channels else None,
    }  # fmt: skip


def position(at: Resource) -> PageContext:
    """Return the page of a position in a layer's maps, from a click or from coordinates."""
    row, grid = at.stored_sample.index, position_grid(at.layer.entry)
    if not grid:
        raise NotFound(f"{at.layer.alias} has no spatial positions")
    height, width = grid
    picture = np.empty(grid)
    if attends := at.layer.entry.spatial_shape is None:
        picture = input_image(at.archive_view.archive, row)
    side = scaled_size(picture, MEAN_SIDE)
    if clicked := _CLICKED.fullmatch(at.query.raw):  # an image map without a script
        x, y = map(int, clicked.groups())
        y, x = (min(pixel * count // size, count - 1)
                for pixel, count, size in zip((y, x), grid, side, strict=True))  # fmt: skip
    else:
        y = at.query.whole("y", height // 2, 0, height - 1)
        x = at.query.whole("x", width // 2, 0, width - 1)
    coordinates = {"y": y, "x": x, "height": height, "width": width, "side": side}
    if attends:
        return "attention.html", coordinates
    values = vector_at(layer_view(at.layer, row), y, x)
    order = np.argsort(-np.nan_to_num(np.abs(values), nan=-1), kind="stable")[:12]
    return "position.html", coordinates | {
        "top": [(int(i), float(values[i])) for i in order],
        "each": at.query.choice("each", ("sample", "all")),
    }  # fmt: skip


def side_by_side(at: Resource) -> PageContext:
    """Return the page of one sample in all archives that have it."""
    id_ = at.query.text("id")
    matches = [
        (archive_view, archive_view.samples[id_])
        for archive_view in at.collection.archive_views.values()
        if id_ in archive_view.samples.rows
    ]  # fmt: skip
    if not matches:
        raise NotFound(f"no archive has a sample {id_[:80]!r}")
    return "side.html", {"id": id_, "found": matches}


def side_unit(at: Resource) -> PageContext:
    """Return the page of one unit in all archives that have a layer of this name."""
    alias, channel = at.query.text("layer"), at.query.whole("channel", 0, 0, 10**7)
    by = at.query.choice("by", ("max", "mean"))
    matches = []
    for archive_view in at.collection.archive_views.values():
        for folder, layer in archive_view.layers.items():
            if alias in (layer.alias, layer.name) and channel < layer.entry.channels:
                top_samples = units.driven(archive_view, layer, channel, by, DRIVEN, most=True)
                boxes = drawings.driven_boxes(archive_view, top_samples.rows)
                matches.append((archive_view, folder, top_samples, boxes))
    if not matches:
        raise NotFound(f"no archive has channel {channel} of a layer {alias[:80]!r}")
    return "side_unit.html", {"alias": alias, "channel": channel, "by": by, "found": matches}


PAGES: dict[str, Callable[[Resource], PageContext]] = {
    "/": lambda _: ("home.html", {}),
    "/side/sample": side_by_side,
    "/side/unit": side_unit,
    "/a/{archive_view}": archive,
    "/a/{archive_view}/sample/{sample}": sample,
    "/a/{archive_view}/sample/{sample}/{layer}": maps,
    "/a/{archive_view}/layer/{layer}": layer,
    "/a/{archive_view}/layer/{layer}/unit/{channel}": unit,
    "/a/{archive_view}/at/{sample}/{layer}": position,
    "/a/{archive_view}/map/{layer}": lambda _: ("dataset.html", {}),
}
