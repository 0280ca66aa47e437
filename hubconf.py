"""For torch.hub: the loss, and encoders that runs have exported.

torch.hub.load("path/to/this/repository", "encoder", "runs/.../encoder.safetensors", source="local")
torch.hub.load("path/to/this/repository", "w2_loss", source="local")
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "code"))

from wassersteinssl.encoder import load_encoder as encoder  # noqa: F401
from wassersteinssl.w2 import W2Loss as w2_loss  # noqa: F401

dependencies = ["torch", "torchvision", "safetensors"]
