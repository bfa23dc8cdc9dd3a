"""The demo shop's page in a real browser, on the real endpoint: what a person does, on a phone and at a desk.

Screenshots of the visits are kept in `var/screenshots/`.
"""

import json
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from playwright.sync_api import Browser, Locator, Page, Route, expect, sync_playwright

from recflow.schema import Days
from recflow.serving.server import Server, running
from recflow.settings import Settings, load_settings
from tests.serving import line_shop

CHROMIUM = Path("/usr/bin/chromium")  # Debian's; Playwright's own would be fetched from elsewhere
pytestmark = [
    pytest.mark.servers,
    pytest.mark.skipif(
        not CHROMIUM.exists() and not os.environ.get("CI"), reason="no Chromium: apt-get install chromium"
    ),
    # mlflow 3 asks SQLAlchemy for a loader that is deprecated.
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated"),
]

ROOT = Path(__file__).resolve().parents[2]
FILES = ROOT / "src" / "recflow" / "serving" / "page"
CHECKS = Path(__file__).with_name("page_checks.js").read_text(encoding="utf-8")
FINE: dict[str, list[str]] = {"nameless": [], "small": [], "pale": []}
SCREENSHOTS = ROOT / "var" / "screenshots"
CUSTOMER = "12347.0"  # of the small shop, and among the page's examples
SIZES = {"phone": (360, 740), "desktop": (1360, 900)}
# Chromium as root, in silence: it asks nobody but the endpoint.
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip


@dataclass(frozen=True)
class Shop:
    settings: Settings
    days: Days
    server: Server
    versions: tuple[str, str]  # the second one is served at first


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    settings = load_settings(home=tmp_path_factory.mktemp("page") / "var", serving={"poll_seconds": 0.2})
    days = line_shop.prepare(settings)
    versions = (line_shop.publish(days, settings, model="repeat_purchase"), line_shop.publish(days, settings))
    with running(settings, port=0) as server:
        yield Shop(settings, days, server, versions)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    expect.set_options(timeout=15_000)  # milliseconds; the machine may be busy
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield started
        started.close()


class Visit:
    """One browser window, and what went wrong in it."""

    def __init__(self, browser: Browser, shop: Shop, size: str = "desktop", **options: Any) -> None:
        width, height = SIZES[size]
        self.context = browser.new_context(
            base_url=shop.server.url, viewport={"width": width, "height": height}, **options
        )
        self.page = self.context.new_page()
        self.page.set_default_timeout(15_000)
        self.complaints: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self._note(message.type, message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))

    def _note(self, kind: str, text: str) -> None:
        if kind in ("error", "warning"):
            self.complaints.append(text)

    def enter(self, path: str = f"/?customer={CUSTOMER}") -> Page:
        self.page.goto(path)
        self.cards.first.wait_for()
        expect(self.page.locator("#trending .card").first).to_be_visible()
        return self.page

    @property
    def cards(self) -> Locator:
        return self.page.locator("#home > .card")

    def order(self) -> list[str]:
        return self.cards.evaluate_all("cards => cards.map(card => card.dataset.item)")


@pytest.fixture
def visit(browser: Browser, shop: Shop, request: pytest.FixtureRequest) -> Iterator[Visit]:
    """Return a window; parametrize indirectly with options of `Visit`. Nothing may be complained about in it."""
    visit = Visit(browser, shop, **getattr(request, "param", {}))
    yield visit
    visit.context.close()
    assert visit.complaints == []
    assert all(url.startswith(shop.server.url) for url in visit.asked)


def profile(shop: Shop, customer: str = CUSTOMER) -> dict[str, Any]:
    return httpx.get(f"{shop.server.url}/v1/profile/{customer}").json()


# -- a visit


