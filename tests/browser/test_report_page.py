"""The page as a reader has it: in a browser, by mouse and by keyboard, in both colors, on a phone, on paper."""

from __future__ import annotations

import base64
import io
import warnings
from dataclasses import replace

import pytest
import typer
from page_records import TRACKED, estimate, everything, invariant, measured, point, record, sharp, write
from PIL import Image

from hessprobe.cli.app import app
from hessprobe.cli.skeleton import page_of
from hessprobe.report import html, sources
from hessprobe.report.sections.page import Page

PROGRAM = typer.main.get_command(app)
ATTACK = "</script><script>window.hit = 1</script><img src=x onerror='window.hit = 1'><svg onload='window.hit = 1'>"


@pytest.fixture(scope="session")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    html.write(folder / "report.html", page_of(sources.gather(write(folder, **everything())), PROGRAM))
    return folder / "report.html"


@pytest.fixture(scope="session")
def full(tmp_path_factory):
    """A page whose tables hold the widest that measurements give: small numbers, small errors, long names."""
    folder = tmp_path_factory.mktemp("full")
    near, tight = estimate(0.610721, 4.7e-6), {"probe": 0.0, "data": None, "solver": 7.6e-10}
    sharpness = [
        sharp(kind, 9.3228e-4, errors=tight, interval=[9.32279e-4, 9.32281e-4])
        for kind in ("worst", "ascent", "average")
    ]
    transforms = [
        invariant(name, "undecided (error too large)", before=near, after=near, z=-34800.0, transform="layer-rescaling")
        for name in ("lambda-max", "adaptive-trace")
    ]
    scores = {"train_accuracy": 0.98, "test_accuracy": 0.96, "train_loss": 0.0942, "test_loss": 0.11}
    run = [point(step, 1.0, scores=scores) for step in (0, 45, 4500)]
    for row in run:
        row["measures"] |= {name: measured(name, 0.633785, 4.8e-6) for name in ("lambda-max", "frob")}
    named = {"checkpoint": "runs/sharpness-aware.pt"}
    records = everything() | {
        "measure_sam": record("measure", [measured(method="hutchinson+blocks+surrogate"), measured("frob")], **named),
        "sharpness": record("sharpness", sharpness, **named),
        "invariance": record("invariance", transforms, **named),
        "track": record("track", run, checkpoint=None, arguments=TRACKED),
    }
    records["sharpness"]["data"] |= {"split": "test", "examples": 364}
    html.write(folder / "report.html", Page(sources.gather(write(folder, **records))))
    return folder / "report.html"


