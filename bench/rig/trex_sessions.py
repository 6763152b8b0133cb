"""TRex ASTF profiles: many connections through a stateful gateway, with or without NAT44. Also for `trex-console`:

    start -f bench/rig/trex_sessions.py -m 1000 -d 60 -t --kind udp

Clients are behind TRex port 0 (16.0.0.0/16), servers behind port 1 (48.0.0.0/16), which answer whoever they see: so NAT on the
way is no matter. `mult` of a start is the number of new connections a second.
"""

import argparse

from trex.astf.api import (
    ASTFAssociationRule,
    ASTFGlobalInfo,
    ASTFIPGen,
    ASTFIPGenDist,
    ASTFIPGenGlobal,
    ASTFProfile,
    ASTFProgram,
    ASTFTCPClientTemplate,
    ASTFTCPServerTemplate,
    ASTFTemplate,
)

CLIENTS = ("16.0.0.2", "16.0.255.254")
SERVERS = ("48.0.0.2", "48.0.0.254")
PORT = 8080
REQUEST = b"q" * 64


def udp():
    """One datagram each way: a connection in the sense of RFC 9693, as cheap as it gets."""
    client = ASTFProgram(stream=False)
    client.send_msg(REQUEST)
    client.recv_msg(1)
    server = ASTFProgram(stream=False)
    server.recv_msg(1)
    server.send_msg(REQUEST)
    return client, server


def tcp():
    """Handshake, one request, one answer, and both close: seven or eight packets."""
    client = ASTFProgram()
    client.send(REQUEST)
    client.recv(len(REQUEST))
    server = ASTFProgram()
    server.recv(len(REQUEST))
    server.send(REQUEST)
    return client, server


def held(seconds, pause):
    """A TCP connection that stays `seconds`, with a request and an answer each `pause` seconds."""
    rounds = max(1, int(seconds / pause))
    client = ASTFProgram()
    client.set_var("rounds", rounds)
    client.set_label("again:")
    client.send(REQUEST)
    client.recv(len(REQUEST), clear=True)
    client.delay(int(pause * 1e6))
    client.jmp_nz("rounds", "again:")
    server = ASTFProgram()
    server.set_var("rounds", rounds)
    server.set_label("again:")
    server.recv(len(REQUEST), clear=True)
    server.send(REQUEST)
    server.jmp_nz("rounds", "again:")
    return client, server


def profile(kind, limit=0, seconds=60, pause=1.0):
    """One template; with `limit` no more connections at a time than that."""
    client, server = {"udp": udp, "tcp": tcp, "held": lambda: held(seconds, pause)}[kind]()
    addresses = ASTFIPGen(
        glob=ASTFIPGenGlobal(ip_offset="1.0.0.0"),
        dist_client=ASTFIPGenDist(ip_range=list(CLIENTS), distribution="seq"),
        dist_server=ASTFIPGenDist(ip_range=list(SERVERS), distribution="seq"))
    # TRex's own time-outs must not end what is to be held (seconds; 253 is the most).
    settings = []
    for _ in range(2):
        info = ASTFGlobalInfo()
        info.tcp.keepinit = 253
        info.tcp.keepidle = 253
        info.tcp.keepintvl = 253
        settings.append(info)
    template = ASTFTemplate(
        client_template=ASTFTCPClientTemplate(program=client, ip_gen=addresses, port=PORT, cps=1,
                                              limit=limit or None, cont=True if limit else None),
        server_template=ASTFTCPServerTemplate(program=server, assoc=ASTFAssociationRule(port=PORT)))
    return ASTFProfile(default_ip_gen=addresses, templates=template, default_c_glob_info=settings[0],
                       default_s_glob_info=settings[1])


class Profile:
    """What trex-console loads."""

    def get_profile(self, tunables=(), **_):
        """The profile; `tunables` are the words after `-t`."""
        parser = argparse.ArgumentParser(description=__doc__)
        parser.add_argument("--kind", choices=("udp", "tcp", "held"), default="udp")
        parser.add_argument("--limit", type=int, default=0)
        parser.add_argument("--seconds", type=float, default=60)
        words = parser.parse_args(tunables)
        return profile(words.kind, words.limit, words.seconds)


def register():
    """TRex asks for the profile by this name."""
    return Profile()
