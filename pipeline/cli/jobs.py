"""The jobs of `run`, `extract` and `render`, alone or in a sweep."""

from __future__ import annotations

import logging
import os
import shlex
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig

from pipeline.archive.format import schema
from pipeline.archive.format.completion import Complete
from pipeline.archive.format.layer_entry import layers_matching
from pipeline.archive.writing import lock
from pipeline.cli.sweep import is_sweep
from pipeline.common.errors import ArchiveBusyError, ConfigError, plural, suggestion
from pipeline.common.locks import locked
from pipeline.common.paths import confirm
from pipeline.common.places import Place, place, refuse_secrets
from pipeline.common.progress import size
from pipeline.config.build import GLOBAL, build, build_extraction, build_rendering
from pipeline.config.sweep_options import SweepOptions

if TYPE_CHECKING:
    from pipeline.extraction.extract import Extracted
    from pipeline.extraction.plan import Plan
    from pipeline.extraction.settings import Extraction
    from pipeline.rendering.options import RenderOptions
    from pipeline.rendering.renderer import Renderer


def run_job(plain: dict[str, Any]) -> dict[str, Any]:
    """Extract, render and write the gallery."""
    check_sweep_options(plain)
    renderers, options = rendering(plain)  # before the extraction, so that a typo fails fast
    result = extract_in_turn(build_extraction(plain), partial(check_drawing, renderers, options))
    say_archive(result)
    if result.complete:
        draw(result.archive, renderers, options)
        if not is_sweep():  # a sweep prints this once, for all archives
            archive = shlex.quote(str(result.archive))
            say(f"explore:  featuremaps serve {archive}")
            say(f"compare:  featuremaps similarity {archive}  (which layers are alike)")
            say("go on:    featuremaps run --help  (other models, layers, images, pictures)")
    return vars(result)


def extract_job(plain: dict[str, Any]) -> dict[str, Any]:
    """Extract without rendering."""
    check_sweep_options(plain)
    result = extract_in_turn(build_extraction(plain))
    say_archive(result)
    return vars(result)


def check_sweep_options(plain: dict[str, Any]) -> None:
    """Raise ConfigError for invalid sweep options, or sweep options outside a sweep."""
    if "hydra" in (plain.get("sweep") or {}):
        raise ConfigError(f"sweep.hydra: no such key; {GLOBAL}")
    chosen = HydraConfig.get().runtime.choices.get("sweep")
    if chosen and not is_sweep():
        raise ConfigError(
            f"sweep={chosen}: starts no sweep; add -m, or `mode: MULTIRUN` under hydra: in its file"
        )
    options = build(plain.get("sweep") or {}, SweepOptions, "sweep")
    if options.similarity and not is_sweep():
        raise ConfigError(
            "sweep.similarity: needs a sweep (-m); for one archive use: featuremaps similarity RUN"
        )


def check_drawing(renderers: dict[str, Renderer], options: RenderOptions, plan: Plan) -> None:
    """Raise ConfigError before the extraction starts if its results could not be rendered."""
    from pipeline.rendering.sample_selection import chosen_samples

    chosen_samples(plan.images.samples, options, say=False)
    channels = {layer.name: layer.channels for layer in plan.manifest.layers}
    layers_matching(plan.manifest.layers, options.layers, where="render.layers")
    for name, renderer in renderers.items():
        try:
            renderer.check(channels)
        except ConfigError as error:
            raise ConfigError(f"renderers.{name}.{error}") from None


def extract_in_turn(
    extraction: Extraction, check: Callable[[Plan], None] | None = None
) -> Extracted:
    """Extract; jobs of a sweep take separate GPUs and wait for each other's archive locks."""
    from pipeline.extraction.extract import extract

    if not is_sweep():
        return extract(extraction, check)
    with ExitStack() as leases:
        gpus = gpu_names() if extraction.device == "auto" and not extraction.devices else []
        if len(gpus) > 1:
            extraction = replace(extraction, device=f"cuda:{leases.enter_context(leased(gpus))}")
        while True:
            try:
                return extract(extraction, check)
            except ArchiveBusyError as error:
                logging.getLogger(__name__).info("%s; waiting until it is released", error)
                lock.wait(extraction.place or Path())


