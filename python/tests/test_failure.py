"""Which rank failed first, decided from what was recorded."""

import json
from dataclasses import asdict

import pytest

from sdtune.errors import BadInput, HostBusy, TrainingFailed
from sdtune.launch.failure import Evidence, hung_rank, is_explained, judge
from sdtune.launch.launcher_output import killed_ranks
from sdtune.launch.rank_error import RankError, Reporter

HYDRA = """
===================================================================================
=   BAD TERMINATION OF ONE OF YOUR APPLICATION PROCESSES
=   RANK 1 PID 77 RUNNING AT node2
=   KILLED BY SIGNAL: 9 (Killed)
===================================================================================
=   RANK 0 PID 1 RUNNING AT node1
"""

PROXY_ENDED = [
    "the job r can run",
    "[mpiexec@node1] Error: Downstream from host 198.51.100.12 exited abnormally",
    "[mpiexec@node1] Trying to close other downstreams",
    "[mpiexec@node1] Error: Downstream from host 198.51.100.11 exited abnormally",
    "[mpiexec@node1] wait_proxies_to_terminate (mpiexec/intel/i_mpiexec.c:554): downstream exited with status 255",
]
WITH_PROXY = "ended before it had an agent, and mpirun's proxy there too, as when the rank is killed as it starts"
TWO_HOSTS = {"hosts": ["node1", "node2"], "addresses": ["198.51.100.11", "198.51.100.12"]}


def evidence(**recorded):
    """Two hosts, one rank each, whose launcher has failed."""
    return Evidence(**{**TWO_HOSTS, "ranks_per_node": 1, "exit_code": 1, **recorded})


def error(exception, rank):
    """As a rank that fails with it."""
    with pytest.raises(type(exception)) as raised:
        raise exception
    return RankError.of(raised.value, rank)


CLOSED = RuntimeError("[gloo] Connection closed by peer [198.51.100.2]:1234")
SURPRISE = KeyError("surprise")


