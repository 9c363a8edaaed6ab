"""What train.yml says of a run that stands still, or whose folder is gone."""

from plugins.action import follow

SEEN = {
    "exists": True, "supervised": True, "lost": False, "standstill": "", "state": {"run_name": "r"}, "progress": {},
}  # fmt: skip


def test_a_run_that_stands_still():
    assert follow.describe(SEEN) == "r: starting"
    told = follow.describe({**SEEN, "standstill": "its supervisor, process 7, is stopped"})
    assert told == "r stands still: its supervisor, process 7, is stopped"


def test_a_run_folder_that_was_deleted():
    action = follow.ActionModule.__new__(follow.ActionModule)
    told = action._failure_message("node1", "/w/runs/r", {**SEEN, "exists": False, "supervised": False})
    assert told == "node1: the run folder /w/runs/r was deleted while the run was going on, which ends the run"


def test_a_run_whose_host_was_rebooted():
    """The record of the run tells it; what died by itself is not called a reboot."""
    action = follow.ActionModule.__new__(follow.ActionModule)
    lost = {**SEEN, "supervised": False, "lost": True, "rebooted": True, "progress": {"checkpoint": 20}}
    assert action._failure_message("node1", "/w/runs/r", lost) == (
        "node1: the host was rebooted, which ended the run; go on from step 20 with "
        "-e training_resume_from_checkpoint=auto; logs are in /w/runs/r/logs"
    )
    told = action._failure_message("node1", "/w/runs/r", {**lost, "rebooted": False, "progress": {}})
    assert told == (
        "node1: the supervisor of the run died, and the job with it; there is no checkpoint: start again; "
        "logs are in /w/runs/r/logs"
    )


def test_a_batch_job_that_waits_or_cannot_start():
    state = {
        "run_name": "r",
        "state": "pending",
        "job": "7",
        "words": "is job 7, pending (Priority)",
        "why": "Priority",
    }
    assert follow.describe({**SEEN, "state": state}) == "r is job 7, pending (Priority)"
    action = follow.ActionModule.__new__(follow.ActionModule)
    hopeless = {**SEEN, "state": {**state, "why": "JobHeldUser", "never": "it is held"}}
    told = action._failure_message("login", "/w/runs/r", hopeless)
    assert told.startswith("login: job 7 cannot start (JobHeldUser): it is held; it stays in the queue")


def test_a_run_that_draws_class_pictures_first():
    state = {"run_name": "r", "doing": "draws the class pictures, 3 of 9"}
    assert follow.describe({**SEEN, "state": state}) == "r: draws the class pictures, 3 of 9"


def test_a_batch_system_that_does_not_answer():
    assert follow.describe({**SEEN, "remark": "Slurm does not answer"}) == "r: starting, Slurm does not answer"
