"""Import the modules that are named as arguments; the first that fails ends with its error."""

import importlib
import sys

for name in sys.argv[1:]:
    importlib.import_module(name)
