#!/usr/bin/python
"""The documentation of the action of this name, which has no module."""

from __future__ import annotations

DOCUMENTATION = r"""
module: push_folder
short_description: Bring a folder of the control node to a host, over Ansible's own connection
description: Only files whose content differs are sent. All take their places at the end, each with the right SHA-256.
options:
  src: {description: Folder on the control node., type: path, required: true}
  dest: {description: Folder on the host., type: path, required: true}
  python: {description: The host's own Python., type: path, required: true}
  exclude:
    description: Patterns of names that are neither sent nor removed; one that begins with / is a path below the folder.
    type: list
    elements: str
    default: [".*"]
  mode: {description: Mode of the files., type: str, default: "0644"}
  folder_mode: {description: Mode of the folders., type: str, default: "0755"}
author: sdtune (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Copy the pictures
  push_folder:
    src: toyworld/concept
    dest: /home/sdtune/sdtune/data/concept
    python: "{{ ansible_facts['python']['executable'] }}"
"""

RETURN = r"""
lines:
  description: What the folder holds, as sha256sum prints it.
  type: list
  elements: str
  returned: always
differences:
  description: The paths that were missing, different or foreign.
  type: list
  elements: str
  returned: always
"""