@pytest.mark.parametrize("visit", [{"size": size} for size in SIZES], indirect=True, ids=list(SIZES))
def test_a_visit_from_the_first_look_to_the_purchase(visit: Visit, shop: Shop, request: pytest.FixtureRequest) -> None:
    size = request.node.callspec.id
    customer = {"phone": "12350.0", "desktop": "12360.0"}[size]  # each their own history
    page = visit.enter("/")
    # Somebody is shopping already; another one is typed in.
    page.get_by_label("Customer", exact=True).fill(customer)
    page.get_by_role("button", name="Shop as").click()
    expect(page.locator("#home-note")).to_contain_text(customer)
    expect(visit.cards).to_have_count(12)
    assert all(visit.cards.locator(".reason").all_text_contents())
    shot(page, f"{size}-home")

    # A click on a product opens it, and is an event that the next list knows of.
    before = visit.order()
    card = visit.cards.nth(3)
    name = card.locator(".card-title").inner_text()
    card.locator(".card-title").click()
    product = page.get_by_role("dialog", name=name)
    expect(product.locator("#similar .card").first).to_be_visible()
    expect(product.locator("#bought .card").first).to_be_visible()
    expect(page.locator("#changes")).to_contain_text(f"After the click on {name}")
    clicked = profile(shop, customer)["recent_events"][0]
    assert (clicked["event_type"], clicked["item_id"]) == ("click", before[3])
    shot(page, f"{size}-product")

    product.get_by_role("button", name="Add to cart", exact=True).click()
    expect(product.locator("#product-status")).to_have_text(f"{name}: 1 in your cart.")
    product.get_by_role("button", name="Close").click()
    expect(page.locator("#cart-count")).to_have_text("1")
    expect(page.locator("#changes")).to_contain_text(f"With {name} in the cart")
    # What the note says is what the cards show.
    marked = page.locator("#home .tag").count()
    said = [int(number) for number in re.findall(r"(\d+) (?:product|is|are)", page.locator("#changes").inner_text())]
    assert sum(said) == marked

    # What goes with the cart isn't in it, and can be added.
    basket = page.locator("#basket .line")
    expect(basket.first).to_be_visible()
    assert name not in basket.locator(".line-title").all_inner_texts()
    second = basket.first.locator(".line-title").inner_text()
    basket.first.get_by_role("button", name=f"Add {second} to cart").click()
    expect(page.locator("#cart .line-title")).to_have_text([name, second])
    shot(page, f"{size}-cart", whole=True)

    page.get_by_role("button", name=re.compile("^Buy 2 products")).click()
    expect(page.locator("#cart-empty")).to_be_visible()
    expect(page.locator("#changes")).to_contain_text("After buying 2 products")
    expect(page.locator("#profile .recent li").first).to_contain_text("bought")
    kept = profile(shop, customer)["recent_events"]
    assert [event["event_type"] for event in kept[:5]].count("purchase") == 2
    # The shop's data end in 2011, and so does what happens on its page: nobody was away for years.
    assert {event["event_timestamp"][:4] for event in kept} == {"2011"}
    assert no_scrolling_sideways(page)


def shot(page: Page, name: str, *, whole: bool = False) -> None:
    page.evaluate("Promise.all(document.getAnimations().map(animation => animation.finished))")
    size = page.viewport_size
    if whole and size:  # what sticks to the window would stand in the middle of a picture of the whole page
        page.set_viewport_size(size | {"height": page.evaluate("document.documentElement.scrollHeight")})
    page.screenshot(path=SCREENSHOTS / f"{name}.png")
    if whole and size:
        page.set_viewport_size(size)


def no_scrolling_sideways(page: Page) -> bool:
    return bool(page.evaluate("document.documentElement.scrollWidth <= innerWidth"))


def test_a_new_visitors_clicks_count_too(visit: Visit) -> None:
    page = visit.enter("/?customer=nobody-knows-me")
    page.get_by_role("button", name="New visitor").click()
    expect(page.locator("#home-note")).to_have_text("A new visitor: what is popular.")
    expect(page.locator("#fact-fallback")).to_contain_text("popularity")
    visit.cards.first.locator(".card-title").click()
    expect(page.locator("#fact-fallback")).to_contain_text("session_only")
    page.keyboard.press("Escape")
    expect(page.locator("#home-note")).to_have_text("A new visitor: from this visit alone.")


def test_country_and_variety_are_asked_for(visit: Visit) -> None:
    page = visit.enter()
    with page.expect_request("**/v1/recommend") as asked:
        page.get_by_label("Country").select_option("Germany")
    assert asked.value.post_data_json["context"] == {"country": "Germany"}
    expect(page.locator("#changes")).to_contain_text("Shopping in Germany")
    with page.expect_request("**/v1/recommend") as asked:
        page.get_by_label("Variety").fill("0.6")
        page.get_by_label("Variety").dispatch_event("change")
    assert asked.value.post_data_json["diversity"] == 0.6
    expect(page.locator("#diversity-value")).to_have_text("0.6")