@pytest.fixture(scope="session")
def hostile(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    rows = [measured(ATTACK, notes=[ATTACK], method=ATTACK, unit=ATTACK, layers={ATTACK: measured()})]
    records = {
        "measure": record("measure", rows, checkpoint=f"runs/{ATTACK}.pt", arguments={"ckpt": ATTACK}),
        "invariance": record("invariance", [invariant(ATTACK, reason=ATTACK, transform=ATTACK)], errors=[ATTACK]),
    }
    with warnings.catch_warnings():
        # A label longer than its figure leaves no room for axes.
        warnings.simplefilter("ignore", UserWarning)
        html.write(folder / "report.html", page_of(sources.gather(write(folder, **records)), PROGRAM), title=ATTACK)
    return folder / "report.html"


def unfold(browser):
    browser.run("for (const each of document.querySelectorAll('details')) each.open = true")


def column(browser, table, place):
    script = (
        "return [...document.querySelectorAll(arguments[0] + ' tbody tr')].map(r => r.cells[arguments[1]].innerText)"
    )
    return browser.run(script, table, place)


def button(browser, table, name):
    script = (
        "return [...document.querySelectorAll(arguments[0] + ' thead button')]"
        ".find(b => b.innerText.startsWith(arguments[1]))"
    )
    return browser.run(script, table, name)


def test_page_shows_numbers_and_figures_without_errors_and_without_the_network(browser, report):
    browser.open(report)
    unfold(browser)
    text = browser.run("return document.body.innerText")
    assert "0.152280" in text
    assert "The trace of the Hessian is: 0." in text
    sizes = browser.run("return [...document.images].map(i => [i.complete, i.naturalWidth, i.alt.length])")
    assert len(sizes) >= 2
    assert all(done and width > 0 and alt > 20 for done, width, alt in sizes)
    browser.picture("light")
    assert browser.console() == []
    own = report.resolve().as_uri()
    assert {address for address in browser.requests() if not address.startswith("data:")} == {own}
    assert browser.run("return performance.getEntriesByType('resource').map(e => e.name)") == []


def test_tables_are_sorted_by_click(browser, report):
    browser.open(report)
    unfold(browser)
    value = button(browser, "#curvature table", "value")
    before = column(browser, "#curvature table", 2)
    value.click()
    ascending = column(browser, "#curvature table", 2)
    assert [float(text) for text in ascending] == sorted(map(float, before))
    header = "return arguments[0].closest('th').getAttribute('aria-sort')"
    assert browser.run(header, value) == "ascending"
    value.click()
    assert column(browser, "#curvature table", 2) == ascending[::-1]
    assert browser.run(header, value) == "descending"
    button(browser, "#curvature table", "measure").click()
    assert browser.run(header, value) is None
    names = column(browser, "#curvature table", 0)
    assert names == sorted(names)
    assert "Sorted by measure, ascending" in browser.run("return document.getElementById('said').textContent")


def test_tables_are_sorted_by_keyboard_and_the_first_key_leads_to_the_content(browser, report):
    from selenium.webdriver.common.keys import Keys

    browser.open(report)
    unfold(browser)
    browser.driver.switch_to.active_element.send_keys(Keys.TAB)
    focused = browser.driver.switch_to.active_element
    assert focused.text == "Skip to the content"
    assert browser.run("return arguments[0].getBoundingClientRect().top >= 0", focused)
    focused.send_keys(Keys.ENTER)
    assert browser.driver.switch_to.active_element.get_attribute("id") == "main"
    for _ in range(60):
        browser.driver.switch_to.active_element.send_keys(Keys.TAB)
        focused = browser.driver.switch_to.active_element
        if focused.text.startswith("products"):
            break
    assert focused.text.startswith("products")
    assert browser.run("return getComputedStyle(arguments[0]).outlineStyle", focused) != "none"
    focused.send_keys(Keys.SPACE)
    assert browser.run("return arguments[0].closest('th').getAttribute('aria-sort')", focused) == "ascending"


def test_dark_by_preference_and_by_choice(browser, report):
    color = "return getComputedStyle(document.body).backgroundColor"
    browser.open(report)
    light = browser.run(color)
    toggle = browser.run("return document.getElementById('theme')")
    assert toggle.get_attribute("aria-pressed") == "false"
    toggle.click()
    dark = browser.run(color)
    assert (dark != light, toggle.get_attribute("aria-pressed")) == (True, "true")
    browser.picture("dark")
    browser.open(report)
    assert browser.run(color) == dark
    browser.run("document.getElementById('theme').click(); localStorage.clear()")
    browser.open(report, scheme="dark")
    assert browser.run(color) == dark
    assert browser.console() == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_what_is_behind_it(browser, report, scheme):
    browser.open(report, scheme=scheme)
    unfold(browser)
    faint = browser.run(
        """
        const channels = (text) => text.match(/[\\d.]+/g).map(Number);
        const light = ([r, g, b]) => [r, g, b].map((c) => c / 255)
          .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
          .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
        const behind = (node) => {
          for (; node; node = node.parentElement) {
            const color = channels(getComputedStyle(node).backgroundColor);
            if (color.length === 3 || color[3] > 0) return color;
          }
          return [255, 255, 255];
        };
        const found = [];
        for (const node of document.querySelectorAll("main *, header *, nav *, footer *")) {
          const own = [...node.childNodes].some((child) => child.nodeType === 3 && child.textContent.trim());
          if (!own || node.closest(".hidden, svg")) continue;
          const [a, b] = [light(channels(getComputedStyle(node).color)), light(behind(node))].sort((x, y) => y - x);
          if ((a + 0.05) / (b + 0.05) < 4.5) found.push([node.tagName, node.className, node.textContent.slice(0, 40)]);
        }
        return found;
        """
    )
    assert faint == []


@pytest.mark.parametrize("width", [320, 360, 768])
def test_narrow_screens_scroll_tables_and_not_the_page(browser, report, width):
    browser.open(report, width=width, height=740)
    unfold(browser)
    assert browser.run("return document.documentElement.scrollWidth") <= width
    wide = browser.run("return [...document.querySelectorAll('.scroll')].some(b => b.scrollWidth > b.clientWidth)")
    assert wide or width >= 768
    assert browser.run("return [...document.querySelectorAll('.scroll')].every(b => b.tabIndex === 0)")
    browser.picture(f"width-{width}")


@pytest.mark.parametrize("width", [1280, 1920])
def test_no_table_is_wider_than_its_box_on_a_desktop(browser, full, width):
    browser.open(full, width=width)
    unfold(browser)
    boxes = browser.run(
        "return [...document.querySelectorAll('.scroll')].map(b =>"
        " [b.querySelector('caption').innerText, b.scrollWidth - b.clientWidth])"
    )
    assert len(boxes) >= 9
    assert [box for box in boxes if box[1] > 0] == []


def test_short_words_are_not_broken_at_their_hyphens(browser, full):
    browser.open(full, width=360, height=740)
    unfold(browser)
    count = "return [...document.querySelectorAll('.whole')].map(n => [n.innerText, n.getClientRects().length])"
    lines = browser.run(count)
    assert "lambda-max" in dict(lines)
    assert [word for word, pieces in lines if pieces > 1] == []


def test_prints_in_light_colors_with_nothing_cut(browser, report):
    browser.open(report, scheme="dark")
    assert browser.print("print").startswith(b"%PDF")
    browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print", "features": []})
    assert browser.run("return getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert browser.run("return getComputedStyle(document.getElementById('theme')).display") == "none"
    browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": []})


def test_links_lead_to_the_record(browser, report):
    browser.open(report)
    shown = "return document.querySelector('#records pre').checkVisibility({contentVisibilityAuto: true})"
    assert not browser.run(shown)
    browser.run("return document.querySelector('.pictures figcaption a')").click()
    assert browser.run(shown)
    target = browser.run("return document.querySelector(':target').id")
    assert target.startswith("record-")
    assert "hessprobe " in browser.run("return document.querySelector(':target pre').innerText")
    box = browser.run("const b = document.querySelector(':target').getBoundingClientRect(); return [b.top, b.bottom]")
    assert box[0] < 900
    assert box[1] > 0


def test_a_hostile_record_is_shown_and_does_not_run(browser, hostile):
    browser.open(hostile)
    assert "window.hit" in browser.run("return document.querySelector('h1').innerText")
    for header in browser.run("return [...document.querySelectorAll('thead button')]"):
        browser.run("arguments[0].click()", header)
    assert browser.run("return window.hit") is None
    assert browser.run("return document.scripts.length") == 1
    assert browser.console() == []
    assert browser.run("return document.documentElement.scrollWidth") <= 1280


def test_what_slips_through_is_stopped_by_the_policy(browser, hostile, tmp_path):
    text = hostile.read_text(encoding="utf-8")
    slipped = text.replace("<footer>", "<script>window.hit = 1</script><img src=x onerror='window.hit = 1'><footer>")
    (tmp_path / "slipped.html").write_text(slipped, encoding="utf-8")
    browser.open(tmp_path / "slipped.html")
    assert browser.run("return window.hit") is None
    assert any("Content Security Policy" in entry["message"] for entry in browser.console())


def _first_screen(browser, height):
    """Return what of the verdict lies within the first screen."""
    return browser.run(
        "return [...document.querySelectorAll('#verdict .prose p, #verdict table')].filter("
        "each => each.getBoundingClientRect().top < arguments[0]).map(each => each.textContent)",
        height,
    )


@pytest.mark.parametrize(("width", "height"), [(1280, 900), (390, 844)])
def test_the_answer_is_above_the_fold(browser, report, width, height):
    browser.open(report, width=width, height=height)
    assert browser.run("return document.querySelector('main section').id") == "verdict"
    sentence = browser.run("return document.querySelector('#verdict .prose p').getBoundingClientRect().bottom")
    assert sentence < height
    assert any(" sgd" in text for text in _first_screen(browser, height))


def test_figures_are_dark_where_the_page_is(browser, report):
    def corner(scheme, toggled=False):
        browser.open(report, scheme=scheme)
        if toggled:
            browser.run("document.getElementById('theme').click()")
        browser.run("document.querySelector('figure img[src^=\"data:image/svg\"]').scrollIntoView()")
        box = browser.run(
            "const b = document.querySelector('figure img[src^=\"data:image/svg\"]').getBoundingClientRect();"
            "return [b.left, b.top]"
        )
        picture = Image.open(io.BytesIO(browser.driver.get_screenshot_as_png())).convert("L")
        # Within the image, beside its padding.
        return picture.getpixel((round(box[0]) + 14, round(box[1]) + 14))

    assert corner("light") > 240
    assert corner("dark") < 60
    assert corner("light", toggled=True) < 60
    browser.run("localStorage.clear()")


# Every number of the visible text that lies on more than one line.
BROKEN = """
const sign = "(?:[\u00b1\u2265\u2264]\\\\s)?[+\u2212-]?";
const power = "(?:\\\\s\u00d7\\\\s10[\u207a\u207b]?[\u2070\u00b9\u00b2\u00b3\u2074-\u2079]+)?";
const number = new RegExp(sign + "\\\\d[\\\\d.,]*" + power + "(?:\\\\s%)?", "g");
const found = [];
const walker = document.createTreeWalker(document.querySelector("main"), NodeFilter.SHOW_TEXT);
for (let node = walker.nextNode(); node; node = walker.nextNode()) {
  if (node.parentElement.closest("pre, code, dl, .hidden")) continue;
  for (const match of node.data.matchAll(number)) {
    const range = document.createRange();
    range.setStart(node, match.index);
    range.setEnd(node, match.index + match[0].length);
    const lines = new Set([...range.getClientRects()].map((box) => Math.round(box.top)));
    if (lines.size > 1) found.push(match[0]);
  }
}
return found;
"""


@pytest.mark.parametrize("width", [320, 390, 1280])
def test_no_number_is_broken(browser, full, width):
    browser.open(full, width=width)
    unfold(browser)
    assert browser.run(BROKEN) == []


def test_no_number_is_broken_on_paper_and_headers_go_with_their_tables(browser, full):
    browser.open(full, width=700)
    browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print", "features": []})
    # A page of A4 less its margins; what is folded is open on paper without a script.
    assert browser.run("return document.querySelector('#records dl').getBoundingClientRect().height") > 0
    assert browser.run(BROKEN) == []
    headers = browser.run(
        "return [...document.querySelectorAll('thead')].map(each => [getComputedStyle(each).display, "
        "...[...each.querySelectorAll('button')].map(one => getComputedStyle(one).display)])"
    )
    assert headers
    # A button with a box would keep Chromium from setting the header again on the next page.
    assert all(found[0] == "table-header-group" and set(found[1:]) == {"contents"} for found in headers)
    browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": []})


def test_the_verdict_is_in_view_on_a_phone(browser, report):
    browser.open(report, width=390, height=844)
    unfold(browser)
    verdicts = browser.run(
        "return [...document.querySelectorAll('#verdict small.verdict, #comparison span.verdict')].map(each => {"
        "const box = each.getBoundingClientRect(); return [each.textContent, box.left, box.right] })"
    )
    assert any("flatter" in text for text, _, _ in verdicts)
    assert all(left >= 0 and right <= 390 for _, left, right in verdicts)
    scrolled = "const b = document.querySelector('#verdict .scroll'); return b.scrollWidth - b.clientWidth"
    assert browser.run(scrolled) <= 0


@pytest.mark.parametrize("kind", ["measure", "track"])
def test_numbers_with_two_long_arms_stay_in_a_phone(browser, tmp_path, kind):
    arms = {"kind": "bracket", "bracket": [0.6337846, 0.6337856], "interval": [0.6337846, 0.6337856],
            "bracket_confidence": 0.995, "errors": {"probe": 0.0, "data": 0.0055, "solver": 1e-6}}  # fmt: skip
    row = measured("lambda-max", 0.633785, 0.0, **arms)
    run = [point(step, 1.0, measures={"lambda-max": row}) for step in (0, 450)]
    made = {"measure": record("measure", [row]), "track": record("track", run, checkpoint=None, arguments=TRACKED)}
    html.write(tmp_path / "arms.html", Page(sources.gather(write(tmp_path, one=made[kind]))))
    browser.open(tmp_path / "arms.html", width=390, height=844)
    scrolled = "const b = document.querySelector('#verdict .scroll'); return b.scrollWidth - b.clientWidth"
    assert browser.run(scrolled) <= 0
    assert "0.0055" in browser.run("return document.querySelector('#verdict table').innerText")


def test_the_page_is_short_until_it_is_unfolded(browser, report):
    browser.open(report)
    folded = browser.run("return document.documentElement.scrollHeight")
    unfold(browser)
    assert folded < 0.4 * browser.run("return document.documentElement.scrollHeight")


def test_pictures_of_dots_have_a_dark_twin(browser, tmp_path):
    from hessprobe.report.document import Picture

    def uri(shade):
        content = io.BytesIO()
        Image.new("L", (40, 40), shade).save(content, "png")
        return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"

    page = Page(sources.gather(write(tmp_path, **everything())))
    page = replace(page, pictures={"R1": (Picture("t", "a picture", uri(250), 40, 40, (("record-1", "R1"),), uri(9)),)})
    html.write(tmp_path / "dots.html", page)

    def shown(scheme, toggled=False):
        browser.open(tmp_path / "dots.html", scheme=scheme)
        if toggled:
            browser.run("document.getElementById('theme').click()")
        return browser.run("return [...document.querySelectorAll('figure img')].filter(i => i.checkVisibility())"
                           ".map(i => i.className)")  # fmt: skip

    assert (shown("light"), shown("dark")) == (["light"], ["dark"])
    assert (shown("light", toggled=True), shown("dark")) == (["dark"], ["dark"])
    assert shown("dark", toggled=True) == ["light"]
    browser.run("localStorage.clear()")
