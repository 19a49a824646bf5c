from __future__ import annotations

import pytest
from page_records import everything, invariant, measured, point, record, sharp, write

from hessprobe.errors import RecordError
from hessprobe.report.sources import gather


def test_files_are_named_in_the_order_in_which_they_were_made(tmp_path):
    early = record("measure", [measured()], created="2026-01-01T00:00:00+00:00")
    write(tmp_path, a=record("measure", [measured()]), b=early)
    found = gather([tmp_path])
    assert [(source.label, source.path.name) for source in found.sources] == [("R1", "b.json"), ("R2", "a.json")]
    assert [source.id for source in found.sources] == ["record-1", "record-2"]


def test_a_record_named_twice_is_shown_once_and_equal_records_in_two_files_twice(tmp_path):
    a, b = write(tmp_path, a=record("measure", [measured()]), b=record("measure", [measured()]))
    assert len(gather([a, a, tmp_path]).sources) == 2
    assert len(gather([a, b]).sources) == 2


def test_checkpoints_have_the_shortest_name_that_tells_them_apart(tmp_path):
    places = ("one/sgd.pt", "two/sgd.pt", "two/sam.pt")
    write(tmp_path, **{f"r{i}": record("measure", [], checkpoint=place) for i, place in enumerate(places)})
    assert {source.subject for source in gather([tmp_path]).sources} == {"one/sgd.pt", "two/sgd.pt", "sam.pt"}


def test_an_objective_stands_where_there_is_no_checkpoint(tmp_path):
    (path,) = write(tmp_path, a=record("measure", [], checkpoint=None, arguments={"objective": "my/file.py:risk"}))
    assert gather([path]).sources[0].subject == "file.py:risk"


def test_a_folder_is_searched_to_its_depths_and_says_what_it_leaves_out(tmp_path):
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / ".hidden").mkdir()
    write(tmp_path / "deep" / "er", good=everything()["measure_sgd"])
    write(tmp_path / ".hidden", other=everything()["measure_sam"])
    write(tmp_path, config={"lr": 0.1}, plain=[1, 2])
    (tmp_path / "cut.json").write_text('{"schema": "hessprobe.rec')
    write(tmp_path, future=everything()["measure_sgd"] | {"schema": "hessprobe.record/9"})
    found = gather([tmp_path])
    assert [source.path.name for source in found.sources] == ["good.json"]
    assert {path.name for path, _ in found.broken} == {"cut.json", "future.json"}
    assert {path.name for path in found.foreign} == {"config.json", "plain.json"}


def test_a_folder_without_records_says_how_to_make_one(tmp_path):
    with pytest.raises(RecordError, match=r"must hold records; got a folder with no JSON file\. Make one: hessprobe"):
        gather([tmp_path])
    write(tmp_path, config={"lr": 0.1})
    with pytest.raises(RecordError, match="1 JSON files, none of them a record"):
        gather([tmp_path])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"schema": "hessprobe.record/9"}, r"has schema 'hessprobe.record/9'.*Update hessprobe"),
        ({"results": [measured(seconds="2")]}, r"a.json, results\[0\], has str as 'seconds'"),
        ({"results": [measured(interval=[1.0])]}, r"results\[0\], must have two numbers as 'interval'; got \[1\.0\]"),
        ({"results": [measured(interval=["<", ">"])]}, r"must have two numbers as 'interval'"),
        ({"results": [measured(errors={})]}, r"results\[0\], errors, lacks the entry 'solver'"),
        ({"command": "sharpness", "results": [sharp(), sharp(cost=3)]}, r"results\[1\], has int as 'cost'"),
        (
            {"command": "invariance", "results": [invariant(before={})]},
            r"results\[0\], before, lacks the entry 'value'",
        ),
        ({"command": "compare"} | {"results": []}, r"a.json lacks the entry 'differences'"),
        ({"command": "compare", "results": [], "differences": [{}]}, r"differences\[0\], lacks the entry 'checkpoint'"),
        (
            {"command": "track", "results": [point(0, 1.0, measures={"trace": {}})]},
            r"measures, trace, lacks the",
        ),
        ({"command": "landscape", "results": [{"directions": "random"}]}, r"results\[0\], lacks the entry 'axes'"),
        ({"command": "validate", "results": [{"claim": "a"}]}, r"results\[0\], lacks the entry 'statement'"),
    ],
)
def test_a_file_that_is_named_must_be_whole(tmp_path, content, message):
    (path,) = write(tmp_path, a=record("measure", [measured()]) | content)
    with pytest.raises(RecordError, match=message):
        gather([path])


@pytest.mark.parametrize("key", ["command", "results", "environment", "arguments", "created"])
def test_a_missing_entry_is_named(tmp_path, key):
    content = record("measure", [measured()])
    del content[key]
    (path,) = write(tmp_path, a=content)
    with pytest.raises(RecordError, match=f"lacks the entry '{key}'"):
        gather([path])


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(RecordError, match="cannot be read: No such file"):
        gather([tmp_path / "none.json"])
