#!/usr/bin/env python3
"""Throughput by RFC 2544 with TRex STL: for each frame size the highest rate without loss, and the latency at half of it.

    export PYTHONPATH=/opt/trex/automation/trex_control_plane/interactive      # where TRex was unpacked
    bench/rig/trex_rfc2544.py --gigabits 25 --flows 65536 --bidirectional

The server runs already, in stateless mode (`./t-rex-64 -i`). Prints a table in Markdown. Behind NAT44 only one direction can be
sent this way, since the translated ports are not known to the other end: leave out --bidirectional, or use trex_rfc9693.py.
"""

import argparse
import sys

from trex.stl.api import STLClient, STLError

from search import line_rate, search
from trex_streams import IMIX, SIZES, streams


def frame_bytes(size):
    """Bytes of the average frame with its checksum."""
    if size != "imix":
        return int(size)
    return sum(bytes_ * share for bytes_, share in IMIX) / sum(share for _, share in IMIX)


class Rig:
    """A TRex server with two ports, the device between them."""

    def __init__(self, client, words):
        self.client = client
        self.words = words
        self.senders = [0, 1] if words.bidirectional else [0]

    def load(self, size, latency=False):
        """The streams of a size, on the ports that send."""
        self.client.reset(ports=[0, 1])
        for port in self.senders:
            self.client.add_streams(streams(size, self.words.flows, self.words.hosts, port, latency), ports=[port])

    def run(self, rate, seconds):
        """Sends `rate` frames a second from each sending port; frames sent and frames that arrived, of all ports."""
        self.client.clear_stats()
        self.client.start(ports=self.senders, mult="%.0fpps" % rate, duration=seconds, force=True)
        # RFC 2544 section 23: the last frames have two seconds.
        self.client.wait_on_traffic(ports=self.senders, rx_delay_ms=2000)
        stats = self.client.get_stats(ports=[0, 1])
        sent = sum(stats[port]["opackets"] for port in self.senders)
        arrived = sum(stats[1 - port]["ipackets"] for port in self.senders)
        return sent, arrived, stats

    def passes(self, rate):
        """Whether the share of frames lost is within the bound, and the generator kept the rate."""
        sent, arrived, _ = self.run(rate, self.words.trial)
        lost = max(0, sent - arrived)
        kept = sent >= 0.99 * rate * self.words.trial * len(self.senders)
        print("  %.3f Mpps: %d sent, %d lost%s" % (rate / 1e6, sent, lost, "" if kept else ", generator too slow"),
              file=sys.stderr)
        return kept and lost <= self.words.loss * sent

    def throughput(self, size):
        """The highest rate of a size, frames a second and direction."""
        self.load(size)
        self.run(1000, 2)  # neighbours and connections are there afterwards, RFC 2544 section 23
        return search(line_rate(frame_bytes(size), self.words.gigabits), self.words.resolution, self.passes)

    def latency(self, size, rate):
        """Average and longest latency in microseconds at `rate`."""
        self.load(size, latency=True)
        _, _, stats = self.run(rate, self.words.trial)
        found = stats["latency"][10]["latency"]
        return found["average"], found["total_max"]


def arguments(words=None):
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", default="127.0.0.1")
    parser.add_argument("--gigabits", type=float, default=10, help="of the links (10)")
    parser.add_argument("--sizes", default=",".join(str(size) for size in SIZES) + ",imix",
                        help="bytes with checksum, and imix")
    parser.add_argument("--flows", type=int, default=65536, help="different ports in each direction (65536)")
    parser.add_argument("--hosts", type=int, default=254, help="source addresses in each direction (254)")
    parser.add_argument("--trial", type=float, default=60, help="seconds (60)")
    parser.add_argument("--loss", type=float, default=0, help="share of frames that may be lost (0)")
    parser.add_argument("--resolution", type=float, default=0.005, help="share of line rate (0.005)")
    parser.add_argument("--bidirectional", action="store_true", help="both ports send")
    return parser.parse_args(words)


def main(words=None):
    """Runs it all."""
    words = arguments(words)
    client = STLClient(server=words.server)
    try:
        client.connect()
        rig = Rig(client, words)
        print("| frame | Mpps | Gbit/s | of line rate | latency at half: average, longest (us) |")
        print("|---|---|---|---|---|")
        for size in words.sizes.split(","):
            print("%s bytes" % size, file=sys.stderr)
            rate = rig.throughput(size)
            average, longest = rig.latency(size, rate / 2) if rate else (0, 0)
            ways, frame = len(rig.senders), frame_bytes(size)
            print("| %s | %.3f | %.3f | %.1f %% | %.1f, %.1f |" % (
                size, ways * rate / 1e6, ways * rate * (frame + 20) * 8 / 1e9,
                100 * rate / line_rate(frame, words.gigabits), average, longest))
    except STLError as error:
        print("rfc2544: %s" % error, file=sys.stderr)
        return 1
    finally:
        client.disconnect()
    return 0


if __name__ == "__main__":
    sys.exit(main())
