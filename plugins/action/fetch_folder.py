"""Bring a folder of a host to the control node, over Ansible's own connection, many files in one call.

The opposite of push_folder. Files whose content differs are fetched, each is verified by its SHA-256, and takes its
place when it is complete. The host needs no program but Python.
"""

from __future__ import annotations

import base64
import hashlib
import json
import sys
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.append(str(REPOSITORY))
from plugins import host_end  # noqa: E402
from plugins.action.push_folder import split  # noqa: E402
from plugins.modules.folder_checksums import checksums  # noqa: E402

SCRIPT = REPOSITORY / "python/standalone/send_files.py"
PART = 64 << 20  # bytes of one call, which are in memory a few times


class ActionModule(ActionBase):
    """The action ``fetch_folder``."""

    TRANSFERS_FILES = False
    _VALID_ARGS = frozenset(("src", "dest", "python", "remove"))

    def run(self, tmp: object = None, task_vars: dict | None = None) -> dict:
        """Make the folder the same as the host's; the result's ``differences`` are the paths that were not."""
        result = super().run(tmp, task_vars)
        listing = self._execute_module("folder_checksums", {"path": self._task.args["src"]}, task_vars=task_vars)
        if listing.get("failed") or listing.get("unreachable"):
            return {**result, **listing}
        return {**result, **self.bring(listing["lines"], (task_vars or {}).get("inventory_hostname", "the host"))}

    def bring(self, lines: list[str], host: str) -> dict:
        """Fetch what differs and remove what is foreign, unless in check mode.

        Args:
            lines: what the host's folder holds, as sha256sum prints it.
            host: its name, for messages.
        """
        dest, patterns = Path(self._task.args["dest"]), self._task.args.get("remove", [])
        wanted, found = split(lines), split(checksums(dest))
        for name in wanted:
            if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
                raise AnsibleActionFail(f"{host}: {name!r} leads out of the folder")
        missing = {name: checksum for name, checksum in wanted.items() if found.get(name) != checksum}
        foreign = [
            name for name in found if name not in wanted and any(fnmatch(Path(name).name, one) for one in patterns)
        ]
        if not self._task.check_mode:
            for name in foreign:
                (dest / name).unlink()
            self._fetch(host, missing, dest)
        differences = sorted([*missing, *foreign])
        return {"differences": differences, "changed": bool(differences)}

    def _fetch(self, host: str, missing: dict[str, str], dest: Path) -> None:
        """Fetch files ``{path: SHA-256}``, as many in a call as fit."""
        source, left = self._task.args["src"], list(missing)
        while left:
            arguments = [source, "--most", str(PART)]
            asked, wrong = json.dumps(left).encode(), f"{source} cannot be fetched"
            files = json.loads(host_end.call(self, host, SCRIPT, arguments, asked, wrong))
            for name in left[: len(files)]:
                content = base64.b64decode(files[name])
                if hashlib.sha256(content).hexdigest() != missing[name]:
                    raise AnsibleActionFail(f"{host}: {source}/{name} changed meanwhile; type the same again")
                path = dest / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.with_name(f".{path.name}").write_bytes(content)
                path.with_name(f".{path.name}").replace(path)
            left = left[len(files) :]
