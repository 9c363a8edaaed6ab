"""How a program ends."""

import subprocess
import sys
from pathlib import Path

import pytest

PYTHON = Path(__file__).parents[1]
BINDINGS = "import atexit, os\natexit.register(os.abort)\n"
"""A fake of oneCCL's bindings: like the real ones, now and then, it aborts while Python finalizes."""


def end_of(program, folder):
    start = f"import sys\nfrom sdtune import cli\nFOLDER = {str(folder)!r}"  # a folder in PYTHONPATH would be left out
    command = [sys.executable, "-c", f"{start}\n{program}\ncli.run(main)"]
    return subprocess.run(command, cwd=PYTHON, capture_output=True, text=True, check=False, timeout=120)


def test_bindings_that_abort_at_the_end_do_not_spoil_a_success(tmp_path):
    (tmp_path / "oneccl_bindings_for_pytorch.py").write_text(BINDINGS)
    program = (
        "def main():\n    sys.path.append(FOLDER)\n    import oneccl_bindings_for_pytorch\n"
        "    print('all sums are right', end='')"
    )
    done = end_of(program, tmp_path)
    assert (done.returncode, done.stdout) == (0, "all sums are right")


def test_without_them_python_finalizes_as_usual(tmp_path):
    program = "import atexit\ndef main():\n    atexit.register(print, 'handlers ran')"
    assert end_of(program, tmp_path).stdout == "handlers ran\n"


@pytest.mark.parametrize("program", ["textual_inversion", "lora", "export_openvino", "generate_images", "make_report"])
def test_a_wrong_command_line_is_one_line(program):
    """Not under all the flags that there are."""
    command = [sys.executable, PYTHON / f"{program}.py", "--nonsense", "a\nb"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    [line] = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert line.endswith(f"; {program}.py --help explains all flags")
