"""Reproduce: an archive's recorded configuration is carried out again and the results compared.

What an archive carries is data from elsewhere: only classes of this package are built from it, and
those that import or download code only when that is allowed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.archive.manifest import Manifest, differences
from pipeline.archive.reader import Archive
from pipeline.errors import ConfigError
from pipeline.names import one_line

if TYPE_CHECKING:
    from pipeline.extract import Extraction

_GROUPS = ("model", "dataset", "reduction")
_RUN_CODE = {
    "pipeline.models.checkpoint.CheckpointModel": "imports the Python class that it names",
    "pipeline.models.hub.HubModel": "runs the code of a torch.hub repository",
}


def recorded_extraction(manifest: Manifest, archive: Path, *, allow_code: bool) -> Extraction:
    """Return the extraction that an archive was made by, writing to another archive.

    Batch size and memory format are the ones that were chosen then.

    Args:
        manifest: of the archive.
        archive: the new one's folder.
        allow_code: whether sources that import or download code may be built.

    Raises:
        ConfigError: when the configuration names classes that are not this package's, runs code
            without being allowed to, or is incomplete.
    """
    from pipeline import config, plugins

    recorded = dict(manifest.config)
    for group in _GROUPS:
        node = recorded.get(group)
        target = str(node.get("_target_")) if isinstance(node, Mapping) else ""
        if target not in plugins.plugin_names(group):
            raise ConfigError(
                f"{group}._target_: {target or 'nothing'} is no class of featuremaps; the archive "
                "was made by a program of its own, which alone can make it again"
            )
        unrecorded = [
            item.name
            for item in fields(plugins.locate(target))
            if not item.metadata.get("recorded", True)
        ]
        if unrecorded:
            raise ConfigError(
                f"{group}.{unrecorded[0]}: a program gave it, and an archive cannot hold it; run "
                "that program again and compare the archives"
            )
        if target in _RUN_CODE and not allow_code:
            raise ConfigError(
                f"{group}._target_: {target} {_RUN_CODE[target]}; give --allow-code if you trust "
                f"what the archive names: {json.dumps(_plain(node))[:300]}"
            )
    plain = {key: _plain(value) for key, value in recorded.items() if key != "_target_"}
    for group in _GROUPS:
        plain[group]["_target_"] = recorded[group]["_target_"]
    plain |= {"archive": str(archive), "shard": {}}
    try:
        plain["channels_last"] = manifest.identity["channels_last"]
        plain["loader"] = {**plain["loader"], "batch_size": manifest.identity["batch_size"]}
    except (KeyError, TypeError) as error:
        raise ConfigError(f"the archive's manifest lacks {error}") from error
    return config.build_extraction(plain)


def reproduce(
    path: Path, out: Path, *, rtol: float, atol: float, allow_code: bool
) -> dict[str, Any]:
    """Extract again what an archive records, to `out`, and compare the two.

    Returns:
        As `pipeline.archive.compare.compare`, and `changed`: what differs between the two in
        configuration, weights, data and versions, as lines.

    Raises:
        ConfigError: see `recorded_extraction`; also when `out` holds something else.
        ArchiveError: when an archive cannot be read or written.
    """
    from pipeline.archive.compare import compare
    from pipeline.extract import extract

    with Archive.open(path) as archive:
        manifest = archive.manifest
        made = extract(recorded_extraction(manifest, out, allow_code=allow_code))
        with Archive.open(made.archive) as again:
            result = compare(archive, again, rtol=rtol, atol=atol)
            return {**result, "changed": differences(manifest.identity, again.manifest.identity)}


def shown(manifest: Manifest) -> str:
    """Return an archive's configuration for people: what is carried out again."""
    lines = [f"made by: {one_line(' '.join(manifest.command))}"]
    for key, value in sorted(manifest.config.items()):
        kind = value.get("_target_", "") if isinstance(value, Mapping) else ""
        if key != "_target_":
            text = json.dumps(_plain(value), ensure_ascii=False)
            lines.append(one_line(f"{key}: {str(kind).rpartition('.')[2]} {text}", limit=2000))
    return "\n".join(lines) + "\n"


def _plain(node: Any) -> Any:
    """Return a recorded node without the class names of its parts."""
    if isinstance(node, Mapping):
        return {key: _plain(value) for key, value in node.items() if key != "_target_"}
    return [_plain(item) for item in node] if isinstance(node, list) else node
