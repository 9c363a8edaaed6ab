#!/usr/bin/python
"""The documentation of the action of this name, which has no module."""

from __future__ import annotations

DOCUMENTATION = r"""
module: follow_runs
short_description: Follow runs that go on side by side until the last of them ends
description: Shows them as one live table. The runs do not depend on this action.
options:
  runs_dir: {description: Folder of all runs on the host., type: path, required: true}
  names: {description: Of batch jobs., type: list, elements: str, default: []}
  python: {description: The host's own Python., type: path, required: true}
  script: {description: run_state.py on the control node., type: path, required: true}
  reconnect_timeout: {description: Seconds to keep asking a host that does not answer., type: int, default: 120}
author: sdtune (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Follow the runs
  follow_runs:
    runs_dir: /home/sdtune/sdtune/runs
    python: "{{ ansible_facts['python']['executable'] }}"
    script: python/standalone/run_state.py
"""

RETURN = r"""
rows:
  description: The last table, one row for each run.
  type: list
  elements: dict
  returned: always
"""
