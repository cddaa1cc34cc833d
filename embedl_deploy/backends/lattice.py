"""Lattice: an FPGA target. Only what does not depend on the hardware is known of it."""

from embedl_deploy.backends.any_target import ANY_TARGET_CONVERSIONS
from embedl_deploy.rewriting.backend import Backend

LATTICE = Backend(name="lattice", conversion_patterns=ANY_TARGET_CONVERSIONS)
