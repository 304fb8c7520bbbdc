"""What 8-bit RGB cannot hold is refused with advice that works, never reduced in silence."""

from __future__ import annotations

import io
import struct
import tarfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageFile, TiffImagePlugin, features

from pipeline.common.errors import SampleError
from pipeline.datasets import raster
from pipeline.datasets.adapter import as_image
from pipeline.datasets.base import content_digest, open_dataset
from pipeline.datasets.decoding import Decoding, decode
from pipeline.datasets.sequence import FromSequence
from pipeline.datasets.torchvision import TorchvisionDataset
from tests.conftest import REPOSITORY, photo
from tests.helpers.picture_bytes import png_bytes

DATA = REPOSITORY / "tests/data"
SCALE = Decoding(sixteen_bit="scale")
DROP = Decoding(extra_bands="drop")
ALPHA = Decoding(extra_bands="alpha")
BANDS = np.random.default_rng(0).integers(0, 256, (6, 5, 5), dtype=np.uint8)
GREY16 = np.array([[0, 257, 32768, 65535]], np.uint16)


def tiff(array: np.ndarray, **options: Any) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, array, **options)
    return buffer.getvalue()


def pixels(source: bytes | Image.Image, policy: Decoding = Decoding()) -> np.ndarray:  # noqa: B008
    return np.asarray(decode(source, policy)).astype(int)


def over_white(rgba: np.ndarray) -> np.ndarray:
    colour, alpha = rgba[..., :3].astype(float), rgba[..., 3:] / 255
    return colour * alpha + 255 * (1 - alpha)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize(
    ("values", "text"),
    [
        (np.array([[-128, -1, 0, 127]], np.int8), "signed integers"),
        (np.array([[-5, 0, 70]], np.int16), "values of -5 to 70"),
        (np.array([[0, 70_000]], np.int32), "values of 0 to 70000"),
        (np.array([[0, 255]], np.int32), "values of 0 to 255"),  # scaled, they would be black
        (np.array([[0, 0.5, 1]], np.float32), "floating-point"),
        (np.array([[0, 70_000.0]], np.float32), "floating-point"),
    ],
)
def test_what_has_no_known_scale_is_refused_whatever_the_policy(
    values: np.ndarray, text: str, order: Any
) -> None:
    data = tiff(values, byteorder=order)
    for policy in (Decoding(), SCALE):
        with pytest.raises(SampleError, match=f"{text}.*; save it with 8 or 16 unsigned bits"):
            decode(data, policy)


@pytest.mark.parametrize("values", [np.zeros((4, 4)), np.zeros((4, 4, 3), np.float32)])
def test_a_tiff_that_pillow_cannot_read_says_how_to_save_it(values: np.ndarray) -> None:
    with pytest.raises(SampleError, match="save it as 8-bit grey or RGB"):
        decode(tiff(values, photometric="rgb" if values.ndim == 3 else None), Decoding())


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_sixteen_bit_tiffs_are_refused_then_scaled(order: Any, compression: Any) -> None:
    options = {"byteorder": order, "compression": compression}
    colour = np.stack([GREY16, GREY16[:, ::-1], GREY16], -1)
    for array, more in ((GREY16, {}), (colour, {"photometric": "rgb"})):
        data = tiff(array, **options, **more)
        with pytest.raises(SampleError, match="sixteen_bit=scale"):
            decode(data, Decoding())
        expected = np.round(array / 257)
        found = pixels(data, SCALE)
        np.testing.assert_array_equal(
            found[..., 0], expected if array.ndim == 2 else expected[..., 0]
        )


def png(array: np.ndarray, transparent: tuple[int, ...] = (), bits: int = 16) -> bytes:
    """Write a PNG file by its specification."""
    height, width, channels = array.shape

    def chunk(name: bytes, data: bytes) -> bytes:
        checksum = zlib.crc32(name + data)
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", checksum)

    colour_type = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    shifts = np.arange(bits)[::-1]
    rows = [b"\0" + np.packbits(row.reshape(-1, 1) >> shifts & 1).tobytes() for row in array]
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0))
        + (chunk(b"tRNS", np.array(transparent, ">u2").tobytes()) if transparent else b"")
        + chunk(b"IDAT", zlib.compress(b"".join(rows)))
        + chunk(b"IEND", b"")
    )


