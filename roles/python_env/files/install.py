"""Install packages into the environment of this interpreter, with uv where it can and may, else with pip.

    python -I - auto|pip|uv ARGUMENT...      the arguments of pip install

uv installs several times as fast, but does not read pip's configuration; so that is translated. The first line of the
output says what was used, and why not uv.
"""

import argparse
import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

PIP = [sys.executable, "-I", "-m", "pip"]
# Settings of pip without effect on what is installed.
SILENT = {
    "break-system-packages",
    "cache-dir",
    "config-file",
    "disable-pip-version-check",
    "no-cache-dir",
    "no-color",
    "no-compile",
    "no-input",
    "progress-bar",
    "quiet",
    "require-virtualenv",
    "retries",
    "root-user-action",
    "verbose",
}
# Settings with an argument of uv: whether there is a value, and what uv calls it.
SAME = {
    "constraint": (True, "--constraint"),
    "extra-index-url": (True, "--extra-index-url"),
    "find-links": (True, "--find-links"),
    "index-url": (True, "--index-url"),
    "no-deps": (False, "--no-deps"),
    "no-index": (False, "--no-index"),
    "only-binary": (True, "--only-binary"),
    "pre": (False, "--prerelease=allow"),
    "requirement": (True, "--requirement"),
    "trusted-host": (True, "--allow-insecure-host"),
}
# Settings with a variable of uv.
VARIABLES = {"cert": "SSL_CERT_FILE", "default-timeout": "UV_HTTP_TIMEOUT", "timeout": "UV_HTTP_TIMEOUT"}
FALSE = ("0", "false", "no", "off", "")


class Untranslatable(Exception):
    """A setting that uv does not have."""


def configured(listing: str) -> list[tuple[str, str]]:
    """Settings of ``pip install``, as (name, value), from what ``pip config list`` prints; values of lists one by one.

    A later file, and then the environment, replaces what an earlier one says, as pip has it.
    """
    found: dict[str, str] = {}
    sections = {"global": 0, "install": 1, ":env:": 2}
    lines = [line.partition("=") for line in listing.splitlines() if "=" in line]
    for key, _, value in sorted(lines, key=lambda line: sections.get(line[0].partition(".")[0], -1)):
        section, _, name = key.partition(".")
        if section in sections:
            found[name] = str(ast.literal_eval(value))
    several = {"constraint", "extra-index-url", "find-links", "requirement", "trusted-host"}
    return [(name, part) for name, value in found.items() for part in (value.split() if name in several else [value])]


def translated(settings: list[tuple[str, str]]) -> tuple[list[str], dict[str, str]]:
    """Arguments and variables of uv for settings of pip.

    Raises:
        Untranslatable: there is none for one of them.
    """
    arguments: list[str] = []
    variables: dict[str, str] = {}
    for name, value in settings:
        if name in VARIABLES:
            variables[VARIABLES[name]] = value
        elif name in SAME:
            has_value, argument = SAME[name]
            if has_value:
                arguments += [argument, value]
            elif value.lower() not in FALSE:
                arguments.append(argument)
        elif name not in SILENT:
            raise Untranslatable(name)
    return arguments, variables


def parsed(arguments: list[str]) -> tuple[list[tuple[str, str]], list[str]]:
    """Settings among the arguments of pip install, and the packages.

    Raises:
        Untranslatable: an argument that is not known here.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    found: list[tuple[str, str]] = []

    class Keep(argparse.Action):
        def __call__(self, _parser: object, _namespace: object, values: object, option: str | None = None) -> None:
            found.append(((option or "").lstrip("-"), "true" if values == [] else str(values)))

    values = {"progress-bar", "cache-dir", "retries", "root-user-action", *VARIABLES}
    for name in sorted({*SILENT, *SAME, *VARIABLES}):
        takes = SAME[name][0] if name in SAME else name in values
        parser.add_argument(f"--{name}", action=Keep, nargs=None if takes else 0)
    parser.add_argument("packages", nargs="*", default=[])
    namespace, unknown = parser.parse_known_args(arguments)
    if unknown:
        raise Untranslatable(unknown[0].partition("=")[0].lstrip("-"))
    return found, namespace.packages


def uv_command(uv: str, listing: str, arguments: list[str]) -> tuple[list[str], dict[str, str]]:
    """The command line of uv that does what pip would do, and the variables for it.

    Args:
        uv: its path.
        listing: what ``pip config list`` prints.
        arguments: of pip install.

    Raises:
        Untranslatable: something is set or asked for that uv does not have.
    """
    asked, packages = parsed(arguments)
    single = {name for name, _ in asked} & {"index-url", "cert", "timeout"}  # an argument replaces what is configured
    options, variables = translated([*((n, v) for n, v in configured(listing) if n not in single), *asked])
    if "--no-index" in options:  # pip looks at no index then, whatever is configured
        dropped = {i for i, name in enumerate(options) if name in ("--index-url", "--extra-index-url")}
        options = [x for i, x in enumerate(options) if i not in dropped and i - 1 not in dropped]
    # pip takes the best of all indexes; copies, since files are removed and linked after the installation
    like_pip = ["--index-strategy", "unsafe-best-match", "--link-mode", "copy", "--no-config", "--no-progress"]
    return [uv, "pip", "install", "--python", sys.executable, *like_pip, *options, *packages], variables


def with_uv(arguments: list[str]) -> tuple[list[str], dict[str, str]]:
    """See :func:`uv_command`; for the uv and the pip of this host.

    Raises:
        Untranslatable: why it cannot be.
    """
    # where uv's own installer puts it is not on the PATH of a shell without login
    folders = os.pathsep.join([os.environ.get("PATH", os.defpath), str(Path("~/.local/bin").expanduser())])
    uv = shutil.which("uv", path=folders)
    if uv is None:
        raise Untranslatable("uv is not on the PATH")
    done = subprocess.run([*PIP, "config", "list"], check=True, capture_output=True, text=True)
    try:
        return uv_command(uv, done.stdout, arguments)
    except Untranslatable as setting:
        raise Untranslatable(f"uv has nothing for pip's setting {setting}") from None


def main(choice: str, arguments: list[str]) -> int:
    """Install; returns the exit code."""
    command, variables, what = [*PIP, "install", *arguments], {}, "pip"
    if choice != "pip":
        try:
            command, variables = with_uv(arguments)
            what = "uv"
        except Untranslatable as reason:
            if choice == "uv":
                print(f"python_env_installer is uv, but {reason}; set it to auto or pip", file=sys.stderr)
                return 2
            what = f"pip: {reason}"
    print(f"installed with {what}", flush=True)
    return subprocess.run(command, env=os.environ | variables, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
