/* SPDX-License-Identifier: GPL-2.0-only OR MIT OR Apache-2.0 */
/*
 * The packet source: run on live frames (BPF_PROG_RUN), it makes each a UDP packet of the next flow and sends it out of the
 * interface it claims to have come from. The frames are recycled and not made anew, so all of a packet is written.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "Dual MIT/GPL";

#define FLOWS_PER_ADDRESS 32768u

/* source.rs writes these bytes; all in the order of the wire except where said. */
struct generator_config {
	__u8 to[ETH_ALEN];
	__u8 from[ETH_ALEN];
	__be32 saddr; /* of flow 0 */
	__be32 daddr;
	__u32 first;  /* flow, host order */
	__u32 flows;  /* how many, host order */
	__u32 random; /* not 0: ports as RFC 4814 section 4.5 has them */
};

struct generator_config generator_config SEC(".data.config");
__u32 generator_next SEC(".data.next");

static __always_inline __u16 fold(__u32 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

/* The finaliser of MurmurHash3. */
static __always_inline __u32 scatter(__u32 n)
{
	n ^= n >> 16;
	n *= 0x85ebca6bu;
	n ^= n >> 13;
	n *= 0xc2b2ae35u;
	return n ^ n >> 16;
}

SEC("xdp")
int xrouter_gen(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = data;
	struct iphdr *ip = (void *)(eth + 1);
	struct udphdr *udp = (void *)(ip + 1);
	__u32 flow = generator_next, sum = 0, sport, dport = 9;
	__u32 length = (__u32)(end - data) - sizeof(*eth);
	__u16 *word = (void *)ip;

	if ((void *)(udp + 1) > end)
		return XDP_DROP;
	generator_next = flow + 1 < generator_config.flows ? flow + 1 : 0;
	flow += generator_config.first;
	sport = flow % FLOWS_PER_ADDRESS;
	if (generator_config.random) {
		/* An odd factor: every source port once for each address, in no order. */
		sport = sport * 20021 % FLOWS_PER_ADDRESS;
		dport = 1 + scatter(flow) % 49151;
	}
	__builtin_memcpy(eth->h_dest, generator_config.to, ETH_ALEN);
	__builtin_memcpy(eth->h_source, generator_config.from, ETH_ALEN);
	eth->h_proto = bpf_htons(ETH_P_IP);
	ip->version = 4;
	ip->ihl = 5;
	ip->tos = 0;
	ip->tot_len = bpf_htons(length);
	ip->id = 0;
	ip->frag_off = bpf_htons(0x4000);
	ip->ttl = 64;
	ip->protocol = IPPROTO_UDP;
	ip->check = 0;
	ip->saddr = bpf_htonl(bpf_ntohl(generator_config.saddr) + flow / FLOWS_PER_ADDRESS);
	ip->daddr = generator_config.daddr;
#pragma unroll
	for (int i = 0; i < 10; i++)
		sum += word[i];
	ip->check = fold(sum);
	udp->source = bpf_htons(1024 + sport);
	udp->dest = bpf_htons(dport);
	udp->len = bpf_htons(length - sizeof(*ip));
	udp->check = 0;
	return XDP_TX;
}
