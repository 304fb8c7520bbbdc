"""Repetition of the extraction that an archive records, and comparison of the results.

Archives are untrusted data. Only classes of this package are built from them, with arguments that
each class declares safe, and without interpolation. Files are read only in the user's folders, and
the network is blocked. Everything else is an error that names the option which allows it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.archive.format.manifest import Manifest
from pipeline.archive.reading.archive import Archive
from pipeline.common.differences import differences
from pipeline.common.errors import ConfigError, FeaturemapsError, one_line
from pipeline.common.network import no_network
from pipeline.common.places import Place, local
from pipeline.config.plugins import kinds

if TYPE_CHECKING:
    from pipeline.extraction.settings import Extraction

_GROUPS = ("model", "dataset", "reduction")
_WORD = re.compile(r"[A-Za-z0-9_.+/-]{0,100}")


@dataclass(frozen=True, kw_only=True)
class Allowed:
    """Permissions of an archive's configuration."""

    code: bool = False  # sources may import or run code, with any argument
    network: bool = False  # sources may download
    folders: Sequence[Path] = ()  # readable folders; see `folders_of`


def folders_of(archive: Place, out: Path, user_folders: Sequence[Path] = ()) -> list[Path]:
    """Return the readable folders: the archives' parents, the working and the user's folders.

    A file system root counts only if the user adds it.
    """
    parents = [path.absolute().parent for path in (local(archive), out) if path]
    defaults = [folder.resolve() for folder in (*parents, Path.cwd())]
    added = [folder.expanduser().resolve() for folder in user_folders]
    return [folder for folder in defaults if folder != Path(folder.anchor)] + added


def recorded_extraction(manifest: Manifest, archive: Path, allowed: Allowed) -> Extraction:
    """Return the recorded extraction of an archive, writing to another archive."""
    from pipeline.config.build import build_extraction

    if origin := manifest.derived_from:
        raise ConfigError(
            f"the archive holds rows derived from another, {origin['archive']}, by a program that "
            "is not recorded; reproduce that archive, and derive them again"
        )
    recorded = manifest.config
    for group in _GROUPS:
        _check_class(group, recorded.get(group))
    if not allowed.code:
        for source, node in needs_code(manifest):
            raise ConfigError(f"{source}; use --allow-code if you trust the archive: {node}")
    plain = {key: _plain(value) for key, value in recorded.items() if key != "_target_"}
    for group in _GROUPS:
        plain[group]["_target_"] = recorded[group]["_target_"]
    plain |= {"archive": str(archive), "shard": {}}
    try:
        plain["channels_last"] = manifest.identity["channels_last"]
        plain["loader"] = {**plain["loader"], "batch_size": manifest.identity["batch_size"]}
    except (KeyError, TypeError) as error:
        raise ConfigError(
            f"the archive's manifest lacks {error}; it cannot be reproduced"
        ) from error
    built = build_extraction(plain)
    for key, path in (built.model.reads() | built.dataset.reads()).items():
        _check_path(key, path, allowed)
    return built


def needs_code(manifest: Manifest) -> Iterator[tuple[str, str]]:
    """Yield a description and the text of each node that needs `--allow-code`."""
    for group in _GROUPS:
        node = manifest.config[group]
        kind = kinds(group)[str(node["_target_"])]
        if why := getattr(kind, "runs_code", ""):
            yield f"{group}: {kind.__name__} {why}", _short(_plain(node))
            continue
        arguments = node.get("arguments") or {}
        for name, value in arguments.items() if isinstance(arguments, Mapping) else ():
            safe = getattr(kind, "safe_arguments", ())
            if name not in safe or not (name in ("data_dir", "data_files") or _harmless(value)):
                yield f"{group}.arguments.{one_line(name)} is not known to be safe", _short(value)


def reproduce(
    path: Place, extraction: Extraction, *, rtol: float, atol: float, allowed: Allowed
) -> dict[str, Any]:
    """Repeat the recorded extraction of an archive; return their comparison.

    `changed` lists differences in configuration, weights, data and versions.
    """
    from pipeline.archive.tools.compare import compare
    from pipeline.extraction.extract import extract

    with Archive.open(path) as archive:
        watched: Any = nullcontext([]) if allowed.network else no_network()
        data = extraction.dataset
        with watched as tried:
            try:
                for sample in data.open().samples if data.reads() else ():
                    if sample.path:  # links and lists of paths may lead outside the folders
                        _check_path(f"dataset ({one_line(sample.id)})", sample.path, allowed)
                extracted = extract(extraction)
            except FeaturemapsError as error:
                if not tried:
                    raise
                raise ConfigError(
                    f"network access to {tried[0]} was blocked; use --allow-network if you trust "
                    f"the archive (it downloads {fetched(extraction)}): {error}"
                ) from error
        with Archive.open(extracted.archive) as again:
            result = compare(archive, again, rtol=rtol, atol=atol)
            changed = differences(archive.manifest.identity, again.manifest.identity)
            return {**result, "changed": changed}


def fetched(extraction: Extraction) -> str:
    """Return a description of the downloads of an extraction."""
    downloads = [extraction.model.fetches(), extraction.dataset.fetches()]
    return ", ".join(text for text in downloads if text) or "nothing known"


def shown(manifest: Manifest) -> str:
    """Return the recorded configuration as text."""
    lines = [f"made by: {one_line(' '.join(manifest.command))}"]
    for key, value in sorted(manifest.config.items()):
        kind = value.get("_target_", "") if isinstance(value, Mapping) else ""
        if key != "_target_":
            text = json.dumps(_plain(value), ensure_ascii=False)
            lines.append(one_line(f"{key}: {kind} {text}", limit=2000))
    return "\n".join(lines) + "\n"


def _short(value: Any) -> str:
    return one_line(json.dumps(value, ensure_ascii=False), limit=300)


def _check_class(group: str, node: Any) -> None:
    target = str(node.get("_target_")) if isinstance(node, Mapping) else ""
    if target not in kinds(group):
        raise ConfigError(
            f"{group}._target_: {target or 'nothing'} is not a class of featuremaps; run the "
            "program that wrote the archive and compare the archives"
        )
    for item in fields(kinds(group)[target]):
        if not item.metadata.get("recorded", True):
            raise ConfigError(
                f"{group}.{item.name}: was passed by a program and is not stored in archives; run "
                "that program again and compare the archives"
            )


def _check_path(key: str, path: str, allowed: Allowed) -> None:
    scheme, _, rest = path.partition("://")
    if rest and scheme != "file":
        if allowed.network:
            return
        raise ConfigError(
            f"{key}: the archive names {one_line(path, limit=200)}; use --allow-network if you "
            "trust it"
        )
    path = rest or path
    for text in (path, path.split("#")[0]):  # a tar member follows `#`
        resolved = Path(text).expanduser().resolve()
        if not any(resolved.is_relative_to(folder) for folder in allowed.folders):
            raise ConfigError(
                f"{key}: the archive names {one_line(path, limit=200)}, outside the folders of "
                f"this run; use --allow-path {one_line(resolved.parent, limit=200)} to allow it"
            )


def _harmless(value: Any) -> bool:
    """Return whether an argument is a number, a word, or a list of them."""
    if isinstance(value, list):
        return all(_harmless(item) for item in value)
    if isinstance(value, str):
        return _WORD.fullmatch(value) is not None
    return value is None or isinstance(value, (bool, int, float))


def _plain(node: Any) -> Any:
    if isinstance(node, Mapping):
        return {key: _plain(value) for key, value in node.items() if key != "_target_"}
    return [_plain(item) for item in node] if isinstance(node, list) else node
