"""The report page: right numbers, nothing loaded, nothing unescaped, nothing invented."""

import copy
import json
import re
import subprocess
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest
from chromium import CHROMIUM
from fake_report import fake_report
from markupsafe import escape

from quad_tasks.report.model import Report
from quad_tasks.report.page import render_page

HOSTILE = (
    "</pre><script>alert('x')</script><img src=https://evil.example/x.png onerror=alert(1)> $\\frac{ \x07 \" &amp;"
)


def render(report: dict) -> str:
    return render_page(Report.model_validate(report))


class Elements(HTMLParser):
    """Every start tag with its attributes, and the text outside of script and style."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.silent = 0
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.silent += tag in ("script", "style")

    def handle_endtag(self, tag):
        self.silent -= tag in ("script", "style")

    def handle_data(self, data):
        if not self.silent:
            self.text.append(data)


def words(page: str) -> str:
    return " ".join(" ".join(Elements(page).text).split())


def section(page: str, name: str) -> str:
    return words(re.search(rf'<section id="{name}".*?</section>', page, re.DOTALL)[0])


def replace_everywhere(value, text):
    """The same report with every string value, and the keys that are users' data, hostile."""
    if isinstance(value, dict):
        return {key: replace_everywhere(item, text) for key, item in value.items()}
    if isinstance(value, list):
        return [replace_everywhere(item, text) for item in value]
    return text if isinstance(value, str) else value


def paths_of(value, path=()):
    """Paths of all keys of mappings, through the first element of a list."""
    items = value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
    for key, item in items:
        if isinstance(value, dict):
            yield (*path, key)
        yield from paths_of(item, (*path, key))


PATHS = list(paths_of(fake_report()))


@pytest.fixture(scope="module")
def page():
    return render(fake_report())


@pytest.fixture
def no_drawings(monkeypatch):
    for module in ("figures", "arm_figures"):
        monkeypatch.setattr(f"quad_tasks.report.{module}.draw", lambda *_: "drawing")


def test_headline_numbers_are_right_by_hand(page):
    # 5.865 - 5.71; 160,000 of 1,000,000 tokens; (4 * 0.05 - 0.01) / 5; Student's t(2) = 4.3027, gains .16 .15 .155.
    assert (
        "The selection lowered the reference loss by 0.155 nats per token more than random tokens did "
        "(95 % interval 0.143 to 0.167 over 3 seeds), at the cost of scoring 16.0 % of the pool's tokens; the loss on "
        "the 5 other held-out domains is 0.038 bits per byte higher than after random tokens on average (most: code, "
        "+0.050)."
    ) in section(page, "result")


def test_what_choosing_cost_is_told_in_model_flops(no_drawings):
    cost = {"reading": 0.0, "scoring": 8e9, "calibration": 1e9, "pool": 1e11, "share": 0.09}
    report = fake_report() | {"cost": cost}
    report["stages"][0]["scored_by"] = "scored by forward_only, at 70 % of exact scoring's FLOPs"
    text = words(render(report))
    assert "over 3 seeds), at 9.0 % of what scoring the whole pool exactly takes of the model; the loss" in text
    assert "scoring 8.0 %, calibration 1.0 %" in text
    assert "After the pilot documents were scored by forward_only" in text


def test_a_selection_that_lost_says_so(no_drawings):
    report = fake_report()
    report["stages"][0]["selected"] |= {"reference_loss": 5.9, "reference_loss_by_seed": [5.9]}
    assert "did not beat random: the reference loss is higher by 0.035 nats per token" in words(render(report))


def test_one_seed_gives_no_interval(no_drawings):
    report = fake_report()
    for arm in ("random", "selected"):
        report["stages"][0][arm]["reference_loss_by_seed"] = [5.8]
    report["stages"][0]["seeds"] = [0]
    assert "did (one seed, so without an interval), at the cost" in words(render(report))


def test_one_measured_document_gives_no_interval(no_drawings):
    report = fake_report()
    report["stages"][0]["gain"] = {"mean": 0.155, "low": None, "high": None, "documents": 1, "seeds": 3}
    assert words(render(report)).count("one measured document, so without an interval") == 2


def test_a_run_without_control_claims_no_gain(no_drawings):
    report = fake_report()
    del report["stages"][0]["random"]
    text = section(render(report), "result")
    assert "from 5.885 to 5.710 nats per token" in text
    assert "how much of it the selection earned is not known" in text


def test_several_stages_are_listed_and_the_last_one_leads(no_drawings):
    report = fake_report()
    report["stages"].append(copy.deepcopy(report["stages"][0]) | {"stage": 1})
    report["stages"][1]["selected"]["reference_loss"] = 5.665
    page = render(report)
    assert "In the last of 2 stages the selection lowered the reference loss by 0.200" in section(page, "result")
    assert "+0.1550" in section(page, "losses")
    assert "+0.2000" in section(page, "losses")
    assert "did not pass its gate" not in words(page)
    report["stages"][1]["refit_accepted"] = False
    assert "The refitted direction did not pass its gate: an earlier stage's ranked the documents" in words(
        render(report)
    )