def test_the_version_served_can_be_switched(visit: Visit, shop: Shop) -> None:
    page = visit.enter()
    older, served = shop.versions
    expect(page.locator("#fact-version")).to_have_text(served)
    for version in (older, served):
        page.get_by_label("Serve version").select_option(version)
        page.get_by_role("button", name="Switch").click()
        expect(page.locator("#fact-version")).to_have_text(version)
        expect(page.locator("#changes")).to_contain_text(f"Served by version {version}")


def test_the_list_that_is_shown_is_reported_with_its_places(visit: Visit, shop: Shop) -> None:
    with visit.page.expect_request("**/v1/events") as reported:
        page = visit.enter()
    events = reported.value.post_data_json["events"]
    assert [event["item_id"] for event in events] == visit.order()
    assert [event["position"] for event in events] == list(range(1, 13))
    assert {event["event_type"] for event in events} == {"impression"}
    assert {event["request_id"] for event in events} == {page.locator("#fact-request").get_attribute("title")}


# -- search


HOSTILE = "TEAPOT <img src=x onerror=alert(1)> & <b>bold</b>"


@pytest.fixture(scope="module")
def teapots(shop: Shop) -> dict[str, dict[str, Any]]:
    """Return thirty teapots that the shop has just got, and one whose title isn't meant well, by id."""
    rows = [
        {"item_id": f"T{at}", "title": f"{('RED', 'BLUE', 'GREEN')[at % 3]} TEAPOT {at}", "brand": f"Potter {at % 3}",
         "category": ("Kitchen > Tea", "<b>Gifts</b>")[at % 2], "price": 1.0 + at, "currency": "GBP"}
        for at in range(30)
    ]  # fmt: skip
    rows.append(rows[0] | {"item_id": "T30", "title": HOSTILE, "price": 31.0})
    httpx.put(f"{shop.server.url}/v1/items", json={"items": rows}).raise_for_status()
    deadline = time.monotonic() + 15
    while (
        httpx.post(f"{shop.server.url}/v1/search", json={"query": "teapot"}).json()["total"]["count"] < len(rows)
        and time.monotonic() < deadline
    ):
        time.sleep(0.05)
    return {row["item_id"]: row for row in rows}


def search(page: Page, query: str) -> None:
    page.get_by_role("combobox", name="Search").fill(query)
    page.get_by_role("search").get_by_role("button", name="Search").click()
    expect(page.locator("#results")).to_have_attribute("aria-busy", "false")


def found(page: Page) -> list[str]:
    return page.locator("#found > .card").evaluate_all("cards => cards.map(card => card.dataset.item)")


def test_what_is_searched_for_is_read_right_marked_narrowed_sorted_and_paged(
    visit: Visit, teapots: dict[str, dict[str, Any]]
) -> None:
    page, cards = visit.enter(), visit.page.locator("#found > .card")
    with page.expect_request("**/v1/search") as asked:
        search(page, "taepot")
    assert (asked.value.post_data_json["query"], asked.value.post_data_json["user_id"]) == ("taepot", CUSTOMER)
    expect(page.locator("#results-title")).to_be_focused()
    expect(page.locator("#corrected")).to_have_text("Did you mean teapot? That is what is shown.")
    expect(page.locator("#results-note")).to_contain_text("31 products")
    expect(page.locator("#home")).to_be_hidden()
    expect(cards).to_have_count(24)
    assert {mark.lower() for mark in cards.locator(".card-title mark").all_inner_texts()} == {"teapot"}
    shot(page, "desktop-search")

    page.get_by_role("button", name="Show more").click()
    expect(cards).to_have_count(31)
    expect(cards.nth(24).locator(".card-title")).to_be_focused()
    expect(page.locator("#more")).to_be_hidden()
    assert sorted(found(page)) == sorted(teapots)

    # What a facet says is what is left; it narrows, and can be given up.
    facet = page.locator(".facet", has_text="<b>Gifts</b>")
    expect(facet.locator(".facet-count")).to_have_text("15")
    facet.click()
    expect(page.locator("#results-note")).to_contain_text("15 products")
    expect(facet).to_be_focused()
    page.get_by_label("Sort by").select_option("price_desc")
    expect(cards.first).to_have_attribute("data-item", "T29")
    assert found(page) == [f"T{at}" for at in range(29, 0, -2)]
    page.get_by_role("list", name="Price").get_by_role("button").last.click()
    expect(page.locator("#results-note")).not_to_contain_text("15 products")
    prices = page.locator(".facet[aria-pressed=true]", has_text=" to ").locator(".facet-name").inner_text()
    low, high = (float(text.removeprefix("£")) for text in prices.split(" to "))
    assert [teapots[item]["price"] for item in found(page)] == [
        1.0 + at for at in range(29, 0, -2) if low <= 1.0 + at <= high
    ]
    page.get_by_role("button", name="Clear the filters").click()
    expect(cards).to_have_count(24)

    # For another customer it is searched anew; the address says what was searched for.
    with page.expect_request("**/v1/search") as asked:
        page.get_by_role("button", name="New visitor").click()
    assert "user_id" not in asked.value.post_data_json
    expect(page.locator("#results-changes")).to_contain_text("As a new visitor")
    page.go_back()
    expect(visit.cards.first).to_be_visible()
    page.go_forward()
    expect(page.locator("#results-title")).to_have_text("Results for “taepot”")
    page.get_by_role("button", name="Back to the shop").click()
    expect(page.locator("#home-title")).to_be_focused()


