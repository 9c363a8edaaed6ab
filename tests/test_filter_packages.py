"""Pins against what is installed, wheels against pins, and where pip gets them."""

import pytest
from ansible.plugins.loader import filter_loader
from conftest import REPOSITORY

filter_loader.add_directory(str(REPOSITORY / "plugins/filter"))


def apply(name, *args, **options):
    """The filter as Ansible finds it."""
    return filter_loader.get(name).j2_function(*args, **options)


def test_missing_wheels():
    """By the names of files, whatever their tags."""
    files = [
        "/w/torch-2.13.0+cpu-cp311-cp311-manylinux_2_28_x86_64.whl",
        "/w/huggingface_hub-1.2.0-py3-none-any.whl",
        "/w/impi_rt-2021.18.1-py2.py3-none-manylinux_2_28_x86_64.whl",
        "/w/notes.whl",
    ]
    pins = ["torch==2.13.0", "huggingface-hub==1.2.0", "impi-rt==2021.18.1", "numpy==2.0", "torch==2.8.0"]
    assert apply("missing_wheels", pins, files) == ["numpy==2.0", "torch==2.8.0"]


def test_wheels_of_another_python_are_missing():
    """A wheelhouse that was filled for another one."""
    files = ["/w/torch-2.8.0-cp312-cp312-linux_x86_64.whl", "/w/numpy-2.0-cp311-cp311-linux_x86_64.whl"]
    files += ["/w/safetensors-0.7.0-cp38-abi3-linux_x86_64.whl", "/w/impi_rt-1-py2.py3-none-linux_x86_64.whl"]
    pins = ["torch==2.8.0", "numpy==2.0", "safetensors==0.7.0", "impi-rt==1"]
    assert apply("missing_wheels", pins, files, "3.11") == ["torch==2.8.0"]
    assert apply("missing_wheels", pins, files, "3.12") == ["numpy==2.0"]
    assert apply("missing_wheels", pins, files) == []


@pytest.mark.parametrize(
    ("name", "fits"),
    [
        ("oneccl_bind_pt-2.8.0+cpu-cp311-cp311-linux_x86_64.whl", True),
        ("oneccl_bind_pt-2.8.0+xpu-cp311-cp311-linux_x86_64.whl", False),
        ("oneccl_bind_pt-2.8.0+cpu-cp312-cp312-linux_x86_64.whl", False),
        ("oneccl_bind_pt-2.8.0-cp311-cp311-linux_x86_64.whl", True),
        ("oneccl_bind_pt-2.8.0.1+cpu-cp311-cp311-linux_x86_64.whl", False),
        ("oneccl_bind_pt-2.7.0+cpu-cp311-cp311-linux_x86_64.whl", False),
    ],
)
def test_wheels_that_fit(name, fits):
    assert (apply("fitting_wheels", [f"/w/{name}"], "oneccl_bind_pt==2.8.0", "3.11") == [f"/w/{name}"]) == fits


def test_of_several_wheels_those_for_cpus_fit():
    files = [f"/w/oneccl_bind_pt-2.8.0{local}-cp311-cp311-linux_x86_64.whl" for local in ("", "+cpu", "+xpu")]
    assert apply("fitting_wheels", files, "oneccl_bind_pt==2.8.0") == [files[1]]


@pytest.mark.parametrize(
    ("text", "minor"),
    [
        ("Python 3.11.2\n", "3.11"),
        ("python=3.13.1", "3.13"),
        ("python ==3.12", "3.12"),
        ("python", ""),
        ("python-dateutil=2.9.0", ""),
        ("Command not found", ""),
        ("", ""),
        (None, ""),
    ],
)
def test_minor_version_of_a_python(text, minor):
    assert apply("python_minor", text) == minor


@pytest.mark.parametrize(
    ("packages", "minor"),
    [(["pip=25.2", "python=3.11.13"], "3.11"), (["python-dateutil=2.9", "python=2.7"], "2.7"), (["python"], "")],
)
def test_python_of_conda(packages, minor):
    assert apply("conda_python", packages) == minor


