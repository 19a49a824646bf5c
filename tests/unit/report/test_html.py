from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import dataclass, field
from html.parser import HTMLParser
from itertools import pairwise

import pytest
from page_records import claim, compared, estimate, everything, invariant, measured, plane, record, sharp, write

from hessprobe.report import html
from hessprobe.report.document import Picture
from hessprobe.report.pictures import pictures_of
from hessprobe.report.sections.page import Page
from hessprobe.report.sources import gather

VOID = {"wbr", "meta", "link", "img", "br", "rect", "hr", "input"}
ATTACKS = (
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    '"><svg onload=alert(1)>',
    "'-->]]><!--<script>",
    "javascript:alert(1)",
    "{{ 7*7 }}{% raw %}",
)


@dataclass
class Node:
    tag: str
    attributes: dict
    parent: Node | None = None
    children: list = field(default_factory=list)
    pieces: list = field(default_factory=list)

    def all(self, tag=None, **attributes):
        for child in self.children:
            wanted = all(child.attributes.get(name.rstrip("_")) == value for name, value in attributes.items())
            if (tag is None or child.tag == tag) and wanted:
                yield child
            yield from child.all(tag, **attributes)

    def one(self, tag=None, **attributes):
        return next(self.all(tag, **attributes))

    @property
    def text(self):
        return " ".join("".join(piece if isinstance(piece, str) else piece.text for piece in self.pieces).split())


