"""Bad input is refused by name and with a remedy, before anything is touched."""

import hashlib
import json
import re
import shutil
import socket
import subprocess
import sys

import pytest
import yaml
from conftest import REPOSITORY


def refused(done, tmp_path, *texts, noted=False):
    """A task failed, and said these texts; nothing was installed, nor changed (but notes of it, if `noted`)."""
    assert done.returncode == 2, done.stdout
    message = " ".join(" ".join(done.played.failures()).split())
    for text in texts:
        assert text in message
    assert done.played.hosts("changed") == ({"localhost": 1} if noted else {})
    assert (tmp_path / "work/.provisioned").exists() == noted
    assert not (tmp_path / "work/env").exists()
    assert not (tmp_path / "artifacts").exists()


# Settings that are wrong at once, with what the one report says of each.
BAD_SETTINGS = {
    "unknown values": {
        "software_stack": ("cuda", ["software_stack 'cuda' is unknown", "set it to native"]),
        "python_env_manager": ("poetry", ["python_env_manager 'poetry' is unknown", "set it to venv"]),
        "training_backend": (
            "mpi",
            ["training_backend 'mpi' is not in the torch of any stack", "set it to gloo or ccl"],
        ),
        "run_name": ("../demo", ["run_name '../demo' is no folder name"]),
        "work_dir": ("here", ["work_dir 'here' is no absolute path"]),
        "launch_config_ranks_per_node": (-1, ["launch_config_ranks_per_node is -1", "set it to 1 or more"]),
        "base_model_source": ("/nowhere", ["the model folder /nowhere does not exist"]),
        "training_data_source": ("/nowhere", ["the picture folder /nowhere does not exist"]),
        "python_env_source": ("floppy", ["python_env_source 'floppy' is unknown", "index, mirror or wheelhouse"]),
        "python_env_torch_index": ("somewhere", ["python_env_torch_index 'somewhere' is no index"]),
    },
    "what does not fit together": {
        "training_backend": ("ccl", ["training_backend is ccl, which torch of the stack native has no bindings for"]),
        "base_model_source": ("", ["base_model_source and base_model_hub_id are neither set"]),
        "python_env_source": ("mirror", ["python_env_mirror_url '' is no URL", "set it to the URL"]),
    },
    "more than the host has": {
        "launch_config_ranks_per_node": (999, ["999 ranks on", "set launch_config_ranks_per_node to at most"]),
        "preflight_free_disk_mb": (10**9, ["1000000000 MB needed", "make room there"]),
        "preflight_memory_mb_per_rank": (10**9, ["of memory for 999 ranks", "lower launch_config_ranks_per_node"]),
    },
}


@pytest.mark.parametrize("bad", BAD_SETTINGS.values(), ids=BAD_SETTINGS)
def test_bad_settings(playbook, tmp_path, pictures, model, bad):
    """Wrong values among good ones: all are reported at once."""
    good = {"base_model_source": str(model), "training_data_source": str(pictures)}
    wrong = {name: value for name, (value, _) in bad.items()}
    said = [text for _, texts in bad.values() for text in texts]
    refused(playbook("provision.yml", **(good | wrong)), tmp_path, *said)


@pytest.mark.parametrize(
    ("runs", "texts"),
    [
        ("a", ["training_runs is no list of dictionaries", "write one a run"]),
        (["a"], ["training_runs is no list of dictionaries"]),
        (
            [
                {"training_learning_rate": 1e-3}, {"run_name": "../a"}, {"run_name": "b"},
                {"run_name": "b", "training_rate": 1, "work_dir": "/x"},
            ],
            [
                "training_runs has an entry without a run_name", "b, b", "a name of its own",
                "training_runs sets training_rate, work_dir, which no run",
                "training_runs_hosts_per_run is 2, and the inventory has 1 hosts",
                "beside its folders",  # a folder of pictures in place of one of concepts
            ],
        ),
    ],
)  # fmt: skip
def test_bad_runs(playbook, tmp_path, pictures, model, runs, texts):
    """Of several runs, before the first of them."""
    more = {"training_runs_hosts_per_run": 2, "training_concepts_source": str(pictures)} if len(texts) > 3 else {}
    more |= {"base_model_source": str(model), "training_data_source": str(pictures)}
    done = playbook("train.yml", training_runs=runs, **more)
    refused(done, tmp_path, *texts)


