"""Decoding policy and datasets.

Every kind of file is decoded as stated or refused with a reason; order is stable.
"""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from pipeline.common.errors import ConfigError, SampleError
from pipeline.datasets.base import open_dataset
from pipeline.datasets.decoding import Decoding, decode, read_regular
from pipeline.datasets.flat_folder import FlatFolder
from pipeline.datasets.image_folder import ImageFolder
from pipeline.datasets.sample_images import PHOTOS, SampleImages
from pipeline.datasets.synthetic import Synthetic
from tests.conftest import photo


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


def test_modes_become_rgb_as_pillow_converts_them() -> None:
    colour = Image.fromarray(photo())
    for mode in ("L", "P", "1", "CMYK", "YCbCr"):
        image = colour.convert(mode)
        kind = "TIFF" if mode in ("CMYK", "YCbCr") else "PNG"
        # Pillow before 13 cannot read the uncompressed YCbCr that it writes.
        options = {"compression": "tiff_lzw"} if kind == "TIFF" else {}
        found = decode(encoded(image, kind, **options), Decoding())
        assert found.mode == "RGB"
        np.testing.assert_allclose(
            np.asarray(found, int), np.asarray(image.convert("RGB"), int), atol=1
        )


def test_transparency_lies_over_the_background() -> None:
    alpha = np.zeros((2, 2, 4), np.uint8)
    alpha[..., 0] = 200
    alpha[0, 0, 3], alpha[0, 1, 3] = 255, 51
    data = encoded(Image.fromarray(alpha), "PNG")
    white, black = (
        np.asarray(decode(data, Decoding(background=c)), int) for c in ("white", "#000000")
    )
    assert white[0, 0].tolist() == black[0, 0].tolist() == [200, 0, 0]
    np.testing.assert_allclose(white[0, 1], [0.2 * 200 + 0.8 * 255, 0.8 * 255, 0.8 * 255], atol=1)
    assert white[1, 1].tolist() == [255, 255, 255]
    assert black[1, 1].tolist() == [0, 0, 0]
    palette = Image.fromarray(photo()).convert("P")
    palette.info["transparency"] = 3
    assert decode(encoded(palette, "PNG", transparency=3), Decoding()).mode == "RGB"


@pytest.mark.parametrize("mode", ["La", "RGBa"])
def test_premultiplied_opacity_lies_over_the_background(mode: str) -> None:
    values = {"La": (40, 102), "RGBa": (40, 20, 60, 102)}[mode]
    image = Image.frombytes(mode, (3, 2), bytes(values) * 6)
    expected = [colour + 255 - 102 for colour in values[:-1]]
    pixels = np.asarray(decode(image, Decoding())).reshape(-1, 3).astype(int)
    assert np.abs(pixels - expected).max() <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    upright = Image.fromarray(photo())
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(undo[orientation]) if orientation in undo else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = decode(encoded(stored, "PNG", exif=exif), Decoding())
    np.testing.assert_array_equal(np.asarray(found), np.asarray(upright))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(("exif", "turned"), [
    (b"Exif\0\0no TIFF header", False),
    (b"Exif\0\0II*\0", False),
    # The maker is a number, and the photo a quarter turn away.
    (b"Exif\0\0II*\0\x08\0\0\0\2\0\x0f\1\5\0\1\0\0\0\x08\0\0\0"
     b"\x12\1\3\0\1\0\0\0\6\0\0\0\0\0\0\0", True),
])  # fmt: skip
def test_damaged_exif_data_do_not_matter(kind: str, exif: bytes, turned: bool) -> None:
    data = encoded(Image.new("RGB", (8, 4)), kind, exif=exif)
    assert decode(data, Decoding()).size == ((4, 8) if turned else (8, 4))


def test_long_texts_and_large_profiles_do_not_matter() -> None:
    texts = PngImagePlugin.PngInfo()
    texts.add_itxt("XML:com.adobe.xmp", "x" * 2**22, zip=True)
    data = encoded(Image.new("RGB", (8, 4), "red"), "PNG", pnginfo=texts, icc_profile=bytes(2**22))
    assert decode(data, Decoding()).getpixel((0, 0)) == (255, 0, 0)


