"""What every entry point does with errors: one line for what the user can mend, a traceback for what only we can."""

import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from sdtune.errors import BadInput, DrawingFailed, Stopped, TrainingFailed

# the libraries' remarks about what they load would bury ours; a user who wants them sets these to "info"
for _name in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY"):
    os.environ.setdefault(_name, "error")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
# models are folders here: no library has a reason to ask a hub, or to wait for one that a cluster cannot reach
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Nobody is told what runs on a user's servers: OpenVINO and NNCF report to their makers where this package is found,
# and go without it where it is not.
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
# not two folders in the home of a user who may have been made for us alone
os.environ.setdefault(
    "MPLCONFIGDIR", str(Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "sdtune" / "matplotlib")
)


def run(main: Callable[[], None]) -> None:
    """Call ``main``; exit with 2 for bad input, 1 for a failure, and a word on standard error; with 3 when stopped."""
    try:
        main()
    except (BadInput, TrainingFailed, DrawingFailed) as error:
        # under mpirun every rank of a host finds the same mistake in the job: one line a host will do
        if not isinstance(error, BadInput) or os.environ.get("MPI_LOCALRANKID", "0") == "0":
            print(f"error: {error}", file=sys.stderr, flush=True)
        code = 2 if isinstance(error, BadInput) else 1
    except Stopped as stopped:
        print(stopped, flush=True)
        code = 3
    except Exception:  # noqa: BLE001 - shown in full, and the process ends
        traceback.print_exc()
        code = 1
    else:
        return
    sys.stdout.flush()
    # At once, past any clean-up: Hydra does not end the others when a rank leaves, but closing this rank's connections
    # ends whatever collective operation they wait in.
    os._exit(code)
