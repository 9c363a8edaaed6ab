"""The compiled kernel for AMX, on processors without AMX: with a fake of the matrix unit."""

import subprocess
import sys
from pathlib import Path

import pytest

KERNELS = Path(__file__).parents[1] / "python" / "sdtune" / "ops" / "kernels"


@pytest.mark.skipif(
    "avx512_bf16" not in Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace"),
    reason="this processor has no AVX-512-BF16, which the rest of the kernel needs",
)
def test_attention_with_amx_is_right(tmp_path, monkeypatch):
    for name in ("GLOBAL", "LOCAL"):
        monkeypatch.setenv(f"ZIG_{name}_CACHE_DIR", str(tmp_path))
    program, source = tmp_path / "attention", Path(__file__).with_name("amx_fake.c")
    compiler = [sys.executable, "-m", "ziglang", "cc", "-target", "x86_64-linux-gnu.2.28", "-mcpu=cooperlake", "-O2"]
    warnings = ["-Wall", "-Wextra", "-Werror"]
    subprocess.run([*compiler, *warnings, f"-I{KERNELS}", "-o", program, source, "-lm"], check=True)
    done = subprocess.run([program], stdout=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("off by") == 16