def test_a_model_without_unet_and_a_file_that_is_no_picture(playbook, tmp_path, pictures, model):
    """What is missing and what does not belong there are named; the pictures are not."""
    shutil.rmtree(model / "unet")
    (pictures / "notes.md").write_text("not a picture")
    done = playbook("provision.yml", base_model_source=str(model), training_data_source=str(pictures))
    refused(done, tmp_path, f"the model folder {model} has no unet", "notes.md", "is no picture")


def test_two_models_and_no_picture(playbook, tmp_path, model):
    """An empty folder is not a missing one."""
    none = tmp_path / "none"
    none.mkdir()
    done = playbook(
        "provision.yml", base_model_source=str(model), base_model_hub_id="a/b", training_data_source=str(none)
    )
    both = "base_model_source and base_model_hub_id are both set"
    refused(done, tmp_path, both, f"the picture folder {none} is empty")


def test_a_control_node_with_another_compiler(playbook, tmp_path, pictures, model, monkeypatch):
    """Where the kernels are still to be compiled, that is reported before anything is installed. Fake: the compiler."""
    source = tmp_path / "python"
    shutil.copytree(REPOSITORY / "python", source, ignore=shutil.ignore_patterns("*.so", "__pycache__", "tests"))
    fake = tmp_path / "fake/ziglang"
    fake.mkdir(parents=True)
    (fake / "__init__.py").touch()
    (fake / "__main__.py").write_text("print('0.1.0')")
    monkeypatch.setenv("PYTHONPATH", str(fake.parent))
    done = playbook(
        "provision.yml", base_model_source=str(model), training_data_source=str(pictures), sdtune_source=str(source)
    )
    refused(done, tmp_path, "for the compiler, ziglang, is 0.1.0, not 0.", "-m pip install ziglang==0.")


@pytest.mark.parametrize("names", [[], ["a", "b"]], ids=["none", "two"])
def test_not_exactly_one_primary(playbook, tmp_path, names):
    """The job has one place to start from."""
    inventory = tmp_path / "hosts.ini"
    inventory.write_text("\n".join(["[primary]", *names, "[workers]", "c", "[cluster:children]", "primary", "workers"]))
    done = playbook(
        "train.yml", "-i", str(inventory), run_name="x", software_stack="native", launch_config_interface="eth0",
        base_model_name="m", training_data_name="d",
    )  # fmt: skip
    refused(done, tmp_path, f"group primary holds {len(names)} hosts")


def test_an_interpreter_that_does_not_fit(playbook, tmp_path, pictures, model):
    """Neither a missing nor an old one is taken."""
    old = tmp_path / "python2"
    old.write_text("#!/bin/sh\necho Python 2.7.18 >&2\n")
    old.chmod(0o755)
    for python, text in ((str(old), "is Python 2.7"), ("/no/python", "is not there or does not run")):
        done = playbook(
            "provision.yml", python_env_python=python, base_model_source=str(model), training_data_source=str(pictures)
        )
        refused(done, tmp_path, f"python_env_python '{python}' {text}")


def test_a_library_that_does_not_exist(playbook, tmp_path, pictures, model):
    """A named libtcmalloc is never replaced in silence."""
    done = playbook(
        "provision.yml", "--tags", "gperftools", gperftools_library="/no/libtcmalloc.so",
        base_model_source=str(model), training_data_source=str(pictures),
    )  # fmt: skip
    refused(done, tmp_path, "gperftools_library /no/libtcmalloc.so does not exist", noted=True)


def test_the_rules_of_a_role_that_is_left_out_do_not_apply(playbook, tmp_path):
    """As the remedy of one of them says. What is missing on a host that was not provisioned is named."""
    without = {"training_save_as_full_pipeline": False}
    refused(playbook("train.yml", **without), tmp_path, "leave the export out with --skip-tags openvino_export")
    done = playbook("train.yml", "--skip-tags", "openvino_export", **without)
    refused(done, tmp_path, "env/native/bin/mpirun", "run ansible-playbook provision.yml")


def cluster_of(tmp_path, primary, *workers):
    """An inventory of these lines, with the settings that every cluster has."""
    inventory = tmp_path / "hosts.ini"
    groups = ["[primary]", *primary, "[workers]", *workers, "[cluster:children]", "primary", "workers"]
    inventory.write_text("\n".join(groups))
    return str(inventory)


