"""Import torchvision from here: `from wassersteinssl.vision import torchvision`.

The CUDA wheel of torchvision beside a CPU-only torch, a common pair on machines without a GPU, cannot load its
compiled operators and then fails to import at all, because its Python files refer to operators (nms, qnms) that were
never declared. This project calls none of them, so each is declared here without a body, and the import tried again.
"""

import importlib
import re
import sys

import torch

_declared: list[torch.library.Library] = []  # kept, as a declaration lives only as long as its Library


def _import_torchvision():
    for _ in range(8):
        try:
            return importlib.import_module("torchvision")
        except RuntimeError as error:
            missing = re.search(r"operator torchvision::(\w+) does not exist", str(error))
            if missing is None:
                raise
            library = torch.library.Library("torchvision", "FRAGMENT")
            library.define(f"{missing[1]}(Tensor boxes, Tensor scores, float threshold) -> Tensor")
            _declared.append(library)
            for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
                del sys.modules[name]
    raise ImportError("torchvision does not fit the installed torch; install a matching pair (requirements.txt)")


torchvision = _import_torchvision()
