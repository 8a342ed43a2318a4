"""The whole way of a visitor in a real browser."""

from __future__ import annotations

import json
import re
import zipfile

import pytest
from conftest import open_page, wait_until
from playwright.sync_api import Page, expect

LONG = 240_000
"""Milliseconds for a pruning, also on a busy machine."""


def choose(page: Page, model: str) -> None:
    box = page.get_by_label("Model", exact=True)
    box.fill(model)
    box.press("Enter")
    box.blur()


def prune(page: Page) -> None:
    page.locator("#start").click()
    expect(page.locator("#progress")).to_contain_text("Done.", timeout=LONG)


def test_from_the_first_look_to_a_push(page, space, picture, tmp_path):
    expect(page.locator("#facts")).to_contain_text("2.80 M")
    expect(page.locator("#result")).to_be_hidden()
    page.locator("#start").click()
    expect(page.locator("#progress [role=progressbar]")).to_be_visible(timeout=LONG)
    expect(page.locator("#progress li.now")).to_contain_text("Prune and reconstruct", timeout=LONG)
    expect(page.locator("#progress svg").nth(1)).to_have_attribute(
        "aria-label", re.compile(r"loss.*: \d"), timeout=LONG
    )
    picture(page, "progress-desktop-light")
    expect(page.locator("#progress")).to_contain_text("Done.", timeout=LONG)

    rows = page.locator("#result .result tbody tr")
    perplexity = [float(cell) for cell in rows.nth(0).locator("td").all_inner_texts()[:2]]
    assert 1 < perplexity[1] / perplexity[0] < 1.3
    speeds = [float(cell.replace(",", "")) for cell in rows.nth(4).locator("td").all_inner_texts()[:2]]
    assert speeds[1] > speeds[0]
    assert page.locator("#result .heat tbody tr").count() == 8

    page.locator("#write").click()
    for name in ("Dense", "Pruned and packed"):
        expect(page.get_by_label(name, exact=True)).to_have_value(
            re.compile(r"^The history of .{20}", re.S), timeout=LONG
        )
    expect(page.locator(".rate").nth(1)).to_contain_text("tokens a second")
    picture(page, "result-desktop-light")

    with page.expect_download() as download:
        page.locator("#download a").click()
    download.value.save_as(tmp_path / "model.zip")
    with zipfile.ZipFile(tmp_path / "model.zip") as archive:
        names = {name.split("/", 1)[1] for name in archive.namelist()}
        report = json.loads(archive.read("mamba-wiki-3m-pruned-70/report.json"))
    assert {"model.safetensors", "packed/config.json", "README.md", "config.json"} <= names
    assert report["after"][0]["perplexity"] == pytest.approx(perplexity[1], abs=0.06)

    page.get_by_role("tab", name="Model card").click()
    expect(page.locator("#card h1").first).to_be_visible()

    page.locator("#login").click()
    expect(page.locator("#login")).to_contain_text("Logout", timeout=LONG)
    expect(page.locator("#progress")).to_contain_text("This is your last result.")
    page.get_by_role("tab", name="Publish").click()
    page.get_by_label("Repository").fill("from-the-space")
    page.locator("#push").click()
    expect(page.locator("#pushed")).to_contain_text("Pushed:", timeout=LONG)
    picture(page, "pushed-desktop-light")
    assert space.hub.repos["model", "alice/from-the-space"].private
    assert len(space.hub.commits("alice/from-the-space")) == 2
    pushed = space.hub.files("alice/from-the-space")
    assert json.loads(pushed["report.json"]) == report

    space.hub.add_model("alice/from-the-space", {"README.md": b"changed by hand"})
    page.get_by_label("As a pull request").check()
    page.locator("#push").click()
    expect(page.locator("#pushed")).to_contain_text(re.compile("Pushed:.*discussions"), timeout=LONG)


def test_cancel_stops_all_and_the_next_one_starts(page, space):
    before = len(space.processes())
    page.locator("#start").click()
    expect(page.locator("#progress li.now")).to_contain_text("Prune and reconstruct", timeout=LONG)
    page.locator("#cancel").click()
    expect(page.locator("#progress")).to_contain_text("Cancelled.")
    expect(page.locator("#start")).to_be_enabled()
    assert wait_until(lambda: space.health()["running"] == 0 and len(space.processes()) <= before + 2)
    expect(page.locator("#result")).to_be_hidden()
    page.locator("#start").click()
    expect(page.locator("#progress [role=progressbar]")).to_be_visible(timeout=LONG)


