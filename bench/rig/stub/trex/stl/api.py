"""A stand-in for TRex's STL API, for test_rig.py: the names and parameters of TRex 3 that the rig uses, and no others.

What is called otherwise than TRex has it is an error here. Behind it is a made-up device (`DEVICE`) that forwards so many frames a
second in each direction and drops the rest.
"""


class STLError(Exception):
    """TRex's error."""


class Device:
    """What is between the ports: frames a second by size of the frame without checksum, latency in microseconds."""

    def __init__(self):
        self.capacity = lambda size: 1e6
        self.latency = (12.0, 40.0)
        self.runs = []


DEVICE = Device()


class _Layer:
    """Enough of scapy: layers are stacked with `/`, have a length, and know their fields' names."""

    fields = ()
    length = 0

    def __init__(self, **fields):
        unknown = set(fields) - set(self.fields)
        if unknown:
            raise AttributeError("%s has no field %s" % (type(self).__name__, sorted(unknown)))
        self.below = [self]
        self.bytes = self.length

    def __truediv__(self, above):
        stack = _Layer()
        stack.below = self.below + ([above] if isinstance(above, _Layer) else [])
        stack.bytes = self.bytes + (above.bytes if isinstance(above, _Layer) else len(above))
        return stack

    def __len__(self):
        return self.bytes

    def has(self, place):
        """Whether `place` names a layer of this packet, or a field of one."""
        name, _, field = place.partition(".")
        return any(type(layer).__name__ == name and (not field or field in layer.fields) for layer in self.below)


class Ether(_Layer):
    fields, length = ("src", "dst", "type"), 14


class IP(_Layer):
    fields, length = ("src", "dst", "ttl", "proto", "len", "id", "flags", "tos", "chksum"), 20


class UDP(_Layer):
    fields, length = ("sport", "dport", "len", "chksum"), 8


def _number(value):
    if isinstance(value, int):
        return value
    parts = [int(part) for part in value.split(".")]
    if len(parts) != 4 or not all(0 <= part <= 255 for part in parts):
        raise STLError("bad address %s" % value)
    return parts[0] << 24 | parts[1] << 16 | parts[2] << 8 | parts[3]


class STLVmFlowVar:
    def __init__(self, name, init_value=None, min_value=0, max_value=255, size=4, step=1, op="inc"):
        low, high = _number(min_value), _number(max_value)
        if size not in (1, 2, 4, 8) or op not in ("inc", "dec", "random") or not low <= high < 1 << 8 * size or step < 1:
            raise STLError("bad variable %s" % name)
        self.name = name


class STLVmFlowVarRepeatableRandom:
    def __init__(self, name, size=4, limit=100, seed=None, min_value=0, max_value=None):
        high = (1 << 8 * size) - 1 if max_value is None else max_value
        if size not in (1, 2, 4, 8) or limit < 1 or not min_value <= high < 1 << 8 * size:
            raise STLError("bad variable %s" % name)
        if seed is not None and not 0 <= seed < 1 << 16:
            raise STLError("bad seed of %s" % name)
        self.name = name


class STLVmWrFlowVar:
    def __init__(self, fv_name, pkt_offset, offset_fixup=0, add_val=0, is_big=True):
        self.reads, self.place = fv_name, pkt_offset


class STLVmFixIpv4:
    def __init__(self, offset):
        self.place = offset


class STLScVmRaw:
    def __init__(self, list_of_commands=None, split_by_field=None, cache_size=None):
        self.commands = list_of_commands or []


class STLPktBuilder:
    def __init__(self, pkt=None, pkt_buffer=None, vm=None, path_relative_to_profile=False, build_raw=False, remove_fcs=True):
        self.pkt = pkt
        known = set()
        for command in vm.commands if vm else ():
            known.add(getattr(command, "name", None))
            if getattr(command, "reads", None) not in known | {None}:
                raise STLError("variable %s is not known" % command.reads)
            if hasattr(command, "place") and not pkt.has(command.place):
                raise STLError("the packet has no %s" % command.place)


class STLTXCont:
    def __init__(self, **kwargs):
        if set(kwargs) - {"pps", "bps_L1", "bps_L2", "percentage"}:
            raise STLError("bad mode")
        self.pps = kwargs["pps"]


class STLFlowLatencyStats:
    def __init__(self, pg_id, vxlan=False, ieee_1588=False):
        self.pg_id = pg_id


class STLStream:
    def __init__(self, name=None, packet=None, mode=STLTXCont(pps=1), enabled=True, self_start=True, isg=0.0,
                 flow_stats=None, next=None, stream_id=None, action_count=0, random_seed=0,
                 mac_src_override_by_pkt=None, mac_dst_override_mode=None, dummy_stream=False):
        if not isinstance(packet, STLPktBuilder):
            raise STLError("a stream is of a packet")
        self.size, self.mode, self.flow_stats = len(packet.pkt), mode, flow_stats


class STLClient:
    def __init__(self, username="test", server="localhost", sync_port=4501, async_port=4500, verbose_level="error",
                 logger=None, sync_timeout=None, async_timeout=None):
        self.streams, self.counts, self.connected = {}, {}, False

    def connect(self):
        self.connected = True

    def disconnect(self, stop_traffic=True, release_ports=True):
        self.connected = False

    def reset(self, ports=None, restart=False):
        if not self.connected:
            raise STLError("not connected")
        self.streams = {port: [] for port in ports}

    def add_streams(self, streams, ports=None):
        for port in ports:
            self.streams[port].extend(streams)

    def clear_stats(self, ports=None, clear_global=True, clear_flow_stats=True, clear_latency_stats=True,
                    clear_xstats=True):
        self.counts = {port: {"opackets": 0, "ipackets": 0} for port in self.streams}

    def start(self, ports=None, mult="1", force=False, duration=-1, total=False, core_mask=None, synchronized=False):
        if not isinstance(mult, str) or not mult.endswith("pps") or duration <= 0:
            raise STLError("bad multiplier or duration")
        rate = float(mult[:-3])
        for port in ports:
            streams = self.streams[port]
            if not streams:
                raise STLError("port %d has no streams" % port)
            shares = sum(stream.mode.pps for stream in streams)
            size = sum(stream.size * stream.mode.pps for stream in streams) / shares
            carried = min(rate, DEVICE.capacity(size))
            DEVICE.runs.append((port, size, rate, carried == rate))
            self.counts[port]["opackets"] += int(rate * duration)
            self.counts[1 - port]["ipackets"] += int(carried * duration)

    def wait_on_traffic(self, ports=None, timeout=None, rx_delay_ms=None):
        pass

    def get_stats(self, ports=None, sync_now=True):
        average, longest = DEVICE.latency
        stats = {port: dict(self.counts[port]) for port in ports}
        stats["latency"] = {
            stream.flow_stats.pg_id: {"latency": {"average": average, "total_max": longest, "jitter": 0}}
            for streams in self.streams.values() for stream in streams if stream.flow_stats}
        return stats
