#!/usr/bin/python
"""The documentation of the action of this name, which has no module."""

from __future__ import annotations

DOCUMENTATION = r"""
module: follow
short_description: Follow a run until it ends
description: Shows its progress as one live line. The run does not depend on this action.
options:
  what: {description: What to follow., type: str, choices: [training, drawing], required: true}
  run_dir: {description: Folder of the run on the host., type: path, required: true}
  python: {description: The host's own Python., type: path, required: true}
  script: {description: run_state.py on the control node., type: path, required: true}
  reconnect_timeout: {description: Seconds to keep asking a host that does not answer., type: int, default: 120}
author: sdtune (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Follow the run
  follow:
    what: training
    run_dir: /home/sdtune/sdtune/runs/demo
    python: "{{ ansible_facts['python']['executable'] }}"
    script: python/standalone/run_state.py
"""

RETURN = r"""
state:
  description: The last state of the run, as run_state.py prints it.
  type: dict
  returned: unless in check mode
progress:
  description: What its ranks have written, as run_state.py prints it.
  type: raw
  returned: for a training
"""
