"""The check of a host's environment, and its cached report."""

import contextlib
import json
import sys
from pathlib import Path

import pytest

from sdtune.host import check as host_check
from sdtune.host.processor import instruction_set
from sdtune.ops import kernels

CPU_FLAGS = set(Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").split())
HAS_BF16 = not CPU_FLAGS.isdisjoint({"amx_bf16", "avx512_bf16"})
"""By what Linux says: where it is so, no test of a kernel may be skipped."""


@pytest.fixture
def check(tmp_path, monkeypatch, capsys):
    """Run it in a fake environment that is marked as complete; returns the report, and whether it imported anything."""
    (tmp_path / ".complete").write_text("pins")
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    (tmp_path / "required_module.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)

    def run(modules="required_module"):
        sys.modules.pop("required_module", None)
        argv = ["check.py", "--json", "--require", modules, "--cache", str(tmp_path / "cache.json")]
        monkeypatch.setattr(sys, "argv", argv)
        with contextlib.suppress(SystemExit):
            host_check.main()
        return json.loads(capsys.readouterr().out), "required_module" in sys.modules

    return run


def test_a_report_without_failures_is_cached(check):
    first, imported = check()
    assert imported
    assert first["packages"] == {"required_module": "present"}
    assert check() == (first, False)


def test_another_environment_or_argument_is_checked(check, tmp_path):
    check()
    (tmp_path / ".complete").write_text("other pins")
    assert check()[1]
    assert not check()[1]
    assert check("required_module,json")[1]


def test_a_failure_or_an_incomplete_environment_is_checked_each_time(check, tmp_path):
    for _ in range(2):
        report, imported = check("required_module,no_such_module")
        assert imported
        assert "no_such_module" in report["failed"]
    check()
    (tmp_path / ".complete").unlink()
    assert check()[1]


def test_compiled_kernels_are_tested_where_they_are_used(check, monkeypatch):
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    assert check("sdtune")[0]["kernels"] == ("works" if HAS_BF16 else f"not used: they are not for {instruction_set()}")
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert check("sdtune,json")[0]["kernels"] == "not used: they are not for AVX2"


@pytest.mark.skipif(not HAS_BF16, reason="this processor has no instructions for bf16")
def test_a_compiled_kernel_that_does_not_load_is_a_failure(check, monkeypatch, tmp_path):
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    assert kernels.usable()
    monkeypatch.setattr(kernels, "library", lambda _: tmp_path / "attention-0.so")
    kernels._load.cache_clear()
    try:
        assert "attention-0.so is not there" in check("sdtune")[0]["failed"]["kernels"]
    finally:
        kernels._load.cache_clear()
