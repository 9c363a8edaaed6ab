"""Sharing batches out over processes that are doubles: they draw nothing, and fail on request."""

import json
import sys
import threading
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest

from sdtune.errors import DrawingFailed
from sdtune.inference import pool
from standalone import run_state

# a seat that answers as generate_images.py --worker does; what it does besides is up to the test
SEAT = """
import base64, json, os, signal, sys, time
for line in sys.stdin:
    number = int(line)
    {}
    png = base64.b64encode(f"{{number}} by {{sys.argv[1]}}".encode()).decode()
    print(json.dumps({{"pictures": {{f"{{number}}.png": png}}}}), flush=True)
"""


@dataclass
class Planned:
    """What a plan needs to be shared out: one picture a batch."""

    count: int
    requests: list = field(init=False)
    batches: list = field(init=False)

    def __post_init__(self):
        self.requests = self.batches = list(range(self.count))

    def names(self, number):
        return [f"{number}.png"]


@pytest.fixture
def shared(tmp_path):
    """Draw so many batches with these seats, {host: what each of its seats does}; {batch: who drew it}."""
    (tmp_path / "drawn").mkdir()

    def draw(count, seats):
        work = pool.Sharing(SimpleNamespace(run_dir=str(tmp_path)), Planned(count))
        commands = {
            host: [[sys.executable, "-c", SEAT.format(does), host] for does in each] for host, each in seats.items()
        }
        work.draw(commands)
        return work, {int(p.stem): p.read_text().split(" by ")[1] for p in (tmp_path / "drawn").iterdir()}

    yield draw
    left = [t for t in threading.enumerate() if isinstance(t, pool.Seat)]
    for thread in left:
        thread.join(10)
        assert not thread.is_alive()


def state(tmp_path):
    return json.loads((tmp_path / run_state.DRAWING).read_text())


def test_everybody_draws_and_the_slow_one_less(shared, tmp_path, monkeypatch):
    monkeypatch.setattr(pool, "_LEAST", 600)  # what c has is never overdue
    rest = f"while len([n for n in os.listdir({str(tmp_path / 'drawn')!r}) if n[0] != '.']) < 11: time.sleep(0.01)"
    work, by = shared(12, {"a": ["time.sleep(0.05)"], "b": ["time.sleep(0.05)"] * 2, "c": [rest]})
    assert sorted(by) == list(range(12))
    assert set(by.values()) == {"a", "b", "c"}
    assert list(by.values()).count("c") == 1
    assert work.lost == {}
    seen = state(tmp_path)
    assert (seen["pictures"], seen["of"], seen["hosts"]["c"], seen["ended"] > seen["began"]) == (12, 12, 1, True)


def test_what_a_dead_seat_had_is_drawn_by_another(shared, capsys):
    dies = "if number > 1: print('error: no memory', file=sys.stderr); sys.exit(1)"
    work, by = shared(8, {"a": ["time.sleep(0.2)"], "b": [dies]})
    assert sorted(by) == list(range(8))
    assert set(by.values()) <= {"a", "b"}
    assert work.lost == {"b": "stopped drawing (exit code 1: no memory)"}
    assert "warning: b stopped drawing" in capsys.readouterr().out


def test_a_host_that_does_not_answer_is_called_that(shared):
    work, _ = shared(4, {"a": ["time.sleep(0.2)"], "b": ["print('closed', file=sys.stderr); sys.exit(255)"]})
    assert work.lost == {"b": "does not answer (closed)"}


def test_a_batch_that_takes_too_long_is_drawn_by_another(shared, monkeypatch):
    monkeypatch.setattr(pool, "_LEAST", 0.5)
    hangs = "os.kill(os.getpid(), signal.SIGSTOP)"
    work, by = shared(6, {"a": ["time.sleep(0.1)"], "b": [hangs]})
    assert by == dict.fromkeys(range(6), "a")
    assert list(work.lost) == ["b"]
    assert "in time" in work.lost["b"]


def test_without_anyone_left_it_says_what_became_of_each(shared, tmp_path):
    with pytest.raises(DrawingFailed, match=r"a stopped drawing \(exit code 3: it said nothing\); b stopped drawing"):
        shared(4, {"a": ["sys.exit(3)"], "b": ["if number: sys.exit(4)"]})
    assert "ended" not in state(tmp_path)


def test_an_answer_that_is_cut_is_none(shared):
    cut = "sys.stdout.write(json.dumps({'pictures': {'0.png': ''}})); sys.stdout.flush(); sys.exit(0)"
    work, by = shared(2, {"a": ["time.sleep(0.3)"], "b": [cut]})
    assert by == dict.fromkeys(range(2), "a")
    assert "exit code 0" in work.lost["b"]
