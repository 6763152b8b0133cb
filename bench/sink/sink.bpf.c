/* SPDX-License-Identifier: GPL-2.0-only OR MIT OR Apache-2.0 */
/* The far end: counts UDP over IPv4 that arrives, and drops it before the host's stack spends time on it. */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "Dual MIT/GPL";

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} sink_count SEC(".maps");

SEC("tc")
int xrouter_sink(struct __sk_buff *skb)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct iphdr *ip = data + ETH_HLEN;
	__u32 key = 0;
	__u64 *count;

	if (skb->protocol != bpf_htons(ETH_P_IP) || (void *)(ip + 1) > end || ip->protocol != IPPROTO_UDP)
		return TC_ACT_OK;
	count = bpf_map_lookup_elem(&sink_count, &key);
	if (count)
		*count += 1;
	return TC_ACT_SHOT;
}
