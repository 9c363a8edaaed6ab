"""Why sshd of this host may turn a user away who has the right key. Runs as root; prints a list of sentences as JSON.

Before there is a key, it is asked for the user's shell alone: without addresses, it prints what is wrong with that.

Needs Python 3.9 or newer; the host's own Python will do. Ansible sends this file to it on standard input.
"""

from __future__ import annotations

import argparse
import grp
import ipaddress
import json
import os
import pwd
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

SSHD = "/etc/ssh/sshd_config"
# While one exists, only root gets in. sshd reads the first, PAM both; systemd makes the second as it boots.
_CLOSED_HOST = ("/etc/nologin", "/run/nologin")
# Login shells that run no command, or not any: what MPI and rsync start has to be one of theirs.
_CLOSED = ("false", "nologin", "true", "sync", "halt", "shutdown", "git-shell", "rbash", "rssh", "scponly")


def closed_shell(shell: str) -> str:
    """Why a login shell does not run the commands of MPI and rsync; empty if it does."""
    if Path(shell).name in _CLOSED:
        return f"{shell} does not run commands"
    return "" if not shell or os.access(shell, os.X_OK) else f"{shell} cannot be started"


def daemon_settings(user: str, host: str, address: str) -> dict[str, str]:
    """What sshd's configuration says for this user from there; empty where sshd does not tell."""
    where = f"user={user},host={host},addr={address},laddr={address},lport=22"
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


def asked_from(user: str, name: str) -> tuple[str, str, dict[str, str]]:
    """Host name and address by which sshd knows a host, and its settings for the user from there."""
    try:
        address = socket.gethostbyname(name)
    except OSError:
        address = name
    settings = daemon_settings(user, address, address)
    if settings.get("usedns") != "yes":
        return address, address, settings
    try:
        host = socket.gethostbyaddr(address)[0].lower()
    except OSError:
        host = address
    return host, address, daemon_settings(user, host, address)


def is_like(text: str, pattern: str) -> bool:
    """Whether a text matches a pattern of sshd, in which ``*`` and ``?`` stand for others (ssh_config(5), PATTERNS)."""
    parts = {"*": ".*", "?": "."}
    return re.fullmatch("".join(parts.get(one, re.escape(one)) for one in pattern), text, re.DOTALL) is not None


def is_host_of(host: str, address: str, patterns: str) -> bool:
    """Whether a host matches a list with commas of names, addresses and networks; one with ``!`` excludes it."""
    found = False
    for pattern in patterns.split(","):
        plain = pattern[pattern.startswith("!") :]
        if "/" in plain:
            try:
                fits = ipaddress.ip_address(address) in ipaddress.ip_network(plain, strict=False)
            except ValueError:
                fits = False
        else:
            fits = is_like(address, plain) or is_like(host, plain.lower())
        if fits and plain != pattern:
            return False
        found = found or fits
    return found


def names_user(patterns: str, user: str, host: str, address: str) -> bool:
    """Whether a list of ``USER`` and ``USER@HOST``, as of AllowUsers, has a user who comes from there."""
    return any(
        is_like(user, name) and (not at or is_host_of(host, address, where))
        for name, at, where in (pattern.partition("@") for pattern in patterns.split())
    )


def daemon_obstacles(
    settings: dict[str, str], user: str, home: str, groups: list[str], host: str, address: str
) -> Iterator[str]:
    """What sshd's configuration says against the user who comes from a host."""

    def lists(setting: str) -> bool:
        patterns = settings.get(setting, "")
        if setting.endswith("users"):
            return names_user(patterns, user, host, address)
        return any(is_like(group, pattern) for group in groups for pattern in patterns.split())

    for kind, own in (("users", user), ("groups", f"a group of {user}")):
        if (allowed := settings.get(f"allow{kind}")) and not lists(f"allow{kind}"):
            where = f" from {host}" if "@" in allowed else ""
            yield f"sshd there lets in only {allowed} (Allow{kind.title()} in {SSHD}), not {user}{where}; add {own}"
        if lists(f"deny{kind}"):
            where = f" from {host}" if "@" in settings[f"deny{kind}"] else ""
            yield f"sshd there turns {user}{where} away (Deny{kind.title()} in {SSHD})"
    if settings.get("pubkeyauthentication") == "no":
        yield f"sshd there accepts no keys (PubkeyAuthentication no in {SSHD})"
    methods = settings.get("authenticationmethods", "any")
    if not {"any", "publickey"} & set(methods.split()):
        yield (
            f"sshd there asks for more than a key (AuthenticationMethods {methods} in {SSHD}); let it be enough for "
            f"{user}: AuthenticationMethods publickey, below Match User {user}"
        )
    if settings.get("forcecommand", "none") != "none":
        yield f"sshd there runs {settings['forcecommand']} instead of a command (ForceCommand in {SSHD})"
    yield from unread_keys(settings.get("authorizedkeysfile", ".ssh/authorized_keys").split(), user, home)


