"""Model sources: each file builds one kind of model.

With its weights and the transform they expect.
"""
