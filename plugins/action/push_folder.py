"""Bring a folder of the control node to a host, over Ansible's own connection.

Everything that reaches the host goes through the connection plugin: its check of host keys, port, jump host, user and
password, and become with its password. Nothing opens a connection of its own, and the host needs no program but Python.

Only files whose content differs are sent, in parts that the host appends to files beside the folder's own. All take
their places at the end, when each has the right SHA-256. A transfer that was interrupted goes on where it ended.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.append(str(REPOSITORY))
from plugins import host_end  # noqa: E402
from plugins.modules.folder_checksums import checksums, file_of, sha256_of_start  # noqa: E402

SCRIPT = REPOSITORY / "python/standalone/receive_folder.py"
PART = 64 << 20  # bytes of one call: little beside the memory of any control node, much beside a call's overhead
QUIET_SECONDS = 10  # between two lines of progress

display = Display()


def split(lines: list[str]) -> dict[str, str]:
    """``{path: SHA-256}`` of lines as sha256sum prints them."""
    return {file_of(line): line.lstrip("\\").partition("  ")[0] for line in lines}


def foreign(wanted: dict[str, str], found: dict[str, str]) -> list[str]:
    """What to remove: files that the source lacks; of a folder that it lacks, only the folder's own path."""
    folders = {str(parent) for path in wanted for parent in PurePosixPath(path).parents}
    tops = {
        next((str(above) for above in reversed(PurePosixPath(path).parents) if str(above) not in folders), path)
        for path in found
        if path not in wanted
    }
    return sorted(tops)


def parts_of(files: dict[str, str], source: Path, kept: dict[str, int]) -> Iterator[list[dict]]:
    """The parts to send, a list for each call of at most ``PART`` bytes.

    Args:
        files: ``{path: SHA-256}`` of the files to send; each content is sent once.
        source: folder of the files.
        kept: ``{SHA-256: bytes}`` that the host has already.
    """
    batch: list[dict] = []
    room = PART
    for checksum, name in {checksum: name for name, checksum in reversed(files.items())}.items():
        size = (source / name).stat().st_size
        offset = kept.get(checksum, 0)
        while offset < size or (size == 0 and offset == 0):
            length = min(room, size - offset)
            batch.append({"name": name, "sha256": checksum, "size": size, "offset": offset, "length": length})
            offset, room = offset + length, room - length
            if room == 0:
                yield batch
                batch, room = [], PART
            if size == 0:
                break
    yield batch


class ActionModule(ActionBase):
    """The action ``push_folder``."""

    TRANSFERS_FILES = False
    _VALID_ARGS = frozenset(("src", "dest", "python", "exclude", "mode", "folder_mode"))

    def run(self, tmp: object = None, task_vars: dict | None = None) -> dict:
        """Make the folder the same as the source.

        The result has ``lines``, what the folder has to hold as sha256sum prints it, and ``differences``, the paths
        that were missing, different or foreign. In check mode nothing else happens.
        """
        result = super().run(tmp, task_vars)
        asked = self._task.args
        source, exclude = Path(asked["src"]), asked.get("exclude", [".*"])
        about = {"path": asked["dest"], "exclude": exclude}
        listing = self._execute_module("folder_checksums", about, task_vars=task_vars)
        if listing.get("failed") or listing.get("unreachable"):
            return {**result, **listing}
        host = (task_vars or {}).get("inventory_hostname", "the host")
        return {**result, **self.bring(source, checksums(source, exclude), listing["lines"], host)}

    def bring(self, source: Path, lines: list[str], there: list[str], host: str) -> dict:
        """Send what differs, unless in check mode.

        Args:
            source: the folder on the control node.
            lines: what it holds, as sha256sum prints it.
            there: what the host's folder holds.
            host: its name, for messages.
        """
        wanted, found = split(lines), split(there)
        missing = {path: checksum for path, checksum in wanted.items() if found.get(path) != checksum}
        differences = sorted({*missing, *(path for path in found if path not in wanted)})
        if differences and not self._task.check_mode:
            self._send(host, source, missing, foreign(wanted, found))
        return {"lines": lines, "differences": differences, "changed": bool(differences)}

    def _send(self, host: str, source: Path, missing: dict[str, str], remove: list[str]) -> None:
        """Send what is missing, then let the host put everything in its place."""
        total = sum((source / path).stat().st_size for path in missing)
        kept = self._kept(host, source, missing, total) if total > PART else {}
        done, printed = sum(kept.values()), time.monotonic()
        batches = list(parts_of(missing, source, kept))
        for number, parts in enumerate(batches, 1):
            last = number == len(batches)
            self._receive(host, source, parts, missing if last else None, remove)
            done += sum(part["length"] for part in parts)
            if not last and time.monotonic() - printed > QUIET_SECONDS:
                dest = self._task.args["dest"]
                display.display(f"{host}: {done / 1e9:.2f} of {total / 1e9:.2f} GB of {Path(dest).name} are there")
                printed = time.monotonic()

    def _kept(self, host: str, source: Path, missing: dict[str, str], total: int) -> dict[str, int]:
        """``{SHA-256: bytes}`` that an interrupted transfer left on the host, and that are the source's.

        Raises:
            AnsibleActionFail: the rest does not fit on the host's disk.
        """
        said = json.loads(self._call(host, "staged", b""))
        kept = {}
        for name, checksum in missing.items():
            size, start = said["files"].get(checksum, [0, ""])
            if size and size <= (source / name).stat().st_size and sha256_of_start(source / name, size) == start:
                kept[checksum] = size
        need = total - sum(kept.values())
        if need > said["free"]:
            raise AnsibleActionFail(
                f"{host}: {need / 1e9:.3f} GB of {source.name} are to be copied to {self._task.args['dest']}, and "
                f"{said['free'] / 1e9:.3f} GB are free there; make room, or set work_dir to another file system"
            )
        return kept

    def _receive(
        self, host: str, source: Path, parts: list[dict], place: dict[str, str] | None, remove: list[str]
    ) -> None:
        """Send some parts; with ``place``, the files then take their places."""
        modes = [self._task.args.get("mode", "0644"), self._task.args.get("folder_mode", "0755")]
        header = {"parts": parts, "place": place, "remove": remove, "modes": modes}
        payload = bytearray(json.dumps(header).encode() + b"\n")
        for part in parts:
            with (source / part["name"]).open("rb") as file:
                file.seek(part["offset"])
                data = file.read(part["length"])
            if len(data) < part["length"]:
                raise AnsibleActionFail(f"{source / part['name']} became shorter meanwhile; type the same again")
            payload += data
        self._call(host, "receive", bytes(payload))

    def _call(self, host: str, command: str, payload: bytes) -> str:
        """Run the host's end with these bytes as its standard input; its standard output."""
        dest = self._task.args["dest"]
        return host_end.call(self, host, SCRIPT, [command, dest], payload, f"{dest} cannot be filled")
