"""Exit code 0 means that what a command makes is there."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.cli import override_commands
from pipeline.cli.main import main
from tests.conftest import Run
from tests.helpers.tiny_words import TINY


@pytest.mark.parametrize("code", [0, None, 3, "no"])
def test_code_that_leaves_the_process_is_a_failure(
    code: object, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def leave(rest: list[str]) -> int:
        raise SystemExit(code)

    monkeypatch.setitem(override_commands.COMMANDS, "run", leave)
    assert main(["run"]) == (3 if code == 3 else 1)
    assert f"called sys.exit({code!r})" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ImportError("libcudart.so.12: no such file"), "libcudart.so.12: no such file; a package"),
        (MemoryError("Unable to allocate 3 GiB"), "not enough memory: Unable to allocate 3 GiB"),
        (KeyError("x"), "unexpected KeyError: 'x' (this is a bug; please report it)"),
    ],
)
def test_what_the_machine_lacks_is_no_bug(
    error: Exception, text: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fails(rest: list[str]) -> int:
        raise error

    monkeypatch.setitem(override_commands.COMMANDS, "run", fails)
    assert main(["run"]) == 1
    assert capfd.readouterr().err.startswith(f"featuremaps: error: {text}")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_the_process_exits_ends_it_without_a_traceback(number: int) -> None:
    program = (
        f"import atexit, os, sys; atexit.register(os.kill, os.getpid(), {number:d}); "
        "sys.argv = ['featuremaps', '--version']; from pipeline.cli.main import entry; entry()"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (-number, "")


def test_help_is_no_failure(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == main(["info", "--help"]) == main(["--version"]) == 0


@pytest.mark.parametrize("lost", ["COMPLETE.json", "archive.h5", "manifest.json"])
def test_an_archive_that_is_gone_at_the_end_is_a_failure(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    from pipeline.extraction import extract as module

    extract = module.extract

    def extract_and_lose(*arguments: object) -> object:
        made = extract(*arguments)  # type: ignore[arg-type]
        (made.archive / lost).unlink()
        return made

    monkeypatch.setattr(module, "extract", extract_and_lose)
    code, _, err = run("extract", *TINY)
    assert code == 1, err
    assert str(tmp_path / "run" / "archive") in err.splitlines()[-1]


def test_files_that_are_gone_at_the_end_are_a_failure(
    run: Run, tiny_archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("pack.pack", "export.export"):
        monkeypatch.setattr(
            f"pipeline.archive.tools.{name}",
            lambda *_, **__: [tmp_path / "lost"] if "export" in name else tmp_path / "lost",  # noqa: B023
        )
        command = name.partition(".")[0]
        code, out, err = run(command, str(tiny_archive), str(tmp_path / "x"))
        assert (code, out) == (1, "")
        assert "lost: was written but no longer exists" in err