CLUSTER = {
    "run_name": "x", "software_stack": "native", "run_user": "someone",
    "base_model_name": "m", "training_data_name": "d",
    "training_data_urls": ["https://nowhere.invalid/1.png"], "base_model_hub_id": "a/b",
}  # fmt: skip


def test_a_bad_inventory(playbook, tmp_path):
    """Seen without asking a host."""
    primary = ["a ansible_host=198.51.100.1 launch_config_ranks_per_node=4"]
    workers = ["a", "b ansible_host=198.51.100.1 launch_config_ranks_per_node=2"]
    done = playbook("provision.yml", "-i", cluster_of(tmp_path, primary, *workers), **CLUSTER)
    refused(
        done, tmp_path,
        "a is listed under primary and under workers", "list each host once",
        "a, b: the address 198.51.100.1 belongs to several hosts", "give each its own ansible_host",
        "launch_config_ranks_per_node differs between the hosts (4, 2)", "set it once",
    )  # fmt: skip
    assert "Gather facts" not in done.stdout


def test_a_cluster_needs_a_plain_user(playbook, tmp_path):
    """Ranks do not run as root."""
    done = playbook("provision.yml", "-i", cluster_of(tmp_path, ["a"], "b"), **(CLUSTER | {"run_user": "root"}))
    refused(done, tmp_path, "run_user is root", "run_user: sdtune")


def test_all_problems_of_all_hosts_are_reported_at_once(playbook, tmp_path):
    """One host does not answer, one has no Python, one has not its address: one report, and nobody was touched."""
    local = "ansible_connection=local ansible_python_interpreter"
    inventory = cluster_of(
        tmp_path, ["silent ansible_host=127.0.0.9 ansible_port=1"],
        f"bare {local}=/no/python", f"lost {local}='{{{{ ansible_playbook_python }}}}' ansible_host=198.51.100.250",
    )  # fmt: skip
    refused(
        playbook("provision.yml", "-i", inventory, **CLUSTER), tmp_path,
        "silent: does not answer Ansible (ssh: connect to host 127.0.0.9 port 1", "try ansible silent -m ping",
        "bare: does not answer Ansible (The module interpreter '/no/python' was not found.); install python3",
        "lost: it cannot listen at 198.51.100.250", "set ansible_host, or cluster_address",
    )  # fmt: skip


