"""Gallery writer: a table of samples × layers, pages per sample and layer, and the configuration.

Data is escaped, links are relative and quoted, pages hold no inline script or style, and a content
security policy forbids resources outside the folder.
"""

import json
from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.archive.format import schema
from pipeline.archive.format.samples import StoredSample
from pipeline.archive.reading.archive import Archive
from pipeline.archive.reading.stored_layer import StoredLayer
from pipeline.common.atomic_files import write_bytes
from pipeline.common.errors import plural
from pipeline.common.progress import size, track
from pipeline.gallery.templating import templates, write_static
from pipeline.rendering.file_names import layer_folders, sample_stem
from pipeline.rendering.options import THUMBNAILS
from pipeline.rendering.picture_files import DrawnPicture
from pipeline.rendering.render import Rendered

_PAGE_SIZE = 100


def write_gallery(archive: Archive, rendered: Rendered) -> Path:
    """Write the gallery of rendered pictures and return its first page.

    The table shows the pictures of the renderer `thumbnails`.
    """
    folder = rendered.folder / "gallery"
    (folder / "samples").mkdir(parents=True, exist_ok=True)
    (folder / "layers").mkdir(exist_ok=True)
    write_static(folder)
    pages = Pages(archive, rendered, folder)
    starts = range(0, len(rendered.samples), _PAGE_SIZE)
    for number, start in enumerate(starts, start=1):
        pages.write_index(number, len(starts), rendered.samples[start : start + _PAGE_SIZE])
    for position, sample in enumerate(track("gallery", rendered.samples, unit="pages")):
        pages.write_sample(position, sample)
    pages.write_layers()
    pages.write_search()
    name = "configuration.html"
    pages.write(name, name, root="", **pages.configuration_values())
    return folder / index_name(1)


def count_of(drawn: int, stored: int) -> str:
    """Return the number of rendered samples, with the total if they differ.

    >>> count_of(60, 60), count_of(4, 60)
    ('60 samples', '4 of 60 samples')
    """
    total = plural(stored, "sample")
    return total if drawn == stored else f"{drawn:,} of {total}"


def index_name(number: int) -> str:
    """Return the file name of a page of the table, counted from 1."""
    return "index.html" if number == 1 else f"index-{number}.html"


