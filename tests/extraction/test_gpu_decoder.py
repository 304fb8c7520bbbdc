"""`loader.decoder=cuda`, with torchvision's decoder on the CPU: files, order, errors, archives."""

from __future__ import annotations

import io
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.io
from PIL import Image
from skimage import data
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F

from pipeline.archive.reading.archive import Archive
from pipeline.common.arrays import Array
from pipeline.common.errors import ConfigError
from pipeline.datasets.decoding import Decoding
from pipeline.datasets.flat_folder import FlatFolder
from pipeline.extraction import gpu_decoder
from pipeline.extraction.extract import extract
from pipeline.extraction.gpu_decoder import check_gpu_decoder, decode_on_gpu, decodes_alike
from pipeline.extraction.loader import Loader
from pipeline.extraction.pixels import pixels_of
from pipeline.models.transforms import Interpolation, Transform
from tests.conftest import tiny_extraction

CPU = torch.device("cpu")
SMALL = Transform(resize=(40,), crop=(32,))


def jpeg(image: Image.Image | None = None, **options: object) -> bytes:
    """Return a photo, or an image, as a JPEG file."""
    file = io.BytesIO()
    (image or Image.fromarray(data.chelsea())).save(file, "JPEG", **options)
    return file.getvalue()


def rotated() -> bytes:
    """Return a photo whose EXIF orientation is not upright."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return jpeg(exif=exif)


def png() -> bytes:
    """Return the photo as a PNG file."""
    file = io.BytesIO()
    Image.fromarray(data.chelsea()).save(file, "PNG")
    return file.getvalue()


FOR_PILLOW = {
    "rotated": rotated(),
    "grey": jpeg(Image.fromarray(data.camera())),
    "cmyk": jpeg(Image.fromarray(data.chelsea()).convert("CMYK")),
    "plain RGB": jpeg(keep_rgb=True),
    "png": png(),
    "cut": jpeg()[:-1000],
    "with a tail": jpeg() + b"tail",
    "text": b"\xff\xd8 no image \xff\xd9",
    "empty": b"",
}


@pytest.mark.parametrize("kind", FOR_PILLOW)
def test_what_may_decode_otherwise_is_left_to_pillow(kind: str) -> None:
    assert not decodes_alike(FOR_PILLOW[kind], SMALL, Decoding())


def test_ordinary_files_are_for_the_gpu() -> None:
    for options in ({}, {"quality": 40}, {"progressive": True}, {"subsampling": 0}):
        assert decodes_alike(jpeg(**options), SMALL, Decoding())
    assert not decodes_alike(jpeg(), SMALL, Decoding(max_pixels=1000))
    assert not decodes_alike(jpeg(), SMALL.grey(), Decoding())
    assert not decodes_alike(Image.fromarray(data.chelsea()), SMALL, Decoding())


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(
    ("resize", "crop"), [((40,), (32,)), ((30, 50), None), (None, (200, 500)), ((20,), (24,))]
)
def test_sizes_and_pixels_are_those_of_pillow_but_for_rounding(
    interpolation: Interpolation, resize: tuple[int, ...] | None, crop: tuple[int, ...] | None
) -> None:
    transform = Transform(resize=resize, crop=crop, interpolation=interpolation)
    photo = Image.fromarray(data.chelsea())
    (found,) = decode_on_gpu([jpeg(photo, quality=95, subsampling=0)], transform, CPU).numpy()
    expected = transform.pixels(photo)
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).mean() < 2


def test_refused_where_it_cannot_work(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="needs a CUDA device, the model runs on cpu"):
        check_gpu_decoder(CPU, SMALL)
    gpu = torch.device("cuda")
    lanczos = replace(SMALL, interpolation="lanczos")
    with pytest.raises(ConfigError, match="bilinear or bicubic only"):
        check_gpu_decoder(gpu, lanczos)

    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("decode_jpegs_cuda: torchvision not compiled with nvJPEG support")

    monkeypatch.setattr(torchvision.io, "decode_jpeg", fails)
    with pytest.raises(ConfigError, match=r"cannot decode on this GPU: .*nvJPEG.*decoder=pillow"):
        check_gpu_decoder(gpu, SMALL)


def test_a_device_out_of_memory_is_not_a_damaged_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(torchvision.io, "decode_jpeg", fails)
    loader = Loader(decoder="cuda")
    with pytest.raises(ConfigError, match="out of memory for 1 file; set a smaller"):
        pixels_of(jpeg(), SMALL, loader, CPU)


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_an_archive_of_mixed_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    monkeypatch.setattr(gpu_decoder, "check_gpu_decoder", lambda *_: None)
    files = {"a": jpeg(), "b": rotated(), "c": jpeg(progressive=True), "d": png(), "e": jpeg()}
    broken = bytearray(jpeg())
    broken[300:20000] = b"\xff\xc4" + bytes(19698)  # tables overwritten, the end is whole
    files["f"] = bytes(broken)
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, content in files.items():
        (folder / f"{name}.{'png' if name == 'd' else 'jpg'}").write_bytes(content)
    config = tiny_extraction(
        tmp_path / "cuda", dataset=FlatFolder(root=str(folder)), on_error="skip"
    )
    loader = replace(config.loader, decoder="cuda", num_workers=workers, batch_size=4)
    config = replace(config, loader=loader)
    pillow = replace(config.loader, decoder="pillow")
    exact = replace(config, archive=tmp_path / "exact", loader=pillow)
    found, plain = (Archive.open(extract(one).archive) for one in (config, exact))
    size = found.image(0).shape[:2]
    transform = found.manifest.identity["transform"]

    def resized(content: bytes) -> Array:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            image = torchvision.io.decode_jpeg(
                torch.frombuffer(bytearray(content), dtype=torch.uint8)
            )
        kind = InterpolationMode(transform["interpolation"])
        if transform["resize"]:
            image = F.resize(image, list(transform["resize"]), kind, antialias=True)
        return F.center_crop(image, list(size)).permute(1, 2, 0).numpy()

    for row, name in enumerate("abcde"):
        ordinary = name in "ace"
        expected = resized(files[name]) if ordinary else plain.image(row)
        np.testing.assert_array_equal(found.image(row), expected, err_msg=name)
    assert found.status.tolist() == plain.status.tolist() == [0, 0, 0, 0, 0, 1]
    assert found.samples[5].error == plain.samples[5].error != ""
    difference = found.manifest.environment["decoder_difference"]
    assert difference["samples"] == 5
    images = [np.stack([one.image(row) for row in range(5)]).astype(int) for one in (found, plain)]
    assert difference["max"] == np.abs(images[0] - images[1]).max() > 0
    assert extract(config).written == 0  # the same pixels again
