"""Heads: build the layers that a new task needs, and find and replace the head of any model."""

from transferkit.heads.build import adaptation_head, linear_head
from transferkit.heads.replace import Head, find_head, replace_head

__all__ = ["Head", "adaptation_head", "find_head", "linear_head", "replace_head"]
