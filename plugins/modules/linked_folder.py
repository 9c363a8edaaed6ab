#!/usr/bin/python
"""Make a temporary folder of links to chosen files."""

from __future__ import annotations

DOCUMENTATION = r"""
module: linked_folder
short_description: A temporary folder of links to chosen files
description:
  - It shows these files under these names, without a copy. The caller removes it.
options:
  files:
    description: The absolute path of each file, by its path below the folder.
    type: dict
    required: true
author: sdtune (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Select the files
  linked_folder:
    files:
      unet/weights.safetensors: /srv/model/unet/weights.fp16.safetensors
  register: __example_folder
"""

RETURN = r"""
path:
  description: The folder.
  type: str
  returned: always
"""

import tempfile
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule


def link(files: dict[str, str], folder: Path) -> None:
    """Make a link below ``folder`` for each file.

    Raises:
        ValueError: a name leads out of the folder.
    """
    for name, target in files.items():
        path = folder / name
        if ".." in Path(name).parts or Path(name).is_absolute():
            raise ValueError(f"{name} leads out of the folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(target)


def main() -> None:
    """Run as an Ansible module."""
    module = AnsibleModule(argument_spec={"files": {"type": "dict", "required": True}}, supports_check_mode=False)
    folder = Path(tempfile.mkdtemp(prefix="sdtune-links-"))
    try:
        link(module.params["files"], folder)
    except (OSError, ValueError) as error:
        module.fail_json(msg=f"the files cannot be linked: {error}", path=str(folder))
    module.exit_json(changed=True, path=str(folder))


if __name__ == "__main__":
    main()