@contextmanager
def leased(names: Sequence[str], folder: Path | None = None) -> Iterator[int]:
    """Hold the first free GPU while the block runs and yield its index; share one if none is free.

    A lease is a lock on a file in `folder` (default: one per user), so a job that dies releases its
    GPU. `names` are unique on this machine.
    """
    folder = folder or Path(tempfile.gettempdir()) / f"featuremaps-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    with ExitStack() as locks:
        for position, name in enumerate(names):
            try:
                locks.enter_context(locked(folder / f"gpu-{name}.lock"))
            except BlockingIOError:
                continue
            yield position
            return
    yield os.getpid() % len(names)


def gpu_names() -> list[str]:
    """Return a unique name for each visible GPU."""
    import torch

    devices = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return [str(getattr(gpu, "uuid", position)) for position, gpu in enumerate(devices)]


def render_job(plain: dict[str, Any]) -> dict[str, Any]:
    """Render an archive and write its gallery."""
    for key in plain:
        if key not in (valid := ("archive", "storage_options", "render", "renderers")):
            raise ConfigError(f"{key}: no such key; {suggestion(key, valid)}")
    if plain.get("archive") in (None, "", "???"):
        raise ConfigError(
            "archive: is required; set it, e.g. featuremaps render archive=outputs/…/archive"
        )
    renderers, options = rendering(plain)
    options_of_store = plain.get("storage_options") or {}
    refuse_secrets(options_of_store)
    archive = place(str(plain["archive"]), storage_options=options_of_store)
    draw(archive, renderers, options)
    return {"archive": archive}


def rendering(plain: dict[str, Any]) -> tuple[dict[str, Renderer], RenderOptions]:
    """Return renderers and options; set up TensorBoard if requested."""
    from pipeline.rendering import tensorboard

    renderers, options = build_rendering(plain)
    if options.tensorboard:
        tensorboard.prepare(options.tensorboard)
    return renderers, options


def draw(archive_path: Place, renderers: dict[str, Renderer], options: RenderOptions) -> None:
    """Write the pictures and the gallery to the run folder and print their paths."""
    from pipeline.gallery.pages import write_gallery
    from pipeline.gallery.single_file import write_single_file
    from pipeline.renderers.thumbnails import Thumbnails
    from pipeline.rendering.options import THUMBNAILS
    from pipeline.rendering.render import render, to_draw
    from pipeline.rendering.tensorboard import write_events

    folder = Path(HydraConfig.get().runtime.output_dir)
    with to_draw(archive_path, options) as archive:
        rendered = render(archive, folder, {**renderers, THUMBNAILS: Thumbnails()}, options)
        page = write_gallery(archive, rendered)
        single = write_single_file(archive, rendered) if options.single_file else None
    confirm(page, *([single] if single else ()))
    say(f"pictures: {folder / 'pictures'}  ({', '.join(renderers)})")
    say(f"gallery:  {page}")
    if single:
        say(f"one file: {single}  ({size(single.stat().st_size)})")
    else:
        say("to share: copy the whole folder, or set render.single_file=true for a single file")
    if options.tensorboard:
        say(f"events:   {write_events(rendered, options.tensorboard, options.step)}")


def say_archive(archived: Extracted) -> None:
    """Check that the archive exists; print its path and its remaining work."""
    confirm(archived.archive / schema.MANIFEST)
    line = f"archive:  {archived.archive}"
    if archived.complete:
        confirm(archived.archive / schema.INDEX)
        Complete.read(archived.archive)
        say(line)
    elif archived.missing:
        say(f"{line}  (missing: {plural(archived.missing, 'shard')} assigned to other jobs)")
        say(f"progress: featuremaps info {shlex.quote(str(archived.archive))}")
    else:
        say(f"{line}  (all shards are written; another process is completing it)")


@contextmanager
def without_exit() -> Iterator[None]:
    """Turn `sys.exit()` in user code into a ConfigError."""
    try:
        yield
    except SystemExit as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        raise ConfigError(
            f"{where.filename}, line {where.lineno}: called sys.exit({error.code!r}); "
            "remove the call, or put it under `if __name__ == '__main__'`"
        ) from error


def say(line: str) -> None:
    """Print one line to stdout and flush."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


TASKS = {"run": run_job, "extract": extract_job, "render": render_job}
"""Command → function that runs one job; returns `archive` and the fields of `Extracted`."""
