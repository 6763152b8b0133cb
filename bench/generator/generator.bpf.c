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

/* main.rs writes these bytes; all in the order of the wire except where said. */
struct generator_config {
	__u8 to[ETH_ALEN];
	__u8 from[ETH_ALEN];
	__be32 saddr; /* of flow 0 */
	__be32 daddr;
	__u32 flows;  /* host order */
	__u32 length; /* of the IP packet, host order */
};

struct generator_config generator_config SEC(".data.config");
__u32 generator_next SEC(".data.next");

static __always_inline __u16 fold(__u32 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

SEC("xdp")
int xrouter_gen(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = data;
	struct iphdr *ip = (void *)(eth + 1);
	struct udphdr *udp = (void *)(ip + 1);
	__u32 flow = generator_next, sum = 0;
	__u16 *word = (void *)ip;

	if ((void *)(udp + 1) > end)
		return XDP_DROP;
	generator_next = flow + 1 < generator_config.flows ? flow + 1 : 0;
	__builtin_memcpy(eth->h_dest, generator_config.to, ETH_ALEN);
	__builtin_memcpy(eth->h_source, generator_config.from, ETH_ALEN);
	eth->h_proto = bpf_htons(ETH_P_IP);
	ip->version = 4;
	ip->ihl = 5;
	ip->tos = 0;
	ip->tot_len = bpf_htons(generator_config.length);
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
	udp->source = bpf_htons(1024 + flow % FLOWS_PER_ADDRESS);
	udp->dest = bpf_htons(9);
	udp->len = bpf_htons(generator_config.length - sizeof(*ip));
	udp->check = 0;
	return XDP_TX;
}
