"""Say what this host's environment holds and whether it works, as JSON.

python check_node.py --json --require torch,accelerate,diffusers
"""

import argparse
import importlib
import json
import sys

from sdtune.metrics import describe_host

DEFAULT = "torch,accelerate,transformers,diffusers,safetensors,openvino,optimum.intel,sdtune"


def main() -> None:
    """Import each package and name those that fail."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON rather than lines")
    parser.add_argument("--require", default=DEFAULT, help="comma-separated modules that have to import")
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
    print(json.dumps(report) if args.json else "\n".join(f"{k}: {v}" for k, v in report.items()))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
