"""TRex STL streams: UDP over IPv4 with pseudorandom ports (RFC 4814 section 4.5). Also a profile for `trex-console`:

    start -f bench/rig/trex_streams.py -m 1mpps --port 0 -t --size 64 --flows 65536

Sizes are of the whole frame with its checksum of 4 bytes, as RFC 2544 has them; TRex takes them without.
"""

import argparse

from trex.stl.api import (
    Ether,
    IP,
    UDP,
    STLFlowLatencyStats,
    STLPktBuilder,
    STLScVmRaw,
    STLStream,
    STLTXCont,
    STLVmFixIpv4,
    STLVmFlowVar,
    STLVmFlowVarRepeatableRandom,
    STLVmWrFlowVar,
)

# RFC 2544 section 9.1, and the simple IMIX: sizes and how many of each.
SIZES = (64, 128, 256, 512, 1024, 1280, 1518)
IMIX = ((64, 7), (594, 4), (1518, 1))
FCS = 4

# Addresses of RFC 2544 appendix C.2.2: 198.18.0.0/16 is behind TRex port 0, 198.19.0.0/16 behind port 1.
ENDS = ("198.18.0.0", "198.19.0.0")
# Ports of RFC 4814 section 4.5.1; a NAT's own range is above 1023, too.
SOURCE_PORTS = (1024, 65535)
DESTINATION_PORTS = (1, 49151)


def address(base, host):
    """Address number `host` of the /16 that begins with `base`."""
    first, second, _, _ = base.split(".")
    return "%s.%s.%d.%d" % (first, second, host >> 8 & 255, host & 255)


def field_engine(flows, hosts, direction):
    """Source address and both ports of each frame: `flows` different ones, in no order and always the same."""
    source = ENDS[direction]
    commands = [
        STLVmFlowVarRepeatableRandom("sport", size=2, limit=flows, seed=1001 + direction,
                                     min_value=SOURCE_PORTS[0], max_value=SOURCE_PORTS[1]),
        STLVmFlowVarRepeatableRandom("dport", size=2, limit=flows, seed=2003 + direction,
                                     min_value=DESTINATION_PORTS[0], max_value=DESTINATION_PORTS[1]),
        STLVmFlowVar("host", min_value=address(source, 2), max_value=address(source, 1 + hosts), size=4, op="inc"),
        STLVmWrFlowVar(fv_name="sport", pkt_offset="UDP.sport"),
        STLVmWrFlowVar(fv_name="dport", pkt_offset="UDP.dport"),
        STLVmWrFlowVar(fv_name="host", pkt_offset="IP.src"),
        STLVmFixIpv4(offset="IP"),
    ]
    return STLScVmRaw(commands)


def packet(size, flows, hosts, direction):
    """A frame of `size` bytes; its UDP checksum is 0 (none), so that only the IPv4 header's is to be mended."""
    base = (Ether() / IP(src=address(ENDS[direction], 2), dst=address(ENDS[1 - direction], 2))
            / UDP(sport=SOURCE_PORTS[0], dport=9, chksum=0))
    padding = "x" * max(0, size - FCS - len(base))
    vm = field_engine(flows, hosts, direction) if flows > 1 else None
    return STLPktBuilder(pkt=base / padding, vm=vm)


def streams(size, flows=1, hosts=1, direction=0, latency=False):
    """The streams of one port: of one size, or of the IMIX if `size` is "imix".

    Their rates are shares: whoever starts them gives the sum. With `latency` a thousand frames a second more carry a time.
    """
    mix = IMIX if size == "imix" else ((int(size), 1),)
    made = [STLStream(packet=packet(bytes_, flows, hosts, direction), mode=STLTXCont(pps=share), isg=10.0 * n)
            for n, (bytes_, share) in enumerate(mix)]
    if latency:
        # TRex writes 16 bytes of its own to the end: the smallest frame is large enough.
        smallest = 64 if size == "imix" else int(size)
        made.append(STLStream(packet=packet(smallest, 1, 1, direction), mode=STLTXCont(pps=1000),
                              flow_stats=STLFlowLatencyStats(pg_id=10 + direction)))
    return made


class Profile:
    """What trex-console loads."""

    def get_streams(self, direction=0, tunables=(), **_):
        """The streams of a port; `tunables` are the words after `-t`."""
        parser = argparse.ArgumentParser(description=__doc__)
        parser.add_argument("--size", default="64", help="bytes of a frame, or imix")
        parser.add_argument("--flows", type=int, default=65536)
        parser.add_argument("--hosts", type=int, default=254)
        words = parser.parse_args(tunables)
        return streams(words.size, words.flows, words.hosts, direction)


def register():
    """TRex asks for the profile by this name."""
    return Profile()
