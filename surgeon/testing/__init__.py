"""Shipped for the tests of networks and adapters: assertions, the contract of an adapter. Our own are in tests/."""

from surgeon.testing.contract import AdapterContract
from surgeon.testing.equivariance import TOLERANCE, assert_equivariant
from surgeon.testing.inside import assert_equivariant_inside

__all__ = ["TOLERANCE", "AdapterContract", "assert_equivariant", "assert_equivariant_inside"]
