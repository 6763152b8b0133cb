#!/usr/bin/env python3
"""UDP packets from the kernel's packet generator (pktgen), counted where they come back: one run at a rate, or a search.

    modprobe pktgen
    bench/rig/pktgen.py --dev eth1 --to 02:00:00:00:00:01 --destination 198.19.0.2 --receive eth2 --cores 2,3 --rate 2000000
    bench/rig/pktgen.py ... --search --top 14880952 --sizes 64,512,1518

`--dev` and `--receive` are two ports of this machine, the router between them; `--to` is the router's MAC on the side of --dev. Sizes
are of the whole frame with its checksum of 4 bytes. Ports are drawn anew for every packet (RFC 4814), so each is its own skb
(`clone_skb 0`, no burst), which costs pktgen most of its speed: some 2 to 4 million packets a second and core. Write down what it
reaches by itself (a cable from --dev to --receive) beside what the router does.

Exit codes: 1 failed, 3 this kernel has no pktgen.
"""

import argparse
import os
import sys
import time

from search import search

PROC = "/proc/net/pktgen"
FCS = 4
# Ports of RFC 4814 section 4.5.1.
SOURCE_PORTS = (1024, 65535)
DESTINATION_PORTS = (1, 49151)
# How long the last packets may take, RFC 2544 section 23.
SETTLE = 2


def write(path, text):
    """One command to one of pktgen's files."""
    try:
        with open(path, "w", encoding="ascii") as file:
            file.write(text + "\n")
    except OSError as error:
        raise OSError("%s: `%s`: %s" % (path, text, error.strerror)) from error


def read(path):
    """What a file says."""
    with open(path, encoding="ascii") as file:
        return file.read()


class Rig:
    """pktgen's threads on the cores given, and the counter of the port where packets come back."""

    def __init__(self, words):
        self.words = words
        self.cores = [int(core) for core in words.cores.split(",")]

    def device(self, core):
        """The file of the device as core `core` has it."""
        return "%s/%s@%d" % (PROC, self.words.dev, core)

    def set_up(self, size, rate, seconds):
        """Every thread gets its share of the packets. Returns how many there will be."""
        words = self.words
        for core in self.cores:
            thread = "%s/kpktgend_%d" % (PROC, core)
            write(thread, "rem_device_all")
            write(thread, "add_device %s@%d" % (words.dev, core))
        share = rate / len(self.cores)
        count = int(share * seconds)
        for core in self.cores:
            for text in (
                "count %d" % count, "delay 0", "ratep %d" % share, "clone_skb 0", "burst 1", "pkt_size %d" % (size - FCS),
                "dst_mac %s" % words.to, "src_min %s" % words.sources[0], "src_max %s" % words.sources[-1],
                "dst %s" % words.destination,
                "udp_src_min %d" % SOURCE_PORTS[0], "udp_src_max %d" % SOURCE_PORTS[1],
                "udp_dst_min %d" % DESTINATION_PORTS[0], "udp_dst_max %d" % DESTINATION_PORTS[1],
                "flag UDPSRC_RND", "flag UDPDST_RND", "flag IPSRC_RND", "flag QUEUE_MAP_CPU",
            ):
                write(self.device(core), text)
        return count * len(self.cores)

    def sent(self, core):
        """Packets and microseconds of a thread's last run."""
        text = read(self.device(core))
        packets = int(text.split("pkts-sofar:")[1].split()[0])
        result = text.split("Result: OK:")
        if len(result) < 2:
            raise OSError("%s: %s" % (self.device(core), text.strip().splitlines()[-1]))
        return packets, int(result[1].split("(")[0])

    def received(self):
        """Packets that have come back so far."""
        return int(read("/sys/class/net/%s/statistics/rx_packets" % self.words.receive))

    def run(self, size, rate, seconds):
        """Sends; returns packets to send, packets that came back, and packets a second as they were sent."""
        asked = self.set_up(size, rate, seconds)
        before = self.received()
        write(PROC + "/pgctrl", "start")  # returns when all threads are done
        time.sleep(SETTLE)
        longest = max(self.sent(core)[1] for core in self.cores)
        return asked, self.received() - before, asked / longest * 1e6 if longest else 0

    def passes(self, size, rate):
        """Whether no more than the bound was lost, and pktgen kept the rate."""
        asked, came, reached = self.run(size, rate, self.words.seconds)
        lost, kept = max(0, asked - came), reached >= 0.98 * rate
        print("  %.3f Mpps: %d sent, %d lost%s" % (rate / 1e6, asked, lost, "" if kept else ", pktgen too slow"),
              file=sys.stderr)
        return kept and lost <= self.words.loss * asked


def arguments(words=None):
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dev", required=True, help="the port that sends")
    parser.add_argument("--receive", required=True, help="the port where packets come back")
    parser.add_argument("--to", required=True, help="the router's MAC")
    parser.add_argument("--destination", required=True, help="address behind --receive")
    parser.add_argument("--sources", default="198.18.0.2-198.18.0.254", type=lambda text: text.split("-"),
                        help="first and last source address (198.18.0.2-198.18.0.254)")
    parser.add_argument("--cores", default="0", help="cores that send, with commas (0)")
    parser.add_argument("--size", "--sizes", default="64", help="bytes of a frame, with commas if it is a search (64)")
    parser.add_argument("--rate", type=float, default=1e6, help="packets a second of all cores (1000000)")
    parser.add_argument("--seconds", type=float, default=60, help="of a run (60)")
    parser.add_argument("--search", action="store_true", help="the highest rate without loss, of each size")
    parser.add_argument("--top", type=float, default=14_880_952, help="where the search begins (10 Gbit/s of 64 bytes)")
    parser.add_argument("--loss", type=float, default=0, help="share of packets that may be lost (0)")
    parser.add_argument("--resolution", type=float, default=0.01, help="share of --top (0.01)")
    return parser.parse_args(words)


def main(words=None):
    """Runs it."""
    words = arguments(words)
    if not os.path.isdir(PROC):
        print("pktgen: this kernel has no pktgen, or it is not loaded: modprobe pktgen", file=sys.stderr)
        return 3
    rig = Rig(words)
    sizes = [int(size) for size in words.size.split(",")]
    try:
        if not words.search:
            for size in sizes:
                asked, came, rate = rig.run(size, words.rate, words.seconds)
                print("%d bytes: %d sent at %.3f Mpps, %d lost" % (size, asked, rate / 1e6, max(0, asked - came)))
            return 0
        print("| frame | Mpps |\n|---|---|")
        for size in sizes:
            rate = search(words.top, words.resolution, lambda rate, size=size: rig.passes(size, rate))
            print("| %d | %.3f |" % (size, rate / 1e6))
    except OSError as error:
        print("pktgen: %s" % error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
