"""Heads: build the layers that a new task needs, and find and replace the head of any model."""

from transferkit.heads.build import adaptation_head, linear_head
from transferkit.heads.find import Head, find_head
from transferkit.heads.per_position import PerPosition
from transferkit.heads.replace import replace_head

__all__ = ["Head", "PerPosition", "adaptation_head", "find_head", "linear_head", "replace_head"]
