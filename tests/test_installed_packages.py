"""The module installed_packages: packages of an environment against pins, on environments made of tiny wheels."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from wheel_fake import make_wheel

REPOSITORY = Path(__file__).parents[1]
MODULE = REPOSITORY / "plugins/modules/installed_packages.py"
_spec = importlib.util.spec_from_file_location("installed_packages", MODULE)
module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(module)


@pytest.fixture
def environment(tmp_path):
    """An environment with a package of two files."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "env"], check=True)
    files = {"tiny_ccl/__init__.py": "x = 1\n", "tiny_ccl/data.txt": "0123456789", "tiny_ccl/cacert.pem": "one"}
    files |= {"tiny_ccl/old.pyc": "compiled", "bin/tool": "#!/prefix/bin/python\nrun()\n"}
    wheel = make_wheel(tmp_path, "tiny_ccl", "2.8.0+cpu", files)
    target = next((tmp_path / "env/lib").glob("python3*/site-packages"))
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target", target, wheel]
    subprocess.run(pip, check=True)
    return tmp_path / "env"


def problems(environment, pin):
    return module.problem_with(pin, module.metadata_folders(environment))


def test_a_package_as_pinned_is_fine_by_any_spelling(environment):
    assert problems(environment, "tiny-ccl==2.8.0") == ""
    assert problems(environment, "Tiny_CCL==2.8.0+cpu") == ""


def test_a_whole_record_is_kept(environment):
    assert module.without_record(["tiny_ccl==2.8.0"], module.metadata_folders(environment)) == []


def test_a_missing_package_and_another_version_are_named(environment):
    assert problems(environment, "other==1") == "is not installed"
    assert problems(environment, "tiny-ccl==2.9.0") == "is 2.8.0, not 2.9.0"


@pytest.mark.parametrize("harm", ["removed", "changed", "changed, same size"])
def test_a_damaged_file_is_named(environment, harm):
    file = next(environment.glob("lib/python3*/site-packages/tiny_ccl/data.txt"))
    if harm == "removed":
        file.unlink()
    else:
        file.write_text("01234567890" if harm == "changed" else "9876543210")
    assert problems(environment, "tiny-ccl==2.8.0") == "is damaged (data.txt)"


@pytest.mark.parametrize("record", ["", "tiny_ccl/__init__.py,sha256=", "\xff"])
def test_a_record_that_is_cut_off_is_damage(environment, record):
    """pip cannot replace such a package, so its metadata has to go first."""
    folders = module.metadata_folders(environment)
    (folders["tiny-ccl"] / "RECORD").write_bytes(record.encode("latin-1"))
    assert problems(environment, "tiny-ccl==2.8.0") == "is damaged (RECORD)"
    assert module.without_record(["tiny_ccl==2.8.0", "other==1"], folders) == [str(folders["tiny-ccl"])]


def test_metadata_that_is_lost_is_damage(environment):
    folder = module.metadata_folders(environment)["tiny-ccl"]
    (folder / "RECORD").unlink()
    assert "RECORD" in problems(environment, "tiny-ccl==2.8.0")
    (folder / "METADATA").unlink()
    assert problems(environment, "tiny-ccl==2.8.0") == "is of an unknown version, not 2.8.0"


def test_certificates_and_metadata_may_differ(environment):
    """A site adds its certificates; some published wheels have other metadata than their RECORD says."""
    for file in environment.glob("lib/python3*/site-packages/tiny_ccl*/*"):
        if file.name in ("cacert.pem", "METADATA"):
            file.write_text(f"{file.read_text()}more\n")
    assert problems(environment, "tiny-ccl==2.8.0") == ""


def test_a_compiled_module_may_differ(environment):
    """Python compiles it anew where the wheel brought one."""
    next(environment.glob("lib/python3*/site-packages/tiny_ccl/old.pyc")).write_text("compiled anew")
    assert problems(environment, "tiny-ccl==2.8.0") == ""


def test_conda_makes_scripts_itself(environment):
    """Those of a package that conda installed differ from RECORD, or are fewer; those that pip installed may not."""
    site = next(environment.glob("lib/python3*/site-packages"))
    (site / "bin/tool").unlink()
    assert problems(environment, "tiny-ccl==2.8.0") == "is damaged (tool)"
    folder = module.metadata_folders(environment)["tiny-ccl"]
    (folder / "INSTALLER").write_text("conda\n")
    record = (folder / "RECORD").read_text().splitlines(keepends=True)
    (folder / "RECORD").write_text("".join(line for line in record if "INSTALLER" not in line))
    assert problems(environment, "tiny-ccl==2.8.0") == ""


def test_many_damaged_files_are_counted(environment):
    site = next(environment.glob("lib/python3*/site-packages"))
    folder = module.metadata_folders(environment)["tiny-ccl"]
    with (folder / "RECORD").open("a") as record:
        record.writelines(f"tiny_ccl/lost{i}.txt,sha256=x,1\n" for i in range(5))
    assert problems(environment, "tiny-ccl==2.8.0") == "is damaged (lost0.txt, lost1.txt, lost2.txt and 2 more)"
    assert site.is_dir()
