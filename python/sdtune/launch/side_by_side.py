"""Runs side by side: hosts are dealt out to them, and the next run starts on hosts that become free.

One process on the primary outlives the call that started it, as a run's supervisor does. Each run has a supervisor of
its own on the first of its hosts, so a host that is lost costs the run that it holds. When a run has ended, its folder
is brought to the primary, where all that follows the training expects it. With Slurm, whose queue does all of this,
the runs are only submitted.
"""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sdtune.errors import BadInput
from sdtune.files import hold_lock, write_atomically
from sdtune.host.ssh import command_on
from sdtune.launch import detach, submit
from sdtune.launch.dealing import Request, Table
from standalone import launch_files, run_state

LAUNCH = (sys.executable, "-P", "-m", "sdtune.launch")
_STATE = (sys.executable, "-I", run_state.__file__)
_REQUEST = ".side-by-side/request.json"
_ANSWER = 60.0  # seconds for a command on another host
_LOOK = 5.0  # seconds for which a look at a run waits there for its end
_SILENT = 20.0  # seconds between two tries of a host that does not answer
_RSYNC = ("rsync", "--archive", "--timeout=60", "--rsh=ssh -o BatchMode=yes -o ConnectTimeout=5")
_OF_THE_HOST = ("--exclude=/.*", "--exclude=/env.sh")  # what stays where it is: locks, staged files, its environment


class HostSilent(Exception):
    """A host does not answer."""


