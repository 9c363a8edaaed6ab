"""Fake wheels, and an index that has them: tiny wheels under the names of packages that tests do without."""

import base64
import hashlib
import sys
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path


def make_wheel(
    folder: Path, name: str, version: str, files: Mapping[str, str] | None = None, requires: Sequence[str] = ()
) -> Path:
    """Write a wheel that any Python 3 installs.

    Args:
        folder: receives the wheel.
        name: of the package.
        version: of the package.
        files: {path in site-packages: text}.
        requires: its ``Requires-Dist``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    info = f"{name}-{version}.dist-info"
    contents = {
        **(files or {}),
        f"{info}/METADATA": "\n".join(
            [
                "Metadata-Version: 2.1",
                f"Name: {name}",
                f"Version: {version}",
                *(f"Requires-Dist: {x}" for x in requires),
                "",
            ]
        ),
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: fake\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = f"{info}/RECORD,,\n"
    for path, text in contents.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        record = f"{path},sha256={digest},{len(text.encode())}\n{record}"
    wheel = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, text in {**contents, f"{info}/RECORD": record}.items():
            archive.writestr(path, text)
    return wheel


def make_index(folder: Path, wheels: Path) -> str:
    """URL of an index whose pages link to the wheels of a folder."""
    for wheel in sorted(wheels.glob("*.whl")):
        page = folder / wheel.name.split("-")[0].lower().replace("_", "-") / "index.html"
        page.parent.mkdir(parents=True, exist_ok=True)
        with page.open("a") as file:
            file.write(f'<a href="{wheel.as_uri().replace("+", "%2B")}">{wheel.name}</a>\n')
    return folder.as_uri() + "/"


def make_bindings(folder: Path, version: str = "2.8.0+cpu", code: str | None = None) -> Path:
    """Write a fake of oneCCL's PyTorch bindings, which loads if torch and the real oneCCL do. It has no backend."""
    loads = f"import ctypes\nimport torch\n__version__ = '{version}'\nctypes.CDLL('libccl.so.1')\n"
    return make_wheel(folder, "oneccl_bind_pt", version, {"oneccl_bindings_for_pytorch/__init__.py": code or loads})


if __name__ == "__main__":
    make_bindings(Path(sys.argv[1]))
