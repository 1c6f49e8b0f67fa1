"""The lease under races, kills and waits, by a clock of the test's own."""

import json
import multiprocessing
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import psutil
import pytest

from quad_tasks.storage import lease as leases
from quad_tasks.storage.lease import (
    KEPT_RECORDS,
    LeaseHeld,
    LeaseLost,
    Owner,
    check_lease,
    claim_lease,
    hold_lease,
    lease_holder,
    release_lease,
    renew_lease,
    this_process,
)
from quad_tasks.storage.manifest import digest
from quad_tasks.storage.store import Store, open_store

ELSEWHERE = Owner(host="elsewhere", user="ada", pid=12, started=datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC))
ANOTHER = Owner(host="another", user="ben", pid=34, started=datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC))


class Clock:
    """Seconds that pass when told."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def store(backend) -> Store:
    return open_store(backend.uri)


@pytest.fixture
def local_store(local_backend) -> Store:
    return open_store(local_backend.uri)


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_a_held_run_is_refused_with_its_holder(store, clock):
    claim_lease(store, "runs/r", ELSEWHERE, ttl_s=60, now=clock)
    clock.now_s += 59
    with pytest.raises(
        LeaseHeld, match=r"'runs/r' in .*process 12 of ada on elsewhere, started 2024-05-06T07:08:09\+00:00"
    ):
        claim_lease(store, "runs/r", ANOTHER, now=clock)


def test_other_runs_are_free(local_store, clock):
    claim_lease(local_store, "runs/r", ELSEWHERE, now=clock)
    assert claim_lease(local_store, "runs/s", ANOTHER, now=clock).owner == ANOTHER


def test_a_released_run_is_free_at_once(store, clock):
    release_lease(store, claim_lease(store, "runs/r", ELSEWHERE, now=clock))
    assert claim_lease(store, "runs/r", ANOTHER, now=clock).owner == ANOTHER


def test_an_expired_lease_is_taken_over_and_its_holder_told(store, clock):
    lost = claim_lease(store, "runs/r", ELSEWHERE, ttl_s=60, now=clock)
    clock.now_s += 61
    claim_lease(store, "runs/r", ANOTHER, ttl_s=60, now=clock)
    with pytest.raises(LeaseLost, match="got it taken over by process 34 of ben on another"):
        renew_lease(store, lost, now=clock)
    release_lease(store, lost)
    with pytest.raises(LeaseHeld, match="process 34 of ben on another"):
        claim_lease(store, "runs/r", ELSEWHERE, now=clock)


def test_a_renewed_lease_lasts_from_its_renewal(local_store, clock):
    lease = claim_lease(local_store, "runs/r", ELSEWHERE, ttl_s=60, now=clock)
    for _ in range(5):
        clock.now_s += 50
        lease = renew_lease(local_store, lease, ttl_s=60, now=clock)
        with pytest.raises(LeaseHeld, match="elsewhere"):
            claim_lease(local_store, "runs/r", ANOTHER, now=clock)
    assert lease.expires_s == 1000 + 5 * 50 + 60


def test_an_expired_lease_that_nobody_took_can_be_renewed(local_store, clock):
    lease = claim_lease(local_store, "runs/r", ELSEWHERE, ttl_s=60, now=clock)
    clock.now_s += 1000
    renew_lease(local_store, lease, ttl_s=60, now=clock)
    with pytest.raises(LeaseHeld, match="elsewhere"):
        claim_lease(local_store, "runs/r", ANOTHER, now=clock)


def test_of_racing_claims_of_a_stale_lease_one_wins(store, clock):
    claim_lease(store, "runs/r", ELSEWHERE, ttl_s=60, now=clock)
    clock.now_s += 61

    def claim(pid: int) -> bool:
        try:
            return claim_lease(store, "runs/r", ELSEWHERE.model_copy(update={"pid": pid}), now=clock).number == 1
        except LeaseHeld:
            return False

    with ThreadPoolExecutor(8) as claimants:
        assert sum(claimants.map(claim, range(8))) == 1


def test_a_lease_of_a_dead_process_on_this_host_is_free_at_once(local_store):
    ended = multiprocessing.get_context("spawn").Process()
    ended.start()
    dead = this_process().model_copy(update={"pid": ended.pid})
    ended.join()
    claim_lease(local_store, "runs/r", dead)
    assert claim_lease(local_store, "runs/r").owner == this_process()


def test_a_process_that_only_shares_the_number_is_another_process(local_store):
    namesake = this_process().model_copy(update={"start_ticks": this_process().start_ticks - 1})
    claim_lease(local_store, "runs/r", namesake)
    assert claim_lease(local_store, "runs/r").owner == this_process()


@pytest.mark.parametrize("step_s", [2, 120, -120])
def test_a_clock_that_is_set_takes_no_lease_from_a_living_process(local_store, monkeypatch, step_s):
    started = psutil.Process().create_time()
    claim_lease(local_store, "runs/r")
    monkeypatch.setattr(psutil.Process, "create_time", lambda process: started + step_s)
    check_lease(local_store, "runs/r")
    with pytest.raises(LeaseHeld, match=f"process {os.getpid()}"):
        claim_lease(local_store, "runs/r", ANOTHER)
    assert lease_holder(local_store, "runs/r") == this_process()


@pytest.mark.parametrize(("step_s", "is_held"), [(30, True), (120, False)])
def test_where_the_system_counts_no_ticks_the_clock_tells_processes_apart(local_store, monkeypatch, step_s, is_held):
    monkeypatch.setattr(leases, "PROCESS_STAT", "/nowhere/{pid}")
    claim_lease(local_store, "runs/r")
    started = psutil.Process().create_time()
    monkeypatch.setattr(psutil.Process, "create_time", lambda process: started + step_s)
    check_lease(local_store, "runs/r")
    assert this_process().start_ticks is None
    assert (lease_holder(local_store, "runs/r") is not None) == is_held


def test_a_record_of_the_older_form_is_of_a_living_process_or_of_a_namesake(local_store, local_backend):
    for run, hours in (("living", 0), ("namesake", 1)):
        older = this_process().model_dump(mode="json", exclude={"start_ticks"})
        older["started"] = (this_process().started - timedelta(hours=hours)).isoformat()
        body = {"format": 1, "owner": older, "expires_s": 1e12, "token": "t"}
        record = body | {"digest": digest(body)}
        local_backend.plant(f"runs/{run}/lease/00000.json", json.dumps(record).encode())
    holder = lease_holder(local_store, "runs/living")
    assert (holder.pid, holder.start_ticks) == (os.getpid(), None)
    assert lease_holder(local_store, "runs/namesake") is None


def test_a_fork_is_a_process_of_its_own():
    code = (
        "import os, sys; from quad_tasks.storage.lease import this_process; this_process(); child = os.fork()\n"
        "print(os.getpid() == this_process().pid, this_process() is this_process(), flush=True)\n"
        "sys.exit(os.waitpid(child, 0)[1] if child else 0)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert ended.stdout.splitlines() == ["True True", "True True"]


def test_a_living_process_on_this_host_keeps_its_lease(local_store):
    claim_lease(local_store, "runs/r")
    with pytest.raises(LeaseHeld, match=f"process {os.getpid()}"):
        claim_lease(local_store, "runs/r")


def test_an_expired_lease_that_nobody_took_is_renewed_before_a_commit(store):
    check_lease(store, "runs/never-claimed")
    claim_lease(store, "runs/r", ttl_s=-1)
    check_lease(store, "runs/r")  # expired, and nobody took it: renewed
    with pytest.raises(LeaseHeld, match=f"process {os.getpid()}"):
        claim_lease(store, "runs/r", ANOTHER)


def test_a_lease_that_another_took_and_gave_back_is_lost_all_the_same(store):
    claim_lease(store, "runs/r", ttl_s=-1)
    release_lease(store, claim_lease(store, "runs/r", ANOTHER))
    with pytest.raises(LeaseLost, match="got it taken over by process 34 of ben on another"):
        check_lease(store, "runs/r")


@pytest.mark.parametrize("elsewhere", [{"boot": "another"}, {"pid_namespace": "pid:[1]"}])
def test_a_process_of_another_container_or_boot_is_not_taken_for_dead(local_store, elsewhere):
    unseen = this_process().model_copy(update={"pid": 2**22 + 1} | elsewhere)
    claim_lease(local_store, "runs/r", unseen)
    with pytest.raises(LeaseHeld, match=f"process {unseen.pid}"):
        claim_lease(local_store, "runs/r")


def test_old_records_go_and_a_writer_too_slow_for_its_number_has_claimed_nothing(local_store, clock):
    lease = claim_lease(local_store, "runs/r", ELSEWHERE, ttl_s=60, now=clock)
    for _ in range(3 * KEPT_RECORDS):
        lease = renew_lease(local_store, lease, ttl_s=60, now=clock)
    records = local_store.list("runs/r/lease")
    assert [int(key[-10:-5]) for key in records] == list(range(lease.number - KEPT_RECORDS + 1, lease.number + 1))
    assert not leases._append_record(local_store, leases.Lease("runs/r", 1, ANOTHER, expires_s=1e12))
    with pytest.raises(LeaseHeld, match="process 12 of ada on elsewhere"):
        claim_lease(local_store, "runs/r", ANOTHER, now=clock)


def test_a_damaged_record_keeps_nobody_out_and_hides_no_holder(local_store, local_backend, clock):
    claim_lease(local_store, "runs/r", ELSEWHERE, ttl_s=60, now=clock)
    local_backend.plant("runs/r/lease/00001.json", b"half a rec")
    with pytest.raises(LeaseHeld, match="process 12 of ada on elsewhere"):
        claim_lease(local_store, "runs/r", ANOTHER, now=clock)
    clock.now_s += 61
    assert claim_lease(local_store, "runs/r", ANOTHER, now=clock).number == 2
    local_backend.plant("runs/s/lease/00000.json", b"half a rec")
    assert claim_lease(local_store, "runs/s", ANOTHER, now=clock).number == 1


def test_a_lease_is_given_back_when_its_block_ends_well_or_not(local_store):
    def fail() -> None:
        with hold_lease(local_store, "runs/r"):
            raise RuntimeError("as planned")

    with pytest.raises(RuntimeError, match="as planned"):
        fail()
    assert claim_lease(local_store, "runs/r", ANOTHER).owner == ANOTHER


def test_whoever_comes_second_is_told_and_waits_for_its_turn(local_store, monkeypatch):
    monkeypatch.setattr(leases, "WAIT_S", 0.01)
    told, order = threading.Event(), []

    def wait() -> None:
        with hold_lease(local_store, "pools/p", lambda owner: (order.append(owner), told.set())):
            order.append("second")

    first = claim_lease(local_store, "pools/p", ELSEWHERE)
    second = threading.Thread(target=wait)
    second.start()
    assert told.wait(timeout=60)
    order.append("first ends")
    release_lease(local_store, first)
    second.join()
    assert order == [ELSEWHERE, "first ends", "second"]


def test_a_lease_is_renewed_while_its_block_runs_and_its_loss_is_an_error(local_store, monkeypatch):
    monkeypatch.setattr(leases, "LEASE_TTL_S", 0.02)

    def lose() -> None:
        with hold_lease(local_store, "runs/r"):
            while len(local_store.list("runs/r/lease")) < 3:
                pass
            while True:  # the next number, before the renewal takes it
                number = leases._last_record(local_store, "runs/r")[0] + 1
                lease = leases.Lease("runs/r", number, ANOTHER, expires_s=1e12)
                if leases._append_record(local_store, lease):
                    break
            for thread in threading.enumerate():
                if thread.name == "lease":
                    thread.join()

    with pytest.raises(LeaseLost, match="taken over by process 34 of ben on another"):
        lose()


def test_the_holder_of_a_lease_is_known_until_it_is_released_or_expires(local_backend):
    store = Store(local_backend.uri)
    assert lease_holder(store, "runs/r") is None
    lease = claim_lease(store, "runs/r", ttl_s=10.0, now=lambda: 100.0)
    assert lease_holder(store, "runs/r", lambda: 109.0) == this_process()
    assert lease_holder(store, "runs/r", lambda: 111.0) is None
    release_lease(store, lease)
    assert lease_holder(store, "runs/r", lambda: 101.0) is None
