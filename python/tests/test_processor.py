"""The host facts: instruction set, bf16, mapped libraries."""

import subprocess
import sys
from pathlib import Path

import pytest

from sdtune.host import processor
from tests.conftest import PYTHON


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        ("fpu sse2", "none of AVX2, AVX-512, AMX"),
        ("fpu avx avx2", "AVX2"),
        ("avx2 avx512f avx512bw", "AVX-512"),
        ("avx2 avx512f avx512_bf16", "AVX-512-BF16"),
        ("avx2 avx512f avx512_bf16 amx_bf16 amx_tile", "AMX"),
    ],
)
def test_the_instruction_set_is_the_best_available(monkeypatch, flags, name):
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    cpuinfo = f"processor\t: 0\nflags\t\t: {flags}\nbugs\t\t: spectre_v1\n\nprocessor\t: 1\nflags\t\t: {flags}\n"
    assert processor.instruction_set(cpuinfo) == name


@pytest.mark.parametrize(
    ("limit", "name"),
    [
        ("DEFAULT", "AMX"),
        ("AVX512_CORE_AMX", "AMX"),
        ("avx512_core_fp16", "AVX-512-BF16"),
        ("AVX10_1_512", "AVX-512-BF16"),
        ("AVX512_CORE_BF16", "AVX-512-BF16"),
        ("AVX512_CORE_VNNI", "AVX-512"),
        ("AVX2_VNNI", "AVX2"),
        ("SSE41", "none of AVX2, AVX-512, AMX"),
    ],
)
def test_an_instruction_set_that_onednn_may_not_use_is_not_reported(monkeypatch, limit, name):
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    assert processor.instruction_set("flags : avx2 avx512f avx512_bf16 amx_bf16 amx_tile\n") == name


@pytest.mark.parametrize(
    ("flags", "computes"),
    [(["avx2", "avx512f"], False), (["avx512f", "avx512_bf16"], True), (["amx_tile", "amx_bf16"], True), ([], False)],
)
def test_which_processors_compute_in_bf16(flags, computes):
    assert processor.has_bf16(flags) == computes


def test_libraries_are_listed_when_they_are_mapped():
    """A library in LD_PRELOAD that does not exist is not mapped, and so not listed."""
    openmp = Path(sys.prefix) / "lib/libiomp5.so"
    code = "from sdtune.host.libraries import mapped_libraries; print(mapped_libraries())"
    for library, expected in ((openmp, [str(openmp.resolve())]), (openmp.with_name("libiomp5-lost.so"), [])):
        env = {"LD_PRELOAD": str(library), "PYTHONPATH": str(PYTHON)}
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == str(expected)
