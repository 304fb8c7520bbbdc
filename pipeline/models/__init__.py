"""Model sources: each module builds one kind of model with its weights and transform."""

from pipeline.models.base import ModelBundle, ModelSource

__all__ = ["ModelBundle", "ModelSource"]
