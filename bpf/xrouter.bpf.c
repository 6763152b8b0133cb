/* SPDX-License-Identifier: GPL-2.0-only OR MIT OR Apache-2.0 */
/*
 * The XDP program: it only steers. To the kernel goes what is the host's business, to the worker (an AF_XDP socket)
 * everything that may have to be forwarded. It fails closed: what belongs to a worker and finds no socket is dropped,
 * never passed to the kernel's own forwarding, which knows none of our rules. So every XDP_PASS below must be for a
 * frame that the kernel would not forward: its destination is local, link-local, a group, or not IP at all.
 *
 * A frame that the worker gives back (BPF_PROG_RUN with live frames, see src/xdp/punt.rs) runs through this same
 * program: it is told by the length of its metadata, which nobody on the wire can set. On the generic hook it comes once
 * more, as the packet it has become, without metadata: there a seal behind it tells it, which nobody on the wire knows.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "abi.h"

char LICENSE[] SEC("license") = "Dual MIT/GPL";

#define ICMP_ECHO 8
#define IP_MF 0x2000
#define IP_OFFSET 0x1fff

struct xrouter_config xrouter_config SEC(".data.config");

struct {
	__uint(type, BPF_MAP_TYPE_XSKMAP);
	__uint(max_entries, XROUTER_PORTS * XROUTER_MAX_QUEUES);
	__type(key, __u32);
	__type(value, __u32);
} xrouter_xsks SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, XROUTER_PORTS * XROUTER_STEER_COUNT);
	__type(key, __u32);
	__type(value, __u64);
} xrouter_steered SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, XROUTER_LOCAL_MAX);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32);
	__type(value, __u8);
} xrouter_local4 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, XROUTER_LOCAL_MAX);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct xrouter_addr6);
	__type(value, __u8);
} xrouter_local6 SEC(".maps");

/* max_entries is set by user space before loading: one batch for each punter. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, XROUTER_PUNT_BATCH);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct xrouter_punt_slot);
} xrouter_punted SEC(".maps");

static __always_inline void count(__u32 port, enum xrouter_steer why)
{
	__u32 key = port * XROUTER_STEER_COUNT + why;
	__u64 *n = bpf_map_lookup_elem(&xrouter_steered, &key);

	if (n)
		*n += 1;
}

static __always_inline int to_host(__u32 port, enum xrouter_steer why)
{
	count(port, why);
	return XDP_PASS;
}

static __always_inline int drop(__u32 port, enum xrouter_steer why)
{
	count(port, why);
	return XDP_DROP;
}

static __always_inline int to_worker(struct xdp_md *ctx, __u32 port, enum xrouter_steer why)
{
	__u32 queue = ctx->rx_queue_index;
	int action;

	if (queue >= XROUTER_MAX_QUEUES)
		return drop(port, XROUTER_DROP_NO_SOCKET);
	action = bpf_redirect_map(&xrouter_xsks, port * XROUTER_MAX_QUEUES + queue, XDP_DROP);
	count(port, action == XDP_REDIRECT ? why : XROUTER_DROP_NO_SOCKET);
	return action;
}

static __always_inline int may_be_local(__u32 word)
{
	__u32 bit = (word * XROUTER_FILTER_FACTOR) >> XROUTER_FILTER_SHIFT;

	return (xrouter_config.local_filter[(bit >> 6) & (XROUTER_FILTER_WORDS - 1)] >> (bit & 63)) & 1;
}

/*
 * With NAT a packet to a local address may be a reply of a translated connection, or be for a forwarded port, whether or
 * not the host listens there. The worker looks, and gives back what is neither. So then only a socket counts that knows
 * this very remote end.
 */
static __always_inline int has_nat(__u32 family)
{
	return xrouter_config.nat & family;
}

/* Any socket counts: listening (not with NAT), being opened, established, waiting out its time. */
static __always_inline int host_has_tcp(struct xdp_md *ctx, struct bpf_sock_tuple *tuple, __u32 size, __u32 family)
{
	struct bpf_sock *sk = bpf_skc_lookup_tcp(ctx, tuple, size, BPF_F_CURRENT_NETNS, 0);
	int has;

	if (!sk)
		return 0;
	has = !has_nat(family) || sk->state != BPF_TCP_LISTEN;
	bpf_sk_release(sk);
	return has;
}

