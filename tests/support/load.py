"""Datagrams to be counted, for the tests of reloads.

load.py echo PORT                       a UDP server that gives back what it gets
load.py send HOST PORT SECONDS [EVERY]  numbered datagrams, one every EVERY milliseconds (1), from one socket; at the end
                                        "sent N back M twice K"
"""

import socket
import sys
import threading
import time


def bound():
    connection = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    connection.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    return connection


def echo(port):
    server = bound()
    server.bind(("::", port))
    print("ready", flush=True)
    while True:
        data, address = server.recvfrom(2000)
        server.sendto(data, address)


def send(host, port, seconds, every=1):
    host = host if ":" in host else "::ffff:" + host
    connection = bound()
    back = []

    def listen():
        while True:
            try:
                back.append(int(connection.recv(2000)))
            except OSError:
                return

    connection.bind(("::", 0))
    threading.Thread(target=listen, daemon=True).start()
    start = time.monotonic()
    sent = 0
    while time.monotonic() < start + seconds:
        try:
            connection.sendto(b"%d" % sent, (host, port))
            sent += 1
        except OSError:
            pass  # an answer of the network to an earlier one
        time.sleep(max(0, start + sent * every / 1000 - time.monotonic()))
    time.sleep(1)
    print(f"sent {sent} back {len(set(back))} twice {len(back) - len(set(back))}", flush=True)


if sys.argv[1] == "echo":
    echo(int(sys.argv[2]))
else:
    send(sys.argv[2], int(sys.argv[3]), float(sys.argv[4]), *map(float, sys.argv[5:]))
