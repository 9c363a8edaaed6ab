"""The hub's token, given in a vault, through a whole run: no file, no log, no event and no command line tells it."""

import json
import subprocess
import threading
from pathlib import Path

import pytest
import yaml
from conftest import REPOSITORY
from hub_fake import HubFake

TEST_WORK = REPOSITORY / ".cache/test"
TOKEN = "hf_open-sesame-0123456789"


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


@pytest.mark.skipif(not (TEST_WORK / "env").exists(), reason="make pytest provisions the environment")
def test_a_whole_run_keeps_the_token_to_itself(playbook, tmp_path):
    """Provision from a hub that asks for it, as talkative as can be, train, and look everywhere."""
    work = tmp_path / "work"
    work.mkdir()
    for name in ("env", "lib"):
        (work / name).symlink_to(TEST_WORK / name)
    password = tmp_path / "password"
    password.write_text("of the vault")
    vault = tmp_path / "vault.yml"
    vault.write_text(yaml.safe_dump({"base_model_hub_token": TOKEN}))
    encrypt = ["ansible-vault", "encrypt", "--vault-password-file", str(password), str(vault)]
    subprocess.run(encrypt, check=True, capture_output=True)
    talkative = ("-vvvv", "--vault-password-file", str(password), "--extra-vars", f"@{vault}")
    with HubFake(REPOSITORY / "toyworld/model", token=TOKEN) as hub, CommandLines() as lines:
        settings = {
            "base_model_source": "", "base_model_hub_id": "someone/model", "base_model_revision": "v1",
            "base_model_hub_endpoint": hub.url, "base_model_record": str(tmp_path / "model.sha256"),
            "training_max_train_steps": 2, "training_validation_steps": 0, "training_save_as_full_pipeline": True,
        }  # fmt: skip
        runs = [
            playbook("provision.yml", "--tags", "sdtune,base_model,training_data", *talkative, **settings),
            playbook("train.yml", *talkative, **settings),
        ]
    for done in runs:
        assert done.returncode == 0, done.stdout[-3000:]
        assert TOKEN not in done.stdout
        assert TOKEN not in json.dumps(done.played.events)
    assert any("/hf\0download" in line for line in lines.seen)
    assert any("textual_inversion.py" in line for line in lines.seen)
    assert not lines.telling
    files = [p for p in tmp_path.rglob("*") if p.is_file() and not p.is_relative_to(work / "env")]
    assert {"job.yaml", "env.sh", "rank-0.log", "metrics.jsonl"} <= {p.name for p in files}
    assert not [p for p in files if TOKEN.encode() in p.read_bytes()]
    assert not [p for p in (work / "runs").rglob("*") if p.stat().st_mode & 0o7022]  # nobody else may write there
