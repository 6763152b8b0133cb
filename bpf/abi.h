/* SPDX-License-Identifier: GPL-2.0-only OR MIT OR Apache-2.0 */
/*
 * What the XDP program and user space agree on. src/xdp/abi.rs says the same in Rust; its tests compare the two byte
 * by byte through the program's own BTF. Change both together.
 */
#ifndef XROUTER_ABI_H
#define XROUTER_ABI_H

#include <linux/types.h>

#define XROUTER_PORTS 2
#define XROUTER_MAX_QUEUES 64 /* XSKMAP key = port * XROUTER_MAX_QUEUES + queue */

#define XROUTER_LOCAL_MAX 4096       /* local addresses of each family */
#define XROUTER_FILTER_WORDS 64      /* of 64 bits: a one-hash Bloom filter over the local addresses */
#define XROUTER_FILTER_SHIFT 20      /* 32-bit hash >> 20 = 12 bits = one of 4096 */
#define XROUTER_FILTER_FACTOR 0x9e3779b1u

#define XROUTER_MAX_PUNTERS 64
#define XROUTER_PUNT_BATCH 64        /* frames a call may bring back */
#define XROUTER_PUNT_BYTES 3072      /* the longest frame a live-frame run carries with room to spare */
#define XROUTER_PUNT_META 28         /* bytes of metadata that mark a frame as punted; no driver uses this much */
#define XROUTER_PUNT_RUN 60          /* bytes of packet the run starts with; the program makes it the slot's length */
#define XROUTER_PUNT_MAGIC 0x78727074u
#define XROUTER_PUNT_SEAL 16         /* bytes behind a punted frame by which the generic hook knows it */

/* The port has no IPv4 address: a DHCP answer to the address it is being offered belongs to the host. */
#define XROUTER_PORT_ADDRESSLESS 1u

/*
 * Connections of the family may be translated: a packet to a local address may be a reply to one, or be led elsewhere by
 * DNAT, so that only what a connected socket of the host waits for is surely the host's. Never taken back in a run.
 */
#define XROUTER_NAT4 1u
#define XROUTER_NAT6 2u

/* What became of a frame, and why. Counted per port in xrouter_steered. */
enum xrouter_steer {
	/* to the worker */
	XROUTER_WORKER_TRANSIT,
	XROUTER_WORKER_LOCAL,     /* to a local address, but no socket of the host wants it (with NAT: no connected one) */
	/* to the kernel */
	XROUTER_HOST_OTHER_MAC,
	XROUTER_HOST_GROUP_MAC,   /* broadcast or multicast at layer 2 */
	XROUTER_HOST_NOT_IP,      /* ARP, VLAN tags, LLDP, PPPoE ... */
	XROUTER_HOST_MULTICAST,   /* IP multicast, or the limited broadcast */
	XROUTER_HOST_LINK_LOCAL,  /* IPv6 only: IPv4 link-local may be forwarded, so it is */
	XROUTER_HOST_NEIGHBOUR,   /* neighbour discovery or MLD to a local address */
	XROUTER_HOST_DHCP,
	XROUTER_HOST_SOCKET,      /* the host has a socket for it (with NAT: a connected one) */
	XROUTER_HOST_ECHO,        /* echo request to a local address; not with NAT */
	XROUTER_HOST_FRAGMENT,    /* fragment, options or extension headers to a local address */
	XROUTER_HOST_PROTOCOL,    /* a protocol other than TCP, UDP, ICMP to a local address; not with NAT */
	XROUTER_HOST_PUNTED,      /* the worker gave it back */
	/* dropped */
	XROUTER_DROP_RUNT,        /* shorter than an Ethernet header */
	XROUTER_DROP_NO_PORT,     /* received on an interface the program does not know */
	XROUTER_DROP_NO_SOCKET,   /* no AF_XDP socket bound for the queue: fails closed */
	XROUTER_DROP_PUNT,        /* a punted frame that could not be rebuilt */
	XROUTER_DROP_PRIORITY_TAG, /* tagged with VLAN 0, which the kernel would take off and route */
	XROUTER_STEER_COUNT,
};

struct xrouter_port {
	__u32 ifindex;
	__u32 flags;
	__u64 mac;                /* six bytes in the order of the wire, then two of zero; written in one store */
};

struct xrouter_config {
	struct xrouter_port port[XROUTER_PORTS];
	__u32 nat;                /* XROUTER_NAT4, XROUTER_NAT6 */
	__u32 reserved;
	__u64 local_filter[XROUTER_FILTER_WORDS];
	__u64 punt_seal[2];       /* drawn for this run; zero where the hook is native, which a punted frame does not meet again */
	__u32 punt_next[XROUTER_MAX_PUNTERS]; /* the slot that punter n's next frame takes; set to 0 before each call */
};

struct xrouter_addr6 {
	__u32 word[4];            /* the order of the wire */
};

struct xrouter_punt_slot {
	__u32 length;
	__u32 reserved;           /* the kernel lays array elements out at multiples of 8 bytes */
	__u8 bytes[XROUTER_PUNT_BYTES];
};

#endif
