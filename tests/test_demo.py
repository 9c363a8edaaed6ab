"""The demo on this machine, from the installed collection, with a hub's token in a vault: nothing tells the token."""

import json
import os
import subprocess
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from conftest import REPOSITORY, own_network, playbook_in
from hub_fake import HubFake

TEST_WORK = REPOSITORY / ".cache/test"
PREFIX = TEST_WORK / "env/native"
TOKEN = "hf_open-sesame-0123456789"

pytestmark = pytest.mark.skipif(not PREFIX.exists(), reason="make pytest provisions the environment")


class CommandLines:
    """Reads all command lines of this machine repeatedly, as a context; ``telling`` are those with the token."""

    def __init__(self) -> None:
        self.telling: set[str] = set()
        self.seen: set[str] = set()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def _watch(self) -> None:
        while not self._done.wait(0.05):
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    line = path.read_text(errors="replace")
                except OSError:  # it ended meanwhile
                    continue
                self.seen.add(line)
                if TOKEN in line:
                    self.telling.add(line)

    def __enter__(self) -> "CommandLines":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()


@pytest.fixture(scope="module")
def demo(project, tmp_path_factory):
    """Provision from a hub that asks for the token, as talkative as can be; train two ranks, export; draw.

    Environment and code are those of the tests, so that provisioning has little to do.
    """
    folder = tmp_path_factory.mktemp("demo")
    work, artifacts = folder / "work", folder / "artifacts"
    work.mkdir()
    for name in ("env", "lib", "sdtune"):
        (work / name).symlink_to(TEST_WORK / name)
    password, vault = folder / "password", folder / "vault.yml"
    password.write_text("of the vault")
    vault.write_text(yaml.safe_dump({"base_model_hub_token": TOKEN}))
    encrypt = ["ansible-vault", "encrypt", "--vault-password-file", str(password), str(vault)]
    subprocess.run(encrypt, check=True, capture_output=True)
    talkative = ("-vvvv", "--vault-password-file", str(password), "--extra-vars", f"@{vault}")
    small = yaml.safe_load((REPOSITORY / "molecule/small.yml").read_text())
    playbook = playbook_in(folder, project.environment)
    with own_network(), HubFake(REPOSITORY / "toyworld/model", token=TOKEN) as hub, CommandLines() as lines:
        settings = small | {
            "artifacts_dir": str(artifacts), "run_name": "demo", "training_validation_prompt": "",
            "base_model_source": "", "base_model_hub_id": "someone/model", "base_model_revision": "v1",
            "base_model_hub_endpoint": hub.url, "base_model_record": str(folder / "model.sha256"),
        }  # fmt: skip
        runs = [
            playbook(str(project.folder / f"{name}.yml"), *talkative, **settings) for name in ("provision", "train")
        ]
        runs.append(playbook(str(project.folder / "generate.yml"), **settings))
        yield SimpleNamespace(
            folder=folder, work=work, artifacts=artifacts, run=work / "runs/demo", runs=runs, lines=lines
        )


def test_all_of_it_works(demo):
    """Pictures of all prompts and seeds, and a report."""
    for done in demo.runs:
        assert done.returncode == 0, done.stdout[-3000:]
    assert len(list((demo.artifacts / "demo/images").glob("*.png"))) == 2 + 1  # and the contact sheet
    assert (demo.artifacts / "demo/report.html").exists()
    for folder in ("models/toyworld", "data/concept"):
        check = ["sha256sum", "--check", "--strict", "--quiet", f"{demo.work / folder}.sha256"]
        subprocess.run(check, cwd=demo.work / folder, check=True)


def test_nothing_tells_the_token(demo):
    """No file, no log, no event and no command line."""
    for done in demo.runs:
        assert TOKEN not in done.stdout
        assert TOKEN not in json.dumps(done.played.events)
    assert any("/hf\0download" in line for line in demo.lines.seen)
    assert any("textual_inversion.py" in line for line in demo.lines.seen)
    assert not demo.lines.telling
    files = [p for p in demo.folder.rglob("*") if p.is_file() and not p.is_relative_to(demo.work / "env")]
    assert {"job.yaml", "env.sh", "rank-0.log", "metrics.jsonl"} <= {p.name for p in files}
    assert not [p for p in files if TOKEN.encode() in p.read_bytes()]
    assert not [p for p in demo.run.rglob("*") if p.stat().st_mode & 0o7022]  # nobody else may write there


def test_accelerate_reads_its_config(demo):
    """Ranks, hosts, the rank of this host, and that there is no GPU."""
    code = (
        "import sys; from accelerate.commands.config.config_args import load_config_from_file as load;"
        "c = load(sys.argv[1]); print(c.num_processes, c.num_machines, c.machine_rank, c.use_cpu)"
    )
    read = [PREFIX / "bin/python", "-c", code, demo.run / "accelerate.yaml"]
    assert subprocess.run(read, capture_output=True, text=True, check=True).stdout == "2 1 0 True\n"


def losses(run):
    """The loss of each step of a run."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if line["kind"] == "step"]


def test_launch_sh_learns_the_same_without_ansible(demo):
    """From another folder, with a stale rank exported."""
    before = losses(demo.run)
    stale = {**os.environ, "RANK": "7", "WORLD_SIZE": "9"}
    subprocess.run([demo.run / "launch.sh", "--overwrite"], cwd="/", env=stale, check=True, capture_output=True)
    assert len(before) == 4
    assert losses(demo.run) == before