def test_counts_add_up_to_the_documents_in(page):
    assert (
        "5,000 documents in = 100 set aside + 3,500 in the pool unpulled + 1,000 scored and rejected + 400 selected."
    ) in section(page, "counts")
    assert "do not add up" not in page


def test_counts_that_do_not_add_up_are_shown_as_such(no_drawings):
    report = fake_report() | {"unpulled": 3493}
    assert "These do not add up: 7 documents are unaccounted for." in section(render(report), "counts")


def test_shares_by_source_are_right_by_hand(page):
    assert "pydoc_topics 100,000 10.0 % 40,000 80.0 % 8.00" in section(page, "composition")


SECTIONS = [
    "result", "findings", "losses", "counts", "composition", "bandit", "influence", "map", "arms", "examples",
    "diversity", "cost", "provenance",
]  # fmt: skip


def test_sections_stand_in_the_order_a_reader_wants(page):
    assert re.findall(r'<section id="(\w+)"', page) == SECTIONS


@pytest.mark.parametrize("name", SECTIONS)
def test_an_empty_report_names_what_each_section_lacks(name):
    assert "the report holds no" in section(render({}), name)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: ".".join(map(str, path)))
def test_any_key_may_be_absent_or_null(path, no_drawings):
    for change in (lambda parent, key: parent.pop(key), lambda parent, key: parent.update({key: None})):
        report = parent = fake_report(n_arms=2, n_documents=20)
        for key in path[:-1]:
            parent = parent[key]
        change(parent, path[-1])
        assert render(report).rstrip().endswith("</html>")


def test_missing_values_inside_series_are_drawn_as_gaps():
    report = fake_report()
    for entry in report["stages"][0]["rounds"][3:5]:
        entry["mean_reward"] = None
    report["map"]["influence"] = [None] * len(report["map"]["x"])
    report["influence"] |= {"scored": [0] * 40, "selected": [0] * 40}
    assert "figure-map" in render(report)


def test_hostile_text_is_escaped_everywhere():
    report = replace_everywhere(fake_report(), HOSTILE)
    for key, value in (("set_aside", 100), ("sources", {"documents": 5, "tokens": 1_000_000})):
        report["pool"][key] = {HOSTILE: value}
    report["selected"]["by_source"] = {HOSTILE: {"documents": 5, "tokens": 50_000}}
    report["arms"][0]["sources"] = report["time_s"] = {HOSTILE: 3}
    report["config"] = {HOSTILE: [HOSTILE, {HOSTILE: HOSTILE}]}
    for arm in ("before", "random", "selected"):
        report["stages"][0][arm]["domains"] = {HOSTILE: 1.0}
    page = render(report)
    tags = Elements(page).tags
    assert escape("<script>alert('x')") in page
    assert Counter(tag for tag, _ in tags)["script"] == 1
    assert not [tag for tag, attributes in tags if tag == "img" or any(name.startswith("on") for name in attributes)]


def test_nothing_is_loaded_from_outside(page):
    loading = ("src", "href", "xlink:href", "action", "data", "poster", "srcset")
    links = [value for _, attributes in Elements(page).tags for key, value in attributes.items() if key in loading]
    assert {link.split(":")[0] if link.startswith("data:image/png") else link[0] for link in links} == {"#", "data"}
    assert not re.search(r"@import|url\((?!#)", page)
    assert "default-src 'none'" in page


def test_ids_are_unique_and_every_link_and_reference_finds_one(page):
    tags = Elements(page).tags
    ids = Counter(attributes["id"] for _, attributes in tags if "id" in attributes)
    assert [name for name, n in ids.items() if n > 1] == []
    links = {attributes["href"] for _, attributes in tags if attributes.get("href", "").startswith("#")}
    labels = {attributes["aria-labelledby"] for _, attributes in tags if "aria-labelledby" in attributes}
    assert {link[1:] for link in links} | labels | set(re.findall(r"url\(#([^)]+)\)", page)) <= set(ids)


def test_tables_and_figures_are_labelled(page):
    counts = Counter(tag for tag, _ in Elements(page).tags)
    assert counts["caption"] == counts["table"] == 5
    assert counts["figcaption"] == counts["figure"] == 8
    assert all(attributes.get("scope") for tag, attributes in Elements(page).tags if tag == "th")
    assert all(attributes["role"] == "img" for tag, attributes in Elements(page).tags if tag == "svg")


def test_ten_thousand_arms_and_a_hundred_thousand_points_stay_under_five_megabytes():
    report = fake_report(n_arms=10_000, n_documents=100_000)
    page = render(report)
    assert len(page.encode()) < 5_000_000
    assert "The 100 best and the 100 worst of 10,000" in page


def test_the_same_report_renders_to_the_same_page(page):
    assert render(json.loads(json.dumps(fake_report()))) == page


def test_whitespace_of_example_texts_is_kept(page):
    assert "The following table\n    keeps its  spaces\n" in page


