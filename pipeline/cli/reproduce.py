"""Reproduce: an archive's recorded configuration is carried out again and the results compared.

What an archive carries is data from elsewhere. Only classes of this package are built from it, with
arguments that each of them declares safe; nothing in it is interpolated; it reads no file outside
the folders that the user works in or allows, and reaches no network. What needs more is refused
with a line that says what it is, or let in where the user says so.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.archive.format.manifest import Manifest, differences
from pipeline.archive.reading.archive import Archive
from pipeline.common.errors import ConfigError, FeaturemapsError, one_line
from pipeline.common.network import no_network
from pipeline.config.plugins import kinds

if TYPE_CHECKING:
    from pipeline.extraction.settings import Extraction

_GROUPS = ("model", "dataset", "reduction")
_WORD = re.compile(r"[A-Za-z0-9_.+/-]{0,100}")


@dataclass(frozen=True, kw_only=True)
class Allowed:
    """What an archive's configuration may do.

    Attributes:
        code: build sources that import or run code, and pass on any argument.
        network: fetch what it names.
        folders: read below these; see `folders_of`.
    """

    code: bool = False
    network: bool = False
    folders: Sequence[Path] = ()


def folders_of(archive: Path, out: Path, more: Sequence[Path] = ()) -> list[Path]:
    """Return the folders that a reproduction may read below: where the archive lies, where the new
    one goes, the working folder (none of these if it is the root of all), and what the user adds.
    """
    near = [archive.absolute().parent, out.absolute().parent, Path.cwd()]
    near = [folder.resolve() for folder in near]
    added = [folder.expanduser().resolve() for folder in more]
    return [folder for folder in near if folder != Path(folder.anchor)] + added


def recorded_extraction(manifest: Manifest, archive: Path, allowed: Allowed) -> Extraction:
    """Return the extraction that an archive was made by, writing to another archive.

    Batch size and memory format are the ones that were chosen then.
    """
    from pipeline.config.build import build_extraction

    recorded = manifest.config
    for group in _GROUPS:
        _check_class(group, recorded.get(group))
    if not allowed.code:
        for what, node in needs_code(manifest):
            raise ConfigError(
                f"{what}; give --allow-code if you trust what the archive names: {node}"
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
    built = build_extraction(plain)
    for key, path in (built.model.reads() | built.dataset.reads()).items():
        _check_path(key, path, allowed)
    return built


def needs_code(manifest: Manifest) -> Iterator[tuple[str, str]]:
    """Yield what of an archive's configuration is only done with `--allow-code`, and its text."""
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
                yield f"{group}.arguments.{one_line(name)} is none that is harmless", _short(value)


def reproduce(
    path: Path, out: Path, *, rtol: float, atol: float, allowed: Allowed
) -> dict[str, Any]:
    """Extract again what an archive records, to `out`, and compare the two.

    Returns:
        As `pipeline.archive.tools.compare.compare`, and `changed`: what differs between the two in
        configuration, weights, data and versions, as lines.
    """
    from pipeline.archive.tools.compare import compare
    from pipeline.extraction.extract import extract

    with Archive.open(path) as archive:
        manifest = archive.manifest
        extraction = recorded_extraction(manifest, out, allowed)
        watched: Any = nullcontext([]) if allowed.network else no_network()
        data = extraction.dataset
        with watched as tried:
            try:
                for sample in data.open().samples if data.reads() else ():
                    if sample.path:  # it may lead out of the folders, by a link or a list of paths
                        _check_path(f"dataset ({one_line(sample.id)})", sample.path, allowed)
                made = extract(extraction)
            except FeaturemapsError as error:
                if not tried:
                    raise
                raise ConfigError(
                    f"{tried[0]} was asked for; give --allow-network if you trust what the archive "
                    f"names ({fetched(extraction)}): {error}"
                ) from error
        with Archive.open(made.archive) as again:
            result = compare(archive, again, rtol=rtol, atol=atol)
            return {**result, "changed": differences(manifest.identity, again.manifest.identity)}


def fetched(extraction: Extraction) -> str:
    """Return what an extraction may fetch from the network, in words."""
    found = [extraction.model.fetches(), extraction.dataset.fetches()]
    return ", ".join(text for text in found if text) or "nothing that is known of"


def shown(manifest: Manifest) -> str:
    """Return an archive's configuration for people: what is carried out again."""
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
            f"{group}._target_: {target or 'nothing'} is no class of featuremaps; the archive was "
            "made by a program of its own, which alone can make it again"
        )
    for item in fields(kinds(group)[target]):
        if not item.metadata.get("recorded", True):
            raise ConfigError(
                f"{group}.{item.name}: a program gave it, and an archive cannot hold it; run that "
                "program again and compare the archives"
            )


def _check_path(key: str, path: str, allowed: Allowed) -> None:
    scheme, _, rest = path.partition("://")
    if rest and scheme != "file":
        if allowed.network:
            return
        raise ConfigError(
            f"{key}: the archive names {one_line(path, limit=200)}; give --allow-network if you "
            "trust it"
        )
    path = rest or path
    for text in (path, path.split("#")[0]):  # `#` comes before a member of a tar file
        place = Path(text).expanduser().resolve()
        if not any(place.is_relative_to(folder) for folder in allowed.folders):
            raise ConfigError(
                f"{key}: the archive names {one_line(path, limit=200)}, outside of the folders of "
                f"this run; give --allow-path {one_line(place.parent, limit=200)} if it may be read"
            )


def _harmless(value: Any) -> bool:
    """Tell whether an argument is a number, a word, or a list of them."""
    if isinstance(value, list):
        return all(_harmless(item) for item in value)
    if isinstance(value, str):
        return _WORD.fullmatch(value) is not None
    return value is None or isinstance(value, (bool, int, float))


def _plain(node: Any) -> Any:
    if isinstance(node, Mapping):
        return {key: _plain(value) for key, value in node.items() if key != "_target_"}
    return [_plain(item) for item in node] if isinstance(node, list) else node
