"""Programs for the tests of connections: what they say is on standard output, one word a line.

talk.py echo PORT                     a TCP server that gives back what it gets
talk.py session HOST PORT IDLE [KEEPALIVE]
                                      says a word, is silent for IDLE seconds, says another; probes every KEEPALIVE seconds
talk.py listen HOST PORT IDLE         the same, but after the silence the server is asked to speak first
talk.py crowd-server PORT             an echo for many at once
talk.py crowd HOST PORT COUNT         COUNT connections at the same time; each says its number and hears it, then all once more
talk.py names PORT                    a name server: every name is 192.0.2.7
talk.py sctp-server | sctp-client HOST
                                      an SCTP association by hand, over raw sockets: kernels without SCTP will do
"""

import asyncio
import resource
import socket
import struct
import sys
import threading
import time


def say(word):
    print(word, flush=True)


def serve(connection):
    while data := connection.recv(1000):
        if data.startswith(b"later"):
            time.sleep(float(data[5:]))
        connection.sendall(data)


def echo(port):
    server = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)
    while True:
        connection, _ = server.accept()
        threading.Thread(target=serve, args=(connection,), daemon=True).start()


def expect(connection, word):
    """Whether the word comes back within three seconds."""
    connection.settimeout(3)
    try:
        return connection.recv(1000) == word
    except TimeoutError:
        return False


def session(host, port, idle, keepalive=0):
    connection = socket.create_connection((host, port), timeout=3)
    if keepalive:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, keepalive)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, keepalive)
    connection.sendall(b"one")
    say("open" if expect(connection, b"one") else "closed")
    time.sleep(idle)
    connection.sendall(b"two")
    say("alive" if expect(connection, b"two") else "lost")


def listen(host, port, idle):
    connection = socket.create_connection((host, port), timeout=3)
    word = b"later%f" % idle
    connection.sendall(word)
    connection.settimeout(idle + 3)
    try:
        say("heard" if connection.recv(1000) == word else "closed")
    except TimeoutError:
        say("deaf")


def all_descriptors():
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))


async def crowd_server(port):
    all_descriptors()

    async def serve(reader, writer):
        try:
            while line := await reader.readline():
                writer.write(line)
        except OSError:
            pass
        writer.close()

    server = await asyncio.start_server(serve, "", port, backlog=4096)
    say("ready")
    await server.serve_forever()


async def crowd(host, port, count):
    all_descriptors()
    turn = asyncio.Semaphore(500)
    connections = []

    async def echoes(number, reader, writer):
        writer.write(b"%d\n" % number)
        return await asyncio.wait_for(reader.readline(), 20) == b"%d\n" % number

    async def begin(number):
        async with turn:
            try:
                ends = await asyncio.wait_for(asyncio.open_connection(host, port), 20)
                connections.append((number, *ends))
                return await echoes(number, *ends)
            except (OSError, TimeoutError):
                return False

    say(f"open {sum(await asyncio.gather(*map(begin, range(count))))}")
    await asyncio.sleep(1)
    say(f"again {sum(await asyncio.gather(*(echoes(*ends) for ends in connections)))}")


def names(port):
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind(("", port))
    say("ready")
    while True:
        query, address = server.recvfrom(1500)
        end = query.index(b"\0", 12) + 5
        answer = b"\xc0\x0c" + struct.pack(">HHIH", 1, 1, 60, 4) + bytes([192, 0, 2, 7])
        header = query[:2] + struct.pack(">HHHHH", 0x8400, 1, 1, 0, 0)
        server.sendto(header + query[12:end] + answer, address)


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


TAGS = {"client": 0x11111111, "server": 0x22222222}
INIT, INIT_ACK, SACK, SHUTDOWN, SHUTDOWN_ACK, COOKIE_ECHO, COOKIE_ACK, SHUTDOWN_COMPLETE = 1, 2, 3, 7, 8, 10, 11, 14


def chunk(kind, me):
    if kind in (INIT, INIT_ACK):
        return struct.pack(">BBHIIHHI", kind, 0, 20, TAGS[me], 65536, 1, 1, 1)
    value = {0: struct.pack(">IHHI", 1, 0, 0, 0) + b"word", SACK: struct.pack(">IIHH", 1, 65536, 0, 0)}
    value = value.get(kind, b"")
    return struct.pack(">BBH", kind, 3 if kind == 0 else 0, 4 + len(value)) + value


def sctp_send(raw, host, ports, kind, me):
    tag = 0 if kind == INIT else TAGS["server" if me == "client" else "client"]
    packet = struct.pack(">HHII", *ports, tag, 0) + chunk(kind, me)
    raw.sendto(packet[:8] + struct.pack("<I", crc32c(packet)) + packet[12:], (host, 0))


def sctp_receive(raw, port):
    """The type of the next chunk for this port, and who sent it."""
    while True:
        packet, (host, _) = raw.recvfrom(2000)
        sctp = packet[20:]
        if struct.unpack(">H", sctp[2:4])[0] == port:
            return sctp[12], host


def sctp_server():
    raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, 132)
    say("ready")
    answers = {INIT: INIT_ACK, COOKIE_ECHO: COOKIE_ACK, 0: SACK, SHUTDOWN: SHUTDOWN_ACK}
    while True:
        kind, host = sctp_receive(raw, 5000)
        if kind in answers:
            sctp_send(raw, host, (5000, 4000), answers[kind], "server")


def sctp_client(host):
    raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, 132)
    raw.settimeout(3)

    def ask(kind, wanted):
        sctp_send(raw, host, (4000, 5000), kind, "client")
        got, _ = sctp_receive(raw, 4000)
        say(f"{kind} {got}" if got == wanted else f"{kind} wanted {wanted} got {got}")

    ask(INIT, INIT_ACK)
    ask(COOKIE_ECHO, COOKIE_ACK)
    ask(0, SACK)
    say("open")
    sys.stdin.readline()
    time.sleep(1)
    ask(SHUTDOWN, SHUTDOWN_ACK)
    sctp_send(raw, host, (4000, 5000), SHUTDOWN_COMPLETE, "client")
    say("closed")


verb, *words = sys.argv[1:]
verbs = {
    "echo": lambda port: echo(int(port)),
    "session": lambda host, port, idle, keepalive="0": session(host, int(port), float(idle), int(keepalive)),
    "listen": lambda host, port, idle: listen(host, int(port), float(idle)),
    "crowd-server": lambda port: asyncio.run(crowd_server(int(port))),
    "crowd": lambda host, port, count: asyncio.run(crowd(host, int(port), int(count))),
    "names": lambda port: names(int(port)),
    "sctp-server": sctp_server,
    "sctp-client": sctp_client,
}
verbs[verb](*words)