class Pages:
    """The pages of one gallery."""

    def __init__(self, archive: Archive, rendered: Rendered, folder: Path) -> None:
        self._archive = archive
        self._rendered = rendered
        self._folder = folder
        self._layers = list(archive.layers.values())
        folders = layer_folders(archive.manifest.layers).values()
        self._layer_pages = [f"layers/{folder}.html" for folder in folders]
        self._block = lru_cache(2 * len(self._layers))(StoredLayer.per_sample)
        environment = templates()
        environment.globals.update(
            model=archive.manifest.model_title,
            samples_total=count_of(len(rendered.samples), len(archive.samples)),
            has_labels=any(label_of(sample) for sample in rendered.samples),
            skipped_total=archive.complete.skipped,
            layers=[layer.entry for layer in self._layers],
            layer_notes=[layer_note(layer.entry) for layer in self._layers],
            layer_pages=self._layer_pages,
        )
        self._environment = environment

    def write_index(self, number: int, count: int, samples: Sequence[StoredSample]) -> None:
        """Write one page of the table."""
        rows = [self.sample_values(sample) for sample in samples]
        self.write(
            index_name(number),
            "index.html",
            root="",
            rows=rows,
            number=number,
            count=count,
            names=[index_name(i) for i in range(1, count + 1)],
            has_strips=any(row["strip"] for row in rows),
        )

    def write_sample(self, position: int, sample: StoredSample) -> None:
        """Write the page of one sample."""
        samples, values = self._rendered.samples, self.sample_values(sample)
        values["whole"].sort(key=lambda picture: picture.renderer != "overview")
        self.write(
            values["page"],
            "sample.html",
            root="../",
            **values,
            figures=self._figures(sample),
            before=self._page(samples[position - 1]) if position else None,
            after=self._page(samples[position + 1]) if position + 1 < len(samples) else None,
            index=index_name(position // _PAGE_SIZE + 1),
        )

    def sample_values(self, sample: StoredSample) -> dict[str, Any]:
        """Return the template values of a sample and its pictures."""
        pictures = self._rendered.pictures(sample)
        shown: dict[str | None, list[DrawnPicture]] = defaultdict(list)  # by layer
        for picture in pictures:
            if picture.renderer != THUMBNAILS:
                shown[picture.layer].append(picture)
        return {
            "sample": sample,
            "label": label_of(sample),
            "page": self._page(sample),
            "strip": next((p.path for p in pictures if p.renderer == THUMBNAILS), None),
            "whole": shown[None],
            "by_layer": [shown[layer.name] for layer in self._layers],
        }

    def write_layers(self) -> None:
        """Write a page per layer: its statistics and the pictures over the dataset."""
        pages = self._layer_pages
        for number, layer in enumerate(self._layers):
            self.write(
                pages[number],
                "layer.html",
                root="../",
                before=pages[number - 1] if number else None,
                after=pages[number + 1] if number + 1 < len(pages) else None,
                **self.layer_values(layer),
            )

    def layer_values(self, layer: StoredLayer) -> dict[str, Any]:
        """Return the template values of a layer."""
        figures = layer.statistics
        return {
            "layer": layer.entry,
            "note": layer_note(layer.entry),
            "of_archive": [p for p in self._rendered.of_archive if p.layer == layer.name],
            "columns": list(figures),
            "channels": [
                [_short(column[channel]) for column in figures.values()]
                for channel in range(layer.entry.channels)
            ],
        }

    def write_search(self) -> None:
        """Write the search index, loaded on first use.

        It is a script that calls one function: pages opened from disk cannot fetch files.
        """
        rows = [
            [sample.id, label_of(sample), self._page(sample), int(bool(sample.error))]
            for sample in self._rendered.samples
        ]
        text = json.dumps(rows, ensure_ascii=True, separators=(",", ":"))
        write_bytes(
            self._folder / "search.js", f"featuremapsSamples({text});\n".encode(), durable=False
        )

    def _figures(self, sample: StoredSample) -> list[dict[str, str]]:
        if sample.error:
            return []
        figures = []
        start = sample.index // _PAGE_SIZE * _PAGE_SIZE
        stop = min(start + _PAGE_SIZE, len(self._archive))
        for layer in self._layers:
            means, largest = (
                self._block(layer, name, start, stop)[sample.index - start]
                for name in schema.SAMPLE_STATISTICS
            )
            finite = np.isfinite(largest)
            figures.append(
                {
                    "mean": _short(means[finite].mean()) if finite.any() else "–",
                    "max": _short(largest[finite].max()) if finite.any() else "–",
                    "strongest": str(int(np.where(finite, largest, -np.inf).argmax())),
                }
            )
        return figures

    def configuration_values(self) -> dict[str, Any]:
        """Return the template values of configuration and provenance."""
        manifest = self._archive.manifest
        return {
            "facts": {
                "archive": str(self._archive.path),
                "size": size(self._archive.complete.bytes),
                "created": manifest.created,
                "fingerprint": manifest.fingerprint,
                "command": " ".join(manifest.command),
            },
            "of_archive": [
                p for p in self._rendered.of_archive if p.layer not in self._archive.layers
            ],
            "config": _as_text(manifest.config),
            "identity": _as_text(manifest.identity),
            "surroundings": _as_text(manifest.environment),
        }

    def _page(self, sample: StoredSample) -> str:
        return f"samples/{sample_stem(sample.index, sample.id)}.html"

    def write(self, name: str, template: str, **values: Any) -> None:
        """Write a page."""
        html = self._environment.get_template(template).render(**values)
        write_bytes(self._folder / name, html.encode("utf-8"), durable=False)


def layer_note(entry: Any) -> str:
    """Return type, shape and axes of a layer."""
    return (
        f"{entry.module_type}, {' × '.join(str(n) for n in entry.shape)} ({', '.join(entry.axes)})"
    )


def label_of(sample: StoredSample) -> str:
    """Return a sample's label name, else its number, else an empty string."""
    return sample.label_name or (str(sample.label) if sample.label != -1 else "")


def _short(value: Any) -> str:
    return f"{int(value)}" if isinstance(value, (int, np.integer)) else f"{float(value):.4g}"


def _as_text(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)
