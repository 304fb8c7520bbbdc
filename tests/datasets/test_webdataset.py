"""WebDataset shards as people make them: keys, several images, braces, order, limits."""

from __future__ import annotations

import io
import json
import subprocess
import tarfile
from itertools import islice
from pathlib import Path

import pytest

from pipeline.archive.reading.archive import Archive
from pipeline.common.errors import ConfigError
from pipeline.datasets.base import content_digest, open_dataset
from pipeline.datasets.webdataset import WebDataset, expand_braces
from tests.conftest import Run, photo
from tests.helpers.picture_bytes import png_bytes

PICTURES = [png_bytes(photo(seed, (12, 10))) for seed in range(4)]


def tar(path: Path, *members: tuple[str, bytes], links: tuple[tuple[str, str], ...] = ()) -> str:
    """Write a tar file of named contents, and hard links from names to names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        for name, target in links:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.LNKTYPE, target
            archive.addfile(member)
    return str(path)


def ids(dataset: WebDataset) -> list[str]:
    return [sample.id for sample in open_dataset(dataset).samples]


def test_keys_that_repeat_are_told_apart_by_their_shard(tmp_path: Path) -> None:
    one, two, other = (
        tar(tmp_path / name, ("0.png", PICTURES[i]), ("1.png", PICTURES[i + 1]))
        for i, name in enumerate(("s-00.tar", "s-01.tar", "other/s-01.tar"))
    )
    images = open_dataset(WebDataset(shards=(one, two, other)))
    assert [sample.id for sample in images.samples] == [
        "0", "1", "s-01/0", "s-01/1", "other/s-01/0", "other/s-01/1"
    ]  # fmt: skip
    assert [images.read(row) for row in range(6)] == [PICTURES[i] for i in (0, 1, 1, 2, 2, 3)]
    assert images.samples[4].path == f"{other}#0"
    # The ids of the first samples depend on nothing that comes after them.
    assert ids(WebDataset(shards=(one, two), limit=3)) == ["0", "1", "s-01/0"]
    with pytest.raises(ConfigError, match=r"s-00\.tar is listed twice"):
        open_dataset(WebDataset(shards=(one, str(tmp_path / "*.tar"))))


@pytest.mark.parametrize("names", [("a.seg.png", "a.png"), ("a.png", "a.depth.seg.png")])
def test_a_mask_is_not_the_image_whatever_comes_first(
    tmp_path: Path, names: tuple[str, str]
) -> None:
    contents = {name: PICTURES["seg" in name] for name in names}
    path = tar(tmp_path / "a.tar", *contents.items())
    assert open_dataset(WebDataset(shards=(path,))).read(0) == PICTURES[0]
    ending = next(name for name in names if "seg" in name)[2:]  # without its dot
    mask = open_dataset(WebDataset(shards=(path,), image_ending=ending.upper()))
    assert mask.read(0) == PICTURES[1]


def test_a_sample_without_its_image_is_left_out_not_replaced_by_its_mask(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tar(tmp_path / "a.tar", ("a.seg.png", PICTURES[1]), ("b.png", PICTURES[0]))
    images = open_dataset(WebDataset(shards=(path,)))
    assert [(sample.id, images.read(0)) for sample in images.samples] == [("b", PICTURES[0])]
    assert f"skipped 1 sample without an image, such as {path}#a" in caplog.text
    only = tar(tmp_path / "b.tar", ("a.rgb.png", PICTURES[2]), ("a.cls", b"3"))
    images = open_dataset(WebDataset(shards=(only,)))
    assert (images.read(0), images.samples[0].label) == (PICTURES[2], 3)


@pytest.mark.parametrize("names", [("1.png", "2.png"), ("png", "jpg"), ("rgb.png", "seg.png")])
def test_several_images_under_one_key_are_not_merged(
    tmp_path: Path, names: tuple[str, str]
) -> None:
    path = tar(tmp_path / "a.tar", *((f"a.{name}", PICTURES[i]) for i, name in enumerate(names)))
    with pytest.raises(ConfigError, match=rf"sample 'a' has several images \(\.{names[0]}, "):
        open_dataset(WebDataset(shards=(path,)))
    chosen = open_dataset(WebDataset(shards=(path,), image_ending=f".{names[1]}"))
    assert (len(chosen.samples), chosen.read(0)) == (1, PICTURES[1])
    with pytest.raises(ConfigError, match=rf"image_ending: no images.* \.{names[0]}"):
        open_dataset(WebDataset(shards=(path,), image_ending="webp"))


def test_keys_may_reach_to_the_last_dot(tmp_path: Path) -> None:
    path = tar(
        tmp_path / "a.tar",
        ("IMG.2020.png", PICTURES[0]), ("IMG.2020.cls", b"4"), ("IMG.2021.png", PICTURES[1]),
    )  # fmt: skip
    images = open_dataset(WebDataset(shards=(path,), key_until="last_dot"))
    assert [(s.id, s.label) for s in images.samples] == [("IMG.2020", 4), ("IMG.2021", -1)]
    assert images.read(1) == PICTURES[1]


def test_members_that_systems_add_links_and_repetitions(tmp_path: Path) -> None:
    path = tar(
        tmp_path / "a.tar",
        ("./x/a.png", PICTURES[0]), ("./x/._a.png", b""), ("__MACOSX/x/a.png", b""),
        ("x/@eaDir/a.png", b""), ("x/.thumbnails/a.png", b""), ("x/b.CLS", b"1"),
        links=(("x/b.png", "./x/a.png"),),
    )  # fmt: skip
    images = open_dataset(WebDataset(shards=(path,)))
    assert [(s.id, s.label) for s in images.samples] == [("x/a", -1), ("x/b", 1)]
    assert images.read(0) == images.read(1) == PICTURES[0]
    twice = tar(tmp_path / "b.tar", ("a.png", PICTURES[0]), ("a.PNG", PICTURES[1]))
    with pytest.raises(ConfigError, match=r"a\.PNG occurs twice"):
        open_dataset(WebDataset(shards=(twice,)))


def test_a_tar_file_that_is_cut_or_damaged_between_members_is_an_error(tmp_path: Path) -> None:
    path = Path(tar(tmp_path / "a.tar", *((f"{n}.png", PICTURES[n]) for n in range(3))))
    whole = path.read_bytes()
    with tarfile.open(path) as archive:
        starts = [member.offset for member in archive]
    assert ids(WebDataset(shards=(str(path),))) == ["0", "1", "2"]
    path.write_bytes(whole.rstrip(b"\0") + bytes(-len(whole.rstrip(b"\0")) % 512))  # no end mark
    assert ids(WebDataset(shards=(str(path),))) == ["0", "1", "2"]
    for content in (
        whole[: starts[1] + 100],
        whole[: starts[2]] + b"?" + whole[starts[2] + 1 :],
        whole[: starts[1]] + bytes(range(256)) * 2 + whole[starts[1] + 512 :],
        whole * 2,
    ):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match="damaged, truncated or followed by another file at"):
            ids(WebDataset(shards=(str(path),)))


def test_members_above_their_folder_and_labels_nested_too_deeply(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", ("../up/a.png", PICTURES[0]), ("../up/a.json", b"[" * 99_999))
    assert ids(WebDataset(shards=(path,))) == ["up/a"]


@pytest.mark.parametrize(
    ("pattern", "texts"),
    [
        ("s-{000000..000002}.tar", ["s-000000.tar", "s-000001.tar", "s-000002.tar"]),
        ("{0,1}.tar", ["0.tar", "1.tar"]),
        ("{val,train-{08..10}}.tar", ["val.tar", "train-08.tar", "train-09.tar", "train-10.tar"]),
        ("{a,b}{1..2}", ["a1", "a2", "b1", "b2"]),
        ("{8..10}", ["8", "9", "10"]),
        ("{2..0}", ["2", "1", "0"]),
        ("{0..6..3}", ["0", "3", "6"]),
        ("a{b}c{}", ["a{b}c{}"]),
        ("{a,b", ["{a,b"]),
    ],
)
def test_braces_stand_for_what_a_shell_makes_of_them(pattern: str, texts: list[str]) -> None:
    assert list(expand_braces(pattern)) == texts


def test_globs_are_those_of_a_shell(tmp_path: Path) -> None:
    for name in ("a.tar", "sub/b.tar"):
        tar(tmp_path / name, (f"{name[-5]}.png", PICTURES[0]))
    assert ids(WebDataset(shards=(f"{tmp_path}/**.tar",))) == ["a"]
    assert ids(WebDataset(shards=(f"{tmp_path}/**/*.tar",))) == ["a", "b"]
    with pytest.raises(ConfigError, match="no file matches"):
        open_dataset(WebDataset(shards=(f"{tmp_path}/none**.tar",)))


def test_braces_find_shards_and_a_missing_one_is_named(tmp_path: Path) -> None:
    for i in (0, 1, 3):
        tar(tmp_path / f"s-{i:06d}.tar", (f"k{i}.png", PICTURES[i]))
    assert ids(WebDataset(shards=(f"{tmp_path}/s-{{000000..000001}}.tar",))) == ["k0", "k1"]
    assert ids(WebDataset(shards=(f"{tmp_path}/s-00000{{3,0}}.tar",))) == ["k3", "k0"]
    with pytest.raises(ConfigError, match=r"no file matches .*s-000002\.tar \(of .*\{000000\.\."):
        open_dataset(WebDataset(shards=(f"{tmp_path}/s-{{000000..999999}}.tar",)))
    literal = tar(tmp_path / "{0,1} [x].tar", ("a.png", PICTURES[0]))
    assert ids(WebDataset(shards=(literal,))) == ["a"]
    assert len(list(islice(expand_braces("{0..999999999}{0..999999999}"), 5))) == 5


@pytest.mark.parametrize("words", [
    "dataset.shards=tars/s-00000{0,1}.tar dataset.shards=tars/s-000002.tar",
    "tars/s-{000000..000002}.tar",
    "'dataset.shards=[tars/s-{000000..000001}.tar,tars/s-000002.tar]'",
    "'shards=tars/*.tar'",
    *(pytest.param(words, marks=pytest.mark.slow) for words in (
        "dataset=webdataset dataset.shards=tars/s-{000000..000002}.tar",
        "dataset.shards=tars/s-{000000..000002}.tar",
        "shards=tars/s-{000000..000002}.tar",
        "tars/*.tar",
        "'dataset.shards=tars/s-{000000..000002}.tar'",
    )),
])  # fmt: skip
def test_braces_work_with_and_without_a_shells_quotes(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for i in range(3):
        tar(tmp_path / "tars" / f"s-{i:06d}.tar", (f"k{i}.png", PICTURES[i]))
    shell = subprocess.run(
        ["bash", "-c", f"printf '%s\\n' {words}"], capture_output=True, text=True, check=True
    )
    code, out, err = run("plan", "model=tiny", *shell.stdout.splitlines(), "--json")
    assert code == 0, err
    assert json.loads(out)["samples"] == 3


def test_braces_longer_than_a_file_name_and_shards_that_cannot_be_reached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"shard-{i:040d}" for i in range(8)]
    for i, name in enumerate(names):
        tar(tmp_path / f"{name}.tar", (f"k{i}.png", PICTURES[0]))
    assert len(ids(WebDataset(shards=(f"{tmp_path}/{{{','.join(names)}}}.tar",)))) == 8
    for name in ("x" * 300, f"{'x' * 300}/*.tar"):
        with pytest.raises(ConfigError, match=r"File name too long$|: no file matches"):
            ids(WebDataset(shards=(str(tmp_path / name),)))

    def refused(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "exists", refused)
    with pytest.raises(ConfigError, match=r"^dataset\.shards: .*\.tar: Permission denied$"):
        ids(WebDataset(shards=(str(tmp_path / "*.tar"),)))


def test_a_limit_bounds_what_is_opened(tmp_path: Path) -> None:
    first = tar(tmp_path / "0.tar", *((f"{i}.png", PICTURES[i]) for i in range(4)))
    damaged = tmp_path / "1.tar"
    damaged.write_bytes(b"never read")
    images = open_dataset(WebDataset(shards=(first, str(damaged)), limit=2))
    assert [sample.id for sample in images.samples] == ["0", "1"]
    assert content_digest(images) == content_digest(
        open_dataset(WebDataset(shards=(first,), limit=2))
    )
    assert ids(WebDataset(shards=(first, str(damaged)), limit=4)) == ["0", "1", "2", "3"]
    with pytest.raises(ConfigError, match="not a readable uncompressed tar"):
        open_dataset(WebDataset(shards=(first, str(damaged)), limit=5))


@pytest.mark.parametrize(
    "words",
    [
        ["dataset.shards={s}-{{0,1}}.tar"],
        ["dataset.shards={s}-{{0..1}}.tar"],
        ["dataset.shards=[{s}-{{0,1}}.tar]"],
        ["dataset.shards={s}-0.tar", "dataset.shards={s}-1.tar"],  # as a shell expands braces
    ],
)
def test_the_command_line_takes_shards_as_they_are_typed(
    tmp_path: Path, run: Run, words: list[str]
) -> None:
    folder = tmp_path / "größe (1)"
    for i in range(2):
        tar(folder / f"s-{i}.tar", ("a.png", PICTURES[i]), ("a.cls", str(i).encode()))
    given = [word.format(s=folder / "s") for word in words]
    archive = tmp_path / "archive"
    code, _, err = run("extract", "model=tiny", "dataset=webdataset", *given, "device=cpu",
                       "loader.num_workers=0", f"archive={archive}")  # fmt: skip
    assert code == 0, err
    with Archive.open(archive) as opened:
        assert [(s.id, s.label) for s in opened.samples] == [("a", 0), ("s-1/a", 1)]
