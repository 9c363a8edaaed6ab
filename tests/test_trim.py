"""roles/python_env/files/trim.py: what is removed from an environment leaves its records too, nothing else changes."""

import base64
import hashlib
import importlib.util
import os
import shutil
import sys

import pytest
import yaml
from conftest import REPOSITORY

from plugins.modules.installed_packages import metadata_folders, problem_with

SPEC = importlib.util.spec_from_file_location("trim", REPOSITORY / "roles/python_env/files/trim.py")
trimmer = importlib.util.module_from_spec(SPEC)
sys.modules["trim"] = trimmer
SPEC.loader.exec_module(trimmer)
LIBRARY = b"\x7fELF" + bytes(trimmer.LARGE)


@pytest.fixture
def prefix(tmp_path):
    """An environment of two packages, as pip installs them."""
    site = tmp_path / "lib/python3.11/site-packages"
    packages = {
        "big_one-1.0": {
            "big/code.py": b"code", "big/tests/test_it.py": b"test", "big/tests/data/1.bin": b"data",
            "big/include/deep/a.h": b"header", "../../big.so": LIBRARY, "../../big.so.1": LIBRARY,
            "../../big.a": b"static",
        },
        "other-2.0": {"other/tests/test_it.py": b"test", "other/ca.pem": b"list", "other/ca2.pem": b"list"},
    }  # fmt: skip
    for name, files in packages.items():
        rows = [f"{name}.dist-info/RECORD,,", f'"big/odd, name {name}.py",,']
        for path, content in files.items():
            file = (site / path).resolve()
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
            digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
            rows.append(f"{path},sha256={digest},{len(content)}")
        info = site / f"{name}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Version: {name.split('-')[1]}\n")
        (info / "RECORD").write_text("\n".join(rows) + "\n")
    return tmp_path


def trim(prefix, **unneeded):
    return trimmer.trim(prefix / "lib/python3.11/site-packages", prefix, unneeded)


def problems(prefix):
    """What the comparison of every file with its record finds."""
    return [problem_with(pin, metadata_folders(prefix)) for pin in ("big-one==1.0", "other==2.0")]


def test_what_matches_is_gone_from_disk_and_records(prefix):
    freed = trim(prefix, **{"Big.One": ["big/tests/*", "big/include/*", "lib/*.a"]})
    names = sorted(path.name for path in prefix.rglob("*") if "dist-info" not in str(path))
    assert {"tests", "include", "big.a", "1.bin"} & set(names) == {"tests"}  # those of the other package
    assert {"code.py", "big.so", "big.so.1"} <= set(names)
    assert problems(prefix) == ["", ""]
    assert freed == len(LIBRARY) + len(b"test" + b"data" + b"header" + b"static")


def test_equal_large_files_become_one(prefix):
    """They keep their names and contents; small ones, which people edit, stay apart."""
    assert trim(prefix) == len(LIBRARY)
    assert (prefix / "lib/big.so").samefile(prefix / "lib/big.so.1")
    assert (prefix / "lib/big.so.1").read_bytes() == LIBRARY
    site = prefix / "lib/python3.11/site-packages"
    assert not (site / "other/ca.pem").samefile(site / "other/ca2.pem")
    assert problems(prefix) == ["", ""]


def test_a_second_call_and_an_interrupted_one(prefix):
    (prefix / "lib/.big.so.1.new").write_bytes(b"part")
    trim(prefix, big_one=["big/tests/*"])
    assert trim(prefix, big_one=["big/tests/*"]) == 0
    assert not (prefix / "lib/.big.so.1.new").exists()


def test_a_record_that_is_damaged_stays_a_fault(prefix):
    record = prefix / "lib/python3.11/site-packages/big_one-1.0.dist-info/RECORD"
    record.write_text("big/tests/test_it.py,sha256")
    trim(prefix, big_one=["big/tests/*"])
    assert problems(prefix) == ["is damaged (RECORD)", ""]


def test_a_file_of_the_package_that_is_missing_stays_a_fault(prefix):
    (prefix / "lib/python3.11/site-packages/big/code.py").unlink()
    trim(prefix, big_one=["big/tests/*"])
    assert problems(prefix) == ["is damaged (code.py)", ""]


def test_what_lies_outside_stays_and_a_link_to_a_folder_too(prefix, tmp_path_factory):
    site, outside = prefix / "lib/python3.11/site-packages", tmp_path_factory.mktemp("outside")
    (outside / "tests").mkdir()
    (outside / "tests/a.h").write_bytes(b"header")
    shutil.move(site / "big/include", site / "big/real")
    (site / "big/include").symlink_to("real")
    record = site / "big_one-1.0.dist-info/RECORD"
    record.write_text(record.read_text() + os.path.relpath(outside / "tests/a.h", site) + ",,\n")
    trim(prefix, big_one=["*tests/*", "big/include/*"])
    assert (outside / "tests/a.h").exists()
    assert "outside" in record.read_text()
    assert (site / "big/include").is_symlink()
    assert not (site / "big/real").exists()


@pytest.mark.parametrize("role", ["python_env", "intel_mpi"])
def test_no_pattern_takes_code_or_metadata(role):
    """Only what the package itself calls tests, headers, programs or debugging data; never a whole package."""
    unneeded = yaml.safe_load((REPOSITORY / f"roles/{role}/defaults/main.yml").read_text())[f"{role}_unneeded"]
    for name, patterns in unneeded.items():
        assert not [each for each in patterns if "dist-info" in each or each.startswith("*")], name
