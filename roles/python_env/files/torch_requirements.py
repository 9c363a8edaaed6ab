"""Print the requirements of torch on this platform that are not installed, one a line.

A CUDA build requires libraries that the lock file does not know.
"""

import re
from importlib.metadata import distributions, requires

from packaging.requirements import Requirement


def normalized(name: str) -> str:
    """A package's name in the spelling of the index."""
    return re.sub("[-_.]+", "-", name).lower()


def missing_requirements(package: str) -> list[Requirement]:
    """What an installed package requires, without its extras, and the environment lacks."""
    installed = {normalized(distribution.name) for distribution in distributions()}
    required = map(Requirement, requires(package) or [])
    return [
        requirement
        for requirement in required
        if normalized(requirement.name) not in installed
        and (requirement.marker is None or requirement.marker.evaluate({"extra": ""}))
    ]


if __name__ == "__main__":
    for requirement in missing_requirements("torch"):
        print(requirement)
