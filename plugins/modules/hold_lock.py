#!/usr/bin/python
"""The documentation of the action of this name, which has no module."""

from __future__ import annotations

DOCUMENTATION = r"""
module: hold_lock
short_description: Keep other calls of ansible-playbook from changing the same folder of a host
description: The lock lasts as long as the call of ansible-playbook, whose plugins renew it.
options:
  protects:
    description: The folder that it protects, also below ~USER. It need not exist.
    type: path
    required: true
  place: {description: Folder of the host for the files of locks., type: path, required: true}
  python: {description: The host's own Python., type: path, required: true}
  wait: {description: Seconds to wait for another call., type: int, default: 90}
  lease: {description: Seconds that the lock is held without being renewed., type: int, default: 60}
  take: {description: Whether to take it - otherwise only wait until no other call holds it., type: bool, default: true}
  holder: {description: What the task that took the lock has returned - the lock is released., type: dict}
author: sdtune (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Wait until no other ansible-playbook changes the host
  hold_lock:
    protects: /home/sdtune/sdtune
    place: /run/lock
    python: "{{ ansible_facts['python']['executable'] }}"
  register: __example_lock

- name: Release it
  hold_lock:
    protects: /home/sdtune/sdtune
    place: /run/lock
    python: "{{ ansible_facts['python']['executable'] }}"
    holder: "{{ __example_lock.holder }}"
"""

RETURN = r"""
holder:
  description: Who holds the lock; releasing it needs this.
  type: dict
  returned: when it was taken
host:
  description: The name of the host.
  type: str
  returned: when it was taken or released
file:
  description: The file of the lock there.
  type: str
  returned: when it was taken or released
"""