class Dealer:
    """Starts the runs of a request on hosts that become free, until all have ended."""

    def __init__(self, runs: Path, request: Request) -> None:
        """Prepare.

        Args:
            runs: the folder of all runs, at the same path on all hosts.
            request: what is asked for.
        """
        self.runs, self.request = runs, request
        before = json.loads((runs / run_state.TABLE).read_text("utf-8")) if (runs / run_state.TABLE).exists() else {}
        self.table = Table(request, before.get("rows", ()))
        self.primary = next(iter(request.hosts))
        self.stop: dict[str, float] = {}
        """Seconds for its step and the checkpoint, of each run that is to stop."""
        self._lock = threading.Lock()  # of the table
        (runs / run_state.TABLE_STOP).unlink(missing_ok=True)

    def work(self) -> None:
        """Deal hosts out until nothing is left to do."""
        going: set[Future[None]] = set()
        with ThreadPoolExecutor(len(self.request.hosts)) as pool:
            going |= {pool.submit(self._follow, name) for name in self.table.named("running")}
            tried = time.monotonic()
            while True:
                self._read_stop()
                with self._lock:
                    for name in self.stop.keys() & set(self.table.named("waiting")):
                        self.table.end(name, "stopped", "on request, before it started")
                    assigned = self.table.assign()
                going |= {pool.submit(self._run, name) for name in assigned}
                self._write()
                ended, going = wait_for(going, timeout=1) if going else (set(), going)
                for future in ended:
                    future.result()
                if self.table.silent and time.monotonic() - tried > _SILENT:
                    tried = time.monotonic()
                    self._ask_silent_hosts()
                with self._lock:
                    if not going and self.table.is_over(time.time()):
                        break
                if not going:
                    time.sleep(1)
        self._write()

    def _read_stop(self) -> None:
        """A request to stop some runs or all of them is written by ``stop.yml``."""
        path = self.runs / run_state.TABLE_STOP
        if path.exists():
            asked = json.loads(path.read_text("utf-8"))
            path.unlink()
            self.stop |= dict.fromkeys(asked["runs"] or self.request.runs, asked["within"])

    def _write(self) -> None:
        with self._lock:
            text = json.dumps(self.table.written(), indent=1) + "\n"
        path = self.runs / run_state.TABLE
        if not path.exists() or path.read_text("utf-8") != text:
            write_atomically(path, text)

    # --- one run, in a thread of its own ---------------------------------------------------------------------------

    def _run(self, name: str) -> None:
        """Start a run on the hosts that it was given, and follow it to its end."""
        hosts, run = self.table.rows[name]["hosts"], self.runs / name
        silent = [host for host in hosts if not self._answers(host)]
        if silent:
            print(f"{name} waits for other hosts: {', '.join(silent)} do not answer", flush=True)
            with self._lock:
                self.table.return_to_queue(name, silent)
            return
        print(f"{name} starts on {', '.join(hosts)}", flush=True)
        try:
            if (run / "checkpoints").is_dir() and hosts[0] != self.primary:  # it may go on from one of them
                self._copy(f"{run}/", f"{self.request.hosts[hosts[0]]}:{run}/")
            start = [*LAUNCH, "start", "--call", self.request.call, "--hosts", ",".join(hosts)]
            done = self._on(hosts[0], [*start, str(run), *self.request.arguments], seconds=180)
        except (BadInput, HostSilent) as error:
            self._end(name, "failed", str(error))
            return
        if done.returncode:
            self._end(name, "failed", _error_of(done))
            return
        self._follow(name)

    def _follow(self, name: str) -> None:
        """Look at a run until it has ended, and bring its folder to the primary."""
        hosts, heard, asked = self.table.rows[name]["hosts"], time.monotonic(), False
        while True:
            try:
                if name in self.stop and not asked:
                    self._on(hosts[0], [*_STATE, "stop", str(self.runs / name), str(self.stop[name])])
                    asked = True
                seen = self._look(hosts[0], name)
            except HostSilent as error:
                if time.monotonic() - heard > self.request.host_wait:
                    self._lose(name, str(error))
                    return
                with self._lock:
                    self.table.update(name, {**self.table.rows[name], "words": str(error)})
                time.sleep(2)
                continue
            heard, row = time.monotonic(), run_state.table_row(name, seen)
            if row["state"] not in ("running", "waiting"):
                break
            with self._lock:
                self.table.update(name, {**row, "state": "running"})
        try:
            self._bring_home(name, hosts)
        except (BadInput, HostSilent) as error:
            row = {**row, "state": "failed", "reason": f"{row['state']}, and its folder stays on {hosts[0]}: {error}"}
        with self._lock:
            self.table.update(name, row)
        self._end(name, row["state"], row.get("reason", ""))

    def _look(self, host: str, name: str) -> dict[str, Any]:
        done = self._on(host, [*_STATE, "look", str(self.runs / name), str(_LOOK)])
        if done.returncode:
            raise HostSilent(f"{host} cannot tell how far it is ({_error_of(done)})")
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def _end(self, name: str, state: str, reason: str) -> None:
        print(f"{name}: {state}{f', {reason}' if reason else ''}", flush=True)
        with self._lock:
            self.table.end(name, state, reason)

    def _lose(self, name: str, why: str) -> None:
        first = self.table.rows[name]["hosts"][0]
        with self._lock:
            self.table.silent[first] = time.time()
        self._end(name, "failed", f"its host was lost: {why} for {self.request.host_wait:.0f} s")

    def _bring_home(self, name: str, hosts: Sequence[str]) -> None:
        """Bring what a run has written to the primary, and leave nothing of it on the other hosts.

        Raises:
            BadInput: it cannot be copied.
            HostSilent: the first host does not answer.
        """
        run, first = self.runs / name, hosts[0]
        if first != self.primary:
            if launch_files.staged(run, self.request.call).is_dir():
                launch_files.place(run, self.request.call)
            self._copy("--delete", f"{self.request.hosts[first]}:{run}/", f"{run}/")
            (run / run_state.COLLECTED).unlink(missing_ok=True)
        for host in hosts[1:]:
            if host != self.primary:
                self._copy(f"{self.request.hosts[host]}:{run}/logs/", f"{run}/logs/")
        for host in self.request.hosts:  # those that did not get it have its staged files
            if host != self.primary and host not in self.table.silent:
                self._on(host, ["rm", "-rf", "--one-file-system", str(run)])

    # --- hosts ------------------------------------------------------------------------------------------------------

    def _on(self, host: str, command: Sequence[str], seconds: float = _ANSWER) -> subprocess.CompletedProcess[str]:
        """Run a command on a host.

        Raises:
            HostSilent: the host does not answer.
        """
        there = list(command) if host == self.primary else command_on(self.request.hosts[host], command)
        try:
            done = subprocess.run(
                there, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=seconds, check=False
            )
        except subprocess.TimeoutExpired:
            raise HostSilent(f"{host} has not answered") from None
        if done.returncode == 255 and host != self.primary:
            raise HostSilent(f"{host} has not answered")
        return done

    def _answers(self, host: str) -> bool:
        try:
            return self._on(host, ["true"]).returncode == 0
        except HostSilent:
            return False

    def _ask_silent_hosts(self) -> None:
        for host in [host for host in self.table.silent if self._answers(host)]:
            with self._lock:
                del self.table.silent[host]

    def _copy(self, *arguments: str) -> None:
        done = subprocess.run(
            [*_RSYNC, *_OF_THE_HOST, *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise BadInput(f"its folder cannot be copied ({_error_of(done)})")


def _error_of(done: subprocess.CompletedProcess[str]) -> str:
    """What a command said last, without the word error."""
    lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
    return lines[-1].removeprefix("error: ") if lines else f"code {done.returncode}"


def submit_all(runs: Path, request: Request) -> None:
    """Submit the runs to Slurm. With a limit, each waits for the end of the one so many places before it.

    Raises:
        BadInput: Slurm does not take a job; those before it stay submitted.
    """
    jobs: list[str] = []
    for name in request.runs:
        run, before = runs / name, jobs[-request.at_once] if 0 < request.at_once <= len(jobs) else ""
        if not request.call or launch_files.staged(run, request.call).is_dir():  # else it was going on, and is followed
            submit.submit(run, list(request.arguments), request.call, after=before)
        jobs.append(submit.newest_job(run))


def start(runs: Path, request: Request) -> str:
    """Submit the runs, or start what deals the hosts out to them, in the background.

    Returns:
        ``started``, or ``attached`` when runs go on side by side already.

    Raises:
        BadInput: Slurm does not take a job, or the process does not start; with its error message.
    """
    if not request.hosts_per_run:
        submit_all(runs, request)
        return "started"
    (runs / run_state.TABLE).parent.mkdir(exist_ok=True)
    if run_state.is_locked(runs / run_state.TABLE_LOCK):
        return "attached"
    before = time.time()
    write_atomically(runs / _REQUEST, json.dumps(asdict(request)) + "\n")
    process = detach.spawn([*LAUNCH, "deal", str(runs)], "sdtune-side-by-side", runs, runs / run_state.TABLE_LOG)
    end = time.monotonic() + 60
    while time.monotonic() < end and not process.poll():
        if run_state.table(runs, [])["began"] > before and run_state.is_locked(runs / run_state.TABLE_LOCK):
            return "started"
        time.sleep(0.1)
    raise BadInput(f"what deals the hosts out does not start: {(runs / run_state.TABLE_LOG).read_text('utf-8')[-800:]}")


def deal(runs: Path) -> None:
    """Deal the hosts out as :func:`start` was asked to, until nothing is left to do.

    Raises:
        BadInput: another process does that.
    """
    try:
        with hold_lock(runs / run_state.TABLE_LOCK, timeout=1):
            Dealer(runs, Request(**json.loads((runs / _REQUEST).read_text("utf-8")))).work()
    except BlockingIOError:
        raise BadInput(f"{runs}: hosts are dealt out to other runs already; wait for them") from None
