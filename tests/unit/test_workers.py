"""Tasks shared among processes: the same answers, nothing lost, nobody left behind."""

import itertools
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

import penlight
import zoo
from penlight.errors import BadOption, BadOutput, CannotRun
from penlight.inputs import pick
from penlight.jobs import AtlasOptions, plan_atlas, run_plan
from penlight.jobs.executors.contract import Lost
from penlight.jobs.executors.local import answer
from penlight.jobs.executors.processes import _error, _order, _usual, helpers
from penlight.store import Atlas

TESTS = Path(__file__).parents[1]
FAST = {"seeds": 1, "options": {"steps": 4}}


class Chatty(zoo.Functional):
    """Prints and warns whenever it is called."""

    def forward(self, x):
        print("so much to say")
        warnings.warn("a network's own warning", stacklevel=1)
        return super().forward(x)


class Slow(zoo.Functional):
    """Takes its time, so that every process gets its turn."""

    def forward(self, x):
        time.sleep(0.002)
        return super().forward(x)


@pytest.fixture
def opened():
    return penlight.load("module:zoo:fixed")


@pytest.fixture
def data():
    return np.random.default_rng(0).random((24, 1, 16, 16)).astype(np.float32)


def plan(model, data, **more):
    found = penlight.api.find_data(model, data)
    return found, plan_atlas(model, found, AtlasOptions(**{**FAST, **more}))


def waits(condition, seconds=90):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def files(place):
    """Bytes of all arrays and pictures by path."""
    found = sorted(p for p in (place / "results").rglob("*") if p.is_file())
    return {p.relative_to(place).as_posix(): p.read_bytes() for p in found}


def patiently(model, found, tasks, store, crew, watch=None):
    """Run once the helpers are ready, so that they get their share."""
    for helper in crew:
        assert helper.ready()
        helper.ready = lambda: True
    return run_plan(tasks, model, found, store, watch, crew)


def test_answers_are_the_same_bytes_whoever_gives_them(tmp_path, opened, data):
    found, tasks = plan(opened, data)
    with Atlas.create(tmp_path / "one") as store:
        assert run_plan(tasks, opened, found, store).computed == len(tasks)
    asked = []
    with Atlas.create(tmp_path / "two") as store, helpers(opened, found, tasks, 2) as crew:
        (helper,) = crew
        own = helper.answer
        helper.answer = lambda task, *rest: asked.append(task.key) or own(task, *rest)
        assert patiently(opened, found, tasks, store, crew).computed == len(tasks)
    assert 0 < len(asked) < len(tasks)
    assert files(tmp_path / "one") == files(tmp_path / "two")


@pytest.mark.parametrize("module", [Slow, Chatty])
def test_a_live_module_is_sent_as_it_is(tmp_path, data, module):
    with warnings.catch_warnings(record=True) as said, Atlas.create(tmp_path / "atlas") as store:
        warnings.simplefilter("always")
        model = penlight.load(zoo.seeded(module), example=torch.zeros(1, 1, 16, 16))
        found, tasks = plan(model, data, layers=["conv1", "fc"])
        with helpers(model, found, tasks, 2) as crew:
            (helper,) = crew
            assert helper.ready()
            said.clear()
            result = helper.answer(tasks[0], [], lambda done, of: None)  # whatever it printed, the answer is whole
        store.put(tasks[0].key, result, {})
        assert store.get(tasks[0].key).kind == "survey"
    texts = {str(warning.message) for warning in said}
    assert ("a network's own warning" in texts) == (module is Chatty)


@pytest.mark.parametrize("name", ["letters", "biopsies", "code"])
def test_specimens_and_their_data_can_be_sent(name):
    model = penlight.load(name)
    found = penlight.api.find_data(model, None)
    tasks = plan_atlas(model, pick(found, range(4)), AtlasOptions())
    opening, *_, sent, _ = pickle.loads(_order(model, pick(found, range(4)), tasks, True))
    assert opening["reference"] == name
    assert (len(sent), sent.fingerprint()) == (4, pick(found, range(4)).fingerprint())
    assert np.array_equal(sent.read(2), found.read(2))


def test_a_folder_of_texts_can_be_sent(tmp_path):
    (tmp_path / "a.txt").write_text("abba")
    found = penlight.inputs.open_data(tmp_path, penlight.load("code").contract)
    assert np.array_equal(pickle.loads(pickle.dumps(found)).read(0), found.read(0))


