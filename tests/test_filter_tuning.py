"""Candidates of a tuning, and what was measured of them."""

import json

from plugins.filter import tuning


def test_candidates():
    assert tuning.tuning_candidates(7) == [1, 2, 4]
    assert tuning.tuning_candidates(112)[-1] == 64
    assert tuning.tuning_candidates(7, [3, 5]) == [3, 5]


def test_the_first_step_is_not_counted():
    steps = [{"world_size": 4, "step_s": seconds} for seconds in (60.0, 2.0, 3.0)]
    assert tuning.images_per_second(map(json.dumps, steps), 2) == 3.2  # 16 images in 5 s


def test_the_table():
    row = {"ranks": 4, "threads": 28, "images_per_s": 1.23456, "memory_mb": 12000}
    assert tuning.tuning_table([row])[1].split() == ["4", "x", "28", "1.235", "12000"]
