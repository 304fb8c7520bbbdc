"""Gallery as one HTML file with embedded pictures.

Its content security policy allows only the embedded script and style, by their hashes.
"""

import base64
import hashlib
import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup
from PIL import Image

from pipeline.archive.reading.archive import Archive
from pipeline.common.atomic_files import write_bytes
from pipeline.common.errors import ConfigError
from pipeline.common.progress import size, track
from pipeline.gallery.pages import Pages
from pipeline.gallery.templating import asset
from pipeline.rendering.options import THUMBNAILS
from pipeline.rendering.render import Rendered

LARGEST = 200 * 1024**2
"""Maximum bytes of pictures in one file; browsers slow down beyond it."""

OF_SAMPLE, OF_ARCHIVE = 550_000, 150_000
"""Maximum bytes per sample of its pictures and of the archive's: 1 MB of HTML per sample."""

_CHANNELS = 64  # rows of a layer's table
_MEDIA = {"png": "image/png", "webp": "image/webp", "jpeg": "image/jpeg", "svg": "image/svg+xml"}


def write_single_file(archive: Archive, rendered: Rendered) -> Path:
    """Write `gallery.html` beside the gallery's folder and return it."""
    page = _SingleFile(archive, rendered)
    if page.bytes > LARGEST:
        raise ConfigError(
            f"render.single_file: the pictures take {size(page.bytes)}, the limit is "
            f"{size(LARGEST)}; select fewer with render.samples (the gallery folder is complete)"
        )
    path = rendered.folder / "gallery.html"
    write_bytes(path, page.html().encode("utf-8"), durable=False)
    return path


def _fitted(
    pictures: Sequence[bytes], largest: int, step: int
) -> tuple[list[tuple[str, bytes]], int]:
    """Return pictures as WebP of at most `largest` bytes in total, and the step that it took.

    Each step from the given one on reduces the quality first, then the size.
    """
    while True:
        scale, quality = 0.8 ** max(0, step - 2), 85 - 10 * min(step, 3)
        encoded = [_webp(content, scale, quality) for content in pictures]
        if sum(map(len, encoded)) <= largest or scale < 0.02:
            return [("webp", content) for content in encoded], step
        step += 1


def _webp(content: bytes, scale: float, quality: int) -> bytes:
    with Image.open(io.BytesIO(content)) as opened:
        image = opened.convert("RGB")
    smaller = [max(1, round(side * scale)) for side in image.size]
    if scale < 1:
        image = image.resize((smaller[0], smaller[1]), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "webp", quality=quality, method=2)
    return buffer.getvalue()


class _SingleFile(Pages):
    def __init__(self, archive: Archive, rendered: Rendered) -> None:
        super().__init__(archive, rendered, rendered.folder)
        self._environment.filters["data"] = self._data
        self._contents: dict[Path, tuple[str, bytes]] = {}
        pictures = [rendered.pictures(sample) for sample in rendered.samples]
        self._strips = {p.path for of in pictures for p in of if p.renderer == THUMBNAILS}
        self._groups = [([p.path for p in of], OF_SAMPLE) for of in pictures if of]
        limit = OF_ARCHIVE * max(1, len(self._groups))
        self._groups.append(([picture.path for picture in rendered.of_archive], limit))
        sizes = [sum((self._folder / path).stat().st_size for path in paths)
                 for paths, _ in self._groups]  # fmt: skip
        limits = [largest for _, largest in self._groups]
        self.bytes = sum(map(min, sizes, limits))
        self._reduced = any(map(int.__gt__, sizes, limits))

    def html(self) -> str:
        """Return the file's text."""
        self._read()
        style, script = asset("static/style.css"), asset("static/gallery.js")
        icon = base64.b64encode(asset("static/icon.svg").encode()).decode()
        return self._environment.get_template("single.html").render(
            rows=[self.sample_values(sample) for sample in self._rendered.samples],
            reduced=self._reduced,
            shown=_CHANNELS,
            parts=[self.layer_values(layer) for layer in self._layers],
            style=Markup(style),
            script=Markup(script),
            style_hash=_hash(style),
            script_hash=_hash(script),
            icon=f"data:image/svg+xml;base64,{icon}",
            **self.configuration_values(),
        )

    def _read(self) -> None:
        steps: Counter[int] = Counter()  # by limit: samples begin alike, so that they look alike
        for paths, largest in track("single file", self._groups, unit="groups"):
            contents = {path: (self._folder / path).read_bytes() for path in paths}
            embedded = {path: (path.suffix[1:], content) for path, content in contents.items()}
            if sum(map(len, contents.values())) > largest:
                room = largest
                for path in self._strips & contents.keys():  # shown at a fixed size
                    strip = _webp(contents.pop(path), 1, 80)
                    embedded[path], room = ("webp", strip), room - len(strip)
                reduced, step = _fitted([*contents.values()], room, steps[largest])
                embedded |= zip(contents, reduced, strict=True)
                steps[largest] = step
            self._contents |= embedded

    def _data(self, path: Path) -> str:
        kind, content = self._contents[path]
        return f"data:{_MEDIA[kind]};base64,{base64.b64encode(content).decode()}"


def _hash(text: str) -> str:
    """Return the content security policy hash of an inline script or style."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
