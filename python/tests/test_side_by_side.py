"""Runs side by side: which run gets which hosts, and the process that deals them out, with fakes of ssh and rsync."""

import json
import os
import sys
import threading
import time
from pathlib import Path

import pytest

from sdtune.errors import BadInput
from sdtune.launch import dealing, side_by_side, staging
from sdtune.launch.dealing import Request, Table, deal
from standalone import run_state
from tests.proof import proof


@pytest.mark.parametrize(
    ("waiting", "free", "each", "dealt"),
    [
        (["a", "b", "c"], ["n1", "n2"], 1, {"a": ["n1"], "b": ["n2"]}),
        (["a", "b"], ["n1", "n2", "n3"], 2, {"a": ["n1", "n2"]}),  # n3 is too few for b
        (["a"], ["n1", "n2"], 1, {"a": ["n1"]}),
        (["a"], ["n1"], 2, {}),
        ([], ["n1"], 1, {}),
    ],
)
def test_hosts_are_dealt_out_in_order(waiting, free, each, dealt):
    assert deal(waiting, free, each) == dealt


def request(runs="abc", hosts=2, each=1, **more):
    addresses = {f"n{number}": f"n{number}" for number in range(1, hosts + 1)}
    return Request(call="x", runs=list(runs), hosts=addresses, hosts_per_run=each, **more)


def test_more_hosts_for_a_run_than_there_are():
    with pytest.raises(BadInput, match="3 hosts for each of 3 runs"):
        request(each=3)


def test_a_run_that_ended_frees_its_hosts():
    table = Table(request())
    assert table.assign() == {"a": ["n1"], "b": ["n2"]}
    assert table.assign() == {}
    table.end("b", "failed", "why")
    assert table.assign() == {"c": ["n2"]}
    assert (table.named("running"), table.rows["b"]["reason"]) == (["a", "c"], "why")


def test_hosts_that_do_not_answer_are_dealt_out_when_they_do():
    table = Table(request("ab"))
    table.assign()
    table.return_to_queue("b", ["n2"])
    assert (table.named("waiting"), table.assign()) == (["b"], {})
    table.silent.clear()
    assert table.assign() == {"b": ["n2"]}


@pytest.mark.parametrize(("since", "over"), [(10, False), (1000, True)])
def test_runs_that_no_host_is_left_for_fail(since, over):
    table = Table(request("a", hosts=1))
    table.silent = {"n1": 5000.0 - since}
    assert table.is_over(5000.0) == over
    assert table.rows["a"]["state"] == ("failed" if over else "waiting")


def test_runs_that_go_on_without_their_table_keep_their_hosts():
    before = [
        {"run": "b", "state": "running", "hosts": ["n1"], "began": 1.0},
        {"run": "c", "state": "running", "hosts": ["gone"]},  # no host of this inventory
        {"run": "a", "state": "failed", "hosts": ["n2"]},  # done again
    ]
    table = Table(request(), before)
    assert (table.named("running"), table.free()) == (["b"], ["n2"])


# --- the process that deals hosts out --------------------------------------------------------------------------------

