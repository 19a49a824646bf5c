from __future__ import annotations

import os
import stat
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


def test_written_file_has_the_usual_permissions(tmp_path):
    target = tmp_path / "a"
    mask = os.umask(0o027)
    try:
        write_atomically(target, lambda file: file.write(b"x"))
    finally:
        os.umask(mask)
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
