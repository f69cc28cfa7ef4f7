import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from pi0_control.errors import ConfigError
from sims import html_report
from sims.episode import EpisodeResult, Play, Setting
from sims.evaluate import RunResult, write_results
from sims.html_report import write_report
from sims.smoothness import Smoothness
from sims.variation import SUITES
from sims.video import write_video

TASKS = {
    "Reach": "touch the red block",
    "Lift": "pick up the green block",
    "PickPlace": "put the blue block in the tray",
    "Stack": "stack <b>red</b> on 'green' & wait",
}
BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
PHONE, DESK = {"width": 390, "height": 844}, {"width": 1280, "height": 900}
EPISODES = 50
LIMIT_MS = 120_000  # a hang is a failure; machines may be slow
MINI, EXPERT, RANDOM = map(Setting, ("mini", "expert", "random"))
RATES = {"expert": 1.0, "random": 0.02}


def play(setting: Setting, rate: float, folder: Path, rng: np.random.Generator) -> RunResult:
    """A run of made-up episodes; mini is filmed four times on each undisturbed task."""
    episodes = []
    for index in range(EPISODES):
        is_success = bool(rng.random() < RATES.get(setting.policy, rate))
        outcome = "success" if is_success else "failure"
        is_filmed = setting.policy == "mini" and setting.suite == "none" and index < 4
        times_ms = [*rng.gamma(20, 1.2, 2), 250.0 if index == 0 else 30.0]
        episodes.append(
            EpisodeResult(
                **{"seed": 100_000 + index, "prompt": TASKS[setting.task], "is_success": is_success},
                **{"wrong_object": index % 20 == 3, "steps": 60, "simulated_s": 3.0, "wall_s": 1.5},
                target_block=(asked := "green" if setting.is_control else "red"),
                taken_block=None if index == 0 else asked,
                video=folder / f"videos/{outcome}.mp4" if is_filmed else None,
                smoothness=Smoothness(40.0, (0.05, 0.25)),
                chunks_ms=[] if setting.is_scripted else [{"prefix": 6.0, "denoise": float(ms)} for ms in times_ms],
            )
        )
    return RunResult(setting, tuple(episodes), wall_s=75.0)


def write_sample(
    folder: Path,
    contestants: tuple[Setting, ...] = (MINI, EXPERT, RANDOM),
    suites: tuple[str, ...] = ("none",),
    tasks: tuple[str, ...] = tuple(TASKS),
    rate: float = 0.9,
) -> dict[str, Any]:
    """``results.json`` and videos of an evaluation that succeeded at ``rate``."""
    rng = np.random.default_rng(0)
    for outcome, grey in (("success", 200), ("failure", 60)):
        frames = [{name: np.full((48, 48, 3), grey + k, np.uint8) for name in ("left", "right")} for k in range(3)]
        write_video(folder / f"videos/{outcome}.mp4", frames, outcome, outcome == "success", fps=20)
    settings = [replace(each, suite=suite, task=task) for suite in suites for each in contestants for task in tasks]
    provenance = {
        **{"policy": contestants[0].label, "seed": 100_000, "episodes": EPISODES, "parallel": 1},
        **{"instruction": contestants[0].instruction, "mask_cameras": list(contestants[0].masked_cameras)},
        **{"versions": {"torch": "2.13.0"}, "machine": {"cpus": 2}},
        **{"execution_horizon": 4, "num_steps": 5, "checkpoint_sha256": "3f" * 32, "config": {"width": 128}},
    }
    return write_results(
        folder / "results.json", [play(setting, rate, folder, rng) for setting in settings], provenance
    )


def find_browser(own: str) -> str:
    found = next(filter(None, map(shutil.which, BROWSERS)), own)
    if not Path(found).exists():
        missing = f"no {', '.join(BROWSERS)} here; install one, or run 'playwright install --only-shell chromium'"
        assert "CI" not in os.environ, missing
        pytest.skip(missing)
    return found


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        path = find_browser(playwright.chromium.executable_path)
        with playwright.chromium.launch(executable_path=path, args=["--no-sandbox"], timeout=LIMIT_MS) as launched:
            yield launched


