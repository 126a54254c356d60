"""Shipped for the tests of networks and adapters: assertions, and the contract of an adapter."""

from surgeon.testing.contract import AdapterContract
from surgeon.testing.equivariance import TOLERANCE, assert_equivariant
from surgeon.testing.inside import assert_equivariant_inside

__all__ = ["TOLERANCE", "AdapterContract", "assert_equivariant", "assert_equivariant_inside"]