# fakes: a host's files are below hosts/NAME, and it does not answer while the file hosts/NAME.down is there
SSH = f"""#!{sys.executable}
import os, sys
root, address = {{root!r}}, sys.argv[-2]
if os.path.exists(f"{{{{root}}}}/hosts/{{{{address}}}}.down"):
    sys.exit(255)
os.execvp("sh", ["sh", "-c", sys.argv[-1].replace(f"{{{{root}}}}/runs", f"{{{{root}}}}/hosts/{{{{address}}}}/runs")])
"""
RSYNC = f"""#!{sys.executable}
import shutil, sys
root = {{root!r}}
def place(text):
    host, _, path = text.rpartition(":")
    return path.replace(f"{{{{root}}}}/runs", f"{{{{root}}}}/hosts/{{{{host}}}}/runs") if host else path
kept = shutil.ignore_patterns(".*", "env.sh")
shutil.copytree(place(sys.argv[-2]), place(sys.argv[-1]), dirs_exist_ok=True, ignore=kept)
"""
# a fake of `sdtune.launch start`: a process that holds the lock, until the file of its name says how it ends
START = """
import fcntl, json, os, sys, time
from pathlib import Path
at = sys.argv.index("--hosts")
hosts, run = sys.argv[at + 1].split(","), Path(sys.argv[at + 2])
run.mkdir(parents=True, exist_ok=True)
lock = open(run / ".supervisor.lock", "w")
fcntl.flock(lock, fcntl.LOCK_EX)
def write(state, **more):
    facts = {"state": state, "hosts": hosts, "pid": os.getpid(), "started": time.time(), **more}
    (run / "state.json").write_text(json.dumps(facts))
write("running")
if os.fork():
    sys.exit()
os.setsid()
for number in (0, 1, 2):
    os.dup2(os.open(os.devnull, os.O_RDWR), number)
while not (end := Path(ROOT, run.name)).exists() and not (run / "stop").exists():
    time.sleep(0.05)
if (run / "stop").exists():
    write("stopped", reason="on request")
elif end.read_text():
    write("failed", reason=end.read_text())
else:
    (run / "logs").mkdir(exist_ok=True)
    (run / "learned_embeds.safetensors").write_bytes(b"learned")
    (run / "finished.json").write_text(json.dumps({**PROOF, "run_name": run.name}))
    write("finished")
"""


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """Hosts that are folders; ``end(run)`` lets a run finish, or fail with a reason."""
    programs = tmp_path / "bin"
    for folder in (programs, tmp_path / "runs/.side-by-side", tmp_path / "hosts", tmp_path / "ends"):
        folder.mkdir(parents=True)
    for name, text in (("ssh", SSH), ("rsync", RSYNC)):
        (programs / name).write_text(text.format(root=str(tmp_path)).replace("{{", "{").replace("}}", "}"))
        (programs / name).chmod(0o755)
    (programs / "start.py").write_text(
        f"PROOF = {proof('run', learned_embeds=b'learned')}\n" + START.replace("ROOT", repr(str(tmp_path / "ends")))
    )
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setattr(side_by_side, "LAUNCH", (sys.executable, str(programs / "start.py")))
    monkeypatch.setattr(side_by_side, "_SILENT", 0.2)

    class Cluster:
        runs, hosts = tmp_path / "runs", tmp_path / "hosts"

        def __init__(self):
            self.threads = []

        def end(self, run, reason=""):
            (tmp_path / "ends" / run).write_text(reason)

        def deal(self, asked):
            thread = threading.Thread(target=side_by_side.Dealer(self.runs, asked).work)
            thread.start()
            self.threads.append(thread)
            return thread

        def started(self, run, host):
            runs = self.runs if host == "n1" else self.hosts / host / "runs"
            return self.row(run)["state"] == "running" and (runs / run / "state.json").exists()

        def row(self, run):
            table = self.runs / run_state.TABLE
            rows = json.loads(table.read_text())["rows"] if table.exists() else []
            return next((row for row in rows if row["run"] == run), {"state": "none", "hosts": []})

    yield (it := Cluster())
    for run in "abcd":
        it.end(run)
    for thread in it.threads:
        thread.join(60)


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_the_next_run_starts_on_a_host_that_becomes_free(cluster):
    """And every run is brought to the primary, n1, whether it finished or failed."""
    work = cluster.deal(request("abc"))
    wait_for(lambda: cluster.row("b")["state"] == "running")
    assert (cluster.row("b")["hosts"], cluster.row("c")["state"]) == (["n2"], "waiting")
    cluster.end("b", "the loss is nan")
    wait_for(lambda: cluster.row("c")["hosts"] == ["n2"])
    assert (cluster.row("b")["state"], cluster.row("b")["reason"]) == ("failed", "the loss is nan")
    cluster.end("c")
    cluster.end("a")
    work.join(60)
    assert [cluster.row(name)["state"] for name in "ac"] == ["finished", "finished"]
    for name, host in (("a", "n1"), ("b", "n2"), ("c", "n2")):
        assert run_state.read_state(cluster.runs / name)["hosts"] == [host]
    assert [path.name for path in cluster.hosts.glob("n2/runs/*")] == []