@pytest.fixture
def open_report(browser: Browser, tmp_path: Path) -> Iterator[Callable[..., Page]]:
    """Opens the report of a sample; whatever the page complains about fails the test."""
    complaints: list[str] = []
    page = browser.new_page(viewport=DESK)
    page.set_default_timeout(LIMIT_MS)
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("requestfailed", lambda request: complaints.append(request.url))

    def open_sample(**changes: Any) -> Page:
        write_report(tmp_path / "report.html", write_sample(tmp_path, **changes))
        page.goto((tmp_path / "report.html").as_uri())
        return page

    yield open_sample
    page.close()
    assert not complaints


def test_every_figure_is_drawn_and_every_video_plays(open_report, tmp_path) -> None:
    page = open_report(suites=tuple(SUITES))
    runs = [each for each in json.loads((tmp_path / "results.json").read_text())["runs"] if each["suite"] == "none"]
    runs.sort(key=lambda each: list(TASKS).index(each["task"]))  # as on the page
    parts = "[row.querySelector('rect'), row.querySelector('.interval line')]"
    width = "part => part.getBoundingClientRect().width / row.querySelector('svg').clientWidth"
    bars = page.locator("#success > div:first-child .row")
    drawn = bars.evaluate_all(f"rows => rows.map(row => {parts}.map({width}))")
    expected = [(each["success_rate"], each["wilson_95"][1] - each["wilson_95"][0]) for each in runs]
    assert np.array(drawn) == pytest.approx(np.array(expected), abs=0.01)
    assert bars.locator(".name").all_inner_texts() == [each["policy"] for each in runs]
    assert page.locator("#success .row").count() == 24
    assert page.locator("#perturbation tbody tr").count() == len(SUITES)
    assert page.locator("#comparisons tbody tr").count() == 2 * len(TASKS) * len(SUITES)
    assert page.locator("#latency rect").count() > 20
    assert "median" in (page.locator("#latency .label").first.text_content() or "")
    page.wait_for_function("[...document.querySelectorAll('video')].every(video => video.readyState >= 1)")
    sizes = page.evaluate("[...document.querySelectorAll('video')].map(v => [v.videoWidth, v.duration > 1, v.muted])")
    assert sizes == [[680, True, True]] * 16


def test_gallery_shows_failures_first_and_filters(open_report) -> None:
    page = open_report(rate=0.5)
    cards = page.evaluate("[...document.querySelectorAll('.card')].map(card => ({...card.dataset}))")
    order = ["failure", "wrong object", "success"]
    assert {card["outcome"] for card in cards} == set(order)
    assert cards == sorted(cards, key=lambda card: order.index(card["outcome"]))
    assert page.locator(".card").get_by_text(TASKS["Stack"], exact=True).count() == 4  # escaped, not markup

    chosen = {"outcome": "success", "task": "Lift"}
    for key, value in chosen.items():
        page.locator(f"button[data-key={key}][data-value={value}]").click()
    visible = page.locator(".card:visible")
    expected = [card for card in cards if card | chosen == card]
    assert 0 < visible.count() == len(expected) < len(cards)
    assert page.locator("#shown").inner_text() == str(len(expected))
    for key in chosen:
        page.locator(f"button[data-key={key}][data-value='']").click()
    assert visible.count() == len(cards)


def test_page_fits_a_phone_and_follows_dark_mode(open_report) -> None:
    page = open_report(contestants=(Setting("outputs/a_policy_with_a_long_name_that_nowhere_breaks"), EXPERT, MINI))
    page.set_viewport_size(PHONE)
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    for scheme, is_dark in (("light", False), ("dark", True)):
        page.emulate_media(color_scheme=scheme)
        ink, paper = page.evaluate("['color', 'backgroundColor'].map(key => getComputedStyle(document.body)[key])")
        brightness = [sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in (ink, paper)]
        assert (brightness[0] > brightness[1] + 400) == is_dark
        assert abs(brightness[0] - brightness[1]) > 400


