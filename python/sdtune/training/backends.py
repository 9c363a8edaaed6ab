"""The torch.distributed backend: the one that was asked for, or an error. No library may silently use another."""

import importlib

import torch

from sdtune.errors import BadInput

_REMEDY = "provision with the training_backend that you train with, or take gloo"


def load_backend(name: str) -> None:
    """Make the backend ``name`` available in torch.distributed.

    Raises:
        BadInput: this environment does not have it.
    """
    if name == "ccl":
        try:
            importlib.import_module("oneccl_bindings_for_pytorch")
        except (ImportError, OSError) as error:
            raise BadInput(f"training.backend: 'ccl' does not load in this environment ({error}); {_REMEDY}") from None
    elif not torch.distributed.is_backend_available(name):
        raise BadInput(f"training.backend: {name!r} is not in this torch ({torch.__version__}); {_REMEDY}")


def check_backend(name: str) -> None:
    """Check that the process group uses the backend ``name``.

    Raises:
        BadInput: it uses another one.
    """
    if (used := torch.distributed.get_backend()) != name:
        raise BadInput(f"training.backend: {name!r} is asked for, but the process group uses {used!r}; {_REMEDY}")
