"""The operator's page in a real browser, over a coordinator in this process."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any

import pytest
from browser import Browser, find_chromium
from in_process import InProcess

from ray_eraser.config import EraserConfig
from ray_eraser.coordinator import Coordinator
from ray_eraser.data.dataset import Dataset
from ray_eraser.errors import UnknownIdError
from ray_eraser.pool import LocalShardPool
from ray_eraser.unlearning.request import RequestState, UnlearningRequest
from ray_eraser.web.keys import Keys, Role
from ray_eraser.web.limits import Limits

pytestmark = pytest.mark.timeout(120)

READER, ERASER = "r" * 32, "e" * 32
KEYS = Keys.of([(Role.READ, READER), (Role.ERASE, ERASER)])
SIZES = [
    pytest.param(width, dark, id=f"{width}-{'dark' if dark else 'light'}") for width in (400, 1280) for dark in (False, True)
]


@pytest.fixture(scope="module")
def coordinator(tiny: Dataset, tiny_config: EraserConfig, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Coordinator]:
    """A deployment that the tests share: each erases other users than the others."""
    place = str(tmp_path_factory.mktemp("page") / "storage")
    coordinator = Coordinator("shop-recommendations", place, partial(LocalShardPool, place), tiny_config)
    coordinator.fit(tiny)
    yield coordinator
    coordinator.close()


@pytest.fixture(scope="module")
def url(coordinator: Coordinator) -> Iterator[str]:
    uvicorn = pytest.importorskip("uvicorn", reason="the extra serve is not installed")
    from ray_eraser.web.app import make_app

    app = make_app(InProcess(coordinator), KEYS, Limits(rate=1e6, burst=1e6))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off"))
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
        server.should_exit = True
        thread.join(30)


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = find_chromium()
    if program is None:
        pytest.skip("there is no Chromium here to open the page with")
    with Browser(program, tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def browser(chromium: Browser) -> Iterator[Browser]:
    """The browser, which must have nothing to complain about when the test ends."""
    chromium.complaints.clear()
    chromium.resize(1280)
    yield chromium
    assert chromium.complaints == []


def sign_in(browser: Browser, url: str, key: str = ERASER) -> None:
    browser.open(url)
    browser.write("#key", key)
    browser.press("Enter", 13)
    browser.wait_for("!document.querySelector('#open').hidden")


def set_aside(coordinator: Coordinator, user: int, monkeypatch: pytest.MonkeyPatch) -> str:
    """An erasure whose training has failed too often."""

    def fails(*_: object, **__: object) -> None:
        raise ValueError("it diverged")

    request = coordinator.submit(UnlearningRequest(user_id=user)).request_id
    with monkeypatch.context() as patch:
        patch.setattr(coordinator._builder, "train_and_publish", fails)
        while coordinator.status(request) is not RequestState.SET_ASIDE:
            with suppress(ValueError):
                coordinator.process_pending()
    return request


def carry_out(coordinator: Coordinator) -> None:
    """Everything that waits, in as many runs as that takes: one that was retried may get a run of its own."""
    while coordinator.process_pending():
        pass


def is_here(coordinator: Coordinator, user: int) -> bool:
    try:
        return bool(coordinator.recommend(user))
    except UnknownIdError:
        return False


@pytest.fixture
def busy(coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """Brings about finished and pending erasures and one that was set aside, of three users from the one given on."""

    def make(first: int) -> None:
        coordinator.submit(UnlearningRequest(user_id=first))
        coordinator.process_pending()
        set_aside(coordinator, first + 1, monkeypatch)
        coordinator.submit(UnlearningRequest(user_id=first + 2))

    yield make
    for request in coordinator.set_aside():
        coordinator.retry(request)
    carry_out(coordinator)


OVERFLOW = """(() => {
  const wide = document.documentElement.clientWidth;
  const out = [...document.querySelectorAll('body *')].filter((each) => {
    const box = each.getBoundingClientRect();
    return box.width && each.closest('thead') === null && (box.right > wide + 0.5 || box.left < -0.5);
  });
  return {page: document.documentElement.scrollWidth - wide, out: out.map((each) => each.outerHTML.slice(0, 90))};
})()"""

CELLS = """[...document.querySelectorAll('#pending td, #finished td, #aside-rows td')].map((cell) => {
  const box = cell.getBoundingClientRect();
  return {name: cell.dataset.name, seen: box.width > 0 && box.height > 0 && cell.innerText !== '',
          before: getComputedStyle(cell, '::before').content};
})"""


@pytest.mark.parametrize(("width", "dark"), SIZES)
def test_the_page_fits_the_screen_with_all_columns(
    url: str, browser: Browser, busy: Callable[[int], None], width: int, dark: bool
) -> None:
    busy(1001 + 3 * SIZES.index(pytest.param(width, dark, id=f"{width}-{'dark' if dark else 'light'}")))
    browser.resize(width, dark=dark)
    browser.open(url)
    assert browser.look(OVERFLOW) == {"page": 0, "out": []}
    sign_in(browser, url)
    browser.wait_for("document.querySelectorAll('#pending tbody tr, #aside-rows tbody tr').length >= 3")
    assert browser.look(OVERFLOW) == {"page": 0, "out": []}
    cells = browser.look(CELLS)
    assert {cell["name"] for cell in cells} >= {"Erasure", "Deadline", "Receipt", "Retry"}
    assert all(cell["seen"] for cell in cells)
    # Where a row is a block, each cell says which column it is.
    assert {cell["before"] != "none" for cell in cells} == {width == 400}
    browser.write("#raw-id", "x" * 200)
    browser.click("#erase-form button")
    assert browser.look(OVERFLOW) == {"page": 0, "out": []}
    browser.click("#confirm-no")
    browser.open(f"{url}docs")
    assert browser.look(OVERFLOW) == {"page": 0, "out": []}


CONTRAST = """(() => {
  const channels = (color) => color.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((each) => each / 255)
    .map((each) => (each <= 0.04045 ? each / 12.92 : ((each + 0.055) / 1.055) ** 2.4))
    .reduce((sum, each, k) => sum + each * [0.2126, 0.7152, 0.0722][k], 0);
  const behind = (node) => {
    for (let each = node; each; each = each.parentElement) {
      const found = channels(getComputedStyle(each).backgroundColor);
      if (found.length === 3 || found[3] === 1) return found;
    }
    return [255, 255, 255];
  };
  const between = (color, place) => {
    const [more, less] = [light(channels(color)), light(behind(place))].sort((x, y) => y - x);
    return (more + 0.05) / (less + 0.05);
  };
  const low = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const holder = node.parentElement;
    if (!node.data.replace(/\\s/g, '') || !holder.getClientRects().length) continue;
    if (holder.closest(':disabled, title, noscript')) continue;
    const style = getComputedStyle(holder);
    const ratio = between(holder.closest('svg') ? style.fill : style.color, holder);
    if (ratio < 4.5) low.push([node.data.slice(0, 40), ratio]);
  }
  for (const bar of document.querySelectorAll('svg rect, .bar i')) {
    const style = getComputedStyle(bar);
    const ratio = between(bar.closest('svg') ? style.fill : style.backgroundColor, bar.closest('.card'));
    if (ratio < 3) low.push([bar.outerHTML, ratio]);
  }
  return low;
})()"""


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_text_and_bars_stand_out_from_what_is_behind_them(
    url: str, browser: Browser, busy: Callable[[int], None], dark: bool
) -> None:
    busy(1016 if dark else 1013)
    browser.resize(1280, dark=dark)
    sign_in(browser, url)
    browser.wait_for("document.querySelectorAll('svg rect').length > 2")
    # WCAG 2.2: 4.5 to 1 for text (1.4.3), 3 to 1 for graphics (1.4.11).
    assert browser.look(CONTRAST) == []
    browser.write("#raw-id", "1003")
    browser.click("#erase-form button")
    assert browser.look(CONTRAST) == []


def test_everything_that_can_be_used_has_a_name(url: str, browser: Browser, busy: Callable[[int], None]) -> None:
    busy(1019)
    sign_in(browser, url)
    browser.wait_for("document.querySelectorAll('#aside-rows tbody tr').length > 0")
    for width in (400, 1280):
        browser.resize(width)
        nodes = browser.call("Accessibility.getFullAXTree")["nodes"]
        roles = [(node["role"]["value"], node.get("name", {}).get("value", "")) for node in nodes if not node["ignored"]]
        named = {
            "textbox",
            "button",
            "radio",
            "link",
            "table",
            "image",
            "img",
            "dialog",
            "heading",
            "main",
            "region",
            "columnheader",
        }
        assert [role for role, name in roles if role in named and not name] == []
        assert {"table", "row", "cell", "columnheader", "main", "radio"} <= {role for role, _ in roles}


def test_the_key_field_comes_first_and_a_wrong_key_is_told(url: str, browser: Browser) -> None:
    browser.resize(1280)
    browser.open(url)
    assert browser.look("document.activeElement.id") == "key"
    box = browser.look(
        "(({left, right, top}) => [(left + right) / 2, top])(document.querySelector('#key').getBoundingClientRect())"
    )
    assert abs(box[0] - 640) < 20  # in the middle, and not below the fold
    assert box[1] < 400
    browser.write("#key", "x" * 32)
    browser.press("Enter", 13)
    browser.wait_for("!document.querySelector('#problem').hidden")
    assert browser.text("#problem") == "This key is not known here."
    assert browser.look("document.querySelector('#open').hidden")
    assert browser.look("document.activeElement.id") == "key"
    browser.complaints.clear()  # about the status 401
    browser.write("#key", ERASER)
    browser.press("Enter", 13)
    browser.wait_for("!document.querySelector('#open').hidden")
    assert browser.text("#role") == "erase"
    browser.click("#forget-key")
    assert browser.look("document.querySelector('#open').hidden")
    assert ERASER not in browser.look(
        "document.documentElement.outerHTML + JSON.stringify({...sessionStorage, ...localStorage})"
    )


def test_an_erasure_is_named_and_confirmed_first(url: str, browser: Browser, coordinator: Coordinator) -> None:
    sign_in(browser, url)
    before = coordinator.describe().requests
    browser.write("#raw-id", "1022")
    browser.press("Enter", 13)
    browser.wait_for("document.querySelector('#confirm').open")
    said = browser.text("#confirm")
    assert said.startswith("Erase this user?")
    assert "user 1022" in said
    assert "This cannot be undone." in said
    assert browser.look("document.activeElement.id") == "confirm-no"  # Enter twice must not erase
    browser.press("Escape", 27)
    assert not browser.look("document.querySelector('#confirm').open")
    assert browser.look("document.activeElement.closest('form').id") == "erase-form"
    assert coordinator.describe().requests == before
    assert is_here(coordinator, 1022)

    browser.click("#erase-form button")
    browser.click("#confirm-yes")
    browser.wait_for("!document.querySelector('#accepted').hidden")
    assert not is_here(coordinator, 1022)
    erasure = browser.text("#accepted-id")
    browser.wait_for(f"document.querySelector('#pending').innerText.includes('{erasure}')")
    assert browser.text("#left-out") == "1 of 3 (33 %)"
    assert browser.text("#waiting") == "1"

    browser.click("#run-now")
    browser.wait_for("document.querySelector('#accepted-state').innerText === 'erased'")
    browser.wait_for(f"document.querySelector('#finished').innerText.includes('{erasure}')")
    assert browser.text("#left-out") == "0 of 3 (0 %)"
    assert browser.look("document.querySelector('#run-now').disabled")


def test_a_key_that_reads_sees_no_way_to_change_anything(url: str, browser: Browser, busy: Callable[[int], None]) -> None:
    busy(1023)
    sign_in(browser, url, READER)
    browser.wait_for("document.querySelectorAll('#aside-rows tbody tr').length > 0")
    assert browser.text("#role") == "read"
    seen = browser.look(
        "[...document.querySelectorAll('button, input, textarea')].filter((each) => each.getClientRects().length)"
        ".map((each) => each.id || each.innerText)"
    )
    assert set(seen) - {"finished-more"} == {"forget-key", "erasure-id", "salt", "Look up", "receipt"}


def test_ids_go_out_as_they_were_typed(url: str, browser: Browser) -> None:
    sign_in(browser, url)
    browser.look(
        "window.sent = []; window.realFetch ??= window.fetch; window.fetch = (path, options) => {"
        " if (options.method === 'POST') { sent.push(JSON.parse(options.body)); return Promise.reject(); }"
        " return realFetch(path, options); }"
    )

    def sends(field: str, typed: str) -> tuple[Any, bool]:
        browser.look(f"document.querySelector('{field}').value = {json.dumps(typed)}; sent.length = 0")
        browser.click("#erase-form button")
        assert browser.look("document.querySelector('#confirm').open"), browser.text("#problem")
        warned = not browser.look("document.querySelector('#confirm-blanks').hidden")
        browser.click("#confirm-yes")
        browser.wait_for("sent.length === 1")
        return browser.look("sent[0]"), warned

    assert sends("#raw-id", " anna") == ({"user_id": " anna"}, True)
    assert sends("#raw-id", "anna") == ({"user_id": "anna"}, False)
    assert sends("#raw-id", "9007199254740993") == ({"user_id": "9007199254740993"}, False)
    browser.click("input[value=item]")
    assert sends("#raw-id", "item/3\t") == ({"item_id": "item/3\t"}, True)
    browser.click("input[value=pairs]")
    lines = 'anna,7\n"a,b", 8\n\n"""quoted""",O\'Hara\n'
    assert sends("#raw-pairs", lines) == ({"pairs": [["anna", "7"], ["a,b", " 8"], ['"quoted"', "O'Hara"]]}, True)
    for wrong, line in (("anna", 1), ("anna,7\na,b,c", 2), ('"anna,7', 1), ("anna,", 1), ("", 1)):
        browser.look(f"document.querySelector('#raw-pairs').value = {json.dumps(wrong)}")
        browser.click("#erase-form button")
        assert not browser.look("document.querySelector('#confirm').open")
        assert browser.text("#problem").startswith(f"Line {line} is not 'user id,item id'")


def test_a_request_that_was_set_aside_is_retried(
    url: str, browser: Browser, coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = set_aside(coordinator, 1027, monkeypatch)
    sign_in(browser, url)
    browser.wait_for(f"document.querySelector('#aside-rows').innerText.includes('{request}')")
    assert browser.text("#set-aside") == "1"
    browser.click(f"[data-id='{request}']")
    browser.wait_for("document.querySelector('#aside').hidden")
    browser.click("#run-now")
    browser.wait_for(f"document.querySelector('#finished').innerText.includes('{request}')")
    assert coordinator.status(request) is RequestState.ERASED


FRAMED = """[...document.querySelectorAll('svg[role=img]')].flatMap((picture) => {
  const frame = picture.getBoundingClientRect();
  const texts = [...picture.querySelectorAll('text')].map((each) => [each.textContent, each.getBoundingClientRect()]);
  const out = texts.filter(([, box]) => box.left < frame.left - 1 || box.right > frame.right + 1 || box.top < frame.top - 1
    || box.bottom > frame.bottom + 1).map(([said]) => `${said} leaves its frame`);
  const touching = texts.flatMap(([said, one], k) => texts.slice(k + 1)
    .filter(([, two]) => one.left < two.right && two.left < one.right && one.top + 3 < two.bottom && two.top + 3 < one.bottom)
    .map(([other]) => `${said} touches ${other}`));
  return [...out, ...touching];
})"""


@pytest.mark.parametrize("width", [400, 1280])
def test_the_pictures_count_erasures_and_their_labels_are_apart(
    url: str, browser: Browser, coordinator: Coordinator, width: int
) -> None:
    for user in range(1030, 1036) if width == 400 else range(1040, 1046):
        coordinator.submit(UnlearningRequest(user_id=user))
        coordinator.process_pending()
    pending = coordinator.submit(UnlearningRequest(user_id=1036 if width == 400 else 1046))
    browser.resize(width)
    sign_in(browser, url)
    browser.wait_for(f"document.querySelector('#pending').innerText.includes('{pending.request_id}')")
    done = coordinator.describe().requests["erased"]
    labels = browser.look("[...document.querySelectorAll('svg[role=img]')].map((each) => each.getAttribute('aria-label'))")
    assert labels[0] == f"Erasures over time: {done + 1} received, {done + 1} out of service, {done} restored"
    generation = coordinator.describe().generation
    assert labels[1].endswith(f"1 (generation {generation}), 1 (now)")
    bars = browser.look("['received', 'excised', 'restored'].map((each) => document.querySelectorAll(`svg .${each}`).length)")
    assert all(1 <= count <= done + 1 for count in bars)
    assert browser.look(FRAMED) == []
    carry_out(coordinator)


def test_a_refresh_keeps_the_focus_in_a_table(url: str, browser: Browser, coordinator: Coordinator) -> None:
    first = coordinator.submit(UnlearningRequest(user_id=1050)).request_id
    coordinator.process_pending()
    sign_in(browser, url)
    browser.look(f"document.querySelector('[data-id=\"{first}\"]').focus()")
    second = coordinator.submit(UnlearningRequest(user_id=1051)).request_id
    coordinator.process_pending()
    browser.wait_for(f"document.querySelector('#finished').innerText.includes('{second}')")
    assert browser.look("document.activeElement.dataset.id") == first
