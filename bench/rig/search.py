"""The highest rate that passes, by halving: RFC 2544 section 26.1, RFC 9693 section 4.5.

Knows nothing of TRex; `test_rig.py` runs it against made-up devices.
"""


def search(top, resolution, trial):
    """The highest rate up to `top` at which `trial(rate)` is true, to within `resolution` (a share of `top`).

    0.0 if it is true at none. Every rate is tried once: a trial that fails for another reason than the device (a generator
    that is late, a link that flaps) has to be found out by whoever runs it, not averaged away.
    """
    if trial(top):
        return top
    passed, failed = 0.0, top
    while failed - passed > resolution * top:
        middle = (passed + failed) / 2
        if trial(middle):
            passed = middle
        else:
            failed = middle
    return passed


def line_rate(frame, gigabits):
    """Frames a second that a link carries; `frame` in bytes with its checksum (preamble and gap are 20 more)."""
    return gigabits * 1e9 / 8 / (frame + 20)
