#!/usr/bin/python
"""The documentation of the action of this name, which has no module."""

from __future__ import annotations

DOCUMENTATION = r"""
module: fetch_folder
short_description: Bring a folder of a host to the control node, many files in one call
description:
  - Over Ansible's own connection. Each file is verified by its SHA-256, and takes its place when it is complete.
options:
  src: {description: Folder on the host., type: path, required: true}
  dest: {description: Folder on the control node., type: path, required: true}
  python: {description: The host's own Python., type: path, required: true}
  remove:
    description: Patterns of names that are removed from dest where src lacks them.
    type: list
    elements: str
    default: []
author: sdtune (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Copy the results
  fetch_folder:
    src: /home/sdtune/sdtune/runs/demo
    dest: artifacts/demo
    python: "{{ ansible_facts['python']['executable'] }}"
    remove: ["*.png"]
"""

RETURN = r"""
differences:
  description: The paths that were missing, different or removed.
  type: list
  elements: str
  returned: always
"""
