"""The launch files, rendered by the role into a run folder."""

import subprocess
from pathlib import Path

import pytest
import yaml
from conftest import REPOSITORY
from jinja2.nativetypes import NativeEnvironment


def configure(playbook, *args, **settings):
    """Run the role alone, as `--tags launch_config` does."""
    return playbook("train.yml", "--tags", "launch_config", *args, run_name="r", **settings)


def started(run):
    """Ranks in all and on each host, as launch.sh tells mpirun; here that is a fake, which prints its arguments."""
    told = subprocess.run([run / "launch.sh"], capture_output=True, text=True, check=True).stdout.split()
    return int(told[told.index("-n") + 1]), int(told[told.index("-ppn") + 1])


def precision(run):
    """The precision that both files of a run ask for."""
    found = {
        yaml.safe_load((run / "job.yaml").read_text())["training"]["mixed_precision"],
        yaml.safe_load((run / "accelerate.yaml").read_text())["mixed_precision"],
    }
    assert len(found) == 1
    return found.pop()


def lora_takes_the_place(playbook, run):
    """Of what is in the run folder, where that is allowed; what the inventory says for other methods is passed over."""
    lora = {"training_method": "lora", "training_instance_prompt": "a photo of sks toy"}
    done = configure(playbook, training_overwrite=True, training_mixed_precision="bf16", **lora)
    assert done.returncode == 0, done.stdout
    job = yaml.safe_load((run / "job.yaml").read_text())
    assert (job["method"], job["data"]["placeholder_token"]) == ("lora", "<concept>"), "the inventory's is passed over"
    assert job["validation"]["prompt"] == "a photo of sks toy"
    assert precision(run) == "bf16"
    assert "in bf16" not in " ".join(done.stdout.split()), "what is asked for by name is no news"


def test_the_files_of_a_run(playbook, provisioned):
    """They parse, agree with each other, and hold what was asked. A job that is refused, or was finished, stays."""
    run = provisioned / "runs/r"
    asked = {"training_placeholder_token": '<"tö: y">', "training_learning_rate": "1e-3", "openvino_export_height": 128}
    done = configure(playbook, **asked)
    assert done.returncode == 0, done.stdout
    job = yaml.safe_load((run / "job.yaml").read_text())
    assert job["data"]["placeholder_token"] == '<"tö: y">'
    assert job["training"]["learning_rate"] == 1e-3
    assert float(job["training"]["adam_epsilon"]) == 1e-8  # YAML 1.1 reads 1e-08 as text; the program does not
    assert job["training"]["world_size"] == 2
    assert job["openvino"] == {
        "batch_size": 1, "height": 128, "width": None, "num_images_per_prompt": 1, "dynamic_shapes": False,
        "weights": "fp16", "lora_weight": 1.0, "calibration_samples": 100,
        "similarity_images": 2, "similarity_steps": 25,
    }  # fmt: skip
    accelerate = yaml.safe_load((run / "accelerate.yaml").read_text())
    assert (accelerate["num_processes"], accelerate["num_machines"], accelerate["machine_rank"]) == (2, 1, 0)
    assert (run / "nodefile").read_text() == "localhost\n"
    scripts = [str(run / name) for name in ("env.sh", "rank.sh", "launch.sh")]
    subprocess.run(["shellcheck", "--shell=bash", *scripts], check=True)
    launched = subprocess.run([run / "launch.sh", "--x"], capture_output=True, text=True, check=True, cwd="/")
    assert launched.stdout == f"mpirun -f nodefile -n 2 -ppn 2 {run}/rank.sh --x\n"
    modes = {path.name: path.stat().st_mode & 0o777 for path in (run, *run.iterdir()) if path.name != "packages"}
    assert {name: mode for name, mode in modes.items() if mode & 0o077} == {}
    assert "CCL_" not in (run / "env.sh").read_text(), "the backend is gloo"
    # auto is what this processor has instructions for, and that is told
    flags = Path("/proc/cpuinfo").read_text().split()
    here = "bf16" if {"avx512_bf16", "amx_bf16"} & set(flags) else "no"
    assert precision(run) == here
    told = "in bf16" if here == "bf16" else "in float32, as localhost without instructions for bf16"
    assert told in " ".join(done.stdout.split())

    assert "changed=0" in configure(playbook, **asked).stdout

    before = (run / "job.yaml").read_text()
    refuse = provisioned / "env/native/bin/python.refuse"
    refuse.write_text("error: the token is taken; choose another\n")
    done = configure(playbook, training_placeholder_token="toy")
    assert done.returncode == 2
    assert "fatal: [localhost]: the token is taken; choose another" in done.stdout
    assert (run / "job.yaml").read_text() == before
    assert list(run.glob(".staged-*")) == [], "nothing of the job that was refused stays"
    refuse.unlink()

    (run / "finished.json").write_text("{}")
    done = configure(playbook, training_placeholder_token="toy")
    assert done.returncode == 2
    message = " ".join(done.stdout.split())
    assert "holds a run that is not known to have finished (finished.json is missing or damaged)" in message
    assert "-e run_name=..." in message
    assert "-e training_overwrite=true" in message
    assert (run / "job.yaml").read_text() == before
    lora_takes_the_place(playbook, run)


