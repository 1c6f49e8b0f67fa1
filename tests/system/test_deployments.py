"""The deployments on a server with workers: run from the command line, seen in a browser, and fired by a schedule."""

import os
import subprocess
from pathlib import Path

import pytest
import yaml
from chromium import CHROMIUM
from deployments import (
    ROOT,
    artifacts,
    deployment_id,
    flow_runs,
    once_soon,
    run_deployment,
    run_log,
    running_ui,
    wait_until,
)
from small_pool import small_config

from quad_tasks.config.load import load_config
from quad_tasks.runtime.status import run_status
from quad_tasks.storage.store import open_store

SCHEDULED_S = 240
LOADED_MS = 60_000
PICTURES = "QUAD_PICTURES"
"""Environment variable that names a folder for pictures of what was seen; unset: they go with the test's own."""
SHOWS_PLOT = "() => [...document.images].some(i => i.src.startsWith('data:image/svg') && i.naturalWidth > 100)"


@pytest.fixture(scope="module")
def config_file(corpus, tmp_path_factory):
    """A configuration whose paths are relative to the folder it stands in."""
    folder = tmp_path_factory.mktemp("deployments")
    (folder / "corpus").symlink_to(corpus)
    body = small_config("corpus", "workspace", training__stages=1, compute__workers=1)
    (folder / "config.yaml").write_text(yaml.safe_dump(body))
    return folder / "config.yaml"


def look(url: str, out: Path) -> None:
    """Look at every page of interest in a browser: a deployment's form, the run, each artifact with its plot."""
    from playwright.sync_api import sync_playwright

    run = flow_runs(url, "select-data", "COMPLETED")[-1]
    deployment = deployment_id(url, "select-data/select-data")
    expected = {
        "deployments/deployment/" + deployment + "/run": ("form", "Pool"),
        "runs/flow-run/" + run["id"]: ("flow-run", "Completed"),
        "deployments": ("deployments", "refresh-pool"),
    }
    words = {"small-arms": "UCB score", "small-report": "nats per token", "pool-pool": "Pool pool"}
    for key, artifact in artifacts(url).items():
        word = words.get(key, "Stage 0")
        expected["artifacts/artifact/" + artifact["latest_id"]] = (key, word)
    out.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 1100})
        for path, (name, word) in expected.items():
            page.goto(f"{url}/{path}", timeout=LOADED_MS)
            page.get_by_text(word).first.wait_for(timeout=LOADED_MS)
            if name in ("small-rounds", "small-selection", "small-report"):
                page.wait_for_function(SHOWS_PLOT, timeout=LOADED_MS)
            page.screenshot(path=str(out / f"{name}.png"), full_page=True)
        browser.close()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")
def test_a_run_from_the_command_line_is_seen_in_a_browser_and_a_schedule_fires(config_file):
    folder = config_file.parent
    with running_ui(folder, config_file) as url:
        once_soon(url, "refresh-pool/refresh-pool")
        assert "Completed" in run_deployment(url, "select-data/select-data")
        assert {"small-rounds", "small-arms", "small-selection", "small-report"} <= artifacts(url).keys()
        logged = [message for _, message in run_log(url, "small", last="write report in")]
        assert {"start 1 worker", "write report"} <= set(logged)
        look(url, Path(os.environ.get(PICTURES, folder / "pictures")))
        fired = wait_until(lambda: flow_runs(url, "refresh-pool", "COMPLETED"), SCHEDULED_S)[0]
        assert fired["auto_scheduled"]
        assert fired["expected_start_time"][17:19] == "00"
        print({key: fired[key] for key in ("name", "expected_start_time", "start_time", "auto_scheduled")})
    config = load_config(config_file, [f"workspace={folder}/workspace"])
    assert run_status(open_store(config.workspace), config)["reported"]


def test_the_script_that_starts_the_ui_ends_when_its_configuration_is_missing(tmp_path):
    environment = {"QUAD_CONFIG": str(tmp_path / "none" / "config.yaml"), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        ["bash", str(ROOT / "infra/ui.sh")], env=environment, text=True, capture_output=True, check=False
    )
    assert done.returncode == 2
    assert f"expected a configuration at {tmp_path}/none/config.yaml, found none" in done.stderr
