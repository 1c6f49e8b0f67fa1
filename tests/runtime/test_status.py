"""A run's status is what its ledger says, and who drives it now."""

from small_pool import small_config

from quad_tasks.config.load import parse_config
from quad_tasks.runtime.events import record_event
from quad_tasks.runtime.status import run_status
from quad_tasks.storage.lease import claim_lease, release_lease, this_process
from quad_tasks.storage.rounds import list_rounds
from quad_tasks.storage.store import open_store


def test_a_finished_runs_status_sums_up_its_rounds_and_nobody_drives_it(small_run):
    store = open_store(small_run.workspace)
    status = run_status(store, small_run)
    for stage in status["stages"]:
        infos = [one.info for one in list_rounds(store, "small", stage["stage"])]
        assert stage["rounds"] == len(infos) > 0
        assert stage["scored_tokens"] == sum(info.tokens for info in infos)
        assert stage["accepted_documents"] == sum(info.accepted_documents for info in infos)
        assert stage["gain_left"] == next((info.remaining.left for info in infos[::-1] if info.remaining), None)
        assert stage["selected"]
        assert stage["trained"]
    assert status["driven_by"] is None
    assert status["published"]
    assert status["reported"]


def test_a_run_that_only_began_names_its_driver_and_last_event(corpus, tmp_path):
    store, config = open_store(str(tmp_path)), parse_config(small_config(corpus, str(tmp_path)), "here")
    assert run_status(store, config)["last_event"] is None
    lease = claim_lease(store, "runs/small")
    record_event(store, "small", "run_started")
    status = run_status(store, config)
    assert status["driven_by"] == str(this_process())
    assert status["last_event"].endswith("+00:00")
    assert not status["reported"]
    assert [stage["cost_share"] for stage in status["stages"]] == [None, None]
    release_lease(store, lease)
    assert run_status(store, config)["driven_by"] is None