def test_the_nodes_of_a_cluster(playbook, provisioned, tmp_path):
    """The primary comes first whatever its place in the file; addresses are those of the inventory."""
    host = "ansible_connection=local ansible_python_interpreter='{{ ansible_playbook_python }}' ansible_host=127.0.0"
    inventory = tmp_path / "hosts.ini"
    inventory.write_text(
        f"[workers]\na {host}.1\nc {host}.3\n[primary]\nb {host}.2\n[cluster:children]\nworkers\nprimary\n"
    )
    settings = {"software_stack": "native", "base_model_name": "toyworld", "training_data_name": "concept"}
    ranks = {"launch_config_interface": "lo", "launch_config_ranks_per_node": 2, "training_mixed_precision": "no"}
    done = configure(playbook, "-i", str(inventory), "--limit", "b", **settings, **ranks)
    assert done.returncode == 0, done.stdout + done.stderr
    run = provisioned / "runs/r"
    assert precision(run) == "no"
    assert (run / "nodefile").read_text().split() == ["127.0.0.2", "127.0.0.1", "127.0.0.3"]
    assert yaml.safe_load((run / "job.yaml").read_text())["training"]["world_size"] == 6
    assert yaml.safe_load((run / "accelerate.yaml").read_text())["machine_rank"] == 0
    environment = (run / "env.sh").read_text()
    for line in ("MASTER_ADDR=127.0.0.2", "GLOO_SOCKET_IFNAME=lo", "I_MPI_HYDRA_IFACE=lo", "FI_TCP_IFACE=lo"):
        assert f"export {line}\n" in environment


# Shape of a host, its ranks, what env.sh exports. Two sockets of 56 cores get 4 x 28; no rank straddles two NUMA nodes.
SHAPES = {
    "article": ({"cores": 112, "nodes": "0-1"}, 4, {"OMP_NUM_THREADS": "28"}),
    "eight_nodes": ({"cores": 112, "nodes": "0-7"}, 8, {"OMP_NUM_THREADS": "14"}),
    "odd": ({"cores": 64}, 3, {"OMP_NUM_THREADS": "21"}),
    "nodes_apart": ({"cores": 16, "nodes": "0,2"}, 2, {"OMP_NUM_THREADS": "8"}),
    "nodes_unknown": ({"cores": 2, "nodes": ""}, 1, {"OMP_NUM_THREADS": "2"}),
    # cores are no use to ranks that do not fit
    "little_memory": ({"cores": 112, "nodes": "0-1", "memory_mb_per_rank": 10**6}, 1, {"OMP_NUM_THREADS": "112"}),
    "threads_named": ({"cores": 8, "ranks": 2, "threads": 3}, 2, {"OMP_NUM_THREADS": "3"}),
    # a pin domain holds both hyper-threads of each core, also of those that are left to the threads that communicate
    "hyper_threads": (
        {"cores": 112, "nodes": "0-1", "threads_per_core": 2},
        4,
        {"OMP_NUM_THREADS": "28", "I_MPI_PIN_DOMAIN": "56:compact"},
    ),
    "comm_workers": (
        {"cores": 112, "nodes": "0-1", "threads_per_core": 2, "comm_workers": 1, "backend": "ccl"},
        4,
        {"OMP_NUM_THREADS": "27", "I_MPI_PIN_DOMAIN": "56:compact"},
    ),
    "comm_workers_of_gloo": ({"cores": 112, "nodes": "0-1", "comm_workers": 1}, 4, {"OMP_NUM_THREADS": "28"}),
}


def test_ranks_and_threads_follow_the_shape(playbook, provisioned):
    """All shapes are rendered in one run of the role."""
    shapes = [{"name": name, **shape} for name, (shape, _, _) in SHAPES.items()]
    counted = {
        "cluster_cores": "{{ shape.cores }}",
        "cluster_threads_per_core": "{{ shape.threads_per_core | default(1) }}",
        "cluster_memory_mb": 24000,
    }
    done = playbook("tests/shapes.yml", shapes=shapes, **counted)
    assert done.returncode == 0, done.stdout
    for name, (shape, ranks, exported) in SHAPES.items():
        environment = (provisioned / name / "env.sh").read_text()
        threads = exported["OMP_NUM_THREADS"]
        told = f"# Threads: {ranks} rank(s) of {threads} on {shape['cores']} physical cores.\n"
        assert told in environment, name
        for variable, value in exported.items():
            assert f"export {variable}={value}\n" in environment, name


