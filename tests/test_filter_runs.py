"""Whether train.yml starts a run or attaches to it, and what it brings."""

import pytest
from ansible.plugins.loader import filter_loader
from conftest import REPOSITORY

filter_loader.add_directory(str(REPOSITORY / "plugins/filter"))
ALL = ["training", "openvino_export", "run_report"]
DONE = {
    "supervised": False, "unsupervised": False, "finished": True, "state": {"state": "finished"},
    "collected": True, "exported": True, "reported": True,
}  # fmt: skip


def apply(name, *args, **options):
    """The filter as Ansible finds it."""
    return filter_loader.get(name).j2_function(*args, **options)


@pytest.mark.parametrize(
    ("run_tags", "skip_tags", "roles"),
    [
        (["all"], [], ALL),
        (["all"], ["openvino_export"], ["training", "run_report"]),
        (["launch_config", "training"], [], ["training"]),
        (["sweep"], ["openvino_export"], ["training", "run_report"]),
        (["preflight"], [], []),
    ],
)
def test_roles_of_a_call(run_tags, skip_tags, roles):
    assert apply("roles_after_training", run_tags, skip_tags) == roles


def test_a_run_that_is_not_there_is_started():
    seen = {"supervised": False, "unsupervised": False, "finished": False, "state": {}}
    assert apply("run_plan", seen, ALL) == {"attach": False, "reason": "", "left": []}


def test_a_run_in_progress_is_followed_whatever_is_asked():
    seen = {**DONE, "supervised": True, "finished": False, "state": {"state": "running"}}
    for overwrite in (False, True):
        plan = apply("run_plan", seen, ALL, overwrite)
        assert (plan["attach"], plan["left"]) == (True, [])
        assert plan["reason"].startswith("is going on and is followed")


def test_a_run_of_which_nothing_is_missing_is_not_attached_to():
    """launch_config then refuses it as finished."""
    assert not apply("run_plan", DONE, ALL)["attach"]


@pytest.mark.parametrize(
    ("key", "role", "word"),
    [
        ("collected", "training", "results"),
        ("exported", "openvino_export", "OpenVINO copy"),
        ("reported", "run_report", "report"),
    ],
)
def test_what_is_missing_is_brought_once(key, role, word):
    """By a call that plays the role, and only by that; a run that is to be done again is started."""
    seen = {**DONE, key: False}
    plan = apply("run_plan", seen, ALL)
    assert plan["attach"]
    assert plan["left"] == [role]
    assert plan["reason"].endswith(f": {word}")
    assert not apply("run_plan", seen, [other for other in ALL if other != role])["attach"]
    assert apply("run_plan", seen, ALL, True) == {"attach": False, "reason": "", "left": []}


@pytest.mark.parametrize("state", [{}, {"state": "stopped"}, {"state": "failed"}])
def test_only_a_run_that_finished_under_its_supervisor_is_completed(state):
    """One that launch.sh did by itself is refused as finished; one that was stopped is started again."""
    assert not apply("run_plan", {**DONE, "collected": False, "state": state}, ALL)["attach"]


def test_runs_that_share_a_host():
    """Another run is in the way where it has cores that this one needs."""
    night = {"run": "night", "user": "ann", "pid": 7, "cores": "0-3"}
    assert apply("shares_in_the_way", [night]) == "run night of user ann, on cores 0-3"
    assert apply("shares_in_the_way", [night], "4-7") == ""
    assert apply("shares_in_the_way", [night], "3,8") != ""


def test_summary_of_a_drawing():
    state = {"pictures": 8, "hosts": {"a": 3, "b": 1}, "lost": {}}
    assert apply("drawing_summary", state) == "8 pictures; batches drawn by a: 3, b: 1"
    state["lost"] = {"b": "does not answer"}
    assert apply("drawing_summary", state).endswith("a: 3, b: 1; warning: b does not answer")
