"""What a program in the background is called by systemd; the fake of systemd-run prints what it was asked."""

import os

from sdtune.launch import detach


def test_runs_of_one_name_have_units_of_their_own(tmp_path, monkeypatch):
    """One user may have several work_dirs on a host, and systemd refuses a second unit of a name."""
    fake = tmp_path / "bin/systemd-run"
    fake.parent.mkdir()
    fake.write_text('#!/bin/sh\necho "$@"\n')
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(detach, "_manager_lingers", lambda user: True)

    def unit(run):
        run.mkdir(parents=True, exist_ok=True)
        log = run / "logs/log"
        assert detach.spawn(["true"], f"sdtune-{run.name}", run, log).wait() == 0
        return next(word for word in log.read_text().split() if word.startswith("--unit="))

    first, second = unit(tmp_path / "a/runs/toy"), unit(tmp_path / "b/runs/toy")
    assert first != second
    assert first.startswith("--unit=sdtune-toy-")
    assert unit(tmp_path / "a/runs/toy") == first
