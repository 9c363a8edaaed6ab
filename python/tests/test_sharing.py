"""The worker pool over fake workers: processes that generate nothing, and fail on request."""

import json
import sys
import threading
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest

from sdtune.errors import BadInput, DrawingFailed
from sdtune.inference import pool
from sdtune.inference.worker import Worker
from standalone import run_state

# answers as generate_images.py --worker does; a test inserts what it does besides
WORKER = """
import base64, json, os, signal, sys, time
for line in sys.stdin:
    number = int(line)
    {}
    png = base64.b64encode(f"{{number}} by {{sys.argv[1]}}".encode()).decode()
    print(json.dumps({{"pictures": {{f"{{number}}.png": png}}}}), flush=True)
"""


@dataclass
class FakePlan:
    """What the pool needs of a plan: batches of one image."""

    count: int
    requests: list = field(init=False)
    batches: list = field(init=False)

    def __post_init__(self):
        self.requests = self.batches = list(range(self.count))

    def names(self, number):
        return [f"{number}.png"]


@pytest.fixture
def generate(tmp_path):
    """Run a pool of these workers, {host: what each of its workers does}; returns it, and {batch: host}."""
    (tmp_path / "drawn").mkdir()

    def run(count, workers, there=()):
        work = pool.WorkerPool(SimpleNamespace(run_dir=str(tmp_path)), FakePlan(count), there)
        commands = {
            host: [[sys.executable, "-c", WORKER.format(does), host] for does in each] for host, each in workers.items()
        }
        work.run(commands)
        return work, {int(p.stem): p.read_text().split(" by ")[1] for p in (tmp_path / "drawn").iterdir()}

    yield run
    left = [t for t in threading.enumerate() if isinstance(t, Worker)]
    for thread in left:
        thread.join(10)
        assert not thread.is_alive()


def state(tmp_path):
    return json.loads((tmp_path / run_state.DRAWING).read_text())


def test_all_workers_generate_and_a_slow_one_less(generate, tmp_path, monkeypatch):
    monkeypatch.setattr(pool, "OVERDUE_SECONDS", 600)  # what c has is never overdue
    rest = f"while len([n for n in os.listdir({str(tmp_path / 'drawn')!r}) if n[0] != '.']) < 11: time.sleep(0.01)"
    work, by = generate(12, {"a": ["time.sleep(0.05)"], "b": ["time.sleep(0.05)"] * 2, "c": [rest]})
    assert sorted(by) == list(range(12))
    assert set(by.values()) == {"a", "b", "c"}
    assert list(by.values()).count("c") == 1
    assert work.lost == {}
    seen = state(tmp_path)
    assert (seen["pictures"], seen["of"], seen["hosts"]["c"], seen["ended"] > seen["began"]) == (12, 12, 1, True)


def test_what_is_there_is_not_drawn_again(generate, tmp_path):
    _, by = generate(4, {"a": [""]}, there={0, 2})
    assert by == {1: "a", 3: "a"}
    seen = state(tmp_path)
    assert (seen["pictures"], seen["of"], seen["hosts"]) == (4, 4, {"a": 2})


def test_another_worker_gets_the_batch_of_a_dead_one(generate, capsys):
    dies = "if number > 1: print('error: no memory', file=sys.stderr); sys.exit(1)"
    work, by = generate(8, {"a": ["time.sleep(0.2)"], "b": [dies]})
    assert sorted(by) == list(range(8))
    assert set(by.values()) <= {"a", "b"}
    assert work.lost == {"b": "stopped drawing (exit code 1: no memory)"}
    assert "warning: b stopped drawing" in capsys.readouterr().out


def test_ssh_without_an_answer_is_reported_as_that(generate):
    work, _ = generate(4, {"a": ["time.sleep(0.2)"], "b": ["print('closed', file=sys.stderr); sys.exit(255)"]})
    assert work.lost == {"b": "does not answer (closed)"}


def test_another_worker_gets_a_batch_that_takes_too_long(generate, monkeypatch):
    monkeypatch.setattr(pool, "OVERDUE_SECONDS", 0.5)
    hangs = "os.kill(os.getpid(), signal.SIGSTOP)"
    work, by = generate(6, {"a": ["time.sleep(0.1)"], "b": [hangs]})
    assert by == dict.fromkeys(range(6), "a")
    assert list(work.lost) == ["b"]
    assert "in time" in work.lost["b"]


def test_without_workers_it_says_what_became_of_each_host(generate, tmp_path):
    with pytest.raises(DrawingFailed, match=r"a stopped drawing \(exit code 3: without a message\); b stopped drawing"):
        generate(4, {"a": ["sys.exit(3)"], "b": ["if number: sys.exit(4)"]})
    assert "ended" not in state(tmp_path)


def test_a_truncated_answer_does_not_count(generate):
    truncated = "sys.stdout.write(json.dumps({'pictures': {'0.png': ''}})); sys.stdout.flush(); sys.exit(0)"
    work, by = generate(2, {"a": ["time.sleep(0.3)"], "b": [truncated]})
    assert by == dict.fromkeys(range(2), "a")
    assert "exit code 0" in work.lost["b"]


def test_a_host_whose_shell_hangs_is_named_before_anything_is_drawn(monkeypatch):
    monkeypatch.setattr(pool, "CHECK_SECONDS", 0.5)
    plan = SimpleNamespace(cores=[], fingerprint="")
    with pytest.raises(BadInput, match=r"^b: it does not answer within 0\.5 s; log in there"):
        pool.worker_commands([], plan, {"b": "10.0.0.2"}, reach=lambda *_: ["sleep", "1000"])
