#!/usr/bin/env python3
"""The rig's Python, run against stand-ins for TRex (`stub/`) and for the kernel's pktgen: that it is no dead text, and that the searches find what is there.

    python3 bench/rig/test_rig.py
"""

import contextlib
import io
import os
import sys
import unittest
from unittest import mock

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.join(HERE, "stub")]

import pktgen
import search
import trex_rfc2544
import trex_rfc9693
import trex_sessions
import trex_streams
from trex.astf import api as astf
from trex.stl import api as stl


def said(call, *words):
    """What a program prints as its table, and its exit code."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
        code = call(list(words))
    return out.getvalue().splitlines(), code


class Search(unittest.TestCase):
    def test_it_finds_the_edge(self):
        for edge in (0.1, 0.333, 0.5, 0.9, 0.999):
            found = search.search(1.0, 0.001, lambda rate, edge=edge: rate <= edge)
            self.assertLessEqual(found, edge)
            self.assertGreater(found, edge - 0.0011)

    def test_all_and_nothing(self):
        self.assertEqual(search.search(5.0, 0.01, lambda rate: True), 5.0)
        self.assertEqual(search.search(5.0, 0.01, lambda rate: False), 0.0)

    def test_line_rate(self):
        self.assertEqual(round(search.line_rate(64, 10)), 14880952)
        self.assertEqual(round(search.line_rate(1518, 10)), 812744)


class Stateless(unittest.TestCase):
    def setUp(self):
        stl.DEVICE.__init__()

    def test_frames_have_the_sizes_asked_for(self):
        for size in trex_streams.SIZES:
            (stream,) = trex_streams.streams(size, 65536, 254)
            self.assertEqual(stream.size + trex_streams.FCS, size)
        mix = trex_streams.streams("imix")
        self.assertEqual([(stream.size + trex_streams.FCS, stream.mode.pps) for stream in mix], list(trex_streams.IMIX))
        self.assertEqual(len(trex_streams.register().get_streams(1, ["--size", "imix", "--flows", "9"])), 3)

    def test_the_search_finds_what_the_device_does(self):
        stl.DEVICE.capacity = lambda size: 3.3e6 if size < 1000 else 0.5e6
        table, code = said(trex_rfc2544.main, "--gigabits", "10", "--trial", "1", "--sizes", "64,1518", "--bidirectional")
        self.assertEqual(code, 0)
        rates = [float(line.split("|")[2]) for line in table[2:]]
        self.assertAlmostEqual(rates[0], 2 * 3.3, delta=2 * 0.005 * 14.88)
        self.assertAlmostEqual(rates[1], 2 * 0.5, delta=2 * 0.005 * 0.8128)
        self.assertIn("12.0, 40.0", table[2])
        self.assertEqual({port for port, _, _, _ in stl.DEVICE.runs}, {0, 1})

    def test_a_device_that_does_line_rate_is_not_searched(self):
        stl.DEVICE.capacity = lambda size: 1e9
        table, _ = said(trex_rfc2544.main, "--sizes", "512", "--trial", "1")
        self.assertIn("100.0 %", table[2])

    def test_a_device_that_does_nothing(self):
        stl.DEVICE.capacity = lambda size: 0
        table, code = said(trex_rfc2544.main, "--sizes", "512", "--trial", "1")
        self.assertEqual((code, table[2].split("|")[2].strip()), (0, "0.000"))


class Pktgen(unittest.TestCase):
    """Against a made-up kernel: what is written to its files, and a device that forwards 400,000 frames a second."""

    def setUp(self):
        self.written = []
        self.sent = self.received = 0
        self.rate = self.count = None
        # What pktgen reaches itself, packets a second, and how long it took, microseconds.
        self.fastest, self.took = 2e6, 0

    def write(self, path, text):
        self.written.append((os.path.basename(path), text))
        word, _, value = text.partition(" ")
        if word == "ratep":
            self.rate = float(value)
        elif word == "count":
            self.count = int(value)
        elif text == "start":
            threads = len({text for _, text in self.written if text.startswith("add_device")})
            rate = min(threads * self.rate, self.fastest)
            sent = threads * self.count
            self.sent, self.took = self.count, int(sent / rate * 1e6)
            self.received += int(sent * min(1, 4e5 / rate))

    def read(self, path):
        name = os.path.basename(path)
        if name == "rx_packets":
            return "%d\n" % self.received
        if name.startswith("eth"):
            return ("Params: count 1000\nCurrent:\n     pkts-sofar: %d  errors: 0\n"
                    "Result: OK: %d(c1999999+d1) usec, %d (60byte,0frags)\n" % (self.sent, self.took, self.sent))
        return ""

    def run_it(self, *words):
        self.sent = 0
        with mock.patch.object(pktgen, "write", self.write), mock.patch.object(pktgen, "read", self.read), \
                mock.patch.object(pktgen.time, "sleep"), mock.patch.object(pktgen.os.path, "isdir", lambda _: True):
            return said(pktgen.main, "--dev", "eth1", "--receive", "eth2", "--to", "02:00:00:00:00:01",
                        "--destination", "198.19.0.2", *words)

    def test_ports_and_size_are_asked_of_the_kernel(self):
        table, code = self.run_it("--size", "128", "--rate", "100000", "--seconds", "1", "--cores", "2,3")
        self.assertEqual(code, 0)
        texts = [text for _, text in self.written]
        for wanted in ("rem_device_all", "add_device eth1@2", "add_device eth1@3", "pkt_size 124", "clone_skb 0",
                       "flag UDPSRC_RND", "flag UDPDST_RND", "udp_src_min 1024", "udp_src_max 65535", "udp_dst_min 1",
                       "udp_dst_max 49151", "dst_mac 02:00:00:00:00:01", "ratep 50000", "count 50000", "start"):
            self.assertIn(wanted, texts)
        self.assertIn(("kpktgend_3", "add_device eth1@3"), self.written)
        self.assertEqual(table, ["128 bytes: 100000 sent at 0.100 Mpps, 0 lost"])

    def test_the_search_finds_what_the_device_does(self):
        table, _ = self.run_it("--size", "64", "--search", "--top", "1000000", "--seconds", "1")
        rate = float(table[-1].split("|")[2])
        self.assertAlmostEqual(rate, 0.4, delta=0.011)

    def test_a_generator_that_is_too_slow_finds_no_more_than_it_sends(self):
        self.fastest = 3e5
        table, _ = self.run_it("--size", "64", "--search", "--top", "1000000", "--seconds", "1")
        self.assertAlmostEqual(float(table[-1].split("|")[2]), 0.3, delta=0.02)

    def test_a_kernel_without_pktgen_is_told(self):
        with mock.patch.object(pktgen.os.path, "isdir", lambda _: False):
            _, code = said(pktgen.main, "--dev", "eth1", "--receive", "eth2", "--to", "02:00:00:00:00:01",
                           "--destination", "198.19.0.2")
        self.assertEqual(code, 3)


class Stateful(unittest.TestCase):
    def setUp(self):
        astf.GATEWAY.__init__()

    def run_it(self, *words):
        with mock.patch.object(trex_rfc9693.time, "sleep"):
            return said(trex_rfc9693.main, "--trial", "1", *words)

    def test_the_phases_find_what_the_gateway_does(self):
        table, code = self.run_it("--top", "1000000", "--connections", "500000")
        self.assertEqual(code, 0)
        udp, tcp = (float(line.split("|")[2].split()[0]) for line in table[2:4])
        self.assertAlmostEqual(udp, 300_000, delta=5_001)
        self.assertAlmostEqual(tcp, 120_000, delta=5_001)
        self.assertIn("500000 of 500000, no errors", table[4])

    def test_a_table_that_is_too_small_shows(self):
        astf.GATEWAY.table = 400_000
        table, _ = self.run_it("--connections", "500000")
        self.assertIn("400000 of 500000", table[4])
        self.assertIn("tcps_conndrops", table[4])

    def test_every_kind_of_profile_can_be_made(self):
        for kind in ("udp", "tcp", "held"):
            made = trex_sessions.register().get_profile(["--kind", kind, "--limit", "1000"])
            self.assertEqual(made.client.limit, 1000)
        self.assertEqual(trex_sessions.profile("held", seconds=60, pause=10).client.program.said,
                         ["send", "recv", "delay", "jmp_nz"])


if __name__ == "__main__":
    unittest.main()
