#!/usr/bin/python
"""The documentation of the action of this name, which has no module."""

from __future__ import annotations

DOCUMENTATION = r"""
module: check_variables
short_description: Judge the variables of a host before anything else reads them
description: Looks at the values as they are written. Nothing is asked of the host.
options:
  required: {description: Variables that an inventory has to set., type: list, elements: str, required: true}
author: sdtune (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Check that the variables are set, and of their types
  check_variables:
    required: [base_model_name, training_data_name]
  register: __example_variables
"""

RETURN = r"""
problems:
  description: What is wrong, a line for each; it is no failure.
  type: list
  elements: str
  returned: always
"""