/* Any socket counts; with NAT only one that is connected, whose state is then that of TCP's. */
static __always_inline int host_has_udp(struct xdp_md *ctx, struct bpf_sock_tuple *tuple, __u32 size, __u32 family)
{
	struct bpf_sock *sk = bpf_sk_lookup_udp(ctx, tuple, size, BPF_F_CURRENT_NETNS, 0);
	int has;

	if (!sk)
		return 0;
	has = !has_nat(family) || sk->state == BPF_TCP_ESTABLISHED;
	bpf_sk_release(sk);
	return has;
}

static __always_inline int steer_local4(struct xdp_md *ctx, __u32 port, struct iphdr *ip, void *end)
{
	struct bpf_sock_tuple tuple = {};
	__be16 *ports = (void *)(ip + 1);
	__u8 *icmp_type = (void *)(ip + 1);

	/* With NAT too: nobody but the kernel puts fragments together, so those of translated connections end there. */
	if (ip->ihl != 5 || (ip->frag_off & bpf_htons(IP_MF | IP_OFFSET)))
		return to_host(port, XROUTER_HOST_FRAGMENT);
	if (ip->protocol == IPPROTO_ICMP) {
		if ((void *)(icmp_type + 1) <= end && *icmp_type == ICMP_ECHO && !has_nat(XROUTER_NAT4))
			return to_host(port, XROUTER_HOST_ECHO);
		return to_worker(ctx, port, XROUTER_WORKER_LOCAL);
	}
	if (ip->protocol != IPPROTO_TCP && ip->protocol != IPPROTO_UDP)
		return has_nat(XROUTER_NAT4) ? to_worker(ctx, port, XROUTER_WORKER_LOCAL)
					     : to_host(port, XROUTER_HOST_PROTOCOL);
	if ((void *)(ports + 2) > end)
		return to_worker(ctx, port, XROUTER_WORKER_LOCAL);
	tuple.ipv4.saddr = ip->saddr;
	tuple.ipv4.daddr = ip->daddr;
	tuple.ipv4.sport = ports[0];
	tuple.ipv4.dport = ports[1];
	if (ip->protocol == IPPROTO_UDP) {
		if (ports[1] == bpf_htons(67) || ports[1] == bpf_htons(68))
			return to_host(port, XROUTER_HOST_DHCP);
		if (host_has_udp(ctx, &tuple, sizeof(tuple.ipv4), XROUTER_NAT4))
			return to_host(port, XROUTER_HOST_SOCKET);
	} else if (host_has_tcp(ctx, &tuple, sizeof(tuple.ipv4), XROUTER_NAT4)) {
		return to_host(port, XROUTER_HOST_SOCKET);
	}
	return to_worker(ctx, port, XROUTER_WORKER_LOCAL);
}

/* A server's answer (BOOTREPLY from port 67 to 68) carrying our own MAC, to the address the port has not got yet. */
static __always_inline int is_dhcp_offer(struct iphdr *ip, void *end, __u64 mac)
{
	struct udphdr *udp = (void *)(ip + 1);
	__u8 *bootp = (void *)(udp + 1);
	__u64 chaddr = 0;

	if (ip->ihl != 5 || ip->protocol != IPPROTO_UDP || (ip->frag_off & bpf_htons(IP_MF | IP_OFFSET)))
		return 0;
	if ((void *)(bootp + 34) > end || udp->source != bpf_htons(67) || udp->dest != bpf_htons(68) || bootp[0] != 2)
		return 0;
	__builtin_memcpy(&chaddr, bootp + 28, ETH_ALEN);
	return chaddr == mac;
}

static __always_inline int steer4(struct xdp_md *ctx, __u32 port, struct iphdr *ip, void *end)
{
	__u32 daddr;

	if ((void *)(ip + 1) > end || ip->version != 4)
		return to_worker(ctx, port, XROUTER_WORKER_TRANSIT);
	daddr = ip->daddr;
	if ((daddr & bpf_htonl(0xf0000000)) == bpf_htonl(0xe0000000) || daddr == 0xffffffff)
		return to_host(port, XROUTER_HOST_MULTICAST);
	if (may_be_local(daddr) && bpf_map_lookup_elem(&xrouter_local4, &daddr))
		return steer_local4(ctx, port, ip, end);
	if ((xrouter_config.port[port & 1].flags & XROUTER_PORT_ADDRESSLESS) &&
	    is_dhcp_offer(ip, end, xrouter_config.port[port & 1].mac))
		return to_host(port, XROUTER_HOST_DHCP);
	return to_worker(ctx, port, XROUTER_WORKER_TRANSIT);
}

