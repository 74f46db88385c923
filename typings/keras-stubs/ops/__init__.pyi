# Keras's operations are not annotated, and what pyright infers for their results (None among it) is wrong.
from typing import Any

def __getattr__(name: str) -> Any: ...