class Parser(HTMLParser):
    """A tree of what is there; tags that are not closed in order are an error."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.root = self.at = Node("root", {})

    def handle_starttag(self, tag, attributes):
        assert len(dict(attributes)) == len(attributes), (tag, attributes)
        node = Node(tag, dict(attributes), self.at)
        self.at.children.append(node)
        self.at.pieces.append(node)
        if tag not in VOID:
            self.at = node

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.at = self.at.parent

    def handle_endtag(self, tag):
        if tag in VOID:
            return
        assert tag == self.at.tag, (tag, self.at.tag)
        self.at = self.at.parent

    def handle_data(self, data):
        self.at.pieces.append(data)


def parsed(text):
    parser = Parser()
    parser.feed(text)
    parser.close()
    assert parser.at is parser.root, parser.at.tag
    return parser.root


def a_page(folder, **records):
    return Page(gather(write(folder, **(records or everything()))))


@pytest.fixture
def page(tmp_path):
    return a_page(tmp_path)


def test_structure(page):
    root = parsed(html.render(page))
    assert root.one("html").attributes["lang"] == "en"
    assert len(list(root.all("h1"))) == 1
    ids = [node.attributes["id"] for node in root.all() if "id" in node.attributes]
    assert len(ids) == len(set(ids))
    targets = {node.attributes["href"] for node in root.all("a")}
    assert targets <= {f"#{name}" for name in ids}
    contents = [link.text for link in root.one("nav").all("a")]
    assert contents == [section.one("h2").text for section in root.all("section")]
    assert contents[:3] == ["The answer", "Summary", "The numbers"]
    folded = {section.attributes["id"]: len(list(section.all("summary"))) > 0 for section in root.all("section")}
    assert [name for name, is_ in folded.items() if not is_] == ["verdict"]
    levels = [int(node.tag[1]) for node in root.all() if re.fullmatch(r"h\d", node.tag)]
    assert all(after <= before + 1 for before, after in pairwise(levels))


def test_tables_have_captions_header_cells_and_one_column_a_cell(page):
    tables = list(parsed(html.render(page)).all("table"))
    assert len(tables) >= 5
    for table in tables:
        assert table.one("caption").text
        headers = list(table.one("thead").all("th"))
        assert all(header.attributes["scope"] == "col" for header in headers)
        places = [int(header.attributes["data-column"]) for header in headers]
        spans = [int(header.attributes.get("colspan", 1)) for header in headers]
        assert places == [sum(spans[:i]) for i in range(len(spans))]
        assert all(header.one("button").attributes["type"] == "button" for header in headers)
        for row in table.one("tbody").all("tr"):
            assert len(row.children) == sum(spans)


def test_nothing_is_asked_for_from_outside(page):
    text = html.render(page)
    root = parsed(text)
    assert not re.search(r"(?:https?:)?//[\w.]+\.\w", text)
    for node in root.all():
        for name in ("src", "href", "srcset", "action", "data", "poster"):
            assert node.attributes.get(name, "#").startswith(("#", "data:")), (node.tag, name)
        assert not any(name.startswith("on") or name == "style" for name in node.attributes)
    assert "@import" not in text
    assert "url(" not in text


def test_policy_allows_the_own_style_and_script_and_nothing_else(page):
    root = parsed(html.render(page))
    policy = root.one("meta", **{"http-equiv": "Content-Security-Policy"}).attributes["content"]
    for tag in ("style", "script"):
        (node,) = root.all(tag)
        digest = base64.b64encode(hashlib.sha256("".join(node.pieces).encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'; img-src data:; ")
    assert "unsafe" not in policy


def test_every_number_stands_with_interval_cost_and_record(page):
    text = parsed(html.render(page))
    cards, table = text.one("section", id="numbers").text, text.one("section", id="curvature").text
    summary = text.one("section", id="summary").text
    assert "0.152280 ± 1.2 \u00d7 10⁻⁶" in cards.replace("\u202f", " ")
    for place in (cards, table, summary):
        assert "0.152278 to 0.152282" in place
        assert "0.7751 to 0.7835" in place
    assert "95 % interval 0.152278 to 0.152282" in cards.replace("\xa0", " ")
    assert "34.2 products, 2.2 s" in cards.replace("\xa0", " ")
    quoted = "0.7793 (95 % interval 0.7751 to 0.7835; 34.2 products, 2.2 s) at sgd.pt [R3]"
    assert "The trace of the Hessian is: " in summary
    label = next(source.label for source in page.gathered.sources if source.path.stem == "measure_sgd")
    assert quoted.replace("R3", label) in summary.replace("\xa0", " ")


def test_all_numbers_of_all_rows_are_there(tmp_path):
    rows = [measured(f"measure-{i}", 10.0 + i, 0.011) for i in range(40)]
    text = parsed(html.render(a_page(tmp_path, a=record("measure", rows)))).one("section", id="curvature").text
    for i in range(40):
        assert f"{10 + i:.3f} ± 0.011 {9.978 + i:.3f} to {10.022 + i:.3f}" in text


def test_summary_says_which_is_sharper_and_whether_the_intervals_can_tell(tmp_path):
    def both(**changes):
        one = record("measure", [measured(value=1.0, error=0.01)])
        other = record("measure", [measured(value=0.5, error=0.01, **changes)], checkpoint="runs/sam.pt")
        return parsed(html.render(a_page(tmp_path, a=one, b=other))).one("section", id="summary").text

    assert "Their intervals for these data do not overlap: sam.pt < sgd.pt." in both()
    assert "Some of their intervals overlap, so the order sam.pt < sgd.pt is not certain." in both(interval=[0.0, 0.99])


@pytest.mark.parametrize("attack", ATTACKS)
def test_nothing_in_a_record_becomes_markup(tmp_path, attack):
    def hostile(part):
        if isinstance(part, dict):
            return {
                (key if key in STRUCTURE else f"{key}{attack}"): hostile(value) if key not in FIXED else value
                for key, value in part.items()
            }
        if isinstance(part, list):
            return [hostile(one) for one in part]
        return attack if isinstance(part, str) else part

    records = everything()
    STRUCTURE = {key for each in records.values() for key in keys_of(each)}
    FIXED = {"schema", "command"}
    broken = {name: hostile(each) for name, each in records.items()}
    broken["other"] = record(attack, [], flags=["failed"], errors=[attack], checkpoint=attack)
    picture = Picture(
        attack, attack, "data:image/png;base64,AA==", 10, 10, (("record-1", attack),), "data:image/png;base64,AQ=="
    )
    page = Page(
        gather(write(tmp_path, **broken)),
        {"R1": (picture,)},
        {"R2": attack},
        lambda row: [attack],
        lambda record: attack,
    )
    calm = Page(gather(write(tmp_path, **everything(), other=record("x", [], flags=["failed"], errors=["no"]))))
    root, expected = parsed(html.render(page, attack)), parsed(html.render(calm))
    assert {node.tag for node in root.all()} <= {node.tag for node in expected.all()} | {
        "img",
        "figure",
        "figcaption",
        "strong",
        "pre",
        "details",
        "summary",
        "wbr",
        "span",
        "p",
    }
    assert {name for node in root.all() for name in node.attributes} <= {
        name for node in expected.all() for name in node.attributes
    } | {"src", "alt"}
    assert len(list(root.all("script"))) == 1
    assert "49" not in root.one("title").text
    assert root.one("h1").text == " ".join(attack.split())
    for link in root.all("a"):
        assert link.attributes["href"].startswith("#")


def keys_of(part):
    if isinstance(part, dict):
        yield from part
        for one in part.values():
            yield from keys_of(one)
    elif isinstance(part, list):
        for one in part:
            yield from keys_of(one)


def test_half_of_a_surrogate_pair_does_not_stop_the_page(tmp_path):
    page = a_page(tmp_path, a=record("measure", [measured(method="a\ud800b")]))
    html.write(tmp_path / "page.html", page)
    assert "a?b" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_unfinished_work_is_shown_as_such(tmp_path):
    page = a_page(
        tmp_path,
        a=record("measure", [measured()], flags=["interrupted"]),
        b=record("sharpness", [], flags=["failed"], errors=["not enough memory: 2 GB."], checkpoint="runs/sam.pt"),
    )
    root = parsed(html.render(page))
    said = root.one("section", id="problems").text
    assert "hessprobe measure of sgd.pt, was interrupted." in said
    assert "hessprobe sharpness of sam.pt, was ended by a failure: not enough memory: 2 GB. It holds no result." in said
    assert "was interrupted" in root.one("section", id="curvature").text
    assert "0.7793" in root.one("section", id="curvature").text
    assert [node.text for node in root.one("section", id="records").all("span", **{"class": "verdict bad"})] == [
        "interrupted",
        "failed",
    ]


def test_damaged_records_of_a_folder_are_named_on_the_page(tmp_path):
    write(tmp_path, good=record("measure", [measured()]), bad={"schema": "hessprobe.record/9"})
    root = parsed(html.render(Page(gather([tmp_path]))))
    assert "bad.json has schema 'hessprobe.record/9'" in root.one("section", id="problems").text


def test_two_records_of_one_checkpoint_are_both_shown(tmp_path):
    page = a_page(
        tmp_path, a=record("measure", [measured(value=1.0)]), b=record("measure", [measured(value=2.0)], seed=1)
    )
    root = parsed(html.render(page))
    readings = list(root.one("section", id="numbers").all("div", **{"class": "reading"}))
    assert [reading.one("p", **{"class": "who"}).text for reading in readings] == ["sgd.pt R1", "sgd.pt R2"]
    assert [reading.one("p", **{"class": "big"}).text[:5] for reading in readings] == ["1.000", "2.000"]
    assert "overlap" not in root.one("section", id="summary").text


def test_data_are_named_where_they_differ(tmp_path):
    other = record("measure", [measured()])
    other["data"] = other["data"] | {"split": "test", "examples": 364}
    text = parsed(html.render(a_page(tmp_path, a=record("measure", [measured()]), b=other))).text
    assert "sgd.pt (train, 1433)" in text
    assert "sgd.pt (test, 364)" in text


def test_numbers_that_are_not_finite_are_said_to_be_so(tmp_path):
    row = measured(value=1.0) | {"value": None, "std_error": None, "interval": [None, None]}
    root = parsed(html.render(a_page(tmp_path, a=record("measure", [row]), b=record("measure", [measured()]))))
    assert "not finite" in root.one("section", id="numbers").text
    assert "not finite (no interval; 34.2 products" in root.one("section", id="summary").text.replace("\xa0", " ")


def test_exact_values_and_bounds_say_what_they_are(tmp_path):
    page = a_page(tmp_path, a=record("measure", [measured(error=0.0)]), b=record("sharpness", [sharp()]))
    root = parsed(html.render(page))
    assert "exact up to rounding" in root.one("section", id="numbers").text
    assert "≥ 4.00000 \u00d7 10⁻⁴ lower bound" in root.one("section", id="sharpness").text
    assert "rises by ≥ 4.00000 \u00d7 10⁻⁴ (a lower bound;" in root.one("section", id="summary").text


BRACKET = {
    "kind": "bracket",
    "bracket": [0.609999999, 0.616],
    "interval": [0.609999999, 0.616],
    "bracket_confidence": 0.995,
    "errors": {"probe": 0.0, "data": 0.151, "data_df": 15.0, "solver": 0.006},
}


def test_a_bracket_is_an_interval_and_no_standard_error(tmp_path):
    rows = [measured("lambda-max", 0.61, 0.0, **BRACKET), measured("trace")]
    tiny = {
        key: [1e-7 * end for end in ends] if key in ("bracket", "interval") else ends for key, ends in BRACKET.items()
    }
    tiny |= {"errors": {"probe": 0.0, "data": 0.151e-7, "solver": 0.006e-7}}
    rows.append(measured("spectral-norm", 0.61e-7, 0.0, **tiny))
    root = parsed(html.render(a_page(tmp_path, a=record("measure", rows))))
    cards = root.one("section", id="numbers").text.replace("\xa0", " ").replace("\u202f", " ")
    assert "0.6100 +0.0060 bracket [0.6100, 0.6160], probability 99.5 % ± 0.15 from the data being a sample" in cards
    assert "bracket [6.100, 6.160] \u00d7 10⁻⁸, probability 99.5 %" in cards
    said = root.one("section", id="summary").text.replace("\xa0", " ")
    assert "0.6100 (bracket [0.6100, 0.6160], probability 99.5 %; data ± 0.15; 34.2 products" in said
    table = root.one("section", id="curvature").one("table").text.replace("\xa0", " ")
    assert "0.6100 +0.0060 ± 0.15 [0.6100, 0.6160] 34.2" in table
    assert "0.7793 ± 0.0021 0.7751 to 0.7835" in table
    assert not re.search(r"0\.6100\W+±", cards + said + table)
    notes = root.one("section", id="curvature").text
    assert "± measurement: standard error of the number for these data." in notes
    assert "± data: standard error from the data being a sample" in notes
    assert "a bracket, which holds the eigenvalue with probability 99.5 %." in notes


def test_a_theorem_is_certain_and_without_data_errors_there_is_no_column(tmp_path):
    sure = BRACKET | {"bracket_confidence": 1.0, "errors": {"probe": 0.0, "data": None, "solver": 0.006}}
    root = parsed(html.render(a_page(tmp_path, a=record("measure", [measured("lambda-max", 0.61, 0.0, **sure)]))))
    assert "bracket [0.6100, 0.6160], certain" in root.one("section", id="numbers").text.replace("\xa0", " ")
    assert "data being a sample" not in root.text
    headers = [node.text.strip() for node in root.one("section", id="curvature").one("thead").all("th")]
    assert headers[2:4] == ["value ± measurement", "95 % interval"]


def test_layers_and_differences_have_their_data_errors(tmp_path):
    told = {"errors": {"probe": 0.0021, "data": 0.0456, "data_df": 15.0, "solver": 0.0}}
    layers = {"0.weight": estimate(0.5, 0.0021, **told), "0.bias": estimate(0.28, 0.0021)}
    made = compared()
    made["differences"][0] |= {"errors": {"probe": 0.001, "data": 0.5, "solver": 0.0}, "beyond_data": False}
    root = parsed(html.render(a_page(tmp_path, a=record("measure", [measured(layers=layers)]), b=made)))
    shares = list(root.one("section", id="curvature").all("table"))[1]
    headers = [node.text.strip() for node in shares.one("thead").all("th")]
    assert headers == ["parameter", "value ± measurement", "± data", "95 % interval", "share"]
    cells = [[cell.text.strip() for cell in row.children] for row in shares.one("tbody").all("tr")]
    assert [row[:4] for row in cells] == [
        ["0.weight", "0.5000", "± 0.0021", "± 0.046"],
        ["0.bias", "0.2800", "± 0.0021", ""],
    ]
    differences = next(iter(root.one("section", id="comparison").all("table"))).text
    assert "flatter may vanish on other data \u22120.3800 ± 0.0010 ± 0.50 \u22120.3820 to \u22120.3780" in differences
    assert "which may vanish on other data" in root.one("section", id="summary").text


def test_invariance_is_summarized_with_its_largest_factor(page):
    said = parsed(html.render(page)).one("section", id="summary").text
    assert "change trace and frob (most trace, by a factor 37.5, under unit-rescaling 10)" in said
    assert "leave adaptive-trace as it is" in said


def test_landscape_numbers(page):
    root = parsed(html.render(page))
    said = root.one("section", id="summary").text.replace("\xa0", " ")
    assert "from 0.0007 to 1.3, and is 0.0007 at the checkpoint" in said
    assert "within 10 % on 12.5 % of it; 1 point had no finite loss" in said
    assert "the plane is random" in root.one("section", id="landscape").text


def test_differences_stand_with_their_own_interval_and_what_is_within_error_says_so(page):
    root = parsed(html.render(page))
    said = root.one("section", id="summary").text
    assert "Against sgd, sam is flatter in trace (difference \u22120.3800, 95 % interval" in said
    assert "within error in frob" in said
    assert "Trace changes when a network is rescaled." in said
    differences, values = root.one("section", id="comparison").all("table")
    assert "trace sam flatter \u22120.3800 ± 0.0010 \u22120.3820 to \u22120.3780 sgd 0.0051" in differences.text
    assert "trace sam 0.4000 ± 0.0021 0.3958 to 0.4042" in values.text


def test_rank_correlations(tmp_path):
    found = {"measure": "trace", "gap": "loss", "tau": 0.61, "interval": [0.2, 0.9], "count": 9, "verdict": "rises"}
    text = parsed(html.render(a_page(tmp_path, a=compared(correlations=[found])))).text
    assert "trace loss 0.61 0.2 to 0.9 9 rises" in text


def test_a_run_is_told_from_beginning_to_end(page):
    root = parsed(html.render(page))
    said = root.one("section", id="summary").text
    assert "Over 3 checkpoints the largest eigenvalue of the Hessian goes from 1.5000 (95 % interval 1.4980" in said
    assert "the largest is 9.0000 (95 % interval 8.9980 to 9.0020) at step 45" in said
    (table,) = root.one("section", id="tracking").all("table")
    assert len(list(table.one("tbody").all("tr"))) == 3
    assert "stable up to" in table.text
    assert table.one("caption").text == "Every checkpoint: run"


def test_claims_that_fail_are_named(page):
    said = parsed(html.render(page)).one("section", id="summary").text
    assert "2 claims: 1 hold, 1 fail" in said
    assert "Not borne out: unified/path." in said


def test_a_broken_claim_shows_its_error(tmp_path):
    row = {key: claim()[key] for key in ("claim", "statement", "source", "seconds")}
    page = a_page(tmp_path, a=record("validate", [row | {"verdict": "error", "error": "it broke"}], checkpoint=None))
    assert "it broke" in parsed(html.render(page)).one("section", id="validation").text


def test_how_it_was_measured(page):
    section = parsed(html.render(page)).one("section", id="records")
    assert [name.text for name in section.one("dl").all("dt")][:2] == ["record", "made"]
    assert "0" in [value.text for value in section.one("dl").all("dd")]
    for fact in (
        "sha256 " + "d" * 64,
        "fingerprint f00d",
        "torch 2.13.0",
        "examples 1,433",
        "double_backward",
    ):
        assert fact in section.text


def test_the_page_is_the_same_every_time(page):
    assert html.render(page) == html.render(page)


def test_a_page_of_many_records_is_small(tmp_path):
    records = {f"r{i}": record("measure", [measured(f"m{j}") for j in range(10)]) for i in range(100)}
    assert len(html.render(a_page(tmp_path, **records)).encode()) < 3_000_000


def test_lines_have_no_second_axis(tmp_path):
    row = plane(
        axes=[[-1.0, 0.0, 1.0]], center=[1], values={"loss": [3.0, 1.0, 2.0]}, holes={"loss": 0}, quadratic=None
    )
    page = a_page(tmp_path, a=record("landscape", [row]))
    assert "On the 3 random line through sgd.pt the loss goes from 1 to 3" in parsed(html.render(page)).text


def test_share_of_layers(tmp_path):
    # Of a norm the layers are shares already.
    norm = measured("frob", 2.0, 0.01, layers={"w": estimate(0.75, 0.01), "b": estimate(0.25, 0.01)})
    trace = measured("trace", 2.0, 0.01, layers={"w": estimate(1.5, 0.01), "b": estimate(0.5, 0.01)})
    text = parsed(html.render(a_page(tmp_path, a=record("measure", [norm, trace])))).one("section", id="curvature").text
    assert "w 0.750 ± 0.010 0.730 to 0.770 75.0 %" in text.replace("\xa0", " ")
    assert "w 1.500 ± 0.010 1.480 to 1.520 75.0 %" in text.replace("\xa0", " ")


def test_invariance_rows_without_a_number(tmp_path):
    row = invariant("trace", "not measured", 1.0, before=None, after=None, z=None, difference=None, reason="no norm")
    text = parsed(html.render(a_page(tmp_path, a=record("invariance", [row])))).text
    assert "trace under unit-rescaling: no norm" in text


def test_figures_of_several_records_come_first_and_those_they_cover_are_folded(tmp_path):
    two = [record("sharpness", [sharp(), sharp(rho=0.1)], checkpoint=f"runs/{name}.pt") for name in ("sgd", "sam")]
    found = gather(write(tmp_path, a=two[0], b=two[1], c=record("invariance", [invariant()])))
    page = Page(found, *pictures_of(found.sources))
    together, alone = page.shown().pictures
    assert together.title == "Sharpness of several checkpoints"
    assert [label for _, label in together.links] == ["R1", "R2"]
    assert alone.links == (("record-3", "R3"),)
    assert [picture.links[0][1] for picture in page.drawn("sharpness").pictures] == ["R1", "R2"]
    root = parsed(html.render(page))
    order = [len(list(root.one("section", id=name).all("figure"))) for name in ("pictures", "sharpness", "invariance")]
    assert order == [2, 2, 0]
    alternatives = [image.attributes["alt"] for image in root.one("section", id="pictures").all("img")]
    assert "worst of sam" in alternatives[0]
    assert all("svg+xml" in image.attributes["src"] for image in root.all("img"))
    # Without a second checkpoint nothing is covered.
    single = gather(write(tmp_path, d=two[0]))
    assert len(Page(single, *pictures_of(single.sources)).shown().pictures) == 1
