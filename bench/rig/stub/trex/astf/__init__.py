"""A stand-in for TRex in tests; see test_rig.py."""
