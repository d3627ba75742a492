"""The door to PEFT, for benches alone: to import it takes half as long again as all else that a stage imports.

Modules are stored as plain PEFT adapters (components/modules.py), which needs none of its code.
"""

from components import vision  # noqa: F401  (before PEFT, which imports torchvision as well)

# isort: split
from peft import LoraConfig, PeftModel, get_peft_model

__all__ = ["LoraConfig", "PeftModel", "get_peft_model"]
