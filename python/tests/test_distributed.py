"""Distributed setup from Accelerate's config, as launch_config writes it."""

import pytest
import yaml

from sdtune.errors import BadInput
from sdtune.launch.run_folder import Run
from sdtune.settings import Job, build
from sdtune.training.distributed import read_accelerate_config
from sdtune.training.metrics import read_metrics
from tests.conftest import free_port, run_ranks, write_job

CONFIG = {
    "compute_environment": "LOCAL_MACHINE",
    "distributed_type": "MULTI_CPU",
    "use_cpu": True,
    "mixed_precision": "bf16",
    "num_machines": 2,
    "machine_rank": 1,
    "num_processes": 2,
    "main_process_ip": "127.0.0.1",
    "main_process_port": 29500,
    "rdzv_backend": "static",
    "same_network": True,
    "debug": False,
}


@pytest.fixture
def config(tmp_path, monkeypatch):
    """Writes CONFIG with changes, in an environment where two ranks were launched."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("MASTER_ADDR", "MASTER_PORT", "ACCELERATE_USE_CPU"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)

    def write(**changes):
        path = tmp_path / "accelerate.yaml"
        path.write_text(yaml.safe_dump({**CONFIG, **changes}), encoding="utf-8")
        return path

    return write


def test_it_sets_the_address_of_rank_0(config):
    import os

    read_accelerate_config(config())
    assert (os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]) == ("127.0.0.1", "29500")
    assert os.environ["ACCELERATE_USE_CPU"] == "true"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_processes": 16}, "says num_processes: 16, but 2 ranks were started"),
        ({"use_cpu": False}, "does not say use_cpu: true"),
        ({"surprise": 1}, "cannot be read: .*surprise"),
    ],
)
def test_contradictions_are_refused(config, changes, message):
    with pytest.raises(BadInput, match=message):
        read_accelerate_config(config(**changes))


def test_another_address_in_the_environment_is_refused(config, monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "192.0.2.7")
    with pytest.raises(BadInput, match=r"MASTER_ADDR is 192\.0\.2\.7, but .* says 127\.0\.0\.1"):
        read_accelerate_config(config())


def test_two_ranks_find_each_other_by_the_config_alone(mapping, tmp_path, config, monkeypatch):
    path = config(main_process_port=free_port())
    monkeypatch.setenv("ACCELERATE_CONFIG_FILE", str(path))
    mapping["training"]["world_size"] = 2
    job = build(Job, mapping)
    run_ranks(write_job(tmp_path / "job.yaml", job), 2, meet=False)
    assert {m["world_size"] for m in read_metrics(Run(job.run_dir).metrics) if m["kind"] == "step"} == {2}
