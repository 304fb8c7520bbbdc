"""What a notebook shows of an archive."""

from __future__ import annotations

from html import escape
from pathlib import Path

from pipeline.archive.format.manifest import Manifest


def archive_html(path: Path, manifest: Manifest, *, skipped: int) -> str:
    """Return an archive as an HTML table of its layers; everything from data is escaped.

    Args:
        path: where it is.
        manifest: what it holds.
        skipped: how many samples were skipped.
    """
    count = len(manifest.samples)
    left_out = f", {skipped} skipped" if skipped else ""
    rows = "".join(
        f"<tr><td>{escape(layer.alias)}</td><td>{escape(layer.module_type)}</td>"
        f"<td>{escape(' × '.join(str(n) for n in (count, *layer.shape)))}</td>"
        f"<td>{escape(', '.join(('sample', *layer.axes)))}</td><td>{escape(layer.dtype)}</td></tr>"
        for layer in manifest.layers
    )
    return (
        f"<p><b>{escape(manifest.model_title)}</b> · {count} samples{left_out} · "
        f"<code>{escape(str(path))}</code></p>"
        "<table><thead><tr><th>layer</th><th>type</th><th>shape</th><th>axes</th><th>dtype</th>"
        f"</tr></thead><tbody>{rows}</tbody></table>"
    )
