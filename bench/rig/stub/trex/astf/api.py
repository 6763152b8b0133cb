"""A stand-in for TRex's ASTF API, for test_rig.py: the names and parameters of TRex 3 that the rig uses, and no others.

What is called otherwise than TRex has it is an error here. Behind it is a made-up gateway (`GATEWAY`) with a table of so many
connections that sets up so many in a second.
"""


class TRexError(Exception):
    """TRex's error."""


class Gateway:
    """What is between the ports."""

    def __init__(self):
        self.rate = {"udp": 300_000, "tcp": 120_000}
        self.table = 1_000_000
        self.trials = []


GATEWAY = Gateway()


class ASTFProgram:
    def __init__(self, file=None, side="c", commands=None, stream=True):
        self.stream, self.labels, self.variables, self.said = stream, set(), set(), []

    def send(self, buf, size=None, fill=None):
        self._say(True, "send")

    def recv(self, bytes, clear=False):
        self._say(True, "recv")

    def send_msg(self, buf, size=None, fill=None):
        self._say(False, "send_msg")

    def recv_msg(self, pkts, clear=False):
        self._say(False, "recv_msg")

    def delay(self, usec):
        if not isinstance(usec, int):
            raise TRexError("a delay is in whole microseconds")
        self.said.append("delay")

    def set_var(self, var_id, val):
        if not isinstance(var_id, str) or not isinstance(val, int):
            raise TRexError("bad variable")
        self.variables.add(var_id)

    def set_label(self, label):
        self.labels.add(label)

    def jmp_nz(self, var_id, label):
        if var_id not in self.variables or label not in self.labels:
            raise TRexError("a jump with %s to %s" % (var_id, label))
        self.said.append("jmp_nz")

    def _say(self, stream, word):
        if stream != self.stream:
            raise TRexError("%s in a program with stream=%s" % (word, self.stream))
        self.said.append(word)


class ASTFIPGenDist:
    def __init__(self, ip_range, distribution="seq", per_core_distribution=None):
        if len(ip_range) != 2 or distribution not in ("seq", "rand"):
            raise TRexError("bad addresses")


class ASTFIPGenGlobal:
    def __init__(self, ip_offset="1.0.0.0", ip_offset_server=None):
        pass


class ASTFIPGen:
    def __init__(self, dist_client, dist_server, glob=ASTFIPGenGlobal()):
        if not isinstance(dist_client, ASTFIPGenDist) or not isinstance(dist_server, ASTFIPGenDist):
            raise TRexError("bad addresses")


class ASTFAssociationRule:
    def __init__(self, port=80, ip_start=None, ip_end=None, l7_map=None):
        self.port = port


class _Settings:
    """Settings of TCP: those TRex knows."""

    KNOWN = {"keepinit", "keepidle", "keepintvl", "mss", "initwnd", "rxbufsize", "txbufsize", "rexmtthresh", "do_rfc1323",
             "no_delay", "delay_ack_msec"}

    def __setattr__(self, name, value):
        if name not in self.KNOWN:
            raise TRexError("no setting %s" % name)
        if name.startswith("keep") and not 2 <= value <= 253:
            raise TRexError("%s is out of its range" % name)


class ASTFGlobalInfo:
    def __init__(self, params=None):
        self.tcp = _Settings()


class ASTFTCPClientTemplate:
    def __init__(self, ip_gen, cluster=None, program=None, port=80, cps=1, glob_info=None, limit=None, cont=None):
        if not isinstance(ip_gen, ASTFIPGen) or not isinstance(program, ASTFProgram):
            raise TRexError("bad template")
        if limit is not None and not isinstance(limit, int) or cont is not None and not isinstance(cont, bool):
            raise TRexError("bad limit")
        self.program, self.port, self.cps, self.limit = program, port, cps, limit


class ASTFTCPServerTemplate:
    def __init__(self, program=None, assoc=None, glob_info=None):
        if not isinstance(program, ASTFProgram) or not isinstance(assoc, ASTFAssociationRule):
            raise TRexError("bad template")
        self.program, self.assoc = program, assoc


class ASTFTemplate:
    def __init__(self, client_template=None, server_template=None, tg_name=None):
        if client_template.program.stream != server_template.program.stream:
            raise TRexError("one side is a stream, the other is not")
        if client_template.port != server_template.assoc.port:
            raise TRexError("nobody listens at port %d" % client_template.port)
        self.client = client_template


class ASTFProfile:
    def __init__(self, default_ip_gen, default_c_glob_info=None, default_s_glob_info=None, templates=None, cap_list=None,
                 s_delay=None, udp_mtu=None):
        if not isinstance(templates, ASTFTemplate):
            raise TRexError("no template")
        self.client = templates.client


class ASTFClient:
    def __init__(self, username="test", server="localhost", sync_port=4501, async_port=4500, verbose_level="error",
                 logger=None, sync_timeout=None, async_timeout=None):
        self.profile, self.near, self.far, self.connected = None, {}, {}, False

    def connect(self):
        self.connected = True

    def disconnect(self, stop_traffic=True, release_ports=True):
        self.connected = False

    def reset(self, restart=False):
        if not self.connected:
            raise TRexError("not connected")
        self.profile = None

    def load_profile(self, profile, tunables={}):
        self.profile = profile

    def clear_stats(self, ports=None, clear_global=True, clear_xstats=True, clear_traffic=True):
        self.near, self.far = {}, {}

    def start(self, mult=1, duration=-1, nc=False, block=True, latency_pps=0, ipv6=False, client_mask=0xFFFFFFFF):
        if not isinstance(mult, int) or mult < 1 or duration <= 0:
            raise TRexError("bad multiplier or duration")
        client = self.profile.client
        kind = "tcp" if client.program.stream else "udp"
        begun = int(mult * client.cps * duration)
        if client.limit:
            begun = min(begun, client.limit)
            came = min(begun, GATEWAY.table)
        else:
            came = int(min(mult * client.cps, GATEWAY.rate[kind]) * duration)
        GATEWAY.trials.append((kind, mult, client.limit, came == begun))
        self.near = {"%ss_connects" % kind: begun, "m_est_flows": came}
        self.far = {"%ss_accepts" % kind: came}
        if came < begun:
            self.near["udps_keepdrops" if kind == "udp" else "tcps_conndrops"] = begun - came

    def wait_on_traffic(self, timeout=None):
        pass

    def get_stats(self, ports=None, sync_now=True, skip_zero=True):
        return {"traffic": {"client": dict(self.near), "server": dict(self.far)}}
