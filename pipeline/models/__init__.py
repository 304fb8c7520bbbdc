"""Model sources: each file builds one kind of model, with its weights and their transform."""

from pipeline.models.base import ModelBundle, ModelSource

__all__ = ["ModelBundle", "ModelSource"]
