"""The check of a node's environment, and what it remembers of it."""

import contextlib
import json
import sys

import pytest

from sdtune.host import check as check_node
from sdtune.host.processor import instruction_set
from sdtune.ops import kernels


@pytest.fixture
def check(tmp_path, monkeypatch, capsys):
    """Run it in an environment that looks finished; returns the report and what was imported for it."""
    (tmp_path / ".complete").write_text("pins")
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    (tmp_path / "asked_for.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)

    def run(modules="asked_for"):
        sys.modules.pop("asked_for", None)
        argv = ["check_node.py", "--json", "--require", modules, "--remember", str(tmp_path / "known.json")]
        monkeypatch.setattr(sys, "argv", argv)
        with contextlib.suppress(SystemExit):
            check_node.main()
        return json.loads(capsys.readouterr().out), "asked_for" in sys.modules

    return run


def test_what_passed_is_remembered(check):
    first, imported = check()
    assert imported
    assert first["packages"] == {"asked_for": "present"}
    assert check() == (first, False)


def test_another_environment_or_question_is_looked_at(check, tmp_path):
    check()
    (tmp_path / ".complete").write_text("other pins")
    assert check()[1]
    assert not check()[1]
    assert check("asked_for,json")[1]


def test_what_failed_or_is_unfinished_is_looked_at_each_time(check, tmp_path):
    for _ in range(2):
        report, imported = check("asked_for,no_such_module")
        assert imported
        assert "no_such_module" in report["failed"]
    check()
    (tmp_path / ".complete").unlink()
    assert check()[1]


def test_the_kernels_are_tried_where_they_are_used(check, monkeypatch):
    used = kernels.usable()
    assert check("sdtune")[0]["kernels"] == ("works" if used else f"not used: they are not for {instruction_set()}")
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert check("sdtune,json")[0]["kernels"] == "not used: they are not for AVX2"


@pytest.mark.skipif(not kernels.usable(), reason="this processor has no instructions for bf16")
def test_kernels_that_do_not_load_are_a_failure(check, monkeypatch, tmp_path):
    monkeypatch.setattr(kernels, "library", lambda _: tmp_path / "attention-0.so")
    kernels._load.cache_clear()
    try:
        assert "attention-0.so is not there" in check("sdtune")[0]["failed"]["kernels"]
    finally:
        kernels._load.cache_clear()
