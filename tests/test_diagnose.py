"""diagnose.yml: every host is asked, whatever is wrong with the others."""

import json

REPAIR = "run ansible-playbook provision.yml with the same inventory, which repairs it"


def verdict(done):
    """The last line of what failed last."""
    return done.played.failures()[-1].strip().splitlines()[-1]


def test_a_clean_host(playbook, tmp_path):
    """Nothing is there: that is said, nothing is made but the report, and check mode does not mind."""
    done = playbook("diagnose.yml")
    assert done.returncode == 2
    assert verdict(done) == f"Culprit: localhost: environment: missing; {REPAIR}"
    assert done.played.hosts("changed") == {}
    assert not (tmp_path / "work").exists()
    found = json.loads((tmp_path / "artifacts/diagnosis.json").read_text())
    assert found["ok"] is False
    assert found["verdict"] == verdict(done)
    rows = {row["check"]: row for row in found["rows"]}
    assert [rows[check]["ok"] for check in ("answer", "disk", "memory", "clock", "model")] == [True] * 4 + [False]
    assert playbook("diagnose.yml", "--check").returncode == 0
