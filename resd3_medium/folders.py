"""Where model files lie: those that a user fetches, those of the pocket model, and the tokenizers."""

from pathlib import Path

MODELS = Path(__file__).resolve().parents[1] / "models"
POCKET = MODELS / "pocket"  # a small model that comes with the project
TOKENIZERS = MODELS / "tokenizers"
OWN = (POCKET, TOKENIZERS, MODELS / "meg")  # what comes with the project