static __always_inline int steer_local6(struct xdp_md *ctx, __u32 port, struct ipv6hdr *ip, void *end)
{
	struct bpf_sock_tuple tuple = {};
	__be16 *ports = (void *)(ip + 1);
	__u8 *icmp_type = (void *)(ip + 1);

	if (ip->nexthdr == IPPROTO_ICMPV6) {
		if ((void *)(icmp_type + 1) > end)
			return to_worker(ctx, port, XROUTER_WORKER_LOCAL);
		if (*icmp_type == 128 && !has_nat(XROUTER_NAT6))
			return to_host(port, XROUTER_HOST_ECHO);
		if ((*icmp_type >= 130 && *icmp_type <= 137) || *icmp_type == 143)
			return to_host(port, XROUTER_HOST_NEIGHBOUR);
		return to_worker(ctx, port, XROUTER_WORKER_LOCAL);
	}
	if (ip->nexthdr == IPPROTO_HOPOPTS || ip->nexthdr == IPPROTO_ROUTING || ip->nexthdr == IPPROTO_FRAGMENT ||
	    ip->nexthdr == IPPROTO_DSTOPTS)
		return to_host(port, XROUTER_HOST_FRAGMENT);
	if (ip->nexthdr != IPPROTO_TCP && ip->nexthdr != IPPROTO_UDP)
		return has_nat(XROUTER_NAT6) ? to_worker(ctx, port, XROUTER_WORKER_LOCAL)
					     : to_host(port, XROUTER_HOST_PROTOCOL);
	if ((void *)(ports + 2) > end)
		return to_worker(ctx, port, XROUTER_WORKER_LOCAL);
	__builtin_memcpy(tuple.ipv6.saddr, &ip->saddr, 16);
	__builtin_memcpy(tuple.ipv6.daddr, &ip->daddr, 16);
	tuple.ipv6.sport = ports[0];
	tuple.ipv6.dport = ports[1];
	if (ip->nexthdr == IPPROTO_UDP) {
		if (ports[1] == bpf_htons(546) || ports[1] == bpf_htons(547))
			return to_host(port, XROUTER_HOST_DHCP);
		if (host_has_udp(ctx, &tuple, sizeof(tuple.ipv6), XROUTER_NAT6))
			return to_host(port, XROUTER_HOST_SOCKET);
	} else if (host_has_tcp(ctx, &tuple, sizeof(tuple.ipv6), XROUTER_NAT6)) {
		return to_host(port, XROUTER_HOST_SOCKET);
	}
	return to_worker(ctx, port, XROUTER_WORKER_LOCAL);
}

static __always_inline int steer6(struct xdp_md *ctx, __u32 port, struct ipv6hdr *ip, void *end)
{
	struct xrouter_addr6 daddr;

	if ((void *)(ip + 1) > end || ip->version != 6)
		return to_worker(ctx, port, XROUTER_WORKER_TRANSIT);
	__builtin_memcpy(&daddr, &ip->daddr, sizeof(daddr));
	if ((daddr.word[0] & bpf_htonl(0xff000000)) == bpf_htonl(0xff000000))
		return to_host(port, XROUTER_HOST_MULTICAST);
	/* The kernel never forwards to fe80::/10 off the link it came from. */
	if ((daddr.word[0] & bpf_htonl(0xffc00000)) == bpf_htonl(0xfe800000))
		return to_host(port, XROUTER_HOST_LINK_LOCAL);
	if (may_be_local(daddr.word[0] ^ daddr.word[1] ^ daddr.word[2] ^ daddr.word[3]) &&
	    bpf_map_lookup_elem(&xrouter_local6, &daddr))
		return steer_local6(ctx, port, ip, end);
	return to_worker(ctx, port, XROUTER_WORKER_TRANSIT);
}

/*
 * A frame from BPF_PROG_RUN: its metadata is the magic and the punter's number, its bytes lie in the punter's next slot.
 * One punter runs one call at a time and a call runs on one CPU, so the cursor needs no atomic.
 */
