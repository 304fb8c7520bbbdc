"""Contexts of the page templates: archives, samples, layers, units, positions, dataset maps."""

import re
from typing import Any

import numpy as np

from pipeline.archive.format.samples import StoredSample
from pipeline.archive.format.statistics import channel_kinds
from pipeline.archive.reading.stored_layer import StoredLayer
from pipeline.explorer import drawings, units
from pipeline.explorer.collection import ArchiveView, NotFound
from pipeline.explorer.positions import position_grid, vector_at
from pipeline.explorer.query_parameters import QueryParameters
from pipeline.explorer.site import Site
from pipeline.rendering.drawing.text_and_resize import scaled_size
from pipeline.rendering.views import input_image, layer_view

SAMPLES = 50
CHANNELS = 100
DRIVEN = 8
_CLICKED = re.compile(r"(\d{1,5}),(\d{1,5})")
MEAN_SIDE = 448
PageContext = tuple[str, dict[str, Any]]


class Pages:
    """Template name and context of each page."""

    def __init__(self, site: Site) -> None:
        self._site = site

    def home(self, query: QueryParameters) -> PageContext:
        """Return the list of archives."""
        return "home.html", {"archive_views": list(self._site.collection.archive_views.values())}

    def archive(self, query: QueryParameters, archive_view: ArchiveView) -> PageContext:
        """Return one page of the table of samples × layers."""
        text, label = query.text("q"), query.text("label")
        rows = archive_view.find(text, label)
        pages = max(1, -(-len(rows) // SAMPLES))
        page = query.whole("page", 1, 1, pages)
        return "archive.html", {
            "q": text, "label": label, "found": len(rows),
            "page": page, "pages": pages,
            "rows": rows[(page - 1) * SAMPLES : page * SAMPLES],
            "kinds": {
                folder: {name: int(mask.sum()) for name, mask in
                         channel_kinds(archive_view.statistics(layer)).items()}
                for folder, layer in archive_view.layers.items()
            },
        }  # fmt: skip

    def sample(
        self, query: QueryParameters, archive_view: ArchiveView, sample: StoredSample
    ) -> PageContext:
        """Return the page of a sample: the input beside every layer."""
        other_samples = [
            other for other in self._site.collection.archive_views.values()
            if other is not archive_view and sample.id in other.samples.rows
        ]  # fmt: skip
        return "sample.html", {
            "others": other_samples,
            "colormap": query.choice("colormap", drawings.COLORMAPS),
            "colormaps": drawings.COLORMAPS,
            "before": sample.index - 1 if sample.index else None,
            "after": sample.index + 1 if sample.index + 1 < len(archive_view.samples) else None,
        }  # fmt: skip

    def maps(
        self,
        query: QueryParameters,
        archive_view: ArchiveView,
        sample: StoredSample,
        layer: StoredLayer,
        folder: str,
    ) -> PageContext:
        """Return the page of all maps of a layer for one sample."""
        drawings.require_stored(sample)
        drawing, boxes = drawings.maps(archive_view, sample, layer, query)
        number = query.whole("maps", 64, 1, max(drawings.MAPS))
        # One picture of all channels.
        bars = layer.entry.vector or layer.entry.spatial_shape == (1, 1)
        pages = 1 if bars else -(-layer.entry.channels // number)
        height, width = drawing.paper.shape[:2]
        return "maps.html", {
            "boxes": boxes, "height": height, "width": width,
            "page": query.whole("page", 1, 1, 10**6), "pages": pages,
            "number": number, "numbers": sorted({*drawings.MAPS, number}),
            "choices": {"colormap": drawings.COLORMAPS, "normalize": drawings.NORMALIZE,
                        "order": drawings.ORDERS},
        }  # fmt: skip

    def layer(
        self, query: QueryParameters, archive_view: ArchiveView, layer: StoredLayer, folder: str
    ) -> PageContext:
        """Return the page of a layer: its channels over the dataset."""
        figures = archive_view.statistics(layer)
        order = query.choice("order", ("channel", "mean", "std", "max", "zero_fraction"))
        channels = np.arange(layer.entry.channels)
        if order != "channel":
            channels = np.argsort(-np.nan_to_num(figures[order], nan=-np.inf), kind="stable")
        pages = -(-len(channels) // CHANNELS)
        page = query.whole("page", 1, 1, pages)
        folders = list(archive_view.layers)
        index = folders.index(folder)
        saturated, read = units.saturated(archive_view, layer)
        return "layer.html", {
            "figures": figures, "order": order, "page": page, "pages": pages,
            "channels": channels[(page - 1) * CHANNELS : page * CHANNELS].tolist(),
            "kinds": channel_kinds(figures), "saturated": saturated, "read": read,
            "before": folders[index - 1] if index else None,
            "after": folders[index + 1] if index + 1 < len(folders) else None,
        }  # fmt: skip

    def unit(
        self,
        query: QueryParameters,
        archive_view: ArchiveView,
        layer: StoredLayer,
        folder: str,
        channel: int,
    ) -> PageContext:
        """Return the page of a unit."""
        by = query.choice("by", ("max", "mean"))
        query.choice("crop", ("no", "yes"))
        rows = []
        count = max(1, min(DRIVEN, len(archive_view.stored) // 2))  # no sample in both rows
        for most in (True, False):
            samples = units.driven(archive_view, layer, channel, by, count, most=most)
            boxes = drawings.driven_boxes(archive_view, samples.rows)
            rows.append({"most": most, "found": samples, "boxes": boxes})
        neighbours, over = units.neighbours(archive_view, layer, channel, 12)
        return "unit.html", {
            "by": by, "rows": rows, "near": neighbours, "over": over,
            "places": units.places(archive_view.statistics(layer), channel),
            "others": [
                (other, other.folders[twin.name])
                for other in self._site.collection.archive_views.values()
                for twin in other.layers.values()
                if other is not archive_view and twin.alias == layer.alias
                and channel < twin.entry.channels
            ],
            "before": channel - 1 if channel else None,
            "after": channel + 1 if channel + 1 < layer.entry.channels else None,
        }  # fmt: skip

    def position(
        self,
        query: QueryParameters,
        archive_view: ArchiveView,
        sample: StoredSample,
        layer: StoredLayer,
        folder: str,
    ) -> PageContext:
        """Return the page of a position in a layer's maps, from a click or from coordinates."""
        drawings.require_stored(sample)
        grid = position_grid(layer.entry)
        if not grid:
            raise NotFound(f"{layer.alias} has no spatial positions")
        height, width = grid
        attends = layer.entry.spatial_shape is None
        picture = input_image(archive_view.archive, sample.index) if attends else np.empty(grid)
        side = scaled_size(picture, MEAN_SIDE)
        if clicked := _CLICKED.fullmatch(query.raw):  # an image map without a script
            x, y = map(int, clicked.groups())
            y, x = (min(pixel * count // size, count - 1)
                    for pixel, count, size in zip((y, x), grid, side, strict=True))  # fmt: skip
        else:
            y = query.whole("y", height // 2, 0, height - 1)
            x = query.whole("x", width // 2, 0, width - 1)
        at = {"y": y, "x": x, "height": height, "width": width, "side": side}
        if attends:
            return "attention.html", at
        values = vector_at(layer_view(layer, sample.index), y, x)
        order = np.argsort(-np.nan_to_num(np.abs(values), nan=-1), kind="stable")[:12]
        return "position.html", at | {
            "top": [(int(i), float(values[i])) for i in order],
            "each": query.choice("each", ("sample", "all")),
        }  # fmt: skip

    def dataset(
        self, query: QueryParameters, archive_view: ArchiveView, layer: StoredLayer, folder: str
    ) -> PageContext:
        """Return the page of the dataset map."""
        return "dataset.html", {}

    def side_by_side(self, query: QueryParameters) -> PageContext:
        """Return the page of one sample in all archives that have it."""
        id_ = query.text("id")
        matches = [
            (archive_view, archive_view.samples[id_])
            for archive_view in self._site.collection.archive_views.values()
            if id_ in archive_view.samples.rows
        ]  # fmt: skip
        if not matches:
            raise NotFound(f"no archive has a sample {id_[:80]!r}")
        return "side.html", {"id": id_, "found": matches}

    def side_unit(self, query: QueryParameters) -> PageContext:
        """Return the page of one unit in all archives that have a layer of this name."""
        alias, channel = query.text("layer"), query.whole("channel", 0, 0, 10**7)
        by = query.choice("by", ("max", "mean"))
        matches = []
        for archive_view in self._site.collection.archive_views.values():
            for folder, layer in archive_view.layers.items():
                if alias in (layer.alias, layer.name) and channel < layer.entry.channels:
                    top_samples = units.driven(archive_view, layer, channel, by, DRIVEN, most=True)
                    boxes = drawings.driven_boxes(archive_view, top_samples.rows)
                    matches.append((archive_view, folder, top_samples, boxes))
        if not matches:
            raise NotFound(f"no archive has channel {channel} of a layer {alias[:80]!r}")
        return "side_unit.html", {"alias": alias, "channel": channel, "by": by, "found": matches}
