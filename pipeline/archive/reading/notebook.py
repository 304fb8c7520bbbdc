"""HTML representation of an archive in notebooks."""

from html import escape

from pipeline.archive.format.manifest import Manifest
from pipeline.common.errors import plural
from pipeline.common.places import Place


def archive_html(path: Place, manifest: Manifest, *, skipped: int) -> str:
    """Return an archive as an HTML table of its layers; all data is escaped."""
    count = len(manifest.samples)
    skipped_text = f", {skipped} skipped" if skipped else ""
    rows = "".join(
        f"<tr><td>{escape(layer.alias)}</td><td>{escape(layer.module_type)}</td>"
        f"<td>{escape(' × '.join(str(n) for n in (count, *layer.shape)))}</td>"
        f"<td>{escape(', '.join(('sample', *layer.axes)))}</td><td>{escape(layer.dtype)}</td></tr>"
        for layer in manifest.layers
    )
    return (
        f"<p><b>{escape(manifest.model_title)}</b> · {plural(count, 'sample')}{skipped_text} · "
        f"<code>{escape(str(path))}</code></p>"
        "<table><thead><tr><th>layer</th><th>type</th><th>shape</th><th>axes</th><th>dtype</th>"
        f"</tr></thead><tbody>{rows}</tbody></table>"
    )