def test_who_closes_the_page_leaves_nothing(context, space):
    page = open_page(context, space)
    of_others = set(space.jobs())
    page.locator("#start").click()
    expect(page.locator("#progress [role=progressbar]")).to_be_visible(timeout=LONG)
    own = set(space.jobs()) - of_others
    assert own
    page.close(run_before_unload=True)
    assert wait_until(lambda: space.health()["running"] == 0, 60)
    assert wait_until(lambda: not own & set(space.jobs()), 60)


def test_what_does_not_fit_is_refused_politely(page, space, picture):
    config = {"model_type": "mamba", "hidden_size": 4096, "num_hidden_layers": 64, "vocab_size": 50280}
    space.hub.add_model("alice/large", {"config.json": json.dumps(config).encode()})
    choose(page, "alice/large")
    expect(page.locator("#facts")).to_contain_text("This one does not fit here")
    expect(page.locator("#start")).to_be_disabled()
    picture(page, "refused-desktop-light")
    page.get_by_text("Too big for this machine?").click()
    page.locator("#price").click()
    expect(page.locator("#launched")).to_contain_text("Sign in first")
    choose(page, "mamba-wiki-3m")
    expect(page.locator("#start")).to_be_enabled()


@pytest.mark.parametrize(
    "model",
    [
        "<img src=x onerror=alert(1)>",
        "<script>alert(1)</script>/x",
        "../../etc/passwd",
        "/etc/passwd",
        "alice/../../../tmp",
        "ａlice/ｓmall\u202e",
        "a" * 20_000,
        "hf_" + "A" * 34,
        "nobody/nothing",
    ],
    ids=range(9),
)
def test_hostile_text_is_refused_and_neither_run_nor_repeated(page, space, model):
    page.on("dialog", lambda dialog: pytest.fail("a script ran"))
    choose(page, model)
    expect(page.locator("#facts .notice.bad")).to_be_visible()
    expect(page.locator("#start")).to_be_disabled()
    assert model not in page.locator("#facts").inner_html()
    assert page.locator("img[src=x]").count() == 0
    assert model not in space.log()


def test_a_token_as_a_prompt_or_name_is_refused(page, space):
    prune(page)
    token = "hf_" + "B" * 34
    page.get_by_label("Prompt").fill(f"my token is {token}")
    page.locator("#write").click()
    expect(page.locator(".rate").first).to_contain_text("That looks like an access token")
    page.get_by_role("tab", name="Publish").click()
    page.get_by_label("Repository").fill(token)
    page.locator("#push").click()
    expect(page.locator("#pushed")).to_contain_text("That looks like an access token")
    assert token not in space.log()
    assert not [path for path in space.files() if token.encode() in path.read_bytes()]


@pytest.mark.parametrize("width, height, device", [(1280, 900, "desktop"), (390, 844, "phone")])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_screen_in_every_light(browser, space, picture, width, height, device, theme):
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=theme)
    context.set_default_timeout(60_000)
    page = open_page(context, space, theme)
    picture(page, f"start-{device}-{theme}")
    prune(page)
    picture(page, f"result-{device}-{theme}")
    for tab in ("Gallery", "About"):
        page.get_by_role("tab", name=tab).click()
        picture(page, f"{tab.lower()}-{device}-{theme}")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    context.close()


def test_the_keyboard_is_enough(page):
    reached = set()
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.closest('[id]')?.id"))
        if page.evaluate("document.activeElement.id") == "start":
            break
    assert page.evaluate("document.activeElement.id") == "start"
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"
    page.keyboard.press("Enter")
    expect(page.locator("#progress [role=progressbar]")).to_be_visible(timeout=LONG)
    expect(page.locator("#cancel")).to_be_enabled()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.locator("#progress")).to_contain_text("Cancelled.")


def test_everything_that_can_be_touched_has_a_name(page):
    nameless = page.evaluate(
        """() => [...document.querySelectorAll("input, textarea, button, a[href], select")]
          .filter(part => part.offsetParent !== null)
          .filter(part => !(part.getAttribute("aria-label") || part.labels?.length || part.innerText?.trim()
                            || part.title || part.getAttribute("aria-labelledby")))
          .map(part => part.outerHTML.slice(0, 200))"""
    )
    assert nameless == []
    for place in ("facts", "progress"):
        assert page.locator(f"#{place}").get_attribute("aria-live") == "polite"
    assert page.evaluate("document.documentElement.lang") == "en"
