"""Print the versions of oneCCL's bindings and of torch; fails where they do not load together."""

import oneccl_bindings_for_pytorch as bindings
import torch

print(bindings.__version__, torch.__version__)
