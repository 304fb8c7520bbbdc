"""The pages: archives, samples, layers, units, positions, the dataset's map, side by side."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from pipeline.archive.format.samples import StoredSample
from pipeline.archive.reading.stored_layer import StoredLayer
from pipeline.explorer import figures as drawings
from pipeline.explorer import units
from pipeline.explorer.collection import ArchiveView, NotFound
from pipeline.explorer.positions import vector_at
from pipeline.explorer.query_parameters import Asked
from pipeline.explorer.site import Site
from pipeline.renderers.thumbnails import Thumbnails
from pipeline.rendering.views import layer_view

SAMPLES = 50
CHANNELS = 100
DRIVEN = 8
_CLICKED = re.compile(r"(\d{1,5}),(\d{1,5})")
MEAN_SIDE = 448
Filled = tuple[str, dict[str, Any]]


class Pages:
    """What fills each page's template."""

    def __init__(self, site: Site) -> None:
        self._site = site

    def home(self, asked: Asked) -> Filled:
        """Fill the list of archives."""
        return "home.html", {"shelves": list(self._site.collection.shelves.values())}

    def archive(self, asked: Asked, shelf: ArchiveView) -> Filled:
        """Fill the table of samples × layers, a page at a time."""
        text, label = asked.text("q"), asked.text("label")
        found = shelf.find(text, label)
        pages = max(1, -(-len(found) // SAMPLES))
        page = asked.whole("page", 1, 1, pages)
        cells = Thumbnails()
        return "archive.html", {
            "q": text, "label": label, "found": len(found),
            "page": page, "pages": pages, "cell": cells.tile_size,
            "pitch": cells.tile_size + cells.gap,
            "rows": found[(page - 1) * SAMPLES : page * SAMPLES],
            "health": {
                folder: {name: int(mask.sum()) for name, mask in
                         units.health(shelf.statistics(layer)).items()}
                for folder, layer in shelf.layers.items()
            },
        }  # fmt: skip

    def sample(self, asked: Asked, shelf: ArchiveView, sample: StoredSample) -> Filled:
        """Fill a sample's page: the input beside every layer."""
        others = [
            other for other in self._site.collection.shelves.values()
            if other is not shelf and sample.id in other.samples.rows
        ]  # fmt: skip
        return "sample.html", {
            "others": others,
            "colormap": asked.choice("colormap", drawings.COLORMAPS),
            "colormaps": drawings.COLORMAPS,
            "before": sample.index - 1 if sample.index else None,
            "after": sample.index + 1 if sample.index + 1 < len(shelf.samples) else None,
        }  # fmt: skip

    def maps(
        self,
        asked: Asked,
        shelf: ArchiveView,
        sample: StoredSample,
        layer: StoredLayer,
        folder: str,
    ) -> Filled:
        """Fill the page of all maps of a layer of a sample."""
        _stored(sample)
        drawing, boxes = drawings.maps(shelf, sample, layer, asked)
        number = asked.whole("maps", 64, 1, max(drawings.MAPS))
        bars = layer.entry.vector or layer.entry.places == (1, 1)  # one picture of all channels
        pages = 1 if bars else -(-layer.entry.channels // number)
        height, width = drawing.paper.shape[:2]
        return "maps.html", {
            "boxes": boxes, "height": height, "width": width,
            "page": asked.whole("page", 1, 1, 10**6), "pages": pages,
            "number": number, "numbers": sorted({*drawings.MAPS, number}),
            "choices": {"colormap": drawings.COLORMAPS, "normalize": drawings.NORMALIZE,
                        "order": drawings.ORDERS},
        }  # fmt: skip

    def layer(self, asked: Asked, shelf: ArchiveView, layer: StoredLayer, folder: str) -> Filled:
        """Fill a layer's page: its channels over the dataset."""
        figures = shelf.statistics(layer)
        order = asked.choice("order", ("channel", "mean", "std", "max", "zero_fraction"))
        channels = np.arange(layer.entry.channels)
        if order != "channel":
            channels = np.argsort(-np.nan_to_num(figures[order], nan=-np.inf), kind="stable")
        pages = -(-len(channels) // CHANNELS)
        page = asked.whole("page", 1, 1, pages)
        folders = list(shelf.layers)
        at = folders.index(folder)
        return "layer.html", {
            "figures": figures, "order": order, "page": page, "pages": pages,
            "channels": channels[(page - 1) * CHANNELS : page * CHANNELS].tolist(),
            "health": units.health(figures), "saturated": units.saturated(shelf, layer),
            "before": folders[at - 1] if at else None,
            "after": folders[at + 1] if at + 1 < len(folders) else None,
        }  # fmt: skip

    def unit(
        self, asked: Asked, shelf: ArchiveView, layer: StoredLayer, folder: str, channel: int
    ) -> Filled:
        """Fill a unit's page."""
        by = asked.choice("by", ("max", "mean"))
        asked.choice("crop", ("no", "yes"))
        rows = []
        count = max(1, min(DRIVEN, len(shelf.stored) // 2))  # none is on both sides
        for most in (True, False):
            found = units.driven(shelf, layer, channel, by, count, most=most)
            boxes = drawings.driven_boxes(shelf, found.rows)
            rows.append({"most": most, "found": found, "boxes": boxes})
        near, over = units.neighbours(shelf, layer, channel, 12)
        return "unit.html", {
            "by": by, "rows": rows, "near": near, "over": over,
            "places": units.places(shelf.statistics(layer), channel),
            "others": [
                (other, other.folders[each.name])
                for other in self._site.collection.shelves.values()
                for each in other.layers.values()
                if other is not shelf and each.alias == layer.alias
                and channel < each.entry.channels
            ],
            "before": channel - 1 if channel else None,
            "after": channel + 1 if channel + 1 < layer.entry.channels else None,
        }  # fmt: skip

    def position(
        self,
        asked: Asked,
        shelf: ArchiveView,
        sample: StoredSample,
        layer: StoredLayer,
        folder: str,
    ) -> Filled:
        """Fill the page of a place in a layer's maps, chosen by a click or by its numbers."""
        _stored(sample)
        if not layer.entry.places:
            raise NotFound(f"{layer.alias} has no positions that are places of the image")
        view = layer_view(layer, sample.index)
        height, width = view.maps.shape[1:]
        scale = MEAN_SIDE / max(height, width)
        if clicked := _CLICKED.fullmatch(asked.query):  # an image map without a script
            x, y = (int(part) / scale for part in clicked.groups())
            y, x = min(int(y), height - 1), min(int(x), width - 1)
        else:
            y = asked.whole("y", height // 2, 0, height - 1)
            x = asked.whole("x", width // 2, 0, width - 1)
        values = vector_at(view, y, x)
        order = np.argsort(-np.nan_to_num(np.abs(values), nan=-1), kind="stable")[:12]
        return "position.html", {
            "y": y, "x": x, "height": height, "width": width,
            "side": (max(1, round(height * scale)), max(1, round(width * scale))),
            "top": [(int(i), float(values[i])) for i in order],
            "each": asked.choice("each", ("sample", "all")),
        }  # fmt: skip

    def dataset(self, asked: Asked, shelf: ArchiveView, layer: StoredLayer, folder: str) -> Filled:
        """Fill the page of the map of the dataset."""
        return "dataset.html", {}

    def side_by_side(self, asked: Asked) -> Filled:
        """Fill the page of one sample in all archives that have it."""
        id_ = asked.text("id")
        found = [
            (shelf, shelf.samples[id_]) for shelf in self._site.collection.shelves.values()
            if id_ in shelf.samples.rows
        ]  # fmt: skip
        if not found:
            raise NotFound(f"no archive has a sample {id_[:80]!r}")
        cells = Thumbnails()
        return "side.html", {"id": id_, "found": found, "cell": cells.tile_size,
                             "pitch": cells.tile_size + cells.gap}  # fmt: skip

    def side_unit(self, asked: Asked) -> Filled:
        """Fill the page of one unit in all archives that have a layer of this name."""
        alias, channel = asked.text("layer"), asked.whole("channel", 0, 0, 10**7)
        by = asked.choice("by", ("max", "mean"))
        found = []
        for shelf in self._site.collection.shelves.values():
            for folder, layer in shelf.layers.items():
                if alias in (layer.alias, layer.name) and channel < layer.entry.channels:
                    most = units.driven(shelf, layer, channel, by, DRIVEN, most=True)
                    boxes = drawings.driven_boxes(shelf, most.rows)
                    found.append((shelf, folder, most, boxes))
        if not found:
            raise NotFound(f"no archive has channel {channel} of a layer {alias[:80]!r}")
        return "side_unit.html", {"alias": alias, "channel": channel, "by": by, "found": found}


def _stored(sample: StoredSample) -> None:
    if sample.error:
        raise NotFound(f"{sample.id} was skipped: {sample.error}")
