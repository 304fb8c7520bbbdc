"""Sameness: may a run go on with an archive, or serve it, that an earlier run has made?

Only if that run would have made it the same: from the same images, by a model that does the same.
On one machine that means the same bits. Another machine, or another version of a library, rounds
differently: there a model may differ by `TOLERANCE`, and that is said.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.archive.manifest import Manifest, differences
from pipeline.foundation.errors import ConfigError

log = logging.getLogger(__name__)

TOLERANCE = 1e-3
"""Of a layer's largest magnitude."""

_COMPARED_APART = ("behaviour", "versions", "on_error", "batch_size", "format_version")
"""How errors are met changes no value; what it has left out is looked for in the shards. An archive
goes on with its own batch size, and may hold shards of several versions."""


def refuse_differences(archive: Path, stored: Manifest, wanted: Manifest) -> None:
    """Refuse to go on with an archive that something else has made.

    Raises:
        ConfigError: listing what differs.
    """
    if stored.fingerprint == wanted.fingerprint:
        return
    lines = differences(_comparable(stored), _comparable(wanted))
    versions = _other_versions(stored, wanted)
    if not lines:
        lines = _other_behaviour(archive, stored, wanted, versions)
        lines += versions if lines else []
    if lines:
        shown = "; ".join(lines[:6]) + (f"; and {len(lines) - 6} more" if len(lines) > 6 else "")
        raise ConfigError(
            f"archive: {archive} was made differently and cannot be continued (there → now): "
            f"{shown}. Give another archive=, or the configuration that it was made with"
        )


def same_machine(stored: Manifest, wanted: Manifest) -> bool:
    """Tell whether two runs must agree bit for bit: one processor, the same versions."""
    return (
        wanted.identity.get("device") == "cpu"
        and stored.environment.get("device") == wanted.environment.get("device")
        and not _other_versions(stored, wanted)
    )


def _other_behaviour(
    archive: Path, stored: Manifest, wanted: Manifest, versions: list[str]
) -> list[str]:
    """Return the layers that return other values now, as lines; says what it lets pass."""
    before, now = stored.identity["behaviour"], wanted.identity["behaviour"]
    changed = [name for name in now if before.get(name, {}).get("sha256") != now[name]["sha256"]]
    where = f"made with other versions ({'; '.join(versions)})" if versions else "made elsewhere"
    if not changed:
        if versions:
            log.warning("archive: %s was %s; the model returns the same", archive, where)
        return []
    if not same_machine(stored, wanted):
        changed = [name for name in changed if _apart(before.get(name), now[name]) > TOLERANCE]
        if not changed:
            worst = max(_apart(before[name], now[name]) for name in now)
            log.warning(
                "archive: %s was %s; the model's activations differ by rounding there and here "
                "(up to %.1e of a layer's largest value)", archive, where, worst,
            )  # fmt: skip
            return []
    first = changed[0] + (f" (and {len(changed) - 1} more)" if len(changed) > 1 else "")
    return [f"model: {first} returns other values for the same image; its code has changed"]


def _apart(before: Mapping[str, Any] | None, now: Mapping[str, Any]) -> float:
    """Return the largest difference of two descriptions of a layer, by its largest magnitude."""
    if before is None or len(before["values"]) != len(now["values"]):
        return float("inf")
    pairs = [
        *zip(before["values"], now["values"], strict=True),
        *((before[name], now[name]) for name in ("largest", "mean", "std")),
    ]
    scale = max(before["largest"], now["largest"])
    return max(abs(one - other) for one, other in pairs) / scale if scale else 0.0


def _other_versions(stored: Manifest, wanted: Manifest) -> list[str]:
    before, now = stored.identity.get("versions", {}), wanted.identity.get("versions", {})
    return differences(before, {name: now.get(name) for name in before}, "versions")


def _comparable(manifest: Manifest) -> dict[str, Any]:
    """Return an identity without what is compared apart."""
    return {k: v for k, v in manifest.identity.items() if k not in _COMPARED_APART}
