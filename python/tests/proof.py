"""What fakes of a finished run write into ``finished.json``, in place of training."""

import hashlib


def proof(
    run_name: str, *, ranks: int = 1, token_sha256: str = 16 * "0", job: bytes | None = None, **files: bytes
) -> dict:
    """The proof that so many ranks have finished a run and learned these files: name without suffix, and content.

    ``job`` is the content of job.yaml, if there is one.
    """
    learned = {f"{name}.safetensors": hashlib.sha256(content).hexdigest() for name, content in files.items()}
    signed = [{"rank": rank, "host": "here", "pid": 7, "samples": 9} for rank in range(ranks)]
    facts = {"run_name": run_name, "steps": 9, "attempt": 1, "token_sha256": token_sha256}
    facts["job_sha256"] = "" if job is None else hashlib.sha256(job).hexdigest()
    return {**facts, "world_size": ranks, "ranks": signed, "learned": learned}