@pytest.mark.parametrize(
    ("recorded", "why"),
    [
        ({"exit_code": 0}, "finished"),
        ({"exit_code": 0, "decision": "the supervisor was ended by SIGTERM"}, "the supervisor was ended by SIGTERM"),
        ({"exit_code": 2, "launcher_lines": ["x", "error: no picture; add one"]}, "no picture; add one"),
        ({"exit_code": 2}, "launch.sh refused"),
        ({"exit_code": 9}, "mpirun ended with code 9"),
        # the first that ended is the cause, unless it only lost its connection to another
        ({"ended": [1, 0], "errors": {1: error(SURPRISE, 1)}}, "rank 1 on node2: KeyError: 'surprise'"),
        (
            {"ended": [0, 1], "errors": {0: error(CLOSED, 0), 1: error(SURPRISE, 1)}},
            "rank 1 on node2: KeyError: 'surprise'",
        ),
        (
            {"ended": [1, 0], "errors": {0: error(CLOSED, 0)}, "killed": [(1, 9)]},
            "rank 1 on node2 was killed by signal 9",
        ),
        ({"ended": [0, 1], "errors": {0: error(CLOSED, 0)}}, f"rank 0 on node1: RuntimeError: {CLOSED}"),
        # a lost agent proves nothing about its rank
        (
            {"ranks_per_node": 2, "ended": [3, 2], "lost_agents": {3, 2}},
            "all agents on node2 ended at once, as when all processes of a host are killed",
        ),
        (
            {"ranks_per_node": 2, "ended": [3], "lost_agents": {3}},
            "the agent of rank 3 on node2 ended without a report, as when it or all of its host is killed",
        ),
        (
            {"ended": [1, 0], "lost_agents": {1}, "errors": {0: error(SURPRISE, 0)}},
            "rank 0 on node1: KeyError: 'surprise'",
        ),
        (
            {"ended": [0, 1], "ended_by_agent": {1: "nothing was received"}, "stood_still": 41.2},
            "rank 1 on node2 was ended by its agent: nothing was received; the supervisor itself did not run for 41 s, "
            "as after SIGSTOP",
        ),
        ({"exit_code": None, "ended": [1]}, "rank 1 on node2 ended without an error message"),
        (
            {"rank_lines": {1: ["KeyError: 'printed'"]}, "ended": [1, 0]},
            "rank 1 on node2 ended without an error message",
        ),
        # a rank whose work was done is no cause
        ({"ended": [0, 1], "left": {0}, "killed": [(1, 9)]}, "rank 1 on node2 was killed by signal 9"),
        (
            {"exit_code": None, "ended": [1], "killed": [(1, 9)], "out_of_memory": {1}},
            "rank 1 on node2 was killed by signal 9, for want of memory: the Linux kernel did it",
        ),
        # without agents, Hydra's report and the records remain
        ({"killed": [(1, 11)], "errors": {0: error(CLOSED, 0)}}, "rank 1 on node2 was killed by signal 11"),
        # Hydra ends the others when a rank ends that no agent watches yet, and reports signals of some or all
        ({"exit_code": 255, "ended": [0], "killed": [(0, 9), (1, 9)]}, "rank 1 on node2 was killed by signal 9"),
        ({"exit_code": 255, "ended": [0], "killed": [(1, 9)]}, "rank 1 on node2 was killed by signal 9"),
        (
            {"exit_code": 255, "killed": [(0, 9), (1, 9)]},
            "one of ranks 0, 1 was killed by signal 9 before it had an agent",
        ),
        ({"exit_code": 255, "killed": [(1, 9)]}, "rank 1 on node2 was killed by signal 9"),
        *(
            (
                {"exit_code": 255, "ended": [0], "killed": killed},
                "rank 1 on node2 ended before its agent watched it, without an error message",
            )
            for killed in ([], [(0, 9)])
        ),
        # Hydra's proxy does not survive that a rank is gone when it answers it
        (
            {"exit_code": 255, "launcher_lines": PROXY_ENDED},
            f"rank 1 on node2 {WITH_PROXY}",
        ),
        (
            {"exit_code": 255, "launcher_lines": PROXY_ENDED, "ended": [0], "killed": [(0, 9)]},
            f"rank 1 on node2 {WITH_PROXY}",
        ),
        (
            {"exit_code": 255, "launcher_lines": PROXY_ENDED, "ranks_per_node": 2, "ended": [3, 0]},
            f"rank 2 on node2 {WITH_PROXY}",
        ),
        (
            {"exit_code": 255, "launcher_lines": PROXY_ENDED, "ranks_per_node": 2},
            f"one of ranks 2, 3 on node2 {WITH_PROXY}",
        ),
        # what sdtune refuses counts, whoever ended first
        (
            {"ended": [0, 1], "errors": {1: error(TrainingFailed("the loss is nan\nat step 3"), 1)}},
            "rank 1 on node2: error: the loss is nan",
        ),
        (
            {"exit_code": 2, "ended": [1, 0], "errors": {r: error(BadInput("no"), r) for r in (1, 0)}},
            "rank 0 on node1: error: no",
        ),
        # the ranks end with what started them
        ({"exit_code": 137, "ended": [1, 0], "launcher_lines": ["Killed"]}, "mpirun was killed by signal 9"),
        # what the supervisor decided stands
        (
            {"exit_code": None, "decision": "node2 has not been heard of for 8 s", "culprit": 1, "ended": [0]},
            "node2 has not been heard of for 8 s",
        ),
    ],
)
def test_the_cause(recorded, why):
    assert judge(evidence(**recorded)).why == why


def test_what_is_tried_again():
    assert judge(evidence(ended=[1], errors={1: error(SURPRISE, 1)})).retry
    assert judge(evidence(ended=[1], killed=[(1, 9)])).retry
    assert not judge(evidence(ended=[1], errors={1: error(TrainingFailed("nan"), 1)})).retry
    assert not judge(evidence(exit_code=2, launcher_lines=["error: no"])).retry


def test_a_host_that_another_run_uses_is_no_failure_of_the_run():
    refused = judge(evidence(exit_code=None, ended=[1], errors={1: error(HostBusy("node2 is used by run a; wait"), 1)}))
    assert (refused.used_by, refused.retry, refused.code) == ({"node2": "run a"}, False, 2)
    assert refused.why == "rank 1 on node2: error: node2 is used by run a; wait"
    assert not judge(evidence(ended=[1], errors={1: error(BadInput("no"), 1)})).used_by