def test_what_was_found_seen_clicked_and_bought_is_told_with_its_search(visit: Visit) -> None:
    page = visit.enter("/?customer=12351.0")
    with page.expect_request("**/v1/events") as reported:
        search(page, "item number")
    seen, search_id = reported.value.post_data_json["events"], page.locator("#fact-request").get_attribute("title")
    assert [(event["item_id"], event["position"]) for event in seen] == [
        (item, place) for place, item in enumerate(found(page), start=1)
    ]
    assert {(event["event_type"], event["request_id"]) for event in seen} == {("impression", search_id)}

    third = found(page)[2]
    with page.expect_request("**/v1/events") as reported:
        page.locator("#found .card-title").nth(2).click()
    (clicked,) = reported.value.post_data_json["events"]
    assert (clicked["event_type"], clicked["item_id"]) == ("click", third)
    assert (clicked["position"], clicked["request_id"]) == (3, search_id)
    # Why it was found, and what its score is made of.
    expect(page.locator("#product-reason")).to_contain_text('"number"')
    expect(page.locator("#product-why .bar-label").first).to_have_text("Its words")
    page.get_by_role("dialog").get_by_role("button", name="Add to cart", exact=True).click()
    page.keyboard.press("Escape")
    with page.expect_request(lambda request: "purchase" in (request.post_data or "")) as reported:
        page.get_by_role("button", name=re.compile("^Buy 1 product")).click()
    (bought,) = reported.value.post_data_json["events"]
    assert (bought["item_id"], bought["position"], bought["request_id"]) == (third, 3, search_id)


@pytest.mark.parametrize("visit", [{"size": "phone", "color_scheme": "dark"}], indirect=True, ids=["phone-dark"])
def test_the_search_box_is_a_combobox_for_the_keyboard(visit: Visit, teapots: Any) -> None:
    page = visit.enter()
    box, options = page.get_by_role("combobox", name="Search"), page.locator("#suggestions").get_by_role("option")
    box.focus()
    page.keyboard.type("item nu")
    expect(options.first).to_be_visible()
    expect(box).to_have_attribute("aria-expanded", "true")
    assert page.evaluate(CHECKS) == FINE
    shot(page, "phone-suggest")
    page.keyboard.press("ArrowDown")
    expect(box).to_have_value(options.first.locator(".option-text").inner_text())
    expect(options.first).to_have_attribute("aria-selected", "true")
    assert box.get_attribute("aria-activedescendant") == options.first.get_attribute("id")
    page.keyboard.press("ArrowUp")
    expect(box).to_have_value("item nu")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Escape")
    expect(options).to_have_count(0)
    expect(box).to_have_value("item nu")
    expect(box).to_have_attribute("aria-expanded", "false")
    # What is typed after an arrow key is what Enter searches for.
    page.keyboard.press("ArrowDown")
    expect(options.first).to_be_visible()
    page.keyboard.press("ArrowDown")
    page.keyboard.type(" 7")
    page.keyboard.press("Enter")
    expect(page.locator("#results-title")).to_have_text(re.compile("^Results for .* 7”$"))
    expect(page.locator("#found .card").first).to_be_visible()
    expect(options).to_have_count(0)
    # A product is opened.
    box.fill("red teap")
    options.filter(has_text="product").first.click()
    expect(page.locator("#product-price")).to_contain_text("£")
    page.keyboard.press("Escape")
    search(page, "teapot")
    page.locator("#filters summary").click()
    assert page.evaluate(CHECKS) == FINE
    assert no_scrolling_sideways(page)
    shot(page, "phone-search")
    # What is new is similar to nothing yet, and Chromium notes the answers that say so.
    visit.complaints = [each for each in visit.complaints if "404" not in each]


