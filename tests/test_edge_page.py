"""The web page of the edge service in Chromium, against a stand-in for the service (page_service.py).

What the page promises to somebody who has never seen it, sentence by sentence.
"""

import itertools
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from page_service import PICTURE, PageService

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
QUIET += ["--disable-component-update", "--disable-sync"]
COUNT_URLS = """
    window.urls = 0;
    const { createObjectURL, revokeObjectURL } = URL;
    URL.createObjectURL = (blob) => { window.urls += 1; return createObjectURL(blob); };
    URL.revokeObjectURL = (url) => { if (url) window.urls -= 1; revokeObjectURL(url); };
"""

REACH = """async () => {
    for (const part of ["state", "words", "viewer"]) Object.assign(window, await import(`./static/${part}.js`));
}"""  # for tests that look inside


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip("needs Chromium, for example Debian's package chromium")
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=5000)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=QUIET)
        yield browser
        browser.close()


@pytest.fixture
def serve() -> Iterator[Callable[..., PageService]]:
    services: list[PageService] = []

    def serve(**options: str) -> PageService:
        services.append(PageService(**options))
        return services[-1]

    yield serve
    for service in services:
        service.stop()


@pytest.fixture
def service(serve) -> PageService:
    return serve()


@pytest.fixture
def show(browser) -> Iterator[Callable[..., Any]]:
    """Opens a service's page. Afterwards nothing must have gone wrong in it, nor been asked of another host."""
    contexts, problems = [], []

    def show(service: PageService, connected: bool = True, clock: bool = False, **options: Any) -> Any:
        contexts.append(browser.new_context(**options))
        contexts[-1].set_default_timeout(5000)
        page = contexts[-1].new_page()
        page.add_init_script(COUNT_URLS)
        if clock:  # which a test moves on
            page.clock.install()
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda line: "Refused" in line.text and problems.append(line.text))
        own = (f"http://127.0.0.1:{service.port}/", f"blob:http://127.0.0.1:{service.port}/", "data:")
        page.on("request", lambda request: request.url.startswith(own) or problems.append(request.url))
        page.goto(service.url)
        page.evaluate(REACH)
        if connected:
            says(page.locator("#connection"), "Connected")
        return page

    yield show
    for context in contexts:
        context.close()
    assert not problems


def says(locator: Any, words: str | re.Pattern[str]) -> None:
    from playwright.sync_api import expect

    expect(locator).to_have_text(words)


def becomes(locator: Any, **what: bool | int) -> None:
    """Waits for focused, visible, hidden, or a count."""
    from playwright.sync_api import expect

    for name, value in what.items():
        if name == "count":
            expect(locator).to_have_count(value)
        else:
            getattr(expect(locator), f"to_be_{name}")()


