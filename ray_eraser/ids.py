"""The numbers and names by which parts of the system are told apart."""

from __future__ import annotations

from typing import NewType

ShardId = NewType("ShardId", int)
"""0 .. K-1."""

Generation = NewType("Generation", int)
"""Counts what was published: 1 is the first fit, every finished batch of erasures makes the next."""

Epoch = NewType("Epoch", int)
"""Counts the starts of a deployment's coordinator. A shard obeys the highest that it has seen."""

RequestId = NewType("RequestId", str)
"""Names one unlearning request; random, says nothing about what is erased."""

RawId = int | str
"""A user or an item as the log names it."""
