"""Exceptions, a full disk, no memory and SIGTERM at moments of a run: what is known stands, whole, and is said."""

from __future__ import annotations

import json

import forked
import pytest
from runs import left_behind, line, results, spread

# The documented exit codes; a pass that finds no memory is made again in smaller pieces where it can be cut.
CODES = {"term": {0, 143}, "error": {1}, "memory": {0, 1}, "full": {0, 1}}
# Where it can come; a signal while a file is removed leaves that file until the next run.
WHERE = {
    "term": ("product", "pwrite", "replace"),
    "error": ("product",),
    "memory": ("product",),
    "full": ("product", "pwrite", "replace", "unlink"),
}


@pytest.mark.parametrize("kind", CODES)
@pytest.mark.parametrize("name", ["measure", "landscape of losses"])
def test_what_is_known_stands_and_the_next_run_goes_on(begin, never_stopped, name, kind):
    words, again = line(name)
    first, whole = never_stopped(name)
    moments = [moment for moment in first.moments if moment != "made"]
    fitting = [index for index, moment in enumerate(moments) if moment in WHERE[kind]]
    for number in (fitting[place] for place in spread(len(fitting))):
        folder = begin(str(number))
        ended = forked.run(words, folder, forked.Ending(number, kind))
        told = (number, ended.code, ended.err)
        assert ended.code in CODES[kind], told
        assert "Traceback" not in ended.err, told
        # A sentence, or the partial table that says it was interrupted.
        assert (ended.code == 1) == (": error: " in ended.err), told
        if kind == "memory" and ended.code:
            assert "not enough memory" in ended.err, told
        if kind == "full" and ended.code:
            assert "No space left on device" in ended.err, told
        if (folder / "r.json").exists():
            record = json.loads((folder / "r.json").read_text())
            ending = {143: ["interrupted"], 1: ["failed"], 0: []}[ended.code]
            # What goes wrong after the record was written is not in it.
            assert record["flags"] in (ending, []), told
        assert not [path for path in left_behind(folder, whole) if not path.endswith(".journal")], told
        done = forked.run(again, folder)
        assert done.code == 0, (number, done.err)
        assert results(folder) == results(whole), number
        assert left_behind(folder, whole) == [], number
