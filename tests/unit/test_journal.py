from __future__ import annotations

import errno
import os

import pytest
import torch

from hessprobe import journal as journals
from hessprobe.errors import JournalError
from hessprobe.hvp import engines

IDENTITY = {"command": "measure", "--seed": 0, "--rtol": 0.01, "--measure": ["trace"]}


OPEN = []


def Journal(*arguments, **more):
    OPEN.append(journals.Journal(*arguments, **more))
    return OPEN[-1]


@pytest.fixture(autouse=True)
def closing():
    yield
    while OPEN:
        OPEN.pop().close()


def filled(path, count=3):
    journal = Journal(path, IDENTITY)
    for index in range(count):
        journal.keep_product(f"p{index}", torch.full((2, 3), 1 / (index + 3), dtype=torch.float64))
        journal.keep_value(f"v{index}", {"engine": "linearized", "seconds": [0.1, index]})
    return journal


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_products_and_values_come_back_bit_for_bit(tmp_path, dtype):
    values = torch.randn(4, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
    values[0, 0] = float("nan")
    journal = Journal(tmp_path / "j", IDENTITY)
    journal.keep_product("a", values)
    journal.keep_value("b", {"x": [1, None, "ü"]})
    journal.close()
    again = Journal(tmp_path / "j", IDENTITY, resume=True)
    read = again.product("a")
    assert (read.dtype, read.shape) == (values.dtype, values.shape)
    assert torch.equal(read.view(torch.uint8), values.view(torch.uint8))
    assert (again.value("b"), again.product("c"), again.value("c")) == ({"x": [1, None, "ü"]}, None, None)
    assert (len(again), again.replayed) == (1, 1)


def test_every_torn_end_is_dropped_and_written_on(tmp_path):
    path = tmp_path / "j"
    filled(path).close()
    whole = path.read_bytes()
    ends = [index + 1 for index, byte in enumerate(whole) if byte == ord("\n")]
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        journal = Journal(path, IDENTITY, resume=True)
        lines = sum(end <= cut for end in ends)
        assert len(journal) == max(lines, 1) // 2
        journal.keep_product("next", torch.ones(1))
        journal.close()
        again = Journal(path, IDENTITY, resume=True)
        assert torch.equal(again.product("next"), torch.ones(1))
        again.close()


def test_every_changed_byte_is_an_error_that_names_the_line(tmp_path):
    path = tmp_path / "j"
    filled(path).close()
    whole = path.read_bytes()
    for place in range(len(whole) - 1):
        broken = bytearray(whole)
        broken[place] ^= 4
        path.write_bytes(broken)
        line = whole[:place].count(b"\n") + 1
        with pytest.raises(JournalError, match=rf"j is damaged in line {line}\. Begin anew without --resume"):
            Journal(path, IDENTITY, resume=True)
        assert path.read_bytes() == bytes(broken)


def test_lines_that_are_lost_or_exchanged_are_an_error(tmp_path):
    path = tmp_path / "j"
    filled(path).close()
    lines = path.read_bytes().splitlines(keepends=True)
    for kept in (lines[:2] + lines[3:], [lines[0], lines[2], lines[1], *lines[3:]]):
        path.write_bytes(b"".join(kept))
        with pytest.raises(JournalError, match=r"damaged in line"):
            Journal(path, IDENTITY, resume=True)


def test_the_journal_of_another_run_is_refused_by_what_differs(tmp_path):
    path = tmp_path / "j"
    filled(path).close()
    with pytest.raises(JournalError, match=r"of another run: --rtol was 0\.01 and is 0\.1\. Give the same command"):
        Journal(path, {**IDENTITY, "--rtol": 0.1}, resume=True)
    with pytest.raises(JournalError, match=r"of another run: --k was None and is 2\."):
        Journal(path, {**IDENTITY, "--k": 2}, resume=True)
    assert len(Journal(path, IDENTITY, resume=True)) == 3
    assert len(Journal(path, {**IDENTITY, "--k": 2})) == 0


def test_a_full_disk_ends_the_journal_and_not_the_run(tmp_path, monkeypatch):
    journal, write = filled(tmp_path / "j"), os.pwrite

    def full(descriptor, content, place):
        if len(content) > 40:
            return write(descriptor, content[:40], place)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    journal.keep_product("more", torch.ones(5))
    monkeypatch.undo()
    journal.keep_product("later", torch.ones(5))
    assert journal.failure.errno == errno.ENOSPC
    assert journal.product("more") is None
    journal.close()
    again = Journal(tmp_path / "j", IDENTITY, resume=True)
    assert len(again) == 3


def test_nothing_is_kept_beyond_the_largest_size(tmp_path):
    journal = Journal(tmp_path / "j", IDENTITY, largest=20_000)
    for index in range(20):
        journal.keep_product(str(index), torch.ones(400))
    assert 0 < len(journal) < 20
    assert (tmp_path / "j").stat().st_size < 20_000


def test_what_is_written_down_is_not_made_again(tmp_path):
    made = []

    def make(V):
        made.append(float(V.sum()))
        return 2 * V

    def run(count):
        source = engines.place("pool")
        return [engines.product(source, torch.full((1, 2), float(i)), lambda i=i: make(torch.full((1, 2), float(i))))
                for i in range(count)]  # fmt: skip

    with engines.replayed(Journal(tmp_path / "j", IDENTITY)):
        run(3)
        # Another source's product with the same vectors is another product.
        run(1)
    assert made == [0, 2, 4, 0]
    with engines.replayed(Journal(tmp_path / "j", IDENTITY, resume=True)):
        again = run(5)
    assert made == [0, 2, 4, 0, 6, 8]
    assert all(torch.equal(V, torch.full((1, 2), 2.0 * i)) for i, V in enumerate(again))
    run(1)
    assert made[-1] == 0


def test_a_shorter_journal_holds_every_value_and_the_last_product(tmp_path):
    path = tmp_path / "j"
    journal = filled(path, 5)
    before = journal.size
    journal.compact()
    assert journal.size == path.stat().st_size < before
    assert [journal.product(f"p{index}") is not None for index in range(5)] == [False] * 4 + [True]
    assert journal.value("v0") == {"engine": "linearized", "seconds": [0.1, 0]}
    journal.keep_product("more", torch.ones(3))
    journal.close()
    again = Journal(path, IDENTITY, resume=True)
    assert torch.equal(again.product("p4"), torch.full((2, 3), 1 / 7, dtype=torch.float64))
    assert torch.equal(again.product("more"), torch.ones(3))
    assert [again.value(f"v{index}")["seconds"][1] for index in range(5)] == list(range(5))
    assert [each.name for each in tmp_path.iterdir()] == ["j"]


def test_a_journal_that_cannot_be_made_shorter_stays_as_it_is(tmp_path, monkeypatch):
    path = tmp_path / "j"
    journal, write = filled(path, 5), os.pwrite

    def full(descriptor, content, place):
        if place > 200:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, content, place)

    monkeypatch.setattr(os, "pwrite", full)
    journal.compact()
    monkeypatch.undo()
    assert (len(journal), journal.failure) == (5, None)
    journal.keep_product("more", torch.ones(3))
    journal.close()
    assert len(Journal(path, IDENTITY, resume=True)) == 6
    assert [each.name for each in tmp_path.iterdir()] == ["j"]