@pytest.mark.parametrize(
    ("changes", "sections"),
    [
        ({"contestants": (EXPERT,), "tasks": ("Lift",)}, {"success", "details"}),
        ({"contestants": (MINI,), "rate": 0.0}, {"success", "latency", "episodes", "details"}),
    ],
    ids=["expert alone on one task", "no success at all"],
)
def test_only_what_was_measured_is_shown(open_report, changes, sections) -> None:
    page = open_report(**changes)
    assert set(page.evaluate("[...document.querySelectorAll('section')].map(section => section.id)")) == sections
    assert "nan" not in page.inner_text("body").lower()
    assert page.locator(".control").count() == 0


def test_strategies_are_drawn_over_the_delay(open_report) -> None:
    plays = [Play(strategy, steps) for strategy in ("async", "rtc") for steps in (0, 2, 8)]
    page = open_report(contestants=tuple(replace(MINI, play=play) for play in plays), tasks=("Lift", "Stack"))
    centre = "circle => ['cx', 'cy'].map(key => circle[key].baseVal.value)"
    first = page.locator("#plays .chart").first
    for strategy in ("async", "rtc"):
        places = np.array(first.locator(f".p-{strategy} circle").evaluate_all(f"all => all.map({centre})"))
        assert (places[1] - places[0])[0] == pytest.approx((places[2] - places[0])[0] / 4, rel=0.01)  # 0, 2, 8
    assert page.locator("#plays .chart").count() == 2 * 4
    seams = page.locator("#plays .chart:nth-child(2) .p-rtc title").first.evaluate("title => title.textContent")
    assert seams == "rtc, 0 steps late: 0.25"
    assert page.locator("#success .row").count() == 2 * 2  # of the first
    assert "played async, 0 steps late" in page.inner_text("header")
    page.get_by_text("Every run").click()
    assert page.get_by_role("cell", name="rtc", exact=True).count() == 6


def test_controls_are_told_and_swaps_shown(open_report) -> None:
    control = replace(MINI, instruction="swapped", masked_cameras=("left_wrist", "base"))
    page = open_report(contestants=(control, replace(control, instruction="original")))
    assert "Instructions: swapped. Masked cameras: left_wrist, base." in page.locator(".control").inner_text()
    assert page.locator("#swaps .value").all_inner_texts() == ["98 %"] * len(TASKS)


def test_same_results_give_the_same_bytes_in_one_file(tmp_path) -> None:
    results = write_sample(tmp_path)
    for name in ("one.html", "two.html"):
        write_report(tmp_path / name, results)
    one, two = sorted(tmp_path.glob("*.html"))
    assert one.read_bytes() == two.read_bytes()
    assert not re.findall(r"(?:src|href|poster)=\"(?!data:)|url\(|@import|https?://", one.read_text(encoding="utf-8"))


def test_a_page_holds_few_films_and_says_where_the_others_are(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(html_report, "EMBEDDED", 3)
    write_report(tmp_path / "report.html", write_sample(tmp_path, contestants=(MINI,), tasks=("Lift", "Stack"), rate=0))
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count("<video") == 3
    assert "5 more lie in the folder videos." in page


@pytest.mark.parametrize("video", ["videos/gone.mp4", "results.json"])
def test_a_video_that_cannot_be_read_is_named_and_leaves_nothing(tmp_path, video) -> None:
    results = write_sample(tmp_path, contestants=(MINI,), tasks=("Lift",))
    results["runs"][0]["episode_results"][0]["video"] = video
    with pytest.raises(ConfigError, match=f"{video}: the results name this video, but it cannot be read"):
        write_report(tmp_path / "report.html", results)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["results.json", "videos"]