def unread_keys(files: list[str], user: str, home: str) -> Iterator[str]:
    """What is wrong with the files in which sshd looks for keys: the cluster key is in none of them."""
    keys = [key for key in files if key.lower() != "none"]
    at = [str(Path(home) / key.replace("%h", home).replace("%u", user)) for key in keys]
    if f"{home}/.ssh/authorized_keys" not in at:
        yield (
            f"sshd there reads {'keys from ' + ', '.join(at) if at else 'no file of keys'} (AuthorizedKeysFile in "
            f"{SSHD}), and the cluster key is in {home}/.ssh/authorized_keys; let sshd read "
            f"{'both' if at else 'that'}: AuthorizedKeysFile {' '.join([*keys, '.ssh/authorized_keys'])}"
        )


def shadow_entry(user: str) -> list[str]:
    """The account's passwords and dates, as in shadow(5); empty where the host keeps none."""
    done = subprocess.run(["getent", "shadow", user], capture_output=True, text=True, check=False)
    entry = done.stdout.strip().split(":")
    return entry if len(entry) == 9 else []


def account_obstacles(entry: list[str], user: str, today: int, *, pam: bool) -> Iterator[str]:
    """What the entry of an account in shadow(5) says against it; ``today`` in days since 1970."""
    if not entry:
        return
    _, password, changed, _, most, _, _, expires, _ = entry
    if expires and today >= int(expires):
        yield f"the account {user} has expired there; type chage --expiredate -1 {user}"
    if not pam and password.startswith("!"):
        yield f"the account {user} is locked there; type usermod --password '*' {user}, which lets in by key only"
    # 0: the password has to be changed first, which nobody does where a command runs
    late = most and int(most) >= 0 and changed and today > int(changed) + int(most)
    if pam and (changed == "0" or late):
        yield f"the password of {user} has expired there; type chage --lastday {today} --maxdays -1 {user}"


def closed_host(paths: tuple[str, ...]) -> Iterator[str]:
    """The files that keep everybody but root out."""
    for path in filter(os.path.exists, paths):
        yield f"only root may log in there while {path} exists; wait until it has booted, or remove the file"


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


def obstacles(user: str, addresses: list[str]) -> list[str]:
    """What keeps a user out who comes from one of these hosts, as far as it can be seen on this one."""
    try:
        account = pwd.getpwnam(user)
    except KeyError:
        return [f"there is no user {user} there"]
    groups = [grp.getgrgid(number).gr_name for number in os.getgrouplist(user, account.pw_gid)]
    found: list[str] = []
    settings: dict[str, str] = {}
    for name in addresses:
        host, address, settings = asked_from(user, name)
        found += daemon_obstacles(settings, user, account.pw_dir, groups, host, address)
    pam = settings.get("usepam") == "yes"
    found += account_obstacles(shadow_entry(user), user, int(time.time() // 86_400), pam=pam)
    found += closed_host(_CLOSED_HOST if pam else _CLOSED_HOST[:1])
    if closed := closed_shell(account.pw_shell):
        found.append(f"{user} cannot log in: its shell {closed}; type usermod --shell /bin/bash {user}")
    if settings.get("strictmodes", "yes") == "yes":
        found += mistrusted(account.pw_dir, user)
    return list(dict.fromkeys(found))


def main(argv: list[str]) -> None:
    """Print the obstacles, or what is wrong with the shell."""
    parser = argparse.ArgumentParser(prog="login.py", description="Why sshd of this host may turn a user away.")
    parser.add_argument("user", metavar="USER")
    parser.add_argument("addresses", nargs="*", metavar="ADDRESS", help="where the user comes from")
    options = parser.parse_args(argv)
    if options.addresses:
        print(json.dumps(obstacles(options.user, options.addresses)))
    else:
        print(closed_shell(pwd.getpwnam(options.user).pw_shell))


if __name__ == "__main__":
    main(sys.argv[1:])
