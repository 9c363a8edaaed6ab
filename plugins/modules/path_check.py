#!/usr/bin/python
"""Say which of several paths exist on a host."""

from __future__ import annotations

DOCUMENTATION = r"""
module: path_check
short_description: Which of several paths exist
description: Changes nothing. A link exists if what it leads to does.
options:
  paths:
    description: Paths on the host.
    type: list
    elements: path
    required: true
author: sdtune (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Look for the libraries
  path_check:
    paths: [/usr/lib/libtcmalloc.so.4, /usr/lib64/libtcmalloc.so.4]
"""

RETURN = r"""
present:
  description: The paths that exist, in the order of the question.
  type: list
  elements: str
  returned: always
missing:
  description: The others.
  type: list
  elements: str
  returned: always
"""

import os

from ansible.module_utils.basic import AnsibleModule


def check(paths: list[str]) -> dict[str, list[str]]:
    """``present`` and ``missing``, each in the order of ``paths``."""
    present = [path for path in paths if os.path.exists(path)]  # noqa: PTH110 - Path.exists raises where a folder may not be entered
    return {"present": present, "missing": [path for path in paths if path not in present]}


def main() -> None:
    """Run as an Ansible module."""
    module = AnsibleModule(
        argument_spec={"paths": {"type": "list", "elements": "path", "required": True}}, supports_check_mode=True
    )
    module.exit_json(changed=False, **check(module.params["paths"]))


if __name__ == "__main__":
    main()
