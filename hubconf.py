"""For torch.hub: the loss, and encoders that runs have exported.

torch.hub.load("path/to/this/repository", "encoder", "runs/.../encoder.safetensors", source="local")
torch.hub.load("path/to/this/repository", "w2_loss", source="local")
"""

import sys
from pathlib import Path

CODE = str(Path(__file__).resolve().parent / "code")
sys.path.insert(0, CODE)
try:
    from wassersteinssl.encoder import load_encoder as encoder  # noqa: F401
    from wassersteinssl.w2 import W2Loss as w2_loss  # noqa: F401
finally:
    sys.path.remove(CODE)  # it would hide the caller's own audit.py or grid.py

dependencies = ["torch", "torchvision", "safetensors"]