def test_a_query_and_a_title_are_text_whatever_they_look_like(visit: Visit, teapots: Any) -> None:
    page, hostile = visit.page, '"><img src=x onerror=alert(1)> teapot'
    page.goto(f"/?customer={CUSTOMER}&q={quote(hostile)}")
    expect(page.locator("#results-title")).to_have_text(f"Results for “{hostile}”")
    title = page.locator("#found .card-title", has_text="onerror")
    assert title.first.inner_text() == HOSTILE
    page.get_by_role("combobox", name="Search").fill("teapot <im")
    expect(page.locator("#suggestions").get_by_role("option").first).to_be_visible()
    assert page.locator("#results img, #results b, #suggestions img, #suggestions b").count() == 0
    search(page, "*:* OR (price:[0 TO 9] \\ .*.*.*)" + "~" * 200)
    expect(page.locator("#trouble")).to_be_hidden()


def test_an_empty_or_failed_search_says_so_and_how_to_go_on(visit: Visit, teapots: Any) -> None:
    page = visit.page
    page.goto(f"/?customer={CUSTOMER}&q=teapot&category=Nowhere")
    expect(page.locator("#found-none p")).not_to_be_empty()
    page.locator("#found-none").get_by_role("button", name="Clear the filters").click()
    expect(page.locator("#found > .card")).to_have_count(24)
    search(page, "xqzwvy")
    expect(page.locator("#results-title")).to_have_text("Nothing found for “xqzwvy”")
    expect(page.locator("#relaxed")).not_to_be_empty()
    expect(page.locator("#found > .card").first).to_be_visible()  # what is bought most
    page.route("**/v1/search", lambda route: refuse(route, 503, "No model is loaded yet."))
    search(page, "red teapot")
    expect(page.get_by_role("alert")).to_have_text("No model is loaded yet.")
    expect(page.locator("#found > .card")).to_have_count(0)
    page.unroute("**/v1/search")
    page.get_by_role("button", name="Try again").click()
    expect(page.locator("#found > .card")).to_have_count(24)
    expect(page.get_by_role("alert")).to_be_hidden()
    visit.complaints = [each for each in visit.complaints if "503" not in each]


# -- everybody


@pytest.mark.parametrize("visit", [{"size": "phone"}, {"color_scheme": "dark"}], indirect=True, ids=["phone", "dark"])
def test_everything_has_a_name_enough_contrast_and_room(visit: Visit) -> None:
    page = visit.enter()
    visit.cards.first.get_by_role("button", name="Add").click()
    expect(page.locator("#basket .line").first).to_be_visible()
    assert page.evaluate(CHECKS) == FINE
    assert page.evaluate("document.querySelectorAll('h1').length") == 1
    levels = page.locator("h1, h2, h3").evaluate_all(
        "all => all.filter(h => h.checkVisibility()).map(h => +h.tagName[1])"
    )
    assert all(after - before <= 1 for before, after in pairwise(levels))
    assert no_scrolling_sideways(page)
    visit.cards.nth(1).locator(".card-title").click()
    expect(page.locator("#bought .card").first).to_be_visible()
    assert page.evaluate(CHECKS) == FINE
    assert page.evaluate("document.querySelector('dialog').scrollWidth <= document.querySelector('dialog').clientWidth")


def test_the_checks_themselves_find_what_is_wrong(visit: Visit) -> None:
    page = visit.enter()
    page.evaluate("""() => document.querySelector('main').insertAdjacentHTML('afterbegin',
      '<button id="tiny"></button><p id="pale">pale</p>')""")
    page.evaluate("""() => {
      Object.assign(document.getElementById('tiny').style, {minHeight: 0, height: '10px', width: '10px', padding: 0});
      document.getElementById('pale').style.color = '#9a9a9a';
    }""")
    assert {check: len(found) for check, found in page.evaluate(CHECKS).items()} == dict.fromkeys(FINE, 1)


