"""Say what this host's environment holds and whether it works, as JSON.

python -m sdtune.host.check --json --require torch,accelerate,diffusers
python -m sdtune.host.check --json --require torch --ipex            # and try the Intel Extension for PyTorch
python -m sdtune.host.check --json --remember FILE   # at once, while nothing changed since it last passed
"""

import argparse
import hashlib
import importlib
import json
import platform
import sys
from collections.abc import Callable
from pathlib import Path

DEFAULT = "torch,accelerate,transformers,diffusers,safetensors,openvino,optimum.intel,sdtune"


def try_ipex() -> dict[str, str]:
    """Optimize a small network for both types as training does, and hold what it says against what it said before.

    Raises:
        RuntimeError: it says something else.
    """
    import copy

    import intel_extension_for_pytorch as ipex  # type: ignore[import-not-found]
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


def try_kernels() -> str:
    """Where there are some for this processor: attention by the kernel and by torch, and its gradients.

    Raises:
        BadInput: it does not load.
        RuntimeError: it says something else.
    """
    import torch

    from sdtune.host.processor import instruction_set
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
            raise RuntimeError(f"attention is off by {difference:.2%}")
    return "works"


def circumstances(asked: str) -> str:
    """A digest of what the answer depends on: the question, the finished environment, this code, the kernel, the CPU.

    Empty where nobody said that the environment is finished: then nothing is remembered.
    """
    mark = Path(sys.prefix, ".complete")
    if not mark.exists():
        return ""
    digest = hashlib.sha256(f"{asked} {platform.uname()} {mark.stat().st_mtime_ns}".encode())
    code = [file for file in Path(__file__).parents[2].rglob("*") if file.suffix in (".py", ".c", ".h", ".so")]
    for file in [mark, *sorted(code)]:
        digest.update(f"{file}\0".encode() + file.read_bytes())
    cpu = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    digest.update("".join(sorted({line for line in cpu if line.startswith(("flags", "model name"))})).encode())
    return digest.hexdigest()


def remembered(file: Path, now: str) -> str:
    """The report of a check that passed under the same circumstances, or nothing."""
    try:
        known = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return ""
    return str(known["report"]) if now and known["circumstances"] == now else ""


def remember(file: Path, now: str, report: str) -> None:
    """Replace what was known, in one go."""
    draft = file.with_name(f"{file.name}.draft")
    draft.write_text(json.dumps({"circumstances": now, "report": report}), encoding="utf-8")
    draft.replace(file)


def main() -> None:
    """Import each package and name those that fail."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON rather than lines")
    parser.add_argument("--require", default=DEFAULT, help="comma-separated modules that have to import")
    parser.add_argument("--ipex", action="store_true", help="try the Intel Extension for PyTorch on small networks")
    parser.add_argument("--remember", type=Path, metavar="FILE", help="keep a good report here, and reuse it")
    args = parser.parse_args()
    now = circumstances(" ".join(sys.argv[1:])) if args.remember else ""
    if args.remember and (known := remembered(args.remember, now)):
        print(known)
        return

    from sdtune.host.facts import describe_host  # here, for it imports torch, which takes seconds

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
    tried: dict[str, Callable[[], object]] = {"kernels": try_kernels} if "sdtune" in versions else {}
    if args.ipex:
        tried["ipex"] = try_ipex
    for name, attempt in tried.items():
        try:
            report[name] = attempt()
        except Exception as error:  # noqa: BLE001 - as above
            failed[name] = " ".join(f"{type(error).__name__}: {error}".split())
    text = json.dumps(report) if args.json else "\n".join(f"{k}: {v}" for k, v in report.items())
    if args.remember and now and not failed:
        remember(args.remember, now, text)
    print(text)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
