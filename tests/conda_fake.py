"""Fakes of conda: a channel of tiny packages, a client, and an installer. Tests reach no registry of it.

The packages are real conda packages, which py-rattler resolves and links as conda would; their content is a fake of
what conda-forge has (python borrows the one of this machine, gperftools its libtcmalloc). The client understands what
the role python_env asks of conda, and nothing else. The installer knows the flags of Miniforge's, and installs it.

    conda --version
    conda env create --quiet --prefix FOLDER --file environment.yml

`conda_fake.py fake FOLDER` makes them all, for molecule.
"""

import argparse
import asyncio
import io
import json
import os
import sys
import sysconfig
import tarfile
import tempfile
from collections.abc import Mapping
from importlib.metadata import distribution
from pathlib import Path

import rattler
import yaml

LIBRARIES = [
    Path("/usr/lib/x86_64-linux-gnu/libtcmalloc_minimal.so.4"),
    Path("/usr/lib/x86_64-linux-gnu/libtcmalloc.so.4"),
]
MINOR = "{}.{}".format(*sys.version_info[:2])
PYTHON = f"{MINOR}.13"


def package(
    channel: Path, name: str, version: str, files: Mapping[str, bytes | str], depends: tuple[str, ...] = ()
) -> None:
    """Write a package into a channel's folder. Content that is text is where a link leads."""
    stem = f"{name}-{version}-0"
    paths = [
        {"_path": path, "path_type": "softlink" if isinstance(body, str) else "hardlink"}
        for path, body in files.items()
    ]
    index = {
        "name": name, "version": version, "build": "0", "build_number": 0, "subdir": "linux-64", "arch": "x86_64",
        "platform": "linux", "depends": list(depends), "timestamp": 1700000000000,
    }  # fmt: skip
    described: dict[str, bytes | str] = {
        "info/index.json": json.dumps(index).encode(),
        "info/paths.json": json.dumps({"paths": paths, "paths_version": 1}).encode(),
    }
    folder = channel / "linux-64"
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(folder / f"{stem}.tar.bz2", "w:bz2") as archive:
        for path, body in {**described, **files}.items():
            member = tarfile.TarInfo(path)
            if isinstance(body, str):
                member.type, member.linkname = tarfile.SYMTYPE, body
                archive.addfile(member)
            else:
                member.size, member.mode = len(body), 0o755 if path.startswith("bin/") else 0o644
                archive.addfile(member, io.BytesIO(body))


def make_channel(channel: Path) -> Path:
    """A channel that has python, pip, and gperftools in two versions."""
    interpreter = Path(sysconfig.get_config_var("BINDIR")) / f"python{MINOR}"
    home = f"home = {interpreter.parent}\ninclude-system-site-packages = false\nversion = {MINOR}\n"
    links = {f"bin/{name}": str(interpreter) for name in ("python", "python3", f"python{MINOR}")}
    package(channel, "python", PYTHON, {"pyvenv.cfg": home.encode(), **links})
    # the pip of this environment, whatever made it
    installed = distribution("pip")
    files = {
        f"lib/python{MINOR}/site-packages/{file}": Path(file.locate()).read_bytes()
        for file in installed.files or []
        if ".." not in file.parts and file.suffix != ".pyc"
    }
    info = f"lib/python{MINOR}/site-packages/pip-{installed.version}.dist-info"
    # as a package of conda has it: its own word of who installed it, and scripts that conda makes
    record = b"".join(line for line in files[f"{info}/RECORD"].splitlines(True) if b"INSTALLER" not in line)
    files |= {f"{info}/INSTALLER": b"conda\n", f"{info}/RECORD": record}
    script = b'#!/bin/sh\nexec "$(dirname "$0")/python" -m pip "$@"\n'
    package(channel, "pip", installed.version, {**files, "bin/pip": script}, (f"python {MINOR}.*",))
    library = next(path for path in LIBRARIES if path.exists()).read_bytes()
    for version in ("2.17.2", "2.18.1"):
        package(
            channel, "gperftools", version, {"lib/libtcmalloc.so.4": library, "lib/libtcmalloc.so": "libtcmalloc.so.4"}
        )
    (channel / "noarch").mkdir(exist_ok=True)
    asyncio.run(rattler.index.index_fs(channel))
    return channel


def packages(channel: Path) -> list[str]:
    """What python_env_conda_packages asks of this channel."""
    pip = next(channel.glob("linux-64/pip-*.tar.bz2")).name.split("-")[1]
    return [f"python={PYTHON}", f"pip={pip}", "gperftools=2.17.2"]


def make_installer(path: Path) -> Path:
    """An installer: -b asks nothing, -u goes over an earlier one, -p says where."""
    path.write_text(f"""#!/bin/sh
# Fake of Miniforge's installer.
update=
while getopts bup: flag; do
    case $flag in b) ;; u) update=1 ;; p) prefix=$OPTARG ;; *) exit 2 ;; esac
done
[ -z "$prefix" ] && exit 2
[ -e "$prefix" ] && [ -z "$update" ] && {{ echo "ERROR: File or directory already exists: '$prefix'" >&2; exit 1; }}
mkdir -p "$prefix/bin" "$prefix/envs"
printf '#!/bin/sh\\nexec {sys.executable} {Path(__file__).resolve()} "$@"\\n' > "$prefix/bin/conda"
chmod 755 "$prefix/bin/conda"
""")
    return path


async def create(prefix: Path, file: Path) -> None:
    """Resolve and link what an environment.yml asks for."""
    wanted = yaml.safe_load(file.read_text())
    channels = [rattler.Channel(name) for name in wanted["channels"] if name != "nodefaults"]
    records = await rattler.solve(channels, wanted["dependencies"], platforms=["linux-64", "noarch"])
    with tempfile.TemporaryDirectory() as cache:
        await rattler.install(records, prefix, cache_dir=cache, show_progress=False)


def make(folder: Path) -> None:
    """Channel, installer, and what python_env_conda_packages asks of them."""
    folder.mkdir(parents=True, exist_ok=True)
    channel = make_channel(folder / "channel")
    (folder / "packages.json").write_text(json.dumps(packages(channel)))
    make_installer(folder / "miniforge.sh")


def main() -> None:
    """The client."""
    parser = argparse.ArgumentParser(prog="conda")
    parser.add_argument("--version", action="version", version="conda 26.1.1 (a fake)")
    commands = parser.add_subparsers(required=True)
    commands.add_parser("fake").add_argument("folder", type=Path)
    env = commands.add_parser("env").add_subparsers(required=True).add_parser("create")
    env.add_argument("--quiet", action="store_true")
    env.add_argument("--prefix", type=Path, required=True)
    env.add_argument("--file", type=Path, required=True)
    args = parser.parse_args()
    if "folder" in args:
        make(args.folder)
    elif args.prefix.exists():
        sys.exit(f"CondaValueError: prefix already exists: {args.prefix}")
    else:
        asyncio.run(create(args.prefix, args.file))
    # rattler's threads may still let go of the interpreter while it is taken down, which ends in a segmentation fault
    os._exit(0)


if __name__ == "__main__":
    main()