def test_a_long_example_is_cut_and_says_by_how_much(no_drawings):
    report = fake_report()
    report["examples"]["best"][0]["text"] = "x" * 3_345
    assert "2,145 more characters left out" in words(render(report))


def test_an_arm_has_a_card_with_its_terms_facts_and_texts(page):
    text = section(page, "arms")
    assert "Arm 3 object, method, returns, attribute, term3" in text
    assert "Best: highest influence best-3 · influence 0.100 a text …" in text
    assert text.count("Texts of arm") == 6


def test_figures_of_the_headline_are_right_by_hand(page):
    text = section(page, "result")
    tiles = [
        "−0.155 95 % interval −0.167 to −0.143 over 3 seeds",
        "16.0 % 160,000 of 1,000,000, in 1,400 documents",
        "6 min 03 s 1.5 GiB of memory, peaks of all processes added up",
        "+0.038 4 of 5 other domains are worse off than after random tokens",
        "50,000 in 400 documents; budget 50,000",
    ]
    places = [text.index(tile) for tile in tiles]
    assert places == sorted(places)


def test_several_reference_sets_are_listed_with_what_training_did_to_each(no_drawings):
    report = fake_report()
    report["reference"] |= {
        "sets": [
            {"name": "novels", "documents": 40, "weight": 2.0, "mean_influence": 0.01, "mean_influence_selected": 0.2},
            {
                "name": "letters",
                "documents": 9,
                "weight": 1.0,
                "mean_influence": -0.01,
                "mean_influence_selected": None,
            },
        ]
    }
    for kind, loss in (("before", 6.0), ("random", 5.9), ("selected", 5.5)):
        report["stages"][0][kind]["references"] = {"novels": loss, "letters": loss + 1}
    text = section(render(report), "losses")
    assert "novels 40 2.00 6.0000 5.9000 5.5000 0.0100 0.200" in text
    assert "letters 9 1.00 7.0000 6.9000 6.5000 −0.0100 –" in text


def test_provenance_joins_what_is_known_of_one_thing(page):
    text = section(page, "provenance")
    assert "version v0001" in text
    assert "digest d-1" in text
    assert "uuid u-1" in text


def test_digests_are_folded_and_what_a_reader_knows_things_by_is_not(page):
    found = re.search(r'<section id="provenance".*?</section>', page, re.DOTALL)[0]
    shown, folded = words(re.sub(r"<details.*?</details>", "", found, flags=re.DOTALL)), words(found)
    for digest in ("d-1", "u-1", "ab" * 32, "cd" * 32):
        assert digest in folded
        assert digest not in shown
    assert "name demo version v0001" in shown


def test_memory_is_said_to_be_a_sum_over_processes(page):
    text = section(page, "cost")
    assert "1.5 GiB, the peak resident sizes of the driver and of every worker process added up" in text


def test_an_interval_around_zero_is_said_to_include_no_difference(no_drawings):
    report = fake_report()
    report["stages"][0]["selected"]["reference_loss_by_seed"] = [5.86, 5.72, 5.9]
    assert "over 3 seeds, which includes no difference)" in words(render(report))


def test_findings_come_most_severe_first(page):
    text = section(page, "findings")
    assert text.index("too little diversity") < text.index("too much compute")


FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-logging=stderr",
    "--virtual-time-budget=10000",
    "--dump-dom",
]
PROBE = """
addEventListener("load", () => {
  const measured = [...document.querySelectorAll("iframe")].map(frame => {
    const page = frame.contentDocument, table = page.querySelector("#source-table"), root = page.documentElement;
    const buttons = table.querySelectorAll("thead button");
    const order = () => [...table.tBodies[0].rows].map(row => row.cells[0].textContent);
    const sorts = [1, 1, 0].map(column => {
      buttons[column].click();
      return [buttons[column].parentElement.getAttribute("aria-sort"), order()];
    });
    return {overflow: root.scrollWidth - root.clientWidth, sorts};
  });
  document.body.replaceChildren(JSON.stringify(measured));
});
"""


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed")
def test_a_browser_shows_it_without_errors_or_sideways_scrolling_and_sorts_its_tables(page, tmp_path: Path):
    frames = [
        f'<iframe style="width:{width}px;height:900px" srcdoc="{escape(page)}"></iframe>' for width in (375, 1440)
    ]
    harness = tmp_path / "harness.html"
    harness.write_text(f"<!DOCTYPE html><body>{''.join(frames)}<script>{PROBE}</script>", encoding="utf-8")
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", harness.as_uri()]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in shown.stderr
    measured = json.loads("".join(Elements(shown.stdout).text))
    assert [frame["overflow"] for frame in measured] == [0, 0]
    by_tokens = ["stdlib_code", "hex_noise", "pydoc_topics"]
    for frame in measured:
        assert frame["sorts"] == [
            ["descending", by_tokens],
            ["ascending", by_tokens[::-1]],
            ["ascending", sorted(by_tokens)],
        ]
