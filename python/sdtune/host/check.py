"""Check this host's environment: which packages import, and whether the fast operations compute correctly.

python -m sdtune.host.check --json --require torch,accelerate,diffusers
python -m sdtune.host.check --json --require torch --ipex            # and test the Intel Extension for PyTorch
python -m sdtune.host.check --json --cache FILE     # reuse the last report that passed, while nothing has changed

Prints the host facts, versions and failures. Exit code 1: something failed.
"""

import argparse
import hashlib
import importlib
import json
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sdtune.files import write_atomically
from sdtune.host.processor import cpuinfo, instruction_set

DEFAULT = "torch,accelerate,transformers,diffusers,safetensors,openvino,optimum.intel,sdtune"


def check_ipex() -> dict[str, str]:
    """Optimize small frozen networks in both types as training does, and compare outputs and gradients to torch's.

    The gradient of the input is the only one that training takes. It has to be tested, because torch warns that group
    and layer normalization have no registered autograd kernel, and that gradients may be silently incorrect. They are
    right: the extension's kernels of both call ``native_group_norm`` and ``native_layer_norm`` while gradients are
    recorded, and torch has formulas for the gradients of these (``NativeGroupNormBackward0`` is in the graph).

    Raises:
        RuntimeError: outputs or gradients differ.
    """
    import copy

    import intel_extension_for_pytorch as ipex  # type: ignore[import-not-found]
    import torch
    from torch import nn

    torch.manual_seed(0)
    images = nn.Sequential(
        nn.Conv2d(4, 32, 3, padding=1), nn.GroupNorm(8, 32), nn.SiLU(), nn.Conv2d(32, 4, 3, padding=1)
    )
    tokens = nn.Sequential(nn.Linear(64, 64), nn.LayerNorm(64), nn.GELU(), nn.Linear(64, 64))
    found = {"version": ipex.__version__, "instruction_set": ipex._C._get_current_isa_level()}
    for plain, x in ((images, torch.randn(1, 4, 32, 32)), (tokens, torch.randn(2, 16, 64))):
        plain.requires_grad_(False).eval()
        expected = _output_and_gradient(plain, x)
        for dtype, allowed in ((torch.float32, 1e-4), (torch.bfloat16, 3e-2)):
            name = str(dtype).removeprefix("torch.")
            network = copy.deepcopy(plain).to(dtype)
            optimized = ipex.optimize(network, dtype=dtype, inplace=True, weights_prepack=False)
            ours = _output_and_gradient(optimized, x.to(dtype))
            for what, got, want in zip(("outputs", "gradients"), ours, expected, strict=True):
                difference = float((got - want).norm() / want.norm())
                if not difference < allowed:
                    raise RuntimeError(f"in {name} the {what} differ by {difference:.2%}")
            found[name] = "works"
    return found


def _output_and_gradient(network: Any, x: Any) -> tuple[Any, Any]:
    """The output for ``x``, and the gradient of the sum of its squares to ``x``, both as float32."""
    x = x.detach().clone().requires_grad_()
    output = network(x).float()
    output.square().sum().backward()
    return output.detach(), x.grad.float()


def check_kernels() -> str:
    """Compare the compiled attention kernel and its gradients to torch, if there is a kernel for this processor.

    Raises:
        BadInput: the kernel does not load.
        RuntimeError: the outputs or the gradients differ.
    """
    import torch

    from sdtune.ops.kernels import attention_backward, attention_forward, usable

    if not usable():
        return f"not used: they are not for {instruction_set()}"
    torch.manual_seed(0)
    q, k, v, direction = (torch.randn(1, 300, 40).bfloat16() for _ in range(4))
    exact = [x.float().requires_grad_() for x in (q, k, v)]
    expected = torch.nn.functional.scaled_dot_product_attention(exact[0], exact[1], exact[2])
    out, log_sums = attention_forward(q, k, v, 1, 40**-0.5)
    ours = (out, *attention_backward(q, k, v, out, direction, log_sums, 1, 40**-0.5))
    for got, want in zip(ours, (expected, *torch.autograd.grad(expected, exact, direction.float())), strict=True):
        difference = float((got.float() - want).norm() / want.norm())
        if not difference < 1e-2:
            raise RuntimeError(f"attention differs by {difference:.2%}")
    return "works"


def fingerprint(arguments: str) -> str:
    """Digest of what the report depends on: arguments, complete environment, this code, the Linux kernel, the CPU.

    Empty where the environment is not marked as complete: then no report is cached.
    """
    mark = Path(sys.prefix, ".complete")
    if not mark.exists():
        return ""
    digest = hashlib.sha256(f"{arguments} {platform.uname()} {mark.stat().st_mtime_ns}".encode())
    code = [file for file in Path(__file__).parents[2].rglob("*") if file.suffix in (".py", ".c", ".h", ".so")]
    for file in [mark, *sorted(code)]:
        digest.update(f"{file}\0".encode() + file.read_bytes())
    lines = {line for line in cpuinfo().splitlines() if line.startswith(("flags", "model name"))}
    digest.update("".join(sorted(lines)).encode())
    return digest.hexdigest()


def read_cache(file: Path, current: str) -> str:
    """The cached report if its fingerprint is the ``current`` one, else an empty string."""
    try:
        known = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return ""
    return str(known["report"]) if current and known.get("fingerprint") == current else ""


def check_imports(names: list[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Import modules; returns {module: version} and {module: why its import failed}."""
    versions: dict[str, str] = {}
    failed: dict[str, str] = {}
    for name in names:
        try:
            module = importlib.import_module(name)
        except Exception as error:  # noqa: BLE001 - whatever a package raises at import is what the user has to see
            failed[name] = f"{type(error).__name__}: {error}"
        else:
            versions[name] = str(getattr(module, "__version__", "present"))
    return versions, failed


def check(required: list[str], *, ipex: bool) -> dict[str, Any]:
    """The report: host facts, ``packages``, ``failed``, and what each test of an operation found."""
    from sdtune.host.facts import describe_host  # imports torch, which takes seconds

    versions, failed = check_imports(required)
    report: dict[str, Any] = {**describe_host(), "packages": versions, "failed": failed}
    tests: dict[str, Callable[[], object]] = {"kernels": check_kernels} if "sdtune" in versions else {}
    if ipex:
        tests["ipex"] = check_ipex
    for name, test in tests.items():
        try:
            report[name] = test()
        except Exception as error:  # noqa: BLE001 - as above
            failed[name] = " ".join(f"{type(error).__name__}: {error}".split())
    return report


def main() -> None:
    """Print the report, from the cache if it holds one that is still valid."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON instead of lines")
    parser.add_argument("--require", default=DEFAULT, help="comma-separated modules that have to import")
    parser.add_argument("--ipex", action="store_true", help="test the Intel Extension for PyTorch on a small network")
    parser.add_argument("--cache", type=Path, metavar="FILE", help="store a report without failures here, and reuse it")
    args = parser.parse_args()
    current = fingerprint(" ".join(sys.argv[1:])) if args.cache else ""
    if args.cache and (cached := read_cache(args.cache, current)):
        print(cached)
        return
    report = check(list(filter(None, args.require.split(","))), ipex=args.ipex)
    text = json.dumps(report) if args.json else "\n".join(f"{k}: {v}" for k, v in report.items())
    if args.cache and current and not report["failed"]:
        write_atomically(args.cache, json.dumps({"fingerprint": current, "report": text}))
    print(text)
    sys.exit(1 if report["failed"] else 0)


if __name__ == "__main__":
    main()