def test_a_model_that_cannot_be_sent_is_computed_here(tmp_path, data):
    network = zoo.seeded(zoo.Functional)
    network.hidden = lambda: None  # no pickle takes it
    model = penlight.load(network, example=torch.zeros(1, 1, 16, 16))
    with pytest.warns(UserWarning, match="computing in one process: .* cannot be sent"):
        built = penlight.build_atlas(model, data, tmp_path / "loud", seeds=1, steps=2, layers="fc", workers=2)
    assert built.outcome.computed == built.tasks
    torch.set_num_threads(2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nobody asked for a second process, so nothing is said
        built = penlight.build_atlas(model, data, tmp_path / "still", seeds=1, steps=2, layers="fc")
    assert built.outcome.computed == built.tasks


def test_a_network_changed_since_it_was_opened_is_not_opened_again_unchanged(opened, data):
    with torch.no_grad():
        next(opened.network.parameters()).add_(1)
    found, tasks = plan(opened, data, layers=["fc"])
    with helpers(opened, found, tasks, 2) as crew, pytest.warns(UserWarning, match="cannot help: .* has other weights"):
        assert not crew[0].ready()


def test_a_method_only_this_process_knows_is_answered_here(opened, data):
    found, tasks = plan(opened, data, layers=["fc"])
    odd = type(tasks[0])("survey", "home-made", 1, opened.hash)
    with helpers(opened, found, [*tasks, odd], 2) as crew, pytest.warns(UserWarning, match="home-made"):
        assert not crew[0].ready()


def test_a_killed_worker_costs_nothing(tmp_path, data):
    model = penlight.load(zoo.seeded(Slow), example=torch.zeros(1, 1, 16, 16))
    found, tasks = plan(model, data, layers=["fc", "conv1"])
    with Atlas.create(tmp_path / "atlas") as store, helpers(model, found, tasks, 2) as crew:
        (helper,) = crew
        own, killed = helper.answer, []

        def fatal(*request):
            killed.append(request[0].key)
            os.kill(helper._process.pid, signal.SIGKILL)
            return own(*request)

        helper.answer = fatal
        with pytest.warns(UserWarning, match=r"worker process is gone \(killed by signal 9"):
            outcome = patiently(model, found, tasks, store, crew)
        assert len(killed) == 1
        assert (outcome.computed, outcome.failed) == (len(tasks), [])
        assert store.has(killed[0])


def test_threads_are_shared_out_and_given_back(opened, data):
    torch.set_num_threads(4)
    found, tasks = plan(opened, data, layers=["fc"])
    with helpers(opened, found, tasks, 2) as crew:
        assert (len(crew), torch.get_num_threads()) == (1, 2)
        process = crew[0]._process
    assert torch.get_num_threads() == 4
    assert process.poll() is not None
    with helpers(opened, found, tasks[:1], 3) as crew:
        assert crew == []  # one task is for one process


@pytest.mark.parametrize(
    ("threads", "free", "own", "expected"),
    [
        (1, 9e9, 1e9, 1),
        (4, 1e12, 1e9, 4),
        (64, 1e12, 1e9, 8),
        (8, 5e9, 1e9, 3),
        (8, 1e8, 1e9, 1),
        (8, float("inf"), 0, 8),
    ],
)
def test_usually_as_many_as_there_are_threads_and_room_for(monkeypatch, opened, threads, free, own, expected):
    monkeypatch.setattr("penlight.jobs.executors.processes._memory", lambda: (free, own))
    assert _usual(opened, threads) == expected


def test_nobody_is_half_a_worker(tmp_path, opened, data):
    with pytest.raises(BadOption, match="whole number from 1, not 0"):
        penlight.build_atlas(opened, data, tmp_path / "atlas", workers=0)


class Hand:
    """A helper in this process that does as it is told."""

    def __init__(self, act):
        self.act, self.closed = act, threading.Event()

    def ready(self):
        return True

    def answer(self, task, earlier, progress):
        return self.act(task, earlier, progress)

    def close(self):
        self.closed.set()


def run_with(tmp_path, opened, data, act, store=None):
    found, tasks = plan(opened, data)
    hand = Hand(lambda *request: act(*request, answer=lambda: answer(request[0], opened, found, *request[1:])))
    with Atlas.create(tmp_path / "atlas") as atlas:
        try:
            return tasks, hand, run_plan(tasks, opened, found, store or atlas, None, [hand])
        finally:
            assert hand.closed.is_set()


def test_what_a_helper_cannot_run_is_noted_and_what_needs_it_too(tmp_path, opened, data, monkeypatch):
    def act(task, earlier, progress, answer):
        raise CannotRun("not today")

    monkeypatch.setattr("penlight.jobs.run.answer", lambda task, *_: act(task, [], None, None))
    tasks, _, outcome = run_with(tmp_path, opened, data, act)
    reasons = {task.key: reason for task, reason in outcome.failed}
    assert [task.key for task, _ in outcome.failed] == [task.key for task in tasks]  # in the order of the plan
    assert all(reasons[task.key] == ("a task it builds on failed" if task.needs else "not today") for task in tasks)
    assert outcome.computed == 0


def test_a_helper_that_leaves_hands_its_task_back_at_the_very_end_too(tmp_path, opened, data, monkeypatch):
    taken = threading.Event()

    def act(task, earlier, progress, answer):
        taken.set()
        time.sleep(1)  # by now nothing else is left to do
        raise Lost

    found, tasks = plan(opened, data, layers=["fc"])
    hand = Hand(lambda *request: act(*request, answer=None))
    monkeypatch.setattr("penlight.jobs.run.answer", lambda *request: taken.wait(10) and answer(*request))
    with Atlas.create(tmp_path / "atlas") as store:
        outcome = run_plan(tasks, opened, found, store, None, [hand])
        assert taken.is_set()
        assert outcome.computed == len(tasks) == len(list(store.keys()))


def test_a_full_disk_met_by_a_helper_ends_the_run(tmp_path, opened, data):
    def act(task, earlier, progress, answer):
        raise BadOutput("no room")

    with pytest.raises(BadOutput, match="no room"):
        run_with(tmp_path, opened, data, act)


def test_a_helpers_broken_technique_is_not_hidden(tmp_path, opened, data):
    def act(task, earlier, progress, answer):
        raise ZeroDivisionError("a mistake of ours")

    with pytest.raises(ZeroDivisionError, match="a mistake of ours"):
        run_with(tmp_path, opened, data, act)


def test_the_bar_never_goes_back_and_ends_full(tmp_path, opened, data):
    found, tasks = plan(opened, data)
    told = []
    hand = Hand(lambda task, earlier, progress: answer(task, opened, found, earlier, progress))
    with Atlas.create(tmp_path / "atlas") as store:
        run_plan(tasks, opened, found, store, lambda done, of, task, share: told.append((done + share, of)), [hand])
    assert {of for _, of in told} == {len(tasks)}
    assert all(after >= before - 1e-9 for (before, _), (after, _) in itertools.pairwise(told))
    assert len(tasks) - 1 <= told[-1][0] <= len(tasks)


def test_errors_come_back_as_they_were_raised():
    raised = penlight.errors.UnknownName("layer", "conv", ["conv1"])
    back = _error(type(raised).__name__, str(raised))
    assert (type(back), str(back), back.exit_code) == (type(raised), str(raised), 2)


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="reads /proc")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_no_worker_outlives_the_run(tmp_path, how):
    np.savez(tmp_path / "data.npz", images=np.zeros((24, 1, 16, 16), np.float32))
    order = ["atlas", "module:zoo:fixed", "--data", str(tmp_path / "data.npz"), "--out", str(tmp_path / "atlas")]
    run = subprocess.Popen(
        [sys.executable, "-m", "penlight", *order, "--steps", "3000", "--workers", "3"],
        env={**os.environ, "PYTHONPATH": str(TESTS)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    children = Path(f"/proc/{run.pid}/task/{run.pid}/children")
    workers = []

    def started():
        assert run.poll() is None, run.stderr.read()
        workers[:] = map(int, children.read_text("ascii").split())
        return len(workers) == 2

    waits(started)
    time.sleep(3)  # somewhere between starting and computing
    run.send_signal(how)
    _, err = run.communicate(timeout=60)
    assert "Traceback" not in err
    waits(lambda: not any(map(alive, workers)), 30)


def test_from_the_command_line(tmp_path):
    np.savez(tmp_path / "data.npz", images=np.zeros((24, 1, 16, 16), np.float32))
    order = ["atlas", "module:zoo:fixed", "--data", "data.npz", "--out", "atlas", "--steps", "3", "--seeds", "1"]
    run = subprocess.run(
        [sys.executable, "-m", "penlight", *order, "--workers", "2"],
        env={**os.environ, "PYTHONPATH": str(TESTS)}, cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (run.returncode, run.stderr) == (0, "")
    assert "0 found there already" in run.stdout
