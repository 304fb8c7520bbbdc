"""Content and state of an archive, finished or not, as text or JSON."""

import shlex
import time
from collections import Counter
from dataclasses import asdict
from typing import Any

from pipeline.archive.format import schema
from pipeline.archive.format.jpeg import QUALITY
from pipeline.archive.format.layer_entry import ALL_POSITIONS
from pipeline.archive.format.manifest import JPEG, Manifest, missing_shards
from pipeline.archive.reading.archive import Archive
from pipeline.archive.writing.active_writers import writers
from pipeline.common.errors import ArchiveError, listed, plural
from pipeline.common.places import Place
from pipeline.common.progress import duration, size

_MOST_WRITERS = 20
_INPUTS = {"none": "not stored", JPEG: f"JPEG, quality {QUALITY}"}


def archive_facts(path: Place) -> dict[str, Any]:
    """Return content and state of an archive, from its manifest, file names and index.

    If a complete archive is damaged, `fault` is the error.

    Raises:
        ArchiveError: when `path` is not an archive.
    """
    folder = schema.archive_folder(path)
    complete, fault = None, ""
    if folder.is_file():
        with Archive.open(folder) as archive:
            manifest, complete = archive.manifest, archive.complete
    else:
        manifest = Manifest.read(folder)
    missing = [] if complete else missing_shards(folder, manifest)
    if not complete and (folder / schema.COMPLETE).is_file():
        try:
            with Archive.open(folder) as archive:
                archive.samples  # noqa: B018 - reads archive.h5
                complete = archive.complete
        except ArchiveError as error:
            fault = str(error)
    files = [file for file in (folder, *folder.rglob("*")) if file.is_file()] or [
        schema.shard_path(folder, number)
        for number in range(len(manifest.shards) if complete is None else 0)
        if number not in missing
    ]
    model = manifest.identity["model"]
    return {
        "path": str(folder),
        "complete": complete is not None,
        "fault": fault,
        "samples": len(manifest.samples),
        "skipped": complete.skipped if complete else None,
        "shards": len(manifest.shards),
        "missing_shards": missing,
        "writers": []
        if complete
        else [
            {**asdict(writer), "text": str(writer)}
            for writer in writers(folder, manifest, now=time.time())
        ],
        "pixels_sha256": complete.pixels_sha256 if complete else "",
        "bytes": sum(file.stat().st_size for file in files) or (complete.bytes if complete else 0),
        "model": model,
        "transform": manifest.identity["transform"],
        "image_shape": list(manifest.image_shape),
        "inputs": manifest.inputs,
        "layers": [layer.facts(len(manifest.samples)) for layer in manifest.layers],
        "derived_from": manifest.derived_from,
        "created": manifest.created,
        "command": list(manifest.command),
        "environment": dict(manifest.environment),
        "fingerprint": manifest.fingerprint,
        "format_version": schema.FORMAT_VERSION,
    }


def describe(facts: dict[str, Any]) -> str:
    """Return the facts as text."""
    finished = facts["shards"] - len(facts["missing_shards"])
    state = "complete" if facts["complete"] else "not complete"
    if facts["fault"]:
        state = f"DAMAGED: {facts['fault']}"
    skipped = f", {facts['skipped']:,} skipped" if facts["skipped"] else ""
    model = facts["model"]
    weights = f"weights {model['weights']}, " if model.get("weights") else ""
    missing = model.get("missing_keys", [])
    environment, of = facts["environment"], facts["derived_from"]
    versions = ", ".join(f"{name} {v}" for name, v in environment.get("versions", {}).items())
    missing = listed([f"{number:05d}" for number in facts["missing_shards"]], 8)
    rows = [
        ("samples", f"{facts['samples']:,}{skipped}"),
        ("shards", f"{finished} of {facts['shards']} done"
         + (f"; missing: {missing}" if missing else "")),
        *_written_by(facts),
        ("size", size(facts["bytes"])),
        ("model", f"{model.get('name')}, {weights}sha256 "
         f"{str(model.get('weights_sha256'))[:16]}…"),
        ("missing", missing and f"{plural(len(missing), 'parameter')} not in the weights file: "
         f"{', '.join(missing[:3])}{' …' if missing[3:] else ''}"),
        ("pixels", facts["pixels_sha256"] and f"sha256 {facts['pixels_sha256'][:16]}…"),
        ("inputs", _INPUTS.get(facts["inputs"])),
        ("derived", of and f"from {of['archive']}, fingerprint {of['fingerprint'][:16]}…"),
        ("made", f"{facts['created']} on {environment.get('device', 'unknown')}, Python "
         f"{environment.get('python', 'unknown')}"),
        ("with", versions),
        ("command", " ".join(facts["command"])),
    ]  # fmt: skip
    lines = [f"{facts['path']}: {state}"]
    lines += [f"  {label:9} {text}" for label, text in rows if text]
    lines.append("  layers")
    width = max(len(layer["alias"]) for layer in facts["layers"])
    for layer in facts["layers"]:
        shape = " × ".join(
            f"{n:,} {axis}" for axis, n in zip(layer["axes"], layer["shape"], strict=True)
        )
        reduction = "" if layer["reduction"] == "none" else f", {layer['reduction']}"
        if layer["positions"] != ALL_POSITIONS:
            reduction += f" (means and statistics over the {layer['positions']})"
        lines.append(
            f"    {layer['alias']:{width}}  {layer['type']}: {shape}, {layer['dtype']}{reduction}"
        )
    return "\n".join(lines) + "\n"


def _written_by(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the writers of an unfinished archive, and the next step if no writer is running."""
    processes = facts["writers"]
    unfinished = [process for process in processes if process["state"] != "finished"]
    texts = [_parts(processes)] if len(processes) > 1 else []
    texts += [process["text"] for process in unfinished[:_MOST_WRITERS]]
    rows = [("" if i else "writers", text) for i, text in enumerate(texts)]
    running = any(process["state"] == "running" for process in processes)
    if facts["complete"] or facts["fault"] or running:
        return rows
    if facts["missing_shards"]:
        return [*rows, ("next", "run the same extraction again to write the missing shards")]
    archive = shlex.quote(f"archive={facts['path']}")
    return [*rows, ("next", f"featuremaps stitch {archive}")]


def _parts(processes: list[dict[str, Any]]) -> str:
    """Return the progress of all parts of an extraction."""
    states = Counter(str(process["state"]) for process in processes)
    text = f"{len(processes)} parts: " + ", ".join(f"{n} {state}" for state, n in states.items())
    running = [process for process in processes if process["state"] == "running"]
    if running and all(process["rate"] for process in running):
        rate = sum(process["rate"] for process in running)
        seconds_left = max(process["seconds_left"] for process in running)
        text += f"; together {rate:.3g} samples/s, {duration(seconds_left)} left"
    return text