def test_a_host_that_is_lost_costs_its_run(cluster):
    work = cluster.deal(request("abc", host_wait=1))
    wait_for(lambda: cluster.started("b", "n2"))
    (cluster.hosts / "n2.down").touch()
    wait_for(lambda: cluster.row("b")["state"] == "failed")
    assert cluster.row("b")["reason"] == "its host was lost: n2 has not answered for 1 s"
    assert cluster.row("c")["state"] == "waiting"
    cluster.end("a")
    wait_for(lambda: cluster.row("c")["hosts"] == ["n1"])
    cluster.end("c")
    work.join(60)
    assert cluster.row("c")["state"] == "finished"


def test_a_run_does_not_start_on_a_host_that_does_not_answer(cluster):
    (cluster.hosts / "n2.down").touch()
    work = cluster.deal(request("ab"))
    wait_for(lambda: cluster.row("a")["state"] == "running" and cluster.row("b")["state"] == "waiting")
    (cluster.hosts / "n2.down").unlink()
    wait_for(lambda: cluster.row("b")["hosts"] == ["n2"])
    cluster.end("a")
    cluster.end("b")
    work.join(60)
    assert cluster.row("b")["state"] == "finished"


@pytest.mark.parametrize(("names", "left"), [([], []), (["b", "c"], ["a"])])
def test_a_stop_ends_runs_and_those_that_wait(cluster, names, left):
    work = cluster.deal(request("abc"))
    wait_for(lambda: cluster.started("a", "n1") and cluster.started("b", "n2"))
    (cluster.runs / run_state.TABLE_STOP).write_text(json.dumps({"runs": names, "within": 60}))
    wait_for(lambda: all(cluster.row(name)["state"] == "stopped" for name in "bc"))
    assert [cluster.row(name)["reason"] for name in "bc"] == ["on request", "on request, before it started"]
    for name in left:
        cluster.end(name)
    work.join(60)
    assert cluster.row("a")["state"] == ("finished" if left else "stopped")


def test_runs_are_followed_by_the_next_process(cluster):
    """As after a crash of the one that started them."""
    first = side_by_side.Dealer(cluster.runs, request("a"))
    first.table.assign()
    first._write()
    done = first._on("n1", [*side_by_side.LAUNCH, "start", "--hosts", "n1", str(cluster.runs / "a")])
    assert done.returncode == 0, done.stderr
    work = cluster.deal(request("ab"))
    wait_for(lambda: cluster.row("b")["hosts"] == ["n2"])
    assert cluster.row("a")["state"] == "running"
    cluster.end("a")
    cluster.end("b")
    work.join(60)
    assert [cluster.row(name)["state"] for name in "ab"] == ["finished", "finished"]


def test_a_checkpoint_comes_along(cluster):
    """A run that was stopped on one host goes on on another."""
    step = Path("b/checkpoints/step-000003")
    (cluster.runs / step).mkdir(parents=True)
    work = cluster.deal(request("ab"))
    wait_for(lambda: cluster.row("b")["state"] == "running" and (cluster.hosts / "n2/runs" / step).exists())
    cluster.end("a")
    cluster.end("b")
    work.join(60)
    assert (cluster.runs / step).exists()


@pytest.mark.parametrize(("names", "nodes"), [(["n2"], "localhost\n"), (["n3", "n1"], "198.51.100.3\n198.51.100.1\n")])
def test_a_run_gets_some_of_the_hosts_in_its_launch_files(tmp_path, names, nodes):
    hosts = {f"n{number}": f"198.51.100.{number}" for number in (1, 2, 3)}
    staged = tmp_path / ".staged-x"
    staged.mkdir()
    (staged / "supervisor.json").write_text(json.dumps({"hosts": hosts, "cores": dict.fromkeys(hosts, "0-1")}))
    staging.choose_hosts(tmp_path, "x", names)
    plan = json.loads((staged / "supervisor.json").read_text())
    assert (list(plan["hosts"]), sorted(plan["cores"])) == (names, sorted(names))
    assert (staged / "nodefile").read_text() == nodes
    with pytest.raises(BadInput, match="do not know n9, but"):
        staging.choose_hosts(tmp_path, "x", ["n9"])


def test_requests_are_data():
    """As ``train.yml`` writes them."""
    assert dealing.Request(**json.loads(json.dumps({**vars(request()), "arguments": ["--overwrite"]}))).runs == [
        "a",
        "b",
        "c",
    ]
