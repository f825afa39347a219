"""Promotion of a registered version to champion: the gate decides, the registry's aliases are moved."""
