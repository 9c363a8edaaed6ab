#!/usr/bin/python
"""The documentation of the action of this name, which has no module."""

from __future__ import annotations

DOCUMENTATION = r"""
module: write_files
short_description: Write small text files to a host, all in one call
description: The host's own Python gets all of them on its standard input.
options:
  folders:
    description: >-
      For each folder on the host its files, the text of each; a name may contain folders. A newline at the end is added
      where it lacks. The same for scripts, files that are executable. Under above, more folders that get the mode of
      folders.
    type: dict
    required: true
  python: {description: The host's own Python., type: path, required: true}
  mode: {description: Mode of the files., type: str, required: true}
  folder_mode: {description: Mode of the folders and the scripts., type: str, required: true}
author: sdtune (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Write the launch files
  write_files:
    folders:
      /home/sdtune/sdtune/runs/demo: {files: {hostfile: node1}}
    python: "{{ ansible_facts['python']['executable'] }}"
    mode: "0644"
    folder_mode: "0755"
"""

RETURN = r"""
written:
  description: The paths of files and folders that were not as they are now.
  type: list
  elements: str
  returned: always
"""