def test_the_version_that_a_lock_file_pins():
    lock = ["# torch==1.0 is old", "torchvision==0.1", "torch==2.8.0", "numpy==2.0"]
    assert apply("pinned_version", lock, "torch") == "2.8.0"
    assert apply("pinned_version", lock, "diffusers") == ""


@pytest.mark.parametrize(
    ("url", "args"),
    [
        ("", []),
        ("https://index.example/simple/", ["--index-url", "https://index.example/simple/"]),
        (
            "http://index.example:8080/simple/",
            ["--index-url", "http://index.example:8080/simple/", "--trusted-host", "index.example:8080"],
        ),
    ],
)
def test_arguments_for_an_index(url, args):
    assert apply("pip_index_args", url) == args


@pytest.mark.parametrize(
    ("source", "args"),
    [
        ("/srv/wheels", ["/copied"]),
        ("https://wheels.example/cpu/", ["https://wheels.example/cpu/"]),
        ("http://wheels.example/", ["http://wheels.example/", "--trusted-host", "wheels.example"]),
        ("file:///srv/wheels", ["file:///srv/wheels"]),
    ],
)
def test_arguments_for_a_folder_or_a_page_of_wheels(source, args):
    assert apply("pip_links_args", source, "/copied") == ["--no-index", "--find-links", *args]


def test_where_torch_comes_from():
    assert apply("torch_source", "index", "https://cpu.example") == "https://cpu.example"
    assert apply("torch_source", "mirror", "") == "the same place"
    assert "a plain index serves a CUDA build of several GB" in apply("torch_source", "index", "")


def test_packages_that_differ():
    mine, theirs = ["torch==1+cpu", "numpy==2", "more==3"], ["torch==1", "numpy==2"]
    assert apply("package_differences", theirs, theirs[::-1], "a") == ""
    assert apply("package_differences", mine, theirs, "a") == "it has more==3, torch==1+cpu where a has torch==1"
    assert apply("package_differences", [], theirs, "a") == "it has nothing where a has numpy==2, torch==1"
    many = [f"p{i}==1" for i in range(7)]
    assert apply("package_differences", many, [], "a") == (
        "it has p0==1, p1==1, p2==1, p3==1, p4==1 and more where a has nothing"
    )


@pytest.mark.parametrize(
    ("python", "family", "package"),
    [
        ("python3", "Debian", "python3-venv"),
        ("python3.12", "Debian", "python3.12-venv"),
        ("python", "Debian", "python3-venv"),
        ("python3.12", "RedHat", "python3"),
    ],
)
def test_the_package_with_venv(python, family, package):
    """Of its own version: deadsnakes has one for each."""
    assert apply("venv_package", python, family) == package


CALLED = {
    "lib4": {"Debian 13": "lib4t64", "Debian 15": "lib5", "Ubuntu 24": "lib4t64", "Fedora": "lib-f", "RedHat": "lib-r"}
}


@pytest.mark.parametrize(
    ("family", "distribution", "version", "name"),
    [
        ("Debian", "Debian", "12", "lib4"),
        ("Debian", "Debian", "13", "lib4t64"),
        ("Debian", "Debian", "14", "lib4t64"),
        ("Debian", "Debian", "16", "lib5"),
        ("Debian", "Debian", "forky/sid", "lib5"),
        ("Debian", "Ubuntu", "22", "lib4"),
        ("Debian", "Ubuntu", "24", "lib4t64"),
        ("RedHat", "Rocky", "9", "lib-r"),
        ("RedHat", "Fedora", "43", "lib-f"),
    ],
)
def test_packages_by_the_names_of_a_distribution(family, distribution, version, name):
    """From a version on; what no table names keeps its name."""
    facts = {"os_family": family, "distribution": distribution, "distribution_major_version": version}
    wanted = [{"check": "a", "package": "lib4"}, {"check": "b", "package": "rsync"}]
    assert apply("named_packages", wanted, CALLED, facts) == [
        {"check": "a", "package": name}, {"check": "b", "package": "rsync"},
    ]  # fmt: skip
