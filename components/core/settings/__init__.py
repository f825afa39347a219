"""params.yaml as typed, closed models, one file a block.

A stage depends on its own block's file in dvc.yaml: a changed default value runs that stage again. The docstring
under a field is its help text; docs/parameters.md is made of them.
"""

from components.core.settings.pipeline import Iteration, Settings

__all__ = ["Iteration", "Settings"]
