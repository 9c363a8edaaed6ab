"""diagnose.yml: every host is asked, whatever is wrong with others. Real faults on real hosts: molecule, default."""

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


def test_a_host_that_does_not_answer_hides_nothing(playbook, tmp_path):
    """Its line says why; the others are asked everything; what they say of each other is not the culprit."""
    local = "ansible_connection=local ansible_python_interpreter='{{ ansible_playbook_python }}' ansible_host=127.0.0"
    inventory = tmp_path / "hosts.ini"
    inventory.write_text(
        f"[primary]\na {local}.1\n[workers]\nb {local}.2\nsilent ansible_host=127.0.0.9 ansible_port=1\n"
        "[cluster:children]\nprimary\nworkers\n"
    )
    done = playbook(
        "diagnose.yml", "-i", str(inventory), run_user="nobody", software_stack="native", run_name="x",
        base_model_name="toyworld", base_model_hub_id="a/b", training_data_name="concept",
        training_data_urls=["https://nowhere.invalid/1.png"],
    )  # fmt: skip
    assert done.returncode == 2
    found = json.loads((tmp_path / "artifacts/diagnosis.json").read_text())
    assert {row["host"] for row in found["rows"]} == {"a", "b", "silent"}
    [silent] = [row for row in found["rows"] if row["host"] == "silent"]
    assert "does not answer Ansible" in silent["found"]
    assert "silent: answer: does not answer Ansible" in found["verdict"]
    assert "a, b: environment: missing" in found["verdict"]
    assert done.played.hosts("changed") == {}


def test_a_host_that_does_not_answer_hides_nothing(playbook, tmp_path):
    """Its line says why; the others are asked everything; what they say of each other is not the culprit."""
    local = "ansible_connection=local ansible_python_interpreter='{{ ansible_playbook_python }}' ansible_host=127.0.0"
    inventory = tmp_path / "hosts.ini"
    inventory.write_text(
        f"[primary]\na {local}.1\n[workers]\nb {local}.2\nsilent ansible_host=127.0.0.9 ansible_port=1\n"
        "[cluster:children]\nprimary\nworkers\n"
    )
    done = playbook(
        "diagnose.yml", "-i", str(inventory), run_user="nobody", software_stack="native", run_name="x",
        base_model_name="toyworld", base_model_hub_id="a/b", training_data_name="concept",
        training_data_urls=["https://nowhere.invalid/1.png"],
    )  # fmt: skip
    assert done.returncode == 2
    found = json.loads((tmp_path / "artifacts/diagnosis.json").read_text())
    assert {row["host"] for row in found["rows"]} == {"a", "b", "silent"}
    [silent] = [row for row in found["rows"] if row["host"] == "silent"]
    assert "does not answer Ansible" in silent["found"]
    assert "silent: answer: does not answer Ansible" in found["verdict"]
    assert "a, b: environment: missing" in found["verdict"]
    assert done.played.hosts("changed") == {}
