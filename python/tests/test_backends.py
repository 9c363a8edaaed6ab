"""The backend that was asked for, or none."""

import pytest
import torch

from sdtune.errors import BadInput
from sdtune.training.backends import check_backend, load_backend
from tests.conftest import start_ranks, write_job


def test_ccl_without_its_bindings():
    with pytest.raises(BadInput, match=r"'ccl' does not load in this environment .*oneccl_bindings_for_pytorch"):
        load_backend("ccl")


def test_ccl_whose_bindings_do_not_load(monkeypatch):
    """As when libccl is missing; the fake bindings raise what the loader would."""

    def load(name):
        raise OSError("libccl.so.1: cannot open shared object file")

    monkeypatch.setattr("importlib.import_module", load)
    with pytest.raises(BadInput, match=r"'ccl' does not load .*libccl.so.1"):
        load_backend("ccl")


def test_mpi_that_torch_was_built_without():
    assert not torch.distributed.is_mpi_available()
    with pytest.raises(BadInput, match="'mpi' is not in this torch"):
        load_backend("mpi")


def test_another_backend_than_asked_for(monkeypatch):
    monkeypatch.setattr("torch.distributed.get_backend", lambda: "gloo")
    check_backend("gloo")
    with pytest.raises(BadInput, match="'ccl' is asked for, but the process group uses 'gloo'"):
        check_backend("ccl")


def test_ranks_never_use_another_backend(mapping, tmp_path):
    """Accelerate alone would use gloo where the backend is missing."""
    mapping["training"] |= {"world_size": 2, "backend": "mpi"}
    ranks = start_ranks(write_job(tmp_path / "job.yaml", mapping), 2)
    outputs = [rank.communicate()[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [2, 2]
    assert all("'mpi' is not in this torch" in output for output in outputs[:1])
