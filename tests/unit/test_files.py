from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from hessprobe.files import check_output, write_atomically


def test_a_good_target_passes_and_nothing_is_left_behind(tmp_path):
    assert check_output("--out", tmp_path / "a.pt") == tmp_path / "a.pt"
    assert list(tmp_path.iterdir()) == []


def test_missing_folder_folder_and_unwritable_folder_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"--out must lie in an existing folder; got '.*a\.pt'\. Make the folder"):
        check_output("--out", tmp_path / "no" / "a.pt")
    with pytest.raises(ValueError, match=r"--out must be a file; got the folder"):
        check_output("--out", tmp_path)
    if not Path("/proc").is_dir():
        pytest.skip("needs a folder that nobody can write")
    with pytest.raises(ValueError, match=r"--out must lie in a folder that can be written; got '/proc/a\.pt' \("):
        check_output("--out", "/proc/a.pt")


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
def test_interrupted_write_keeps_the_old_file_and_no_rubbish(tmp_path, failure):
    target = tmp_path / "record.json"
    write_atomically(target, lambda file: file.write(b"old"))

    def half(file):
        file.write(b"ne")
        raise failure

    with pytest.raises(failure):
        write_atomically(target, half)
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


KILLED = """
import os, signal, sys
from hessprobe.files import write_atomically
def half(file):
    file.write(b"ne")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
write_atomically(sys.argv[1], half)
"""


@pytest.mark.parametrize("name", ["record.json", "r" * 60 + ".json"])
def test_what_a_killed_process_left_goes_with_the_next_write_and_nothing_else_does(tmp_path, name):
    target = tmp_path / name
    others = [tmp_path / f".{name}x.abcdefgh.tmp", tmp_path / f".{name}.notes.tmp", tmp_path / f"{name}.abcdefgh.tmp"]
    for other in others:
        other.write_bytes(b"")
    subprocess.run([sys.executable, "-c", KILLED, str(target)], check=False, cwd=Path(__file__).parents[2])
    assert len(list(tmp_path.iterdir())) == len(others) + 1
    write_atomically(target, lambda file: file.write(b"new"))
    assert target.read_bytes() == b"new"
    assert sorted(tmp_path.iterdir()) == sorted([target, *others])


def test_a_file_that_is_being_written_is_not_taken_for_left_behind(tmp_path):
    target = tmp_path / "record.json"

    def slow(file):
        write_atomically(target, lambda other: other.write(b"second"))
        file.write(b"first")

    write_atomically(target, slow)
    assert target.read_bytes() == b"first"


def test_the_folder_is_synced_after_the_name_is_changed(tmp_path, monkeypatch):
    done = []
    replace, sync = os.replace, os.fsync
    monkeypatch.setattr(os, "replace", lambda *paths: (done.append("replace"), replace(*paths)))
    monkeypatch.setattr(
        os,
        "fsync",
        lambda file: (done.append("folder" if stat.S_ISDIR(os.fstat(file).st_mode) else "file"), sync(file)),
    )
    write_atomically(tmp_path / "a", lambda file: file.write(b"x"))
    assert done == ["file", "replace", "folder"]


def test_a_full_disk_names_the_file(tmp_path):
    def full(file):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match=r"No space left on device: '.*record\.json'"):
        write_atomically(tmp_path / "record.json", full)
    assert list(tmp_path.iterdir()) == []


def test_what_can_be_no_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "lost").symlink_to(tmp_path / "no" / "a.json")
    for path, message in (
        (tmp_path / "pipe", r"--out must be a file; got the named pipe '.*pipe'\."),
        (tmp_path / "loop", r"--out must be the path of a file; got '.*loop' \(Too many levels of symbolic links\)\."),
        (tmp_path / ("a" * 300), r"--out must be the path of a file; got '.*a' \(File name too long\)\."),
        (tmp_path / "a\0b", r"--out must be the path of a file; got .* \(embedded null byte\)\."),
        (tmp_path / "lost", r"--out must lie in an existing folder; got '.*lost'\. Make the folder '.*no' first"),
    ):
        with pytest.raises(ValueError, match=message):
            check_output("--out", path)
    assert check_output("--out", "/dev/null") == Path("/dev/null")


def test_written_file_has_the_usual_permissions(tmp_path):
    target = tmp_path / "a"
    mask = os.umask(0o027)
    try:
        write_atomically(target, lambda file: file.write(b"x"))
    finally:
        os.umask(mask)
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