def test_a_run_that_goes_on_by_itself_reads_its_own_journal_and_replaces_any_other(tmp_path):
    path = tmp_path / "j"
    filled(path).close()
    own = journals.Journal.going_on(path, IDENTITY)
    assert len(own) == 3
    own.close()
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], b"00000000 {}\n", *lines[2:]]))
    with pytest.raises(JournalError, match=r"j is damaged in line 3\. Remove it to begin anew\."):
        journals.Journal.going_on(path, IDENTITY)
    for content in (lines[0][:30], b"", lines[0].replace(b"measure", b"pleasure")):
        path.write_bytes(content)
        anew = journals.Journal.going_on(path, IDENTITY)
        assert len(anew) == 0
        anew.keep_value("a", 1)
        anew.close()
    other = journals.Journal.going_on(path, {**IDENTITY, "--seed": 1})
    assert other.value("a") is None
    other.close()


@pytest.mark.parametrize("content", [b"notes on my runs\n", b"0011223", b"00112233 [1]\n", b'00112233 {"x":1}\n', b" "])
def test_a_file_that_is_no_journal_is_left_as_it_is(tmp_path, content):
    path = tmp_path / "r.json.journal"
    path.write_bytes(content)
    if content == b"0011223":
        # As much of a first line as was written before a kill.
        assert Journal(path, IDENTITY).size > 0
        return
    for begin in (Journal, journals.Journal.going_on):
        with pytest.raises(JournalError, match=r"r\.json\.journal is where the journal .* Move it away, or choose"):
            begin(path, IDENTITY)
    assert path.read_bytes() == content


def test_every_beginning_of_a_journal_may_be_replaced(tmp_path):
    path = tmp_path / "j"
    filled(path).close()
    whole = path.read_bytes()
    for length in range(60):
        path.write_bytes(whole[:length])
        Journal(path, {"command": "other"}).close()


def test_parts_of_a_run_are_known_whatever_is_left_out_before_them(tmp_path):
    def run(names):
        found = {}
        for name in names:
            with engines.part(name):
                source = engines.place("pool")
                decided = engines.decided("width")
                width = engines.value("width", lambda name=name: f"of {name}")
                made = engines.product(source, torch.ones(1, 2), lambda name=name: torch.full((1, 2), float(name)))
                found[name] = (decided, width, float(made.sum()))
        return found

    with engines.replayed(Journal(tmp_path / "j", IDENTITY)):
        assert run("12") == {"1": (False, "of 1", 2.0), "2": (False, "of 2", 4.0)}
    with engines.replayed(again := Journal(tmp_path / "j", IDENTITY, resume=True)):
        assert run("23") == {"2": (True, "of 2", 4.0), "3": (False, "of 3", 6.0)}
    assert (again.replayed, len(again)) == (1, 3)
    assert run("1") == {"1": (False, "of 1", 2.0)}
