"""Filters for job files: what ``python/sdtune/settings`` makes of the values of Ansible's variables."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[2] / "python"))
from sdtune.settings.ansible import job_data


class FilterModule:
    """What Ansible looks for in a filter plugin."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """{name: function}."""
        return {"job_data": job_data}