def test_files_that_changed_since_provisioning_are_refused(playbook, provisioned):
    """Missing, different or foreign: each is named, and no run begins. The same for a model: molecule."""
    folder = provisioned / "data/concept"
    (folder / "kept").write_text("as it was")
    (folder / "changed").write_text("as it was")
    digest = "5a3ec1ed4eb2fd7d22e6b8f4a5b30a3b3c9e3d2a3cf5a3a9a9b0a1d7a0c1b2d3"
    done = subprocess.run(["sha256sum", "changed", "kept"], cwd=folder, capture_output=True, text=True, check=True)
    Path(f"{folder}.sha256").write_text(done.stdout + f"{digest}  lost\n")
    (folder / "changed").write_text("otherwise")
    (folder / "foreign").touch()
    done = configure(playbook)
    assert done.returncode == 2
    message = " ".join(done.stdout.split())
    assert f"the pictures in {folder} changed since provisioning" in message
    assert "(missing, different or foreign: changed, foreign, lost); run ansible-playbook provision.yml" in message
    assert not (provisioned / "runs").exists()


def two_hosts(playbook, tmp_path, **settings):
    """Run the role for two hosts, a and b, that share this machine's disk, which preflight would refuse."""
    host = "ansible_connection=local ansible_python_interpreter='{{ ansible_playbook_python }}' ansible_host=127.0.0"
    inventory = tmp_path / "hosts.ini"
    inventory.write_text(f"[primary]\na {host}.1\n[workers]\nb {host}.2\n[cluster:children]\nprimary\nworkers\n")
    return configure(
        playbook, "-i", str(inventory), "--forks", "1", software_stack="native", base_model_name="toyworld",
        training_data_name="concept", launch_config_interface="lo", _preflight_sharing=[], **settings,
    )  # fmt: skip