def test_a_host_without_the_user_of_the_run_whose_port_is_in_use(playbook, tmp_path):
    """Training before provisioning: the remedy is reported, not the message of sudo. And the ranks could not meet."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        done = playbook("train.yml", launch_config_master_port=port, run_user="nobody-made-him")
    words = "the user nobody-made-him, who runs the job, does not exist; run ansible-playbook provision.yml"
    taken = f"port {port} is taken ({port} by a program of user"
    refused(done, tmp_path, words, taken, "and ranks have to meet at one")


@pytest.mark.parametrize(
    ("entry", "settings", "texts"),
    [
        (
            "train.yml",
            {
                "openvino_export_batch_size": 0, "openvino_export_height": 100,
                "software_stack": "ipex", "openvino_export_weights": "int8",
            },
            [
                "openvino_export_batch_size: 0 is less than 1", "openvino_export_height: 100 is not a multiple of 8",
                "openvino_export_weights is int8, and the stack ipex has no NNCF", "take fp16, or the stack native",
            ],
        ),
        (
            "generate.yml",
            {
                "image_generation_prompts": [], "image_generation_seeds": [], "image_generation_guidance_stop": 2,
                "image_generation_num_inference_steps": -1, "image_generation_width": 100,
            },
            [
                "image_generation_num_inference_steps: -1 is less than 1",
                "image_generation_width: 100 is not a multiple of 8",
            ],
        ),
        (
            "generate.yml",
            {"image_generation_prompts_file": "/nowhere", "image_generation_scheduler": "magic"},
            ["file of prompts /nowhere does not exist", "scheduler: 'magic' is not one of"],
        ),
    ],
    ids=["export", "generation", "prompts"],
)  # fmt: skip
def test_a_bad_picture(playbook, tmp_path, entry, settings, texts):
    """What is asked of the pictures is looked at before a host is."""
    refused(playbook(entry, **settings), tmp_path, *texts)


def test_a_limited_training(playbook, tmp_path):
    """MPI would start ranks on all hosts of the node list."""
    done = playbook("train.yml", "-i", "inventory/example", "--tags", "training", "--limit", "node1")
    refused(done, tmp_path, "--limit leaves node2, node3, node4 out", "train without --limit")


def test_answers_of_the_other_hosts(playbook, tmp_path):
    """Hosts of the lab share one clock, so the answers of the other hosts are a fake."""
    host = "ansible_connection=local ansible_python_interpreter='{{ ansible_playbook_python }}' ansible_host=127.0.0"
    inventory = cluster_of(tmp_path, [f"a {host}.1"], f"b {host}.2")
    heard = {"b": {"skew": -12.5}, "c": {"skew": 5.1}, "d": {"error": "timed out"}}
    fake = {"__preflight_peers": {"stdout": json.dumps(heard)}}
    refused(
        playbook("provision.yml", "-i", inventory, "--tags", "preflight", **CLUSTER, **fake), tmp_path,
        "its clock differs by 12.5 s from b, 5.1 s from c", "set the clocks by NTP",
        "it does not reach d (timed out)", "let the hosts of the cluster reach each other",
    )  # fmt: skip


@pytest.mark.parametrize("builder", ["control", "primary"])
def test_a_wheelhouse_that_lacks_a_wheel(playbook, tmp_path, pictures, model, builder):
    """The wheel is named, and whose wheelhouse it is; the wheels that are there are not."""
    wheels = tmp_path / ("work/wheelhouse" if builder == "primary" else "wheels")
    wheels.mkdir(parents=True)
    lock = (REPOSITORY / "roles/python_env/files/native.txt").read_text()
    also = yaml.safe_load((REPOSITORY / "roles/intel_mpi/defaults/main.yml").read_text())["intel_mpi_packages"]
    for name, version in re.findall(r"^([^=\s]+)==(\S+)$", "\n".join([lock, *also]), re.MULTILINE):
        if name != "safetensors":
            (wheels / f"{name.replace('-', '_')}-{version}-py3-none-any.whl").touch()
    done = playbook(
        "provision.yml", "--tags", "python_env", python_env_source="wheelhouse", python_env_wheelhouse_download=False,
        python_env_wheelhouse_builder=builder, python_env_wheelhouse=str(wheels), intel_mpi_packages=also,
        base_model_source=str(model), training_data_source=str(pictures),
    )  # fmt: skip
    version = re.search(r"^safetensors==(\S+)", lock, re.MULTILINE)[1]
    refused(
        done,
        tmp_path,
        f"localhost: safetensors=={version} missing in the wheelhouse {wheels}; put the wheels for Python",
        noted=True,
    )


def test_a_wheelhouse_that_lacks_oneccl_for_an_environment_that_is_intact(playbook, tmp_path, pictures, model):
    """The backend was changed to ccl after provisioning: the wheelhouse is looked at all the same."""
    prefix, wheels = tmp_path / "work/env/native", tmp_path / "wheels"
    subprocess.run([sys.executable, "-m", "venv", prefix], check=True)
    lock = (REPOSITORY / "roles/python_env/files/native.txt").read_text().rstrip("\n")
    wanted = f"{hashlib.sha256(lock.encode()).hexdigest()} python {sys.version_info.major}.{sys.version_info.minor}"
    script = REPOSITORY / "roles/python_env/files/environment.sh"
    subprocess.run(["bash", script, "complete", prefix, wanted], check=True)
    wheels.mkdir()
    for name, version in re.findall(r"^([^=\s]+)==(\S+)$", lock, re.MULTILINE):
        (wheels / f"{name.replace('-', '_')}-{version}-py3-none-any.whl").touch()
    done = playbook(
        "provision.yml", "--tags", "python_env", python_env_source="wheelhouse", python_env_wheelhouse_download=False,
        python_env_wheelhouse=str(wheels), intel_mpi_packages=[], oneccl_backend="ccl",
        oneccl_packages=["oneccl-cpu==2021.16.2"], base_model_source=str(model), training_data_source=str(pictures),
    )  # fmt: skip
    said = " ".join(done.stdout.split())
    assert done.returncode == 2, said
    assert f"localhost: oneccl-cpu==2021.16.2 missing in the wheelhouse {wheels}" in said
    assert "Build the environment" not in said
