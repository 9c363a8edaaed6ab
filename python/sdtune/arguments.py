"""The command lines of the programs for people."""

import argparse
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """A parser that shows the docstring of its program as it is, and says in one line what is wrong.

    argparse's own would print all flags first, which are some hundred lines.
    """

    def __init__(self, description: str | None) -> None:
        super().__init__(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message: str) -> NoReturn:
        """End with the message and exit code 2."""
        self.exit(2, f"error: {' '.join(message.split())}; {self.prog} --help explains all flags\n")