def test_the_smallest_host_decides_and_the_packages_of_each_are_recorded(playbook, provisioned, tmp_path):
    """MPI starts as many ranks on each host; the report names the host that others wait for.

    The lists of packages are in the run folder of the primary. What lists them is a fake.
    """
    done = two_hosts(
        playbook, tmp_path, launch_config_memory_mb_per_rank=100, __launch_config_nodes={"stdout": "0-1"},
        cluster_cores="{{ {'a': 112, 'b': 48}[inventory_hostname] }}",
        _launch_config_list_packages="printf 'torch==1\\nnumpy==2\\n'",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "the smallest host decides: b has 48 cores, others up to 112" in " ".join(done.stdout.split())
    assert started(provisioned / "runs/r") == (4, 2)
    assert "export OMP_NUM_THREADS=24\n" in (provisioned / "runs/r/env.sh").read_text()
    lists = {path.name: path.read_text() for path in (provisioned / "runs/r/packages").iterdir()}
    assert lists == {"a.txt": "torch==1\nnumpy==2\n", "b.txt": "torch==1\nnumpy==2\n"}


def test_hosts_whose_packages_differ_do_not_start(playbook, provisioned, tmp_path):
    """Host and packages are named, and no run begins. What lists them is a fake."""
    lists = {"a": "torch==1 numpy==2", "b": "torch==1+cpu numpy==2 more==3"}
    listing = f"printf '%s\\n' {{{{ {lists}[inventory_hostname] }}}}"
    done = two_hosts(playbook, tmp_path, launch_config_ranks_per_node=1, _launch_config_list_packages=listing)
    assert done.returncode == 2
    message = " ".join(done.stdout.split())
    assert "b: it has more==3, torch==1+cpu where a has torch==1; ranks that differ" in message
    assert "run ansible-playbook provision.yml" in message
    assert not (provisioned / "runs").exists()


def test_packages_are_listed_as_pip_and_conda_do(provisioned):
    """The real listing, of an environment whose pip is a fake."""
    prefix = provisioned / "env/native"
    (prefix / "bin/python").write_text("#!/bin/sh\necho torch==1\n")
    listing = ["bash", str(REPOSITORY / "roles/launch_config/files/list_packages.sh"), str(prefix)]
    assert subprocess.run(listing, capture_output=True, text=True, check=True).stdout == "torch==1\n"
    (prefix / "conda-meta").mkdir()
    for name in ("gperftools-2.17.2-h65a8314_0", "libgcc-ng-14.2.0-h69a702a_1"):
        (prefix / f"conda-meta/{name}.json").touch()
    done = subprocess.run(listing, capture_output=True, text=True, check=True)
    assert done.stdout == "torch==1\ngperftools=2.17.2=h65a8314_0\nlibgcc-ng=14.2.0=h69a702a_1\n"


def test_the_environment_of_oneccl(playbook, provisioned):
    """The compute threads communicate, so no core is reserved."""
    for name in ("bin/python", "bin/mpirun", "lib/libiomp5.so"):
        (provisioned / "env/ipex" / name).parent.mkdir(parents=True, exist_ok=True)
        (provisioned / "env/ipex" / name).symlink_to(provisioned / "env/native" / name)
    (provisioned / "lib/ipex").symlink_to(provisioned / "lib/native")
    done = configure(
        playbook, software_stack="ipex", training_backend="ccl", launch_config_ranks_per_node=1,
        cluster_cores=28, __launch_config_nodes={"stdout": "0"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    run = provisioned / "runs/r"
    subprocess.run(["shellcheck", "--shell=bash", run / "env.sh"], check=True)
    script = f". {run}/env.sh; env -0"
    # what a batch system, another MPI, another Python and another project have left; what only logs stays
    others = [
        "SLURM_JOBID",
        "LSB_JOBID",
        "OMPI_COMM_WORLD_RANK",
        "PMI_RANK",
        "I_MPI_HYDRA_BOOTSTRAP",
        "PYTHONPATH",
        "OMP_PLACES",
    ]
    others += ["PYTHONPATH", "PYTHONHOME", "ACCELERATE_USE_DEEPSPEED", "RANK"]
    before = {"PATH": "/usr/bin:/bin", "FI_LOG_LEVEL": "warn", **dict.fromkeys(others, "SLURM_X=1\nRANK=7")}
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True, env=before)
    variables = dict(item.split("=", 1) for item in done.stdout.split("\0") if item)
    assert {k: v for k, v in variables.items() if k.startswith("CCL_")} == {
        "CCL_ROOT": f"{provisioned}/env/ipex", "CCL_PROCESS_LAUNCHER": "hydra", "CCL_ATL_TRANSPORT": "ofi",
        "CCL_WORKER_COUNT": "1", "CCL_WORKER_OFFLOAD": "0", "CCL_KVS_IFACE": "lo",
    }  # fmt: skip
    assert variables["OMP_NUM_THREADS"] == "28"
    assert set(others) & set(variables) == set()
    assert (variables["FI_LOG_LEVEL"], variables["PYTHONNOUSERSITE"]) == ("warn", "1")
    # a rank reads it again, below the mpirun of this run
    below = subprocess.run(
        ["bash", "-c", f"export PMI_RANK=3 I_MPI_X=1 SLURM_Y=1; . {run}/env.sh; env"],
        capture_output=True, text=True, check=True, env={"PATH": "/usr/bin:/bin", "SDTUNE_ENVIRONMENT": str(run)},
    ).stdout.splitlines()  # fmt: skip
    assert {"PMI_RANK=3", "I_MPI_X=1"} <= set(below)
    assert "SLURM_Y=1" not in below
    assert yaml.safe_load((run / "job.yaml").read_text())["training"]["backend"] == "ccl"


@pytest.mark.parametrize(
    ("host", "hosts_per_run", "starts"), [("n1", 0, True), ("n2", 0, False), ("n1", 1, True), ("n2", 1, True)]
)
def test_each_host_that_may_start_a_run_gets_what_its_supervisor_reads(host, hosts_per_run, starts):
    """The primary does; of runs side by side, which have other first hosts, any host."""
    texts = yaml.safe_load((REPOSITORY / "roles/launch_config/vars/main.yml").read_text())
    jinja = NativeEnvironment()
    jinja.filters["combine"] = lambda one, other: {**one, **other}
    known = {"inventory_hostname": host, "cluster_primary": "n1", "launch_config_hosts_per_run": hosts_per_run}
    known |= {"_launch_config_of_hosts": {"job.yaml": ""}, "_launch_config_of_first": {"supervisor.json": ""}}
    known |= {"_launch_config_of_ranks": {"rank.sh": ""}, "_launch_config_starters": {"launch.sh": ""}}
    known["_launch_config_starts_runs"] = jinja.from_string(texts["_launch_config_starts_runs"]).render(known)
    files, scripts = (
        jinja.from_string(texts[name]).render(known) for name in ("_launch_config_files", "_launch_config_scripts")
    )
    assert ("supervisor.json" in files, "launch.sh" in scripts) == (starts, starts)
