"""kill -9 at moments spread over a run of every command: the next run repeats at most one product, to the same bits.

``FAULT_MOMENTS`` sets at how many moments each command ends.
"""

from __future__ import annotations

import forked
import pytest
from runs import COMMANDS, is_done, left_behind, line, results, spread


@pytest.mark.parametrize("name", COMMANDS)
def test_a_killed_run_loses_one_product_at_most_and_ends_at_the_same_bits(begin, never_stopped, name):
    words, again = line(name)
    first, whole = never_stopped(name)
    assert (first.code, first.err) == (0, "")
    assert first.begun > 10
    for number in spread(first.begun):
        folder = begin(str(number))
        killed = forked.run(words, folder, forked.Ending(number, ("kill", "torn")[number % 2]))
        assert killed.code == -9, (number, killed.err)
        if is_done(folder):
            # Nothing is left to do, and the record is whole.
            assert results(folder) == results(whole)
            continue
        done = forked.run(again, folder)
        assert done.code == 0, (number, done.err)
        assert killed.products + done.products <= first.products + 1, number
        assert results(folder) == results(whole), number
        assert left_behind(folder, whole) == [], number
