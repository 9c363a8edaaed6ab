"""Why sshd of this host may turn a user away who has the right key. Runs as root; prints a list of sentences as JSON.

Before there is a key, it is asked for the user's shell alone: without an address, it prints what is wrong with that.

Needs Python 3.9 or newer; the host's own Python will do. Ansible sends this file to it on standard input.
"""

from __future__ import annotations

import argparse
import grp
import json
import os
import pwd
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

SSHD = "/etc/ssh/sshd_config"
# Login shells that run no command, or not any: what MPI and rsync start has to be one of theirs.
_CLOSED = ("false", "nologin", "true", "sync", "halt", "shutdown", "git-shell", "rbash", "rssh", "scponly")


def closed_shell(shell: str) -> str:
    """Why a login shell does not run the commands of MPI and rsync; empty if it does."""
    if Path(shell).name in _CLOSED:
        return f"{shell} does not run commands"
    return "" if not shell or os.access(shell, os.X_OK) else f"{shell} cannot be started"


def daemon_settings(user: str, address: str) -> dict[str, str]:
    """What sshd's configuration says for this user and address; empty where sshd does not tell."""
    where = f"user={user},host={address},addr={address},laddr={address},lport=22"
    search = {**os.environ, "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"}
    try:
        done = subprocess.run(
            ["sshd", "-T", "-C", where], capture_output=True, text=True, errors="replace", check=False, env=search
        )
    except OSError:
        return {}
    settings: dict[str, str] = {}
    for line in done.stdout.splitlines():
        name, _, value = line.partition(" ")
        settings[name] = f"{settings[name]} {value}" if name in settings else value
    return settings


def daemon_obstacles(settings: dict[str, str], user: str, home: str, groups: list[str]) -> Iterator[str]:
    """What sshd's configuration says against the user."""

    def names(setting: str, own: list[str]) -> bool:
        patterns = settings.get(setting, "").split()
        return any(fnmatchcase(name, pattern.partition("@")[0]) for name in own for pattern in patterns)

    for kind, own in (("users", [user]), ("groups", groups)):
        if settings.get(f"allow{kind}") and not names(f"allow{kind}", own):
            allowed = settings[f"allow{kind}"]
            yield f"sshd there lets in only {allowed} (Allow{kind.title()} in {SSHD}); add {user} or one of its groups"
        if names(f"deny{kind}", own):
            yield f"sshd there turns {user} away (Deny{kind.title()} in {SSHD})"
    if settings.get("pubkeyauthentication") == "no":
        yield f"sshd there accepts no keys (PubkeyAuthentication no in {SSHD})"
    if settings.get("forcecommand", "none") != "none":
        yield f"sshd there runs {settings['forcecommand']} instead of a command (ForceCommand in {SSHD})"
    keys = settings.get("authorizedkeysfile", ".ssh/authorized_keys").split()
    at = [str(Path(home) / key.replace("%h", home).replace("%u", user)) for key in keys]
    if f"{home}/.ssh/authorized_keys" not in at:
        yield (
            f"sshd there reads keys from {', '.join(at)} (AuthorizedKeysFile in {SSHD}), and the cluster key is in "
            f"{home}/.ssh/authorized_keys; let sshd read both: AuthorizedKeysFile {' '.join(keys)} .ssh/authorized_keys"
        )


def private_group(number: int, user: str) -> bool:
    """Whether nobody but the user is in a group; sshd of Debian trusts what such a group may write to."""
    members = {entry.pw_name for entry in pwd.getpwall() if entry.pw_gid == number}
    try:
        members |= set(grp.getgrgid(number).gr_mem)
    except KeyError:
        return False
    return members <= {user}


def mistrusted(home: str, user: str) -> Iterator[str]:
    """The paths that sshd mistrusts, as others may write to them (StrictModes)."""
    number = pwd.getpwnam(user).pw_uid
    for path in (home, f"{home}/.ssh", f"{home}/.ssh/authorized_keys"):
        try:
            status = Path(path).stat()
        except OSError as error:
            yield f"{path}: {os.strerror(error.errno or 0)}"
            return
        if status.st_uid not in (0, number):
            yield f"sshd there mistrusts {path}, which belongs to another user; type chown {user} {path}"
        if status.st_mode & 0o002 or (status.st_mode & 0o020 and not private_group(status.st_gid, user)):
            yield f"sshd there mistrusts {path}, which others may write to; type chmod go-w {path}"


def obstacles(user: str, address: str) -> list[str]:
    """What keeps a user out, as far as it can be seen on this host."""
    try:
        account = pwd.getpwnam(user)
    except KeyError:
        return [f"there is no user {user} there"]
    groups = [grp.getgrgid(number).gr_name for number in os.getgrouplist(user, account.pw_gid)]
    settings = daemon_settings(user, address)
    found = list(daemon_obstacles(settings, user, account.pw_dir, groups))
    if closed := closed_shell(account.pw_shell):
        found.append(f"{user} cannot log in: its shell {closed}; type usermod --shell /bin/bash {user}")
    if settings.get("strictmodes", "yes") == "yes":
        found += mistrusted(account.pw_dir, user)
    return found


def main(argv: list[str]) -> None:
    """Print the obstacles, or what is wrong with the shell."""
    parser = argparse.ArgumentParser(prog="login.py", description="Why sshd of this host may turn a user away.")
    parser.add_argument("user", metavar="USER")
    parser.add_argument("address", nargs="?", metavar="ADDRESS", help="where the user comes from")
    options = parser.parse_args(argv)
    if options.address:
        print(json.dumps(obstacles(options.user, options.address)))
    else:
        print(closed_shell(pwd.getpwnam(options.user).pw_shell))


if __name__ == "__main__":
    main(sys.argv[1:])