def test_the_keyboard_is_enough(visit: Visit) -> None:
    page = visit.enter()
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the recommendations")).to_be_focused()
    page.keyboard.press("Enter")
    while not page.evaluate("document.activeElement.matches('#home .card-title')"):
        page.keyboard.press("Tab")
    name = page.evaluate("document.activeElement.innerText")
    page.keyboard.press("Enter")
    expect(page.locator("#product-title")).to_be_focused()
    expect(page.locator("#product-title")).to_have_text(name)
    expect(page.locator("#changes")).to_contain_text("After the click")
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    # Back where it was, or at the list's head where the product has left the list.
    back = page.evaluate("[document.activeElement.innerText, document.activeElement.id]")
    assert back[0] == name or back[1] == "home-title"
    while not page.evaluate("document.activeElement.matches('#home .add')"):
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.locator("#cart-count")).to_have_text("1")
    page.get_by_role("button", name=re.compile("^Buy 1 product")).press("Enter")
    expect(page.locator("#home-title")).to_be_focused()


@pytest.mark.parametrize("visit", [{"reduced_motion": "reduce"}], indirect=True, ids=["reduced"])
def test_nothing_moves_for_who_wants_no_motion(visit: Visit) -> None:
    page = visit.enter()
    visit.cards.nth(2).get_by_role("button", name="Add").click()
    expect(page.locator("#changes")).to_contain_text("in the cart")
    assert page.evaluate("document.getAnimations().length") == 0


# -- what goes wrong


def refuse(route: Route, status: int, detail: str) -> None:
    route.fulfill(status=status, content_type="application/problem+json", body=json.dumps({"detail": detail}))


def test_what_the_endpoint_refuses_is_said_and_the_rest_goes_on(visit: Visit) -> None:
    page = visit.enter()
    page.route("**/v1/recommend", lambda route: refuse(route, 503, "No model is loaded yet."))
    page.get_by_role("button", name="New visitor").click()
    expect(page.get_by_role("alert")).to_have_text("No model is loaded yet.")
    expect(page.locator("#trending .card").first).to_be_visible()
    page.unroute("**/v1/recommend")
    page.get_by_role("button", name="New visitor").click()
    expect(visit.cards.first).to_be_visible()
    expect(page.get_by_role("alert")).to_be_hidden()
    visit.complaints = [each for each in visit.complaints if "503" not in each]  # Chromium notes the refusal


def test_a_key_is_asked_for_used_and_kept_out_of_the_page(visit: Visit) -> None:
    secret = "rf_0123456789ab_" + "x" * 43

    def closed(route: Route) -> None:
        if route.request.headers.get("authorization") == f"Bearer {secret}":
            route.continue_()
        else:
            refuse(route, 401, "This call needs a key.")

    page = visit.page
    page.route("**/v1/**", closed)
    page.goto("/")
    expect(page.get_by_role("alert")).to_have_text("This call needs a key.")
    page.get_by_label("This endpoint asks for an API key").fill(secret)
    page.get_by_role("button", name="Use it").click()
    visit.cards.first.wait_for()
    expect(page.get_by_role("alert")).to_be_hidden()
    assert secret not in page.content()
    visit.complaints = [each for each in visit.complaints if "401" not in each]


def test_titles_are_text_whatever_they_look_like(visit: Visit) -> None:
    page, title = visit.page, "<img src=x onerror=alert(1)> & <b>bold</b>"

    def rename(route: Route) -> None:
        answer = route.fetch()
        content = answer.json()
        for item in content["items"]:
            item["title"] = title
            item["reason"]["text"] = title
        route.fulfill(response=answer, json=content)

    page.route("**/v1/recommend", rename)
    visit.enter()
    assert visit.cards.first.locator(".card-title").inner_text() == title
    assert page.locator("#home img, #home b").count() == 0


# -- the files


def test_the_page_is_served_with_a_policy_that_lets_nothing_foreign_in(shop: Shop) -> None:
    for path in ("/", *(f"/page/{file.name}" for file in FILES.iterdir() if file.name != "index.html")):
        answer = httpx.get(shop.server.url + path)
        assert answer.status_code == 200, path
        policy = dict(part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";"))
        assert policy["default-src"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
        assert answer.headers["x-content-type-options"] == "nosniff"


def test_the_page_holds_no_script_or_style_of_its_own_and_fetches_nothing_foreign() -> None:
    html = (FILES / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"<style|\sstyle=|\son[a-z]+=|javascript:", html)
    assert re.findall(r"<script[^>]*>(.*?)</script>", html) == [""]
    for file in FILES.iterdir():
        foreign = re.findall(r"(?:https?:)?//[a-z][\w.-]+\.[a-z]{2,}", file.read_text(encoding="utf-8"))
        assert set(foreign) <= {"http://www.w3.org"}, file.name  # the name of SVG
