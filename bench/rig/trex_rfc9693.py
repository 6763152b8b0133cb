#!/usr/bin/env python3
"""A stateful gateway by RFC 9693 with TRex ASTF: connections set up, held, and taken down, with or without NAT44.

    export PYTHONPATH=/opt/trex/automation/trex_control_plane/interactive      # where TRex was unpacked
    bench/rig/trex_rfc9693.py --connections 1000000

The server runs already, in ASTF mode (`./t-rex-64 -i --astf`). Phases, each with its line:

  set-up rate (UDP, TCP)   the highest rate of new connections at which all of them get their answer
  fill and hold            TCP connections opened up to --connections, held for --hold seconds with a request each --pause
                           seconds: none may break, and what the gateway's own table says is to be written down meanwhile
  take-down                the time from the end of the holding until all are closed
"""

import argparse
import sys
import time

from trex.astf.api import ASTFClient, TRexError

from search import search
from trex_sessions import profile

# What says that a connection did not get what it should, in TRex's counters of either side.
ERRORS = {
    "udp": ("udps_keepdrops", "err_no_template", "err_c_nf_throttled", "err_flow_overflow", "err_dct"),
    "tcp": ("tcps_conndrops", "tcps_drops", "tcps_timeoutdrop", "tcps_rexmttimeo", "tcps_keepdrops",
            "err_no_template", "err_c_nf_throttled", "err_flow_overflow", "err_dct"),
}


class Rig:
    """A TRex server in ASTF mode with two ports, the gateway between them."""

    def __init__(self, client, words):
        self.client = client
        self.words = words

    def counters(self):
        """Both sides' counters; those that are 0 are left out."""
        traffic = self.client.get_stats()["traffic"]
        return traffic["client"], traffic["server"]

    def errors(self, kind):
        """The counters that say so of connections that did not work."""
        return {"%s %s" % (name, error): side[error]
                for name, side in zip(("client", "server"), self.counters())
                for error in ERRORS[kind] if side.get(error)}

    def set_up(self, kind, rate):
        """Whether all connections work when `rate` of them begin in a second."""
        self.client.reset()
        self.client.load_profile(profile(kind))
        self.client.clear_stats()
        self.client.start(mult=int(rate), duration=self.words.trial, nc=False)
        self.client.wait_on_traffic()
        near, far = self.counters()
        wanted = "udps_connects" if kind == "udp" else "tcps_connects"
        begun, came = near.get(wanted, 0), far.get("udps_accepts" if kind == "udp" else "tcps_accepts", 0)
        errors = self.errors(kind)
        kept = begun >= 0.98 * rate * self.words.trial
        print("  %.0f/s: %d begun, %d came, %s%s" % (rate, begun, came, errors or "no errors",
                                                    "" if kept else ", generator too slow"), file=sys.stderr)
        return kept and came >= begun and not errors

    def hold(self):
        """Fills up to the number wanted, holds, and closes. Connections held, errors meanwhile, seconds to close."""
        count, rate = self.words.connections, self.words.fill_rate
        fill = count / rate
        self.client.reset()
        self.client.load_profile(profile("held", limit=count, seconds=self.words.hold, pause=self.words.pause))
        self.client.clear_stats()
        self.client.start(mult=int(rate), duration=fill + self.words.hold, nc=False)
        time.sleep(fill)
        time.sleep(self.words.hold / 2)
        near, _ = self.counters()
        there = near.get("m_est_flows", 0)
        print("  %d of %d held: write down now what the gateway's table has" % (there, count), file=sys.stderr)
        time.sleep(self.words.hold / 2)
        begin = time.monotonic()
        self.client.wait_on_traffic()
        return there, self.errors("tcp"), time.monotonic() - begin


def arguments(words=None):
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", default="127.0.0.1")
    parser.add_argument("--connections", type=int, default=1_000_000)
    parser.add_argument("--top", type=float, default=2_000_000, help="new connections a second to begin at (2000000)")
    parser.add_argument("--fill-rate", type=float, default=100_000, help="new connections a second while filling (100000)")
    parser.add_argument("--hold", type=float, default=60, help="seconds (60)")
    parser.add_argument("--pause", type=float, default=10, help="seconds between a connection's requests (10)")
    parser.add_argument("--trial", type=float, default=30, help="seconds (30)")
    parser.add_argument("--resolution", type=float, default=0.005, help="share of --top (0.005)")
    return parser.parse_args(words)


def main(words=None):
    """Runs it all."""
    words = arguments(words)
    client = ASTFClient(server=words.server)
    try:
        client.connect()
        rig = Rig(client, words)
        print("| phase | result |")
        print("|---|---|")
        for kind in ("udp", "tcp"):
            print("set-up, %s" % kind, file=sys.stderr)
            rate = search(words.top, words.resolution, lambda rate, kind=kind: rig.set_up(kind, rate))
            print("| set-up, %s | %.0f connections/s |" % (kind.upper(), rate))
        print("fill and hold", file=sys.stderr)
        there, errors, seconds = rig.hold()
        print("| held | %d of %d, %s |" % (there, words.connections, errors or "no errors"))
        print("| take-down | %.0f connections/s |" % (there / seconds if seconds else 0))
    except TRexError as error:
        print("rfc9693: %s" % error, file=sys.stderr)
        return 1
    finally:
        client.disconnect()
    return 0


if __name__ == "__main__":
    sys.exit(main())
