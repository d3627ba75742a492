"""The door to PEFT, for benches alone: its import would be about a quarter of what a stage loads.

Modules are stored as plain PEFT adapters (components/modules/low_rank.py), which needs none of its code.
"""

from components.vision import timm_import  # noqa: F401  (before PEFT, which imports torchvision as well)

# isort: split
from peft import LoraConfig, PeftModel, get_peft_model

__all__ = ["LoraConfig", "PeftModel", "get_peft_model"]