static __always_inline int punt(struct xdp_md *ctx, __u32 port)
{
	__u32 *meta = (void *)(long)ctx->data_meta;
	void *data = (void *)(long)ctx->data;
	int seal = xrouter_config.punt_seal[0] ? XROUTER_PUNT_SEAL : 0;
	struct xrouter_punt_slot *slot;
	__u32 punter, next, key, length;

	if ((void *)meta + XROUTER_PUNT_META > data || meta[0] != XROUTER_PUNT_MAGIC)
		return drop(port, XROUTER_DROP_PUNT);
	punter = meta[1];
	if (punter >= XROUTER_MAX_PUNTERS)
		return drop(port, XROUTER_DROP_PUNT);
	next = xrouter_config.punt_next[punter];
	if (next >= XROUTER_PUNT_BATCH)
		return drop(port, XROUTER_DROP_PUNT);
	xrouter_config.punt_next[punter] = next + 1;
	key = punter * XROUTER_PUNT_BATCH + next;
	slot = bpf_map_lookup_elem(&xrouter_punted, &key);
	if (!slot)
		return drop(port, XROUTER_DROP_PUNT);
	length = slot->length;
	if (length < ETH_HLEN || length > XROUTER_PUNT_BYTES)
		return drop(port, XROUTER_DROP_PUNT);
	if (bpf_xdp_adjust_tail(ctx, (int)length + seal - XROUTER_PUNT_RUN) ||
	    bpf_xdp_adjust_meta(ctx, XROUTER_PUNT_META) || bpf_xdp_store_bytes(ctx, 0, slot->bytes, length))
		return drop(port, XROUTER_DROP_PUNT);
	if (seal && bpf_xdp_store_bytes(ctx, length, xrouter_config.punt_seal, XROUTER_PUNT_SEAL))
		return drop(port, XROUTER_DROP_PUNT);
	return to_host(port, XROUTER_HOST_PUNTED);
}

/* Whether it is a punted frame that the generic hook sees again. */
static __always_inline int is_sealed(struct xdp_md *ctx, __u32 length)
{
	__u64 seal[2];

	if (!xrouter_config.punt_seal[0] || length < ETH_HLEN + XROUTER_PUNT_SEAL)
		return 0;
	if (bpf_xdp_load_bytes(ctx, length - XROUTER_PUNT_SEAL, seal, sizeof(seal)))
		return 0;
	return seal[0] == xrouter_config.punt_seal[0] && seal[1] == xrouter_config.punt_seal[1];
}

SEC("xdp")
int xrouter_xdp(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data;
	void *end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = data;
	__u64 mac = 0;
	__u32 port;

	if (ctx->ingress_ifindex == xrouter_config.port[0].ifindex)
		port = 0;
	else if (ctx->ingress_ifindex == xrouter_config.port[1].ifindex)
		port = 1;
	else
		return drop(0, XROUTER_DROP_NO_PORT);

	if ((void *)(long)ctx->data_meta + XROUTER_PUNT_META <= data)
		return punt(ctx, port);
	/* Counted when it was punted. */
	if (is_sealed(ctx, end - data))
		return bpf_xdp_adjust_tail(ctx, -XROUTER_PUNT_SEAL) ? drop(port, XROUTER_DROP_PUNT) : XDP_PASS;
	if ((void *)(eth + 1) > end)
		return drop(port, XROUTER_DROP_RUNT);
	__builtin_memcpy(&mac, eth->h_dest, ETH_ALEN);
	if (mac != xrouter_config.port[port].mac)
		return to_host(port, eth->h_dest[0] & 1 ? XROUTER_HOST_GROUP_MAC : XROUTER_HOST_OTHER_MAC);
	if (eth->h_proto == bpf_htons(ETH_P_IP))
		return steer4(ctx, port, (void *)(eth + 1), end);
	if (eth->h_proto == bpf_htons(ETH_P_IPV6))
		return steer6(ctx, port, (void *)(eth + 1), end);
	if (eth->h_proto == bpf_htons(ETH_P_8021Q) || eth->h_proto == bpf_htons(ETH_P_8021AD)) {
		/*
		 * A tag with VLAN 0 carries only a priority: the kernel takes it off and would route what is in
		 * it, around the rules.
		 */
		__be16 *tci = (void *)(eth + 1);

		if ((void *)(tci + 1) > end || !(*tci & bpf_htons(0x0fff)))
			return drop(port, XROUTER_DROP_PRIORITY_TAG);
	}
	return to_host(port, XROUTER_HOST_NOT_IP);
}
