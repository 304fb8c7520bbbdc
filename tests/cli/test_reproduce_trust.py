"""Reproduce: what an archive carries may do nothing that the user has not allowed."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path

import pytest
from PIL import Image

from pipeline.archive.reading.archive import Archive
from pipeline.common.network import no_network
from tests.conftest import Run, photo
from tests.helpers.edited_archives import edited


def test_code_that_ships_with_an_archive_is_not_run(
    tiny_archive: Path, tmp_path: Path, run: Run
) -> None:
    shipped = tmp_path / "a" / "model"
    mark = tmp_path / "RAN"
    model = {
        "_target_": "transformers", "name": str(shipped),
        "weights": None, "arguments": {"trust_remote_code": True},
    }  # fmt: skip
    archive = edited(tiny_archive, tmp_path / "a", model=model)
    shipped.mkdir()
    (shipped / "configuration_x.py").write_text(f"open({str(mark)!r}, 'w')\n")
    (shipped / "config.json").write_text(json.dumps(
        {"model_type": "x", "auto_map": {"AutoConfig": "configuration_x.X"}}
    ))  # fmt: skip
    for flags in ([], ["--allow-network"], ["--allow-code"]):
        code, _, err = run("reproduce", str(archive), str(tmp_path / "b"), *flags)
        assert code == 2, err
        assert "trust_remote_code" in err
        assert not mark.exists()


def test_what_an_archive_carries_is_never_interpolated(
    tiny_archive: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "hush")
    dataset = {"_target_": "flat_folder", "limit": None,
               "root": str(tmp_path / "${oc.env:SECRET}")}  # fmt: skip
    archive = edited(tiny_archive, tmp_path / "a", dataset=dataset)
    (tmp_path / "hush").mkdir()
    code, out, err = run("reproduce", str(archive), str(tmp_path / "b"))
    assert code == 2
    assert "${oc.env:SECRET}" in out
    assert "${oc.env:SECRET} does not exist" in err
    assert "hush" not in out + err
    Image.fromarray(photo()).save(tmp_path / "hush" / "x.png")
    place = tmp_path / "${oc.env:SECRET}"
    place.mkdir()
    Image.fromarray(photo()).save(place / "y.png")
    assert run("reproduce", str(archive), str(tmp_path / "b"))[0] == 1  # other samples, that is all
    with Archive.open(tmp_path / "b") as again:
        assert [sample.id for sample in again.samples] == ["y.png"]


def test_the_users_own_configuration_is_interpolated_once(tmp_path: Path) -> None:
    from pipeline.config.build import build
    from pipeline.datasets.base import ImageDataset

    for text in ("${oc.env:HOME}", r"\${x}", r"a\\${b}", "$", "${", r"\\", "{${}}"):
        node = {"_target_": "flat_folder", "root": text}
        assert build(node, ImageDataset, "dataset").root == text


def test_arguments_are_limited_to_harmless_ones(
    tiny_archive: Path, tmp_path: Path, run: Run
) -> None:
    url = {"url": "http://127.0.0.1:9/${oc.env:HOME}"}
    base = {"_target_": "timm", "name": "resnet18", "weights": None}
    for number, (arguments, text) in enumerate([
        ({"pretrained_cfg_overlay": url}, "model.arguments.pretrained_cfg_overlay"),
        ({"num_classes": {"a": 1}}, "model.arguments.num_classes"),
        ({"global_pool": "a b;c"}, "model.arguments.global_pool"),
    ]):  # fmt: skip
        archive = edited(
            tiny_archive, tmp_path / f"a{number}", model=base | {"arguments": arguments}
        )
        code, _, err = run("reproduce", str(archive), str(tmp_path / "b"), "--dry-run")
        assert code == 2
        assert f"{text} is not known to be safe; use --allow-code" in err
        code, out, err = run("reproduce", str(archive), str(tmp_path / "b"), "--dry-run",
                             "--allow-code")  # fmt: skip
        assert code == 0, err
        assert f"--allow-code allows: {text}" in out
    fine = edited(tiny_archive, tmp_path / "fine", model=base | {"arguments": {"num_classes": 4}})
    assert run("reproduce", str(fine), str(tmp_path / "b"), "--dry-run")[0] == 0


def test_no_network_unless_it_is_allowed(
    tiny_archive: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    model = {"_target_": "torchvision", "name": "resnet18",
             "weights": "DEFAULT", "arguments": {}}  # fmt: skip
    archive = edited(tiny_archive, tmp_path / "a", model=model)
    code, _, err = run("reproduce", str(archive), str(tmp_path / "b"))
    assert code == 2
    assert "download.pytorch.org was blocked; use --allow-network" in err
    assert "torchvision's weights of resnet18" in err
    code, out, _ = run("reproduce", str(archive), str(tmp_path / "b"), "--dry-run",
                       "--allow-network")  # fmt: skip
    assert code == 0
    assert "--allow-network allows: torchvision's weights of resnet18" in out


def test_sockets_are_shut_in_the_block_only() -> None:
    server = socket.create_server(("127.0.0.1", 0))
    with no_network() as tried:
        with pytest.raises(OSError, match="network access is blocked"):
            socket.create_connection(server.getsockname(), timeout=5)
        with pytest.raises(OSError, match="network access is blocked"):
            socket.getaddrinfo("example.org", 80)
        one, other = socket.socketpair()
        one.sendall(b"x")
        assert other.recv(1) == b"x"
        one.close()
        other.close()
    assert tried == ["127.0.0.1", "example.org"]
    socket.create_connection(server.getsockname(), timeout=5).close()
    server.close()


def test_no_path_outside_what_the_user_gave(
    tiny_archive: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    private, mine = tmp_path / "private", tmp_path / "mine"
    private.mkdir()
    mine.mkdir()
    monkeypatch.chdir(mine)
    Image.fromarray(photo()).save(private / "x.png")
    folder = {"_target_": "flat_folder", "limit": None}
    out = str(mine / "b")
    archive = edited(tiny_archive, mine / "a", dataset=folder | {"root": str(private)})
    code, _, err = run("reproduce", str(archive), out)
    assert code == 2
    assert f"dataset.root: the archive names {private}, outside the folders" in err
    assert "--allow-path" in err
    assert run("reproduce", str(archive), out, "--allow-path", str(private))[0] == 1
    shutil.rmtree(out)
    (mine / "photos").mkdir()
    (mine / "photos" / "link.png").symlink_to(private / "x.png")
    (mine / "list.csv").write_text(f"path\n{private / 'x.png'}\n")
    csv = {"_target_": "csv", "path": str(mine / "list.csv")}
    weights = {"_target_": "tiny", "weights": "/etc/passwd"}
    remote = {
        "_target_": "huggingface",
        "name": "imagefolder",
        "arguments": {"data_files": ["file:///etc/passwd"]},
    }
    for number, (changes, text) in enumerate([
        ({"dataset": folder | {"root": str(mine / "photos")}}, "link.png"),
        ({"dataset": csv}, str(private / "x.png")),
        ({"model": weights}, "model.weights"),
        ({"dataset": remote}, "data_files"),
    ]):  # fmt: skip
        archive = edited(tiny_archive, mine / f"a{number}", **changes)
        code, _, err = run("reproduce", str(archive), out)
        assert code == 2, err
        assert text in err
        assert "outside the folders of this run" in err
        assert not Path(out).exists()
