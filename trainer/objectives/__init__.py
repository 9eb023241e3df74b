"""Objectives, one file each: what the two towers are asked to agree on."""
