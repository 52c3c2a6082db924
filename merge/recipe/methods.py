"""Every merge method by name. No torch.

A further method is a file beside this one, a row here, and a `configs.schema.MergeMethod`.
"""

from collections.abc import Mapping
from types import MappingProxyType

from merge.recipe.dare import DARE
from merge.recipe.dare_ties import DARE_TIES
from merge.recipe.interface import MergeMethod
from merge.recipe.linear import LINEAR
from merge.recipe.slerp import SLERP
from merge.recipe.task_arithmetic import TASK_ARITHMETIC
from merge.recipe.ties import TIES

METHODS: Mapping[str, MergeMethod] = MappingProxyType(
    {method.name: method for method in (LINEAR, SLERP, TASK_ARITHMETIC, TIES, DARE, DARE_TIES)}
)