def _png16(colour: int) -> bytes:
    """A 2×2 PNG with 16 bits per channel, written by hand: grey (0) or RGB (2)."""
    channels = {0: 1, 2: 3}[colour]
    rows = b"".join(
        b"\0" + struct.pack(f">{2 * channels}H", *[0, 65535][:1] * channels, *[65535] * channels)
        for _ in "ab"
    )

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = struct.pack(">IIBBBBB", 2, 2, 16, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("colour", [0, 2])
def test_sixteen_bits_are_refused_or_scaled(colour: int) -> None:
    with pytest.raises(SampleError, match="sixteen_bit=scale"):
        decode(_png16(colour), Decoding())
    found = np.asarray(decode(_png16(colour), Decoding(sixteen_bit="scale")))
    assert found[0].tolist() == [[0, 0, 0], [255, 255, 255]]


def test_sixteen_bit_grey_is_scaled_not_saturated() -> None:
    values = np.array([[0, 257, 32768, 65535]], np.uint16)
    found = np.asarray(
        decode(encoded(Image.fromarray(values), "PNG"), Decoding(sixteen_bit="scale"))
    )
    assert found[0, :, 0].tolist() == [0, 1, 128, 255]


def test_animations_are_refused_or_their_first_frame_taken() -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    for kind in ("GIF", "PNG", "WEBP", "TIFF"):
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
        with pytest.raises(SampleError, match="2 frames"):
            decode(data, Decoding())
        first = np.asarray(decode(data, Decoding(multi_frame="first")))
        assert first[4, 4, 0] > 200
    assert decode(encoded(frames[0], "GIF"), Decoding()).mode == "RGB"


def test_a_phones_multi_picture_jpeg_is_its_photo() -> None:
    frames = [Image.fromarray(photo(i)) for i in range(2)]
    data = encoded(frames[0], "MPO", save_all=True, append_images=frames[1:], quality=95)
    assert decode(data, Decoding()).size == (48, 40)


def test_damage_is_named() -> None:
    jpeg, png = (encoded(Image.fromarray(photo()), kind) for kind in ("JPEG", "PNG"))
    broken = bytearray(png)
    broken[len(png) // 2] ^= 0xFF
    cases = {
        "empty": (b"", "empty"),
        "text": (b"hello, I am a photo", "not an image"),
        "truncated jpeg": (jpeg[: len(jpeg) // 2], "damaged image"),
        "truncated png": (png[: len(png) // 2], "damaged image"),
        "one damaged byte": (bytes(broken), "damaged image"),
    }
    for name, (data, text) in cases.items():
        with pytest.raises(SampleError, match=text):
            decode(data, Decoding())
            pytest.fail(name)


def test_an_image_without_pixels_is_named() -> None:
    for size in ((0, 5), (5, 0), (0, 0)):
        with pytest.raises(SampleError, match=f"{size[0]}×{size[1]} pixels is empty"):
            decode(Image.new("RGB", size), Decoding())


@pytest.mark.slow
def test_bombs_are_refused_before_decoding() -> None:
    data = encoded(Image.new("1", (16000, 16000)), "PNG")
    with pytest.raises(SampleError, match="pixels"):
        decode(data, Decoding())
    with pytest.raises(SampleError, match="max_pixels=100"):
        decode(encoded(Image.fromarray(photo()), "PNG"), Decoding(max_pixels=100))
    assert decode(data, Decoding(max_pixels=16000**2)).size == (16000, 16000)


def test_pipes_devices_and_missing_files_do_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    for path in (tmp_path / "pipe.jpg", Path("/dev/zero"), tmp_path):
        with pytest.raises(SampleError, match=r"not a regular file|Is a directory"):
            read_regular(path)
    with pytest.raises(SampleError, match="No such file"):
        read_regular(tmp_path / "none.jpg")


def test_image_folder_takes_classes_and_loose_files(photos: Path) -> None:
    images = open_dataset(ImageFolder(root=str(photos)))
    assert [(s.id, s.label, s.label_name) for s in images.samples] == [
        ("cats/cmyk.jpg", 0, "cats"),
        ("cats/colour.jpg", 0, "cats"),
        ("cats/grey.png", 0, "cats"),
        ("dogs/alpha.png", 1, "dogs"),
        ("dogs/deep/bits.png", 1, "dogs"),
        ("dogs/deep/palette.png", 1, "dogs"),
        ("dogs/turned.jpg", 1, "dogs"),
        ("loose.webp", -1, ""),
    ]
    assert images.read(7) == (photos / "loose.webp").read_bytes()


def test_flat_folder_has_no_labels_and_misses_nothing(photos: Path) -> None:
    images = open_dataset(FlatFolder(root=str(photos)))
    assert len(images.samples) == 8
    assert {sample.label for sample in images.samples} == {-1}


def test_links_hidden_files_and_loops(photos: Path, tmp_path: Path) -> None:
    (photos / "cats" / "loop").symlink_to(photos)
    (photos / "self.jpg").symlink_to(photos / "self.jpg")
    (photos / "gone.jpg").symlink_to(photos / "nowhere.jpg")
    (photos / ".hidden").mkdir()
    (photos / ".hidden" / "secret.jpg").write_bytes((photos / "cats" / "colour.jpg").read_bytes())
    os.mkfifo(photos / "pipe.jpg")
    (tmp_path / "more").mkdir()
    Image.fromarray(photo()).save(tmp_path / "more" / "outside.png")
    (photos / "linked").symlink_to(tmp_path / "more")
    ids = [sample.id for sample in open_dataset(ImageFolder(root=str(photos))).samples]
    assert len(ids) == len(set(ids)) == 9
    assert "linked/outside.png" in ids


def test_names_that_are_no_unicode_still_have_ids(tmp_path: Path) -> None:
    data = encoded(Image.fromarray(photo()), "PNG")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png")).write_bytes(data)
    (tmp_path / "<script>alert(1)</script>.png".replace("/", "∕")).write_bytes(data)
    images = open_dataset(FlatFolder(root=str(tmp_path)))
    assert "caf\\xe9.png" in [sample.id for sample in images.samples]
    assert all(decode(images.read(i), Decoding()) for i in range(2))


def test_missing_and_empty_folders_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for dataset in (ImageFolder, FlatFolder):
        with pytest.raises(ConfigError, match=r"dataset\.root: .*does not exist"):
            open_dataset(dataset(root=str(tmp_path / "none")))
        with pytest.raises(ConfigError, match="no image files"):
            open_dataset(dataset(root=str(tmp_path)))
        with pytest.raises(ConfigError, match=r"File name too long|does not exist"):
            open_dataset(dataset(root=str(tmp_path / ("x" * 300))))
    monkeypatch.chdir(tmp_path)  # an archive of another folder may record a relative path
    with pytest.raises(ConfigError, match=rf"dataset\.root: photos does not exist in {tmp_path}$"):
        open_dataset(FlatFolder(root="photos"))


def test_sample_images_are_free_photos_with_labels() -> None:
    images = open_dataset(SampleImages())
    assert len(images.samples) == len(PHOTOS) >= 8
    assert all(licence.startswith(("CC0", "public domain")) for *_, licence in PHOTOS)
    assert all(decode(images.read(i), Decoding()).size[0] > 200 for i in range(len(PHOTOS)))
    assert next(s for s in images.samples if s.id == "chelsea").label_name == "cat"


def test_synthetic_images_are_the_same_everywhere() -> None:
    one, two = (open_dataset(Synthetic(samples=3, height=9, width=8)) for _ in range(2))
    np.testing.assert_array_equal(np.asarray(one.read(2)), np.asarray(two.read(2)))
    assert np.asarray(one.read(1)).shape == (9, 8, 3)
    assert not np.array_equal(np.asarray(one.read(0)), np.asarray(one.read(1)))


def test_limit_takes_the_first_samples(photos: Path) -> None:
    assert [s.id for s in open_dataset(FlatFolder(root=str(photos), limit=2)).samples] == [
        "cats/cmyk.jpg",
        "cats/colour.jpg",
    ]
