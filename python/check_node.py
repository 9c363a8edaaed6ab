"""Say what this host's environment holds and whether it works, as JSON.

python check_node.py --json --require torch,accelerate,diffusers
python check_node.py --json --require torch --ipex            # and try the Intel Extension for PyTorch
"""

import argparse
import importlib
import json
import sys

from sdtune.metrics import describe_host

DEFAULT = "torch,accelerate,transformers,diffusers,safetensors,openvino,optimum.intel,sdtune"


def try_ipex() -> dict[str, str]:
    """Optimize a small network for both types as training does, and hold what it says against what it said before.

    Raises:
        RuntimeError: it says something else.
    """
    import copy

    import intel_extension_for_pytorch as ipex
    import torch
    from torch import nn

    torch.manual_seed(0)
    plain = nn.Sequential(
        nn.Conv2d(4, 32, 3, padding=1), nn.GroupNorm(8, 32), nn.SiLU(), nn.Conv2d(32, 4, 3, padding=1)
    )
    plain.eval()
    images = torch.randn(1, 4, 32, 32)
    found = {"version": ipex.__version__, "instruction_set": ipex._C._get_current_isa_level()}
    with torch.no_grad():
        expected = plain(images)
        for dtype, allowed in ((torch.float32, 1e-4), (torch.bfloat16, 3e-2)):
            name = str(dtype).removeprefix("torch.")
            network = copy.deepcopy(plain).to(dtype)
            optimized = ipex.optimize(network, dtype=dtype, inplace=True, weights_prepack=False)
            difference = float((optimized(images.to(dtype)).float() - expected).abs().max())
            if not difference < allowed:
                raise RuntimeError(f"in {name} it is off by {difference:g}")
            found[name] = "works"
    return found


def main() -> None:
    """Import each package and name those that fail."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON rather than lines")
    parser.add_argument("--require", default=DEFAULT, help="comma-separated modules that have to import")
    parser.add_argument("--ipex", action="store_true", help="try the Intel Extension for PyTorch on small networks")
    args = parser.parse_args()
    versions: dict[str, str] = {}
    failed: dict[str, str] = {}
    for name in filter(None, args.require.split(",")):
        try:
            module = importlib.import_module(name)
        except Exception as error:  # noqa: BLE001 - whatever a package raises at import is what the user has to see
            failed[name] = f"{type(error).__name__}: {error}"
        else:
            versions[name] = str(getattr(module, "__version__", "present"))
    report = {**describe_host(), "packages": versions, "failed": failed}
    if args.ipex:
        try:
            report["ipex"] = try_ipex()
        except Exception as error:  # noqa: BLE001 - as above
            failed["ipex"] = " ".join(f"{type(error).__name__}: {error}".split())
    print(json.dumps(report) if args.json else "\n".join(f"{k}: {v}" for k, v in report.items()))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
