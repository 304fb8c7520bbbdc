"""Provenance of an archive for papers and colleagues, as data, text and BibTeX."""

from typing import Any

from pipeline import __version__
from pipeline.archive.format import schema
from pipeline.archive.reading.archive import Archive
from pipeline.common.errors import one_line, plural

_VERSIONS_CITED = ("featuremaps", "torch", "torchvision", "timm", "transformers", "pillow")
_SPECIAL = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
_SPECIAL |= {character: f"\\{character}" for character in "{}$&#%_"}


def provenance(archive: Archive) -> dict[str, Any]:
    """Return the provenance of an archive's values, as plain values for JSON.

    Returns:
        `archive`, `fingerprint`, `format_version`, `created`, `command`, `model` (with
        `weights_sha256`), `seed`, `transform`, `dataset` (with digests), `samples`, `skipped`,
        `pixels_sha256`, `layers` (`name`, `alias`, `axes`, `shape`, `dtype`, `reduction`,
        `positions`), `environment`, and `read_with` (the current version of this software); for
        derived layers also `derived_from`.
    """
    manifest, complete = archive.manifest, archive.complete
    identity = manifest.identity
    return {
        "archive": schema.name_of(archive.path),
        "fingerprint": manifest.fingerprint,
        "format_version": schema.FORMAT_VERSION,
        "created": manifest.created,
        "command": list(manifest.command),
        "model": identity["model"],
        "seed": identity["seed"],
        "precision": identity["precision"],
        "transform": identity["transform"],
        "dataset": identity["dataset"],
        "samples": complete.samples,
        "skipped": complete.skipped,
        "pixels_sha256": complete.pixels_sha256,
        **({"derived_from": manifest.derived_from} if manifest.derived_from else {}),
        "layers": [layer.facts(len(archive)) for layer in manifest.layers],
        "environment": dict(manifest.environment),
        "read_with": f"featuremaps {__version__}",
    }


def citation(archive: Archive) -> str:
    """Return BibTeX entries for an archive and this software, and the facts to report."""
    facts = provenance(archive)
    model, dataset = facts["model"], facts["dataset"]
    name = str(model.get("name") or model.get("class_path") or archive.manifest.model_name)
    weights = _weights(model, facts["seed"])
    versions = facts["environment"].get("versions", {})
    made_with = f"featuremaps {versions.get('featuremaps', '')}".strip()
    year = facts["created"][:4]
    reductions = sorted({layer["reduction"] for layer in facts["layers"]} - {"none"})
    contents, of = dataset.get("sha256_of_contents"), archive.manifest.derived_from
    rows = [
        ("model", f"{name} (source {model.get('_target_', 'user program')}), {weights}"),
        ("weights", f"sha256 {model['weights_sha256']}"),
        ("layers", _listed([layer["name"] for layer in facts["layers"]])),
        ("reduction", "; ".join(reductions)),
        ("derived", of and f"from archive {of['fingerprint']}, layer {of['layer']}"),
        (
            "inputs",
            f"{' × '.join(map(str, archive.manifest.image_shape))} (channel, height, width)",
        ),
        (
            "dataset",
            f"{dataset['source']}, {plural(facts['samples'], 'sample')}, "
            f"{facts['skipped']} skipped",
        ),
        ("", f"sha256 of ids and labels {dataset['sha256_of_ids_and_labels']}"),
        ("", contents and f"sha256 of contents {contents}"),
        ("", facts["pixels_sha256"] and f"sha256 of pixels {facts['pixels_sha256']}"),
        ("precision", f"{facts['precision']} on {facts['environment'].get('device')}"),
        ("versions", ", ".join(f"{k} {versions[k]}" for k in _VERSIONS_CITED if k in versions)),
        ("archive", f"format {facts['format_version']}, fingerprint {facts['fingerprint']}"),
    ]
    title = f"Activations of {name} ({weights}) over {plural(facts['samples'], 'image')}"
    note = f"HDF5 archive made with {made_with}, fingerprint {facts['fingerprint']}"
    lines = (f"  {key:10} {one_line(value, limit=1000)}" for key, value in rows if value)
    text = "\n".join(lines)
    return (
        f"@misc{{activations-{facts['fingerprint'][:12]},\n"
        f"  title = {{{_escaped(title)}}},\n"
        "  author = {YOUR NAME},\n"
        f"  year = {{{year}}},\n"
        f"  note = {{{_escaped(note)}}}\n}}\n\n"
        "@software{featuremaps,\n"
        "  title = {featuremaps},\n"
        "  author = {{The featuremaps developers}},\n"
        f"  version = {{{_escaped(made_with.removeprefix('featuremaps').strip())}}},\n"
        f"  year = {{{year}}}\n}}\n\n"
        f"Report in the text, and cite the papers of the model and the dataset:\n{text}\n"
    )


def _weights(model: dict[str, Any], seed: int) -> str:
    weights = model.get("weights")
    missing = model.get("missing_keys") or []
    random = f", {plural(len(missing), 'parameter')} random, seed {seed}" if missing else ""
    return f"random weights, seed {seed}" if weights is None else f"weights {weights}{random}"


def _listed(names: list[str]) -> str:
    return f"{len(names)}: {', '.join(names)}"


def _escaped(text: str) -> str:
    return "".join(_SPECIAL.get(character, character) for character in one_line(text))