DEEP = np.random.default_rng(1).integers(0, 65536, (20, 30, 4)).astype(np.uint16)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_sixteen_bit_png_files_are_rounded(channels: int) -> None:
    levels = np.round(DEEP[..., :channels] / 257)
    colour = np.broadcast_to(levels[..., : 3 if channels > 2 else 1], (20, 30, 3))
    rgba = np.dstack([colour, levels[..., -1] if channels in (2, 4) else np.full((20, 30), 255)])
    found = pixels(png(DEEP[..., :channels]), SCALE)
    assert np.abs(found - over_white(rgba)).max() <= (0.5 if channels in (2, 4) else 0)


@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bit_png_files_with_a_transparent_colour(channels: int) -> None:
    array, transparent = DEEP[..., :channels].copy(), (1000, 2000, 3000)[:channels]
    array[:5], array[5:10] = transparent, (*transparent[:-1], transparent[-1] + 1)
    expected = np.broadcast_to(np.round(array / 257), (20, 30, 3)).copy()
    expected[:5] = 255
    np.testing.assert_array_equal(pixels(png(array, transparent), SCALE), expected)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_every_transparent_grey_of_png_files_with_few_bits(bits: int) -> None:
    levels = np.arange(2**bits).reshape(2, -1, 1)
    for transparent in levels.ravel():
        expected = np.where(levels == transparent, 255, levels * 255 // (2**bits - 1))
        found = pixels(png(levels, (transparent,), bits))
        np.testing.assert_array_equal(found, np.broadcast_to(expected, found.shape))


def test_a_cameras_raw_file_is_not_its_thumbnail() -> None:
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as file:  # as in DNG, NEF and ARW files
        file.write(photo(0, (8, 6)), photometric="rgb", subfiletype=1, subifds=1)
        file.write(DEEP[..., 0], photometric=32803)
    with pytest.raises(SampleError, match="thumbnail"):
        pixels(buffer.getvalue())


@pytest.mark.parametrize(("kind", "value"), [(2, "0"), (5, 0.0), (11, 2.0)])
def test_a_tag_of_the_wrong_type_does_not_matter(kind: int, value: Any) -> None:
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags.tagtype[254] = kind  # whether the image is a thumbnail, an integer
    tags[254] = value
    buffer = io.BytesIO()
    Image.fromarray(photo(0, (8, 6))).save(buffer, "TIFF", tiffinfo=tags)
    np.testing.assert_array_equal(pixels(buffer.getvalue()), photo(0, (8, 6)))


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("tile", [None, (16, 16)])
def test_sixteen_bit_tiff_colours_are_rounded(order: Any, compression: Any, tile: Any) -> None:
    options = {"byteorder": order, "compression": compression, "tile": tile, "photometric": "rgb"}
    levels = np.round(DEEP / 257)
    data = tiff(DEEP[..., :3], **options, extratags=[(274, 3, 1, 6, True)])  # turned clockwise
    np.testing.assert_array_equal(pixels(data, SCALE), np.rot90(levels[..., :3], -1))
    data = tiff(DEEP, **options, extrasamples=["unassalpha"])
    assert np.abs(pixels(data, SCALE) - over_white(levels)).max() <= 0.5
    data = tiff(DEEP, **options, extrasamples=["unspecified"])
    policy = Decoding(sixteen_bit="scale", extra_bands="drop")
    np.testing.assert_array_equal(pixels(data, policy), levels[..., :3])


@pytest.mark.parametrize("order", "<>")
def test_separate_planes_of_sixteen_bits(order: Any) -> None:
    """Pillow reads the bytes of uncompressed ones as pixels."""
    array = np.random.default_rng(0).integers(0, 65536, (3, 9, 7)).astype(np.uint16)
    options = {"photometric": "rgb", "planarconfig": "separate", "byteorder": order}
    with pytest.raises(SampleError, match="separate planes to wrong values; save the image"):
        pixels(tiff(array, **options), SCALE)
    exact = np.moveaxis(array, 0, -1) * (255 / 65535)
    assert np.abs(pixels(tiff(array, **options, compression="zlib"), SCALE) - exact).max() < 1
    bytes_ = (array >> 8).astype(np.uint8)
    np.testing.assert_array_equal(pixels(tiff(bytes_, **options)), np.moveaxis(bytes_, 0, -1))
    grey = options | {"photometric": "minisblack", "extrasamples": ["unassalpha"]}
    for compression in (None, "zlib"):  # Pillow's opacity would be 0
        with pytest.raises(SampleError, match="separate planes to wrong values; save the image"):
            pixels(tiff(bytes_[:2], **grey, compression=compression))


@pytest.mark.parametrize("name", ["PNG", "TIFF", "JPEG2000"])
def test_images_that_a_program_has_opened_are_not_reduced_when_read_again(
    name: str, tmp_path: Path
) -> None:
    content = {
        "PNG": png(DEEP[..., :3]), "TIFF": tiff(DEEP[..., :3], photometric="rgb"),
        "JPEG2000": (DATA / "rgb16.jp2").read_bytes(),
    }[name]  # fmt: skip
    (tmp_path / "image").write_bytes(content)
    memory = io.BytesIO(content)
    with (tmp_path / "image").open("rb") as file:
        images = open_dataset(FromSequence(items=[Image.open(file), Image.open(memory)]))
        position = file.tell()
        for row in (0, 1, 0, 1):
            assert content_digest(images)
            with pytest.raises(SampleError, match=r"more than 8 bits|16-bit colour in JPEG 2000"):
                decode(images.read(row), Decoding())
            if name != "JPEG2000":
                np.testing.assert_array_equal(
                    decode(images.read(row), SCALE), np.round(DEEP[..., :3] / 257)
                )
        assert file.tell() == position  # forked workers share it


def test_opened_images_in_one_archive_are_read_whole(tmp_path: Path) -> None:
    contents = [png_bytes(photo(i)) for i in range(3)]
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for i, content in enumerate(contents):
            member = tarfile.TarInfo(f"{i}.png")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    with tarfile.open(tmp_path / "a.tar") as archive:
        items = [Image.open(archive.extractfile(name)) for name in archive.getnames()]  # type: ignore[arg-type]
        images = open_dataset(FromSequence(items=items))
        for i in range(3):
            np.testing.assert_array_equal(decode(images.read(i), Decoding()), photo(i))


def test_sixteen_bit_grey_whose_white_is_zero_is_not_inverted() -> None:
    data = tiff(GREY16, photometric="miniswhite")
    assert pixels(data, SCALE)[0, :, 0].tolist() == [255, 254, 127, 0]


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_sixteen_bit_sgi_files(channels: int) -> None:
    array = DEEP[..., :channels]
    dimensions = struct.pack(">HHHHH", 474, 2, 2 + (channels > 1), 30, 20)
    head = (dimensions + struct.pack(">H", channels)).ljust(512, b"\0")
    data = head + np.moveaxis(array[::-1], -1, 0).astype(">u2").tobytes()
    with pytest.raises(SampleError, match="sixteen_bit=scale"):
        decode(data, Decoding())
    exact = array / 257 if channels < 4 else over_white(array / 257)
    assert np.abs(pixels(data, SCALE) - exact).max() <= 2


def test_twelve_bit_grey_fills_the_range() -> None:
    """Of tifffile only with another codec: two values of 12 bits are three bytes."""
    data = bytearray(tiff(np.zeros((1, 3), np.uint8)))
    with tifffile.TiffFile(io.BytesIO(bytes(data))) as file:
        tags = file.pages[0].tags
        width, bits, strip = tags["ImageWidth"], tags["BitsPerSample"], tags["StripOffsets"]
    data[width.valueoffset : width.valueoffset + 2] = (2).to_bytes(2, "little")
    data[bits.valueoffset : bits.valueoffset + 2] = (12).to_bytes(2, "little")
    data[strip.value[0] : strip.value[0] + 3] = b"\xff\xf8\x00"  # 4095, 2048
    with pytest.raises(SampleError, match="sixteen_bit=scale"):
        decode(bytes(data), Decoding())
    assert pixels(bytes(data), SCALE)[0, :, 0].tolist() == [255, 128]


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("scale", [1, 256, 257])
def test_tiff_palettes_of_8_and_of_16_bits(scale: int, order: Any) -> None:
    colours = np.random.default_rng(0).integers(0, 256, (3, 256)).astype(np.uint16)
    data = tiff(
        BANDS[..., 0], photometric="palette", colormap=colours * scale, byteorder=order
    )  # fmt: skip
    np.testing.assert_array_equal(pixels(data), colours.T[BANDS[..., 0]])


def test_a_colour_that_stands_for_transparency_survives_sixteen_bits() -> None:
    buffer = io.BytesIO()
    Image.fromarray(GREY16).save(buffer, "PNG", transparency=257)
    assert pixels(buffer.getvalue(), SCALE)[0, :, 0].tolist() == [0, 255, 128, 255]


@pytest.mark.parametrize("largest", [1023, 65535])
def test_pnm_files_of_more_than_eight_bits(largest: int) -> None:
    values = np.array([0, largest // 2, largest] * 2, ">u2")
    for kind, shape in (("P5", "6 1"), ("P6", "2 1")):
        data = f"{kind} {shape} {largest}\n".encode() + values.tobytes()
        with pytest.raises(SampleError, match="sixteen_bit=scale"):
            decode(data, Decoding())
        found = pixels(data, SCALE).reshape(-1, 3)
        expected = np.repeat(values[:, None], 3, 1) if kind == "P5" else values.reshape(-1, 3)
        np.testing.assert_allclose(found, expected * 255.0 / largest, atol=0.51)


def test_sixteen_bit_jpeg_2000() -> None:
    buffer = io.BytesIO()
    Image.fromarray(GREY16).save(buffer, "JPEG2000")
    with pytest.raises(SampleError, match="sixteen_bit=scale"):
        decode(buffer.getvalue(), Decoding())
    assert pixels(buffer.getvalue(), SCALE)[0, :, 0].tolist() == [0, 1, 128, 255]
    for policy in (Decoding(), SCALE):  # Pillow makes black of its white
        with pytest.raises(SampleError, match="16-bit colour in JPEG 2000"):
            decode((DATA / "rgb16.jp2").read_bytes(), policy)
    buffer = io.BytesIO()
    Image.fromarray(photo()).save(buffer, "JPEG2000")
    np.testing.assert_array_equal(pixels(buffer.getvalue()), photo())


@pytest.mark.parametrize("name", ["rgb10.avif", "rgb10.heic"])
def test_ten_bit_avif_and_heic(name: str) -> None:
    """Both hold white above, below it grey on the left and black on the right."""
    if name.endswith("avif") and not features.check("avif"):
        pytest.skip("this Pillow reads no AVIF")
    data = (DATA / name).read_bytes()
    with pytest.raises(SampleError, match="sixteen_bit=scale"):
        decode(data, Decoding())
    found = pixels(data, SCALE)
    np.testing.assert_allclose(found[[0, 7, 7], [0, 0, 7]].mean(-1), [255, 128, 0], atol=2)
    buffer = io.BytesIO()
    plain = Image.new("RGB", (16, 8), (40, 90, 200))
    plain.save(buffer, "AVIF" if name.endswith("avif") else "HEIF", quality=95)
    np.testing.assert_allclose(pixels(buffer.getvalue()), np.asarray(plain), atol=6)  # of 8 bits


def test_five_bits_per_channel_are_no_sixteen() -> None:
    head = b"BM" + (70 + 4).to_bytes(4, "little") + bytes(4) + (70).to_bytes(4, "little")
    size = (56).to_bytes(4, "little") + (2).to_bytes(4, "little") + (1).to_bytes(4, "little")
    rest = b"\1\0\x10\0" + (3).to_bytes(4, "little") + (4).to_bytes(4, "little") + bytes(16)
    masks = b"".join(mask.to_bytes(4, "little") for mask in (0xF800, 0x7E0, 0x1F, 0))
    data = (
        head + size + rest + masks + (0xF800).to_bytes(2, "little") + (0x7FF).to_bytes(2, "little")
    )
    assert pixels(data).tolist() == [[[255, 0, 0], [0, 255, 255]]]


@pytest.mark.parametrize("kind", ["BMP", "DIB", "ICO", "TGA"])
@pytest.mark.parametrize("opacity", [0, 51])
def test_an_opacity_that_was_left_empty_hides_nothing(kind: str, opacity: int) -> None:
    array = np.dstack([photo(0, (16, 16)), np.full((16, 16), 255, np.uint8)])
    array[..., 3] = opacity
    expected = array[..., :3] if opacity == 0 else over_white(array)
    if kind in ("BMP", "DIB"):  # Pillow does not write the mask
        header = struct.pack("<IiiHHIIiiII", 124, 16, 16, 1, 32, 3, 0, 0, 0, 0, 0)
        masks = struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
        data = (header + masks).ljust(124, b"\0") + array[::-1, :, [2, 1, 0, 3]].tobytes()
        data = data if kind == "DIB" else b"BM" + struct.pack("<III", 14 + len(data), 0, 138) + data
    else:
        buffer = io.BytesIO()
        options = {"bitmap_format": "bmp", "sizes": [(16, 16)]} if kind == "ICO" else {}
        Image.fromarray(array).save(buffer, kind, **options)  # type: ignore[arg-type]
        data = buffer.getvalue()
    assert np.abs(pixels(data) - expected).max() <= 1


UNDECLARED = {
    "RGB and infrared": (BANDS[..., :4], {"photometric": "rgb", "extrasamples": ["unspecified"]}),
    "two more": (BANDS, {"photometric": "rgb", "extrasamples": ["unspecified"] * 2}),
    "grey and another": (
        BANDS[..., :2],
        {"photometric": "minisblack", "planarconfig": "contig", "extrasamples": ["unspecified"]},
    ),
    "CMYK and another": (BANDS, {"photometric": "separated", "extrasamples": ["unspecified"]}),
}


@pytest.mark.parametrize("name", UNDECLARED)
def test_bands_that_are_no_colour_are_refused_or_dropped(name: str) -> None:
    array, options = UNDECLARED[name]
    data = tiff(array, **options)
    with pytest.raises(SampleError, match="extra_bands=drop"):
        decode(data, Decoding())
    found = pixels(data, DROP)
    if name.startswith("grey"):
        np.testing.assert_array_equal(found, np.repeat(array[..., :1], 3, -1))
    elif name.startswith("CMYK"):
        plain = Image.frombytes("CMYK", (5, 6), np.ascontiguousarray(array[..., :4]).tobytes())
        np.testing.assert_array_equal(found, np.asarray(plain.convert("RGB")))
    else:
        np.testing.assert_array_equal(found, array[..., :3])
    with pytest.raises(SampleError, match=r"set loader\.decoding\.extra_bands=drop"):
        decode(data, ALPHA)  # Pillow has dropped the band


def test_a_fourth_band_without_a_declaration_is_opacity_only_if_asked() -> None:
    array = BANDS[..., :4]
    data = bytearray(tiff(array, photometric="rgb", extrasamples=["unassalpha"]))
    np.testing.assert_allclose(pixels(bytes(data)), over_white(array), atol=1)  # declared
    with tifffile.TiffFile(io.BytesIO(bytes(data))) as file:
        tag = file.pages[0].tags["ExtraSamples"]
    data[tag.offset : tag.offset + 2] = (60_000).to_bytes(2, "little")  # a private tag
    for source in (bytes(data), as_image(array), as_image(array / 255.0)):
        with pytest.raises(SampleError, match="extra_bands=drop"):
            decode(source, Decoding())
        np.testing.assert_array_equal(pixels(source, DROP), array[..., :3])
        np.testing.assert_allclose(pixels(source, ALPHA), over_white(array), atol=1)
    np.testing.assert_allclose(pixels(Image.fromarray(array)), over_white(array), atol=1)


def test_grey_with_opacity_lies_over_the_background() -> None:
    buffer = io.BytesIO()
    Image.fromarray(BANDS[..., :2].copy(), "LA").save(buffer, "PNG")
    grey = np.repeat(BANDS[..., :1], 3, -1)
    expected = over_white(np.concatenate([grey, BANDS[..., 1:2]], -1))
    np.testing.assert_allclose(pixels(buffer.getvalue()), expected, atol=1)


def test_truncated_files_are_refused_whatever_a_module_has_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    buffer = io.BytesIO()
    Image.fromarray(photo()).save(buffer, "JPEG")
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(SampleError, match="truncated"):
        decode(buffer.getvalue()[: len(buffer.getvalue()) // 2], Decoding())
    held = open_dataset(FromSequence(items=[Image.open(io.BytesIO(buffer.getvalue()[:-400]))]))
    assert content_digest(held)
    with pytest.raises(SampleError, match="truncated"):
        decode(held.read(0), Decoding())
    assert ImageFile.LOAD_TRUNCATED_IMAGES  # the module's own reading is left alone


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
FOREIGN = {
    "EPS": (EPS, "PostScript is not supported"),
    "EPS in a DOS file": (
        b"\xc5\xd0\xd3\xc6" + (32).to_bytes(4, "little") + bytes(24) + EPS,
        "Post",
    ),
    "PDF": (b"%PDF-1.4\n", "PDF is not supported"),
    "WMF": (b"\xd7\xcd\xc6\x9a\0\0" + bytes(40), "WMF is not supported"),
    "Git LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    "EMF": (b"\1\0\0\0" + bytes(36) + b" EMF" + bytes(80), "not an image"),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(99), "not an image"),
    "FITS": (b"SIMPLE  =                    T".ljust(2880), "not an image"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_no_other_program_is_started_for_a_file(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def started(*args: Any, **_options: Any) -> None:
        pytest.fail(f"started {args}")

    monkeypatch.setattr("subprocess.Popen", started)
    monkeypatch.setattr("subprocess.check_call", started)
    monkeypatch.setattr("os.system", started)
    content, text = FOREIGN[name]
    with pytest.raises(SampleError, match=text):
        decode(content, Decoding())
    (tmp_path / "cats").mkdir()
    (tmp_path / "cats" / "cat.jpg").write_bytes(content)
    images = open_dataset(TorchvisionDataset(name="ImageFolder", root=str(tmp_path)))
    with pytest.raises(SampleError, match=text):
        decode(images.read(0), Decoding())
    if name == "EPS":
        opened = Image.open(tmp_path / "cats" / "cat.jpg")  # by a program, which has not loaded it
        held = open_dataset(FromSequence(items=[opened]))
        assert content_digest(held)
        with opened, pytest.raises(SampleError, match=text):
            decode(held.read(0), Decoding())


def test_images_that_need_a_plugin_name_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {".heic", ".heif", ".avif", ".jpg"} <= raster.image_endings()
    assert not {".eps", ".ps", ".pdf", ".wmf", ".h5"} & raster.image_endings()
    formats = tuple(name for name in raster.raster_formats() if name not in ("AVIF", "HEIF"))
    monkeypatch.setattr("pipeline.datasets.raster.raster_formats", lambda: formats)
    for name in ("rgb10.avif", "rgb10.heic"):
        with pytest.raises(SampleError, match=r"pip install 'featuremaps\[heif\]'"):
            decode((DATA / name).read_bytes(), SCALE)