def eventually(true: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def card(page: Any, task: int) -> Any:
    return page.locator(f"#images > [data-task='{task}']")


def press(where: Any, name: str) -> None:
    where.get_by_role("button", name=name).click()


def shown(page: Any) -> list[int]:
    return page.evaluate("[...document.querySelectorAll('#images > li')].map((item) => Number(item.dataset.task))")


# the form


def test_somebody_new_makes_an_example_below_a_sub_path(serve, show):
    service = serve(prefix="/images")
    page = show(service)
    says(page.locator("#model-words"), service.model["words"])
    press(page, "two blue apples")
    becomes(page.get_by_label("Prompt", exact=True), focused=True)
    page.keyboard.press("Enter")
    says(card(page, 0).locator("h3"), "two blue apples")
    says(page.locator("#problem"), "")
    service.set(0, state="running", edge_server=1, step=5, estimated_s=9.0)
    says(card(page, 0).locator("[data-part=words]"), re.compile(r"Step 5 of 14, about (9.0|8\.\d) s"))
    assert (
        page.get_by_role("progressbar", name="Progress of image 0").evaluate("(bar) => bar.value / bar.max") == 5 / 14
    )
    service.set(0, state="done", edge_server=1)
    says(card(page, 0).locator("[data-part=words]"), "Made by server 1 in 1.3 s")
    picture = page.get_by_alt_text("two blue apples")
    becomes(picture, visible=True)
    assert picture.evaluate("async (one) => { await one.decode(); return [one.naturalWidth, one.naturalHeight] }") == [
        64,
        64,
    ]
    says(page.locator("#news"), re.compile("Image 0: Made by server 1"))


def test_an_order_carries_every_setting_and_makes_a_card_for_each_image(service, show):
    page = show(service)
    page.get_by_label("Prompt", exact=True).fill("  a fox ")
    page.get_by_label("Number of images").fill("3")
    page.locator("#settings summary").click()
    page.get_by_label("Negative prompt").fill("snow")
    page.get_by_label("Size").select_option("96x64")
    page.get_by_label("Steps", exact=True).fill("20")
    page.get_by_label("Guidance").fill("2.5")
    page.get_by_label("Seed").fill("7")
    says(page.locator("#settings-words"), "96 x 64, 20 steps, seed 7")
    press(page, "Make")
    becomes(page.locator("#images > li"), count=3)
    assert shown(page) == [2, 1, 0]
    for k, task in service.tasks.items():
        order = {"prompt": "a fox", "negative_prompt": "snow", "steps": 20, "seed": 7 + k, "width": 96, "height": 64}
        assert order.items() <= task.items() and task["cfg_scale"] == 2.5
    page.reload()
    becomes(page.get_by_label("Negative prompt"), visible=True)  # the settings are still open
    page.locator("#size option").first.wait_for(state="attached")
    sizes = page.get_by_label("Size").evaluate(
        "(list) => [...list.options].map((one) => one.value.split('x').map(Number))"
    )
    assert sizes[0] == [64, 64] and all(side % 16 == 0 and 64 <= side <= 128 for size in sizes for side in size)


def test_one_of_several_models_is_chosen_by_keyboard_and_the_servers_say_what_they_hold(service, show):
    page = show(service)
    becomes(page.locator("#model-field"), hidden=True)  # there is one
    service.model["models"] = {"pocket": 28, "odd": None, "red": 30}
    page.reload()
    chosen = page.get_by_label("Model", exact=True)
    becomes(chosen, visible=True)
    page.get_by_label("Prompt", exact=True).fill("a fox")
    chosen.focus()
    chosen.press("ArrowDown")
    page.get_by_label("Number of images").press("Enter")
    becomes(page.locator("#images > li"), count=1)
    assert [task["model"] for task in service.tasks.values()] == ["odd"]
    card(page, 0).locator("summary").click()
    says(card(page, 0).locator("dt", has_text="Model").locator("+ dd"), "odd")
    page.locator("#cluster summary").click()
    service.tell("cluster", cluster_of(1, models=["red", "odd"], loads=1234))
    says(page.locator("#servers tr"), "0up412 s42 ms0red, odd, 1,234")
    becomes(page.get_by_role("columnheader", name="Models, loads"), visible=True)
    service.tell("cluster", cluster_of(1, models=[], loads=0))
    becomes(page.locator("#models-head"), hidden=True)


def test_an_order_that_comes_before_the_limits_waits_for_them(service, show):
    page, held, scripts = show(service), [], []
    page.route("**/api/model", lambda route: held.append(route))
    page.route("**/static/page.js", lambda route: scripts.append(route))
    page.reload(wait_until="commit")
    page.get_by_label("Prompt", exact=True).fill("a fox")
    page.get_by_label("Number of images").press("Enter")  # would send the form away
    becomes(page.get_by_role("button", name="Make"), disabled=True)
    for route in scripts:
        route.continue_()
    press(page, "Make")
    page.wait_for_timeout(200)
    for route in held:
        route.continue_()
    becomes(page.locator("#images > li"), count=1)
    assert [task["prompt"] for task in service.tasks.values()] == ["a fox"]


MISTAKES = [
    ("Prompt", " ", "Say what the image shows."),
    ("Prompt", 1001 * "\N{RED APPLE}", "This has 1,001 characters; at most 1,000 are allowed."),
    ("Negative prompt", 1001 * "x", "This has 1,001 characters; at most 1,000 are allowed."),
    ("Number of images", "5", "This must be a whole number from 1 to 4."),
    ("Number of images", "", "This must be a whole number from 1 to 4."),
    ("Steps", "51", "This must be a whole number from 1 to 50."),
    ("Steps", "2.5", "This must be a whole number from 1 to 50."),
    ("Guidance", "-1", "This must be a number, 0 or more."),
    ("Seed", "-1", "This must be a whole number from 0 to 2,147,483,647."),
]


def test_mistakes_are_told_at_their_field_before_anything_is_sent(service, show):
    page = show(service)
    for label, value, words in MISTAKES:
        page.get_by_label("Prompt", exact=True).fill("a fox")
        page.locator("#settings").evaluate("(settings) => { settings.open = false }")
        field = page.get_by_label(label, exact=label == "Prompt")
        good = field.input_value()
        field.evaluate("(field, value) => { field.value = value }", value)
        press(page, "Make")
        becomes(field, focused=True)
        described = (
            "(field) => document.getElementById(field.getAttribute('aria-describedby').split(' ').at(-1)).textContent"
        )
        assert field.evaluate(described) == words and field.get_attribute("aria-invalid") == "true"
        field.fill(good)
        assert field.get_attribute("aria-invalid") is None
    assert not service.asked("POST")


def test_an_order_whose_answer_is_lost_or_slow_is_made_once(service, show):
    page = show(service)
    page.get_by_label("Prompt", exact=True).fill("a fox")
    service.drop = True
    press(page, "Make")
    says(page.locator("#problem"), re.compile("The service answers 500"))
    service.drop, service.slow = False, 0.3
    page.get_by_label("Prompt", exact=True).press("Enter")
    page.get_by_label("Prompt", exact=True).press("Enter")
    says(page.locator("#make"), "Sending")
    says(page.locator("#make"), "Make")
    says(page.locator("#problem"), "")
    assert list(service.tasks) == [0] and service.asked("POST") == 2
    service.refuse = (503, "1000 tasks wait or run, and no more than 1000 may; try again later")
    press(page, "Make")
    says(page.locator("#problem"), service.refuse[1])
    assert page.get_by_label("Prompt", exact=True).input_value() == "a fox"


# cards


def test_waiting_is_told_in_words_and_its_time_never_runs_below_none(service, show):
    first, second, third = (service.task(state="queued", edge_server=0, ahead=k, estimated_s=0.4 + k) for k in range(3))
    other = service.task(state="queued", edge_server=1, ahead=2, estimated_s=125.0)
    unknown = service.task(state="queued", edge_server=1)
    page = show(service)
    words = [card(page, task).locator("[data-part=words]") for task in (first, second, third, other)]
    says(words[2], re.compile(r"Waits, 2 before it, about (2\.4|1\.\d) s"))
    says(words[3], re.compile(r"Waits, 2 before it, about 2 min \d s"))
    says(card(page, unknown).locator("[data-part=words]"), "Waits")
    service.set(first, state="done")
    says(words[1], re.compile("Is next, "))
    says(words[2], re.compile("Waits, 1 before it, "))
    service.set(second, state="cancelled", ahead=None)
    says(words[2], re.compile("Is next, "))
    says(words[3], re.compile("Waits, 2 before it, "))
    says(words[2], "Is next, any moment now")
    page.wait_for_timeout(1500)
    says(words[2], "Is next, any moment now")


def test_cancel_retry_and_delete(service, show):
    queued = service.task("an owl", state="queued", ahead=1)
    running = service.task("a fox", state="running", step=3)
    failed = service.task("a wolf", state="failed", error="edge servers died 3 times on it", seed=99)
    page = show(service)
    press(card(page, queued), "Cancel")
    says(card(page, queued).locator("[data-part=words]"), "Cancelled")
    press(card(page, running), "Cancel")
    says(card(page, running).locator("[data-part=words]"), "Stops at its next step")
    becomes(card(page, running), focused=True)  # its button went, the focus stays there
    says(card(page, failed).locator("[data-part=words]"), "Failed: edge servers died 3 times on it")
    press(card(page, failed), "Retry")
    becomes(card(page, 3), visible=True)
    assert (service.tasks[3]["prompt"], service.tasks[3]["seed"]) == ("a wolf", 99)
    press(card(page, failed), "Delete")
    becomes(card(page, failed).get_by_role("button", name="Delete for good?"), visible=True)
    assert failed in service.tasks
    press(card(page, failed), "Delete for good?")
    becomes(card(page, failed), count=0)
    becomes(card(page, running), focused=True)
    assert failed not in service.tasks


def test_a_picture_opens_in_full_size_is_turned_by_arrows_and_downloaded(service, show, tmp_path):
    for prompt in ("first", "Zwei blaue Äpfel!", "gone", "last"):
        service.task(prompt, state="done", seed=31, steps=9, width=96)
    page = show(service)
    becomes(card(page, 1).locator("img"), visible=True)
    card(page, 1).get_by_role("button", name="larger").focus()
    page.keyboard.press("Enter")
    viewer = page.get_by_role("dialog")
    says(viewer.get_by_role("heading"), "Zwei blaue Äpfel!")
    page.keyboard.press("ArrowRight")
    says(viewer.get_by_role("heading"), "first")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    says(viewer.get_by_role("heading"), "last")  # one without a picture is passed over
    assert viewer.get_by_role("img").evaluate("(picture) => picture.getBoundingClientRect().width") >= 256
    page.keyboard.press("Escape")
    becomes(viewer, hidden=True)
    becomes(card(page, 3).get_by_role("button", name="larger"), focused=True)
    says(card(page, 2).locator("[data-part=missing]"), "its file was deleted")
    with page.expect_download() as download:
        press(card(page, 1), "Download")
    assert download.value.suggested_filename == "zwei-blaue-äpfel-1.png"
    assert Path(download.value.path()).read_bytes() == PICTURE.read_bytes()
    card(page, 1).locator("summary").click()
    says(card(page, 1).locator("dl"), re.compile("Size96 x 64 pixels.*Steps9.*Seed31.*4 May 2025"))
    press(card(page, 1), "Again with this seed")
    assert page.get_by_label("Prompt", exact=True).input_value() == "Zwei blaue Äpfel!"
    assert [page.get_by_label(label).input_value() for label in ("Seed", "Steps", "Size")] == ["31", "9", "96x64"]


PROMPTS = [
    "<b>bold</b><img src=x onerror=document.title='hacked'>&amp;",
    "\N{RED APPLE}\N{ZERO WIDTH JOINER} مرحبا بالعالم ‮ \n\n two lines",
    1000 * "W",
]


@pytest.mark.parametrize("width", [320, 360])
def test_any_prompt_is_text_and_fits_on_a_phone(service, show, width):
    for prompt in PROMPTS:
        service.task(prompt, state="done")
    service.task("x", state="failed", error=300 * "e")
    page = show(service, viewport={"width": width, "height": 640})
    service.tell("cluster", cluster_of(3, backlog_s=12345.0, restarts=1000))
    for summary in page.locator("summary").all():
        summary.click()
    page.get_by_label("Prompt", exact=True).fill(1000 * "W")
    press(page, "Make")
    for task, prompt in enumerate(PROMPTS):
        assert card(page, task).locator("h3").evaluate("(heading) => heading.textContent") == prompt
        becomes(card(page, task).locator("dd").first, visible=True)
        card(page, task).scroll_into_view_if_needed()
        card(page, task).get_by_role("button", name="larger").click()
        assert fits(page) and page.locator("#viewer").evaluate("(one) => one.scrollWidth <= one.clientWidth")
        page.keyboard.press("Escape")
    assert fits(page) and page.title() == "Pocket model - DEdgeAI"
    table = page.locator("table").bounding_box()
    assert table["x"] + table["width"] <= width


def fits(page: Any) -> bool:
    return page.evaluate("document.documentElement.scrollWidth <= innerWidth")


# history


def test_the_history_comes_back_in_pages_with_the_tasks_of_others(service, show):
    for k in range(120):
        service.task(state="done" if k % 2 else "waiting")
    page = show(service)
    assert shown(page) == list(range(119, 69, -1))
    service.set(3, state="running")  # older than what is shown
    assert service.task("of another client") == 120
    becomes(card(page, 120), visible=True)
    press(page, "Show older images")
    becomes(card(page, 69), focused=True)
    press(page, "Show older images")
    becomes(page.locator("#images > li"), count=121)
    becomes(page.locator("#more"), hidden=True)
    assert shown(page) == list(range(120, -1, -1))
    page.get_by_label("Show", exact=True).select_option("finished")
    becomes(page.locator("#images > li"), count=50)
    assert shown(page) == list(range(119, 20, -2))
    service.set(118, state="done")
    becomes(card(page, 118), visible=True)
    page.get_by_label("Show", exact=True).select_option("unfinished")
    becomes(card(page, 116), visible=True)
    becomes(card(page, 118), count=0)
    service.set(116, state="done")
    becomes(card(page, 116), count=0)


@pytest.mark.slow
def test_a_page_that_is_open_for_days_stays_small(service, show):
    page = show(service)
    for _ in range(300):
        service.task(state="done")
    becomes(page.locator("#images > li"), count=300)
    page.locator("#images > li").nth(299).scroll_into_view_if_needed()
    becomes(card(page, 0).locator("img"), visible=True)
    eventually(lambda: page.evaluate("state.loading") == 0)
    assert page.evaluate("urls") < 150 and service.images_most <= 4
    for _ in range(100):
        service.task(state="waiting")
    becomes(card(page, 399), count=1)
    assert shown(page) == list(range(399, 99, -1)) and page.evaluate("[state.cards.size, urls]")[0] == 300
    service.set(3, state="done")  # one that went stays away
    service.tell("removed", {"task": 399})
    becomes(card(page, 399), count=0)
    assert card(page, 3).count() == 0
    for task in range(100, 399):
        service.tell("removed", {"task": task})
    becomes(page.locator("#images > li"), count=0)
    assert page.evaluate("[state.cards.size, urls, state.own.size]") == [0, 0, 0]


# the stream of events


def test_sixty_waiting_tasks_ask_for_nothing(service, show):
    for k in range(60):
        service.task(state="queued", edge_server=0, ahead=k, estimated_s=0.1 * k)
    page = show(service)
    page.wait_for_timeout(300)
    before = list(service.requests)
    for step in range(5):
        service.set(59, state="running", step=step)
        page.wait_for_timeout(200)
    assert service.requests == before and sum("/api/" in request for request in before) == 4


def test_a_page_outlives_the_service_and_catches_up_with_its_next_start(service, show):
    running, gone, waiting = (service.task(prompt, state="running") for prompt in ("a fox", "an owl", "a wolf"))
    page = show(service)
    service.stop()
    says(page.locator("#connection"), re.compile("cannot be reached; trying again"))
    page.get_by_label("Prompt", exact=True).fill("a cat")
    press(page, "Make")
    says(page.locator("#problem"), re.compile("The service cannot be reached. Nothing is lost"))
    page.wait_for_timeout(1200)
    assert "Failed to fetch" not in page.locator("body").inner_text()
    service.tasks[running].update(state="done", edge_server=0, delay_s=2.0, image="there")
    service.tasks[waiting].update(state="waiting")
    del service.tasks[gone]
    service.model |= {"words": "It draws more.", "limits": service.model["limits"] | {"max_images": 9}}
    service.start()
    says(page.locator("#connection"), "Connected")
    says(card(page, running).locator("[data-part=words]"), "Made by server 0 in 2.0 s")
    becomes(card(page, running).locator("img"), visible=True)
    says(card(page, waiting).locator("[data-part=words]"), "Waits for a server")
    becomes(card(page, gone), count=0)
    says(page.locator("#model-words"), "It draws more.")
    press(page, "Make")
    becomes(card(page, 3), visible=True)
    says(page.locator("#problem"), "")
    service.set(waiting, state="cancelled")
    says(card(page, waiting).locator("[data-part=words]"), "Cancelled")


@pytest.mark.slow
def test_pauses_between_attempts_grow_and_what_was_missed_comes_by_the_last_events_number(service, show):
    task = service.task(state="running")
    page = show(service)
    before = service.asked("GET /api/tasks")
    page.evaluate(
        "attempts = []; const old = fetch; fetch = (...a) => { attempts.push(performance.now()); return old(...a) }"
    )
    page.context.set_offline(True)
    page.evaluate("state.stream.abort()")
    service.set(task, state="failed", error="of an event that was missed")
    page.wait_for_timeout(2300)
    times = page.evaluate("attempts")
    gaps = [late - early for early, late in itertools.pairwise(times)]
    assert len(times) == 3 and all(late > 1.5 * early for early, late in itertools.pairwise(gaps))
    page.context.set_offline(False)
    says(card(page, task).locator("[data-part=words]"), "Failed: of an event that was missed")
    assert service.asked("GET /api/tasks") == before


def test_a_tab_that_nobody_sees_gives_its_connection_back(service, show):
    task = service.task(state="running")
    page = show(service, clock=True)
    hide = "(hidden) => { Object.defineProperty(document, 'hidden', { value: hidden, configurable: true });"
    hide += " document.dispatchEvent(new Event('visibilitychange')) }"
    page.evaluate(hide, True)
    page.clock.run_for(60_000)
    eventually(lambda: not service.streams)
    assert service.asked("events") == 1
    service.set(task, state="failed", error="meanwhile")
    page.evaluate(hide, False)
    page.clock.run_for(1000)
    says(card(page, task).locator("[data-part=words]"), "Failed: meanwhile")


# token


def test_the_token_is_asked_for_at_once_kept_for_the_session_and_forgotten(serve, show):
    service = serve(token="öffne dich")
    task = service.task(state="done")
    page = show(service, connected=False)
    dialog = page.get_by_role("dialog")
    becomes(dialog, visible=True)
    becomes(dialog.get_by_label("Token"), focused=True)
    assert dialog.get_by_label("Token").get_attribute("type") == "password"
    dialog.get_by_label("Token").fill("wrong")
    page.keyboard.press("Enter")
    says(dialog.get_by_role("alert"), "This is not the right token.")
    page.keyboard.press("Escape")
    press(page, "Enter the token")
    dialog.get_by_label("Token").fill("öffne dich")
    page.keyboard.press("Enter")
    becomes(dialog, hidden=True)
    becomes(card(page, task).locator("img"), visible=True)
    page.reload()
    becomes(card(page, task).locator("img"), visible=True)
    becomes(dialog, hidden=True)
    service.stop()
    service.token = "another"
    service.start()
    becomes(dialog, visible=True)
    says(dialog.get_by_role("alert"), "The token that was used here is not valid any more.")
    dialog.get_by_label("Token").fill("another")
    page.keyboard.press("Enter")
    says(page.locator("#connection"), "Connected")
    press(page, "Forget the token")
    becomes(dialog, visible=True)
    becomes(page.locator("#images > li"), count=0)
    assert page.evaluate("sessionStorage.length") == 0


# servers


def cluster_of(count: int, **more: Any) -> dict[str, Any]:
    server = {"up": True, "machine": "a", "tasks": 4, "backlog_s": 12.0, "seconds_per_step": 0.042, "restarts": 0}
    servers = [server | {"edge_server": k} | more for k in range(count)]
    totals = {"unfinished": 4, "done": 1234, "failed": 1, "cancelled": 2}
    return {"scheduler": "lad_ts", "trouble": "", "servers": servers, **totals}


def test_the_servers_are_a_table_with_bars_and_trouble_is_said(service, show):
    page = show(service)
    state = cluster_of(3)
    state["servers"][1] |= {"up": False, "backlog_s": 3.0, "restarts": 2}
    service.tell("cluster", state)
    says(page.locator("#totals"), "2 of 3 up, 4 unfinished, 1,234 done, 1 failed, 2 cancelled, lad_ts")
    page.locator("#cluster summary").click()
    says(page.locator("#servers tr").nth(1), "1down43.0 s42 ms2")
    bars = [bar.bounding_box()["width"] for bar in page.locator("#servers .bar div").all()]
    eventually(lambda: abs(page.locator("#servers .bar div").nth(1).bounding_box()["width"] / bars[0] - 0.25) < 0.02)
    service.tell("cluster", cluster_of(1000) | {"trouble": "no space left on the disk"})
    becomes(page.locator("#servers tr"), count=100)
    says(page.locator("#trouble"), "no space left on the disk")
    service.tell("cluster", cluster_of(2))
    becomes(page.locator("#servers tr"), count=2)
    becomes(page.locator("#trouble"), hidden=True)


# for everybody


CONTRASTS = """() => {
  const parse = (text) => { const [r, g, b, a = 1] = text.match(/[\\d.]+/g).map(Number); return [r, g, b, a]; };
  const light = (colour) => colour.slice(0, 3).map((c) => c / 255)
    .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
    .reduce((sum, c, k) => sum + c * [0.2126, 0.7152, 0.0722][k], 0);
  const behind = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const colour = parse(getComputedStyle(e).backgroundColor);
      if (colour[3] === 1) return colour;
      if (colour[3] !== 0) throw new Error("half transparent");
    }
    throw new Error("nothing behind");
  };
  return [...document.body.querySelectorAll("*")]
    .filter((e) => e.checkVisibility() && ([...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim()) || e.value))
    .map((e) => [light(parse(getComputedStyle(e).color)), light(behind(e)), e.outerHTML.slice(0, 80)])
    .map(([a, b, name]) => [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), name]);
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_are_readable_in_light_and_dark(service, show, scheme):
    for state in ("waiting", "done", "failed", "cancelled", "running"):
        service.task(prompt=state, state=state, error="why", file=None)
    service.task("gone", state="done")
    page = show(service, color_scheme=scheme, reduced_motion="reduce")
    service.tell("cluster", cluster_of(2, up=False) | {"trouble": "full"})
    press(page, "Make")  # without a prompt
    for summary in page.locator("summary").all():
        summary.click()
    press(card(page, 1), "Delete")
    page.evaluate(
        "put($('problem'), 'no'); $('token-dialog').show(); put($('token-problem'), 'no'); view(state.cards.get(1))"
    )
    page.evaluate("$('make').ariaDisabled = 'true'; $('more').hidden = false")
    contrasts = page.evaluate(CONTRASTS)
    assert len(contrasts) > 80 and [pair for pair in contrasts if pair[0] < 4.5] == []
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", ground))) < 300) == (scheme == "dark")
    moving = "[...document.querySelectorAll('*')].filter((e) => getComputedStyle(e).animationName !== 'none').length"
    assert page.evaluate(moving) == 0


def test_a_keyboard_and_a_screen_reader_find_everything(service, show):
    task = service.task("a fox", state="running")
    page = show(service)
    page.keyboard.press("Tab")
    says(page.locator(":focus"), "Skip to the images")
    page.keyboard.press("Enter")
    becomes(page.locator("#images-title"), focused=True)
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    focus = page.locator(":focus")
    says(focus, "Cancel (image 0)")
    assert focus.evaluate("(one) => getComputedStyle(one).outlineStyle") == "solid"
    for step in range(5):
        service.set(task, step=step)
        service.task("of others")
    says(card(page, task).locator("[data-part=words]"), "Step 4 of 14")
    becomes(card(page, task).get_by_role("button", name="Cancel"), focused=True)
    says(page.locator("#news"), "")  # neither steps nor tasks of others are spoken
    assert page.locator("#news").get_attribute("aria-live") == "polite"
    assert page.evaluate("document.documentElement.lang") == "en"
    levels = page.evaluate(
        "[...document.querySelectorAll('main h2, main h3, h1')].map((one) => Number(one.tagName[1]))"
    )
    assert levels[0] == 1 and levels.count(1) == 1 and max(levels) == 3
    assert page.locator("[tabindex]:not([tabindex='0'], [tabindex='-1'])").count() == 0
    assert page.locator("[onclick], [role=button], [style]:not(.bar div), script:not([src]), style").count() == 0
    unnamed = """[...document.querySelectorAll("button, input, select, textarea, progress, summary, a")].filter((one) =>
      !one.textContent.trim() && !one.labels?.length && !one.ariaLabel).map((one) => one.outerHTML)"""
    assert page.evaluate(unnamed) == []
    names = page.locator("#images button").evaluate_all("(all) => all.map((one) => one.ariaLabel ?? one.textContent)")
    assert len(set(names)) == len(names)