def test_what_is_shown():
    known = judge(evidence(ended=[1], errors={1: error(SURPRISE, 1)}, rank_lines={1: ["noise"]}))
    assert (known.rank, known.host, known.code) == (1, "node2", 1)
    assert known.lines[0] == "Traceback (most recent call last):"
    assert known.lines[-1] == "KeyError: 'surprise'"
    printed = judge(evidence(ended=[1, 0], rank_lines={1: [str(n) for n in range(40)]}))
    assert printed.lines == [str(n) for n in range(25, 40)]
    warning = (
        "[W1127 21:02:25.289108552 socket.cpp:207] [c10d] The hostname of the client socket cannot be retrieved. err=-3"
    )
    killed = judge(evidence(ended=[1, 0], rank_lines={1: [warning, "Bus error"]}))
    assert killed.lines == ["Bus error"]
    hung = judge(evidence(exit_code=None, decision="no step", culprit=0, stacks={0: "Stack\n  File\n"}))
    assert (hung.lines, hung.code) == (["Stack", "  File"], -1)
    assert judge(evidence(launcher_lines=["a"])).lines == ["a"]


def test_a_consequence_explains_nothing_yet():
    assert not is_explained(evidence(ended=[0], errors={0: error(CLOSED, 0)}))
    assert is_explained(evidence(ended=[0, 1], errors={0: error(CLOSED, 0), 1: error(SURPRISE, 1)}))
    assert is_explained(evidence(lost_agents={1}))


def test_the_rank_that_hangs():
    waiting, elsewhere = "Stack:\n  in all_reduce\n", "Stack:\n  in read\n"
    assert hung_rank(stopped={1}, absent={0}, stacks={0: waiting}) == (1, "is stopped, as by SIGSTOP")
    assert hung_rank(stopped=(), absent={1}, stacks={0: waiting}) == (1, "never joined")
    found = hung_rank(stopped=(), absent=(), stacks={0: waiting, 1: elsewhere})
    assert found == (1, "is not in the collective operation in which the others wait")
    assert hung_rank(stopped=(), absent=(), stacks={0: waiting, 1: ""}) is None


def test_signals_are_read_from_hydras_report():
    assert killed_ranks(HYDRA.splitlines()) == [(1, 9)]


def test_a_record_of_what_is_raised_on_purpose_has_its_traceback_and_a_report_shows_its_message():
    for exception in (TrainingFailed("the loss is nan"), BadInput("no such folder")):
        recorded = error(exception, 0)
        assert recorded.traceback.startswith("Traceback (most recent call last):")
        assert recorded.traceback.endswith(f"{exception}\n")
        assert recorded.lines == [f"error: {exception}"]
    assert error(SURPRISE, 0).lines[-1] == "KeyError: 'surprise'"


def test_a_record_survives_the_wire_and_bounds_its_size():
    long = error(KeyError("x" * 100_000 + "\U0001f600"), 3)
    line = long.to_json()
    assert "\n" not in line
    assert len(line.encode()) < 65_536, "a pipe takes it at once"
    assert RankError.from_mapping(json.loads(line)) == long
    for wrong in ({"rank": 1}, [], {**asdict(long), "message": None}, {**asdict(long), "rank": True}):
        with pytest.raises(ValueError, match="an error of a rank"):
            RankError.from_mapping(wrong)


def test_a_process_that_is_no_rank_records_nothing(tmp_path, monkeypatch):
    (tmp_path / "logs").mkdir()
    monkeypatch.setenv("SDTUNE_RUN", str(tmp_path))
    monkeypatch.delenv("SDTUNE_RANK", raising=False)
    Reporter().report(KeyError("x"))
    assert not list((tmp_path / "logs").iterdir())
    monkeypatch.setenv("SDTUNE_RANK", "4")
    rank = Reporter()
    Reporter().report(KeyError("a child of the rank"))
    assert not list((tmp_path / "logs").iterdir())
    rank.report(SURPRISE)
    assert json.loads((tmp_path / "logs/error-4.json").read_text())["message"] == "'surprise'"
