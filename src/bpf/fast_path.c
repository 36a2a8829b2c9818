/* The fast path: two programs for the traffic control of the kernel (clsact), on top of a datapath.
 *
 *   inner packet ─▶ ipipou0, egress ───────▶ outer packet ─▶ the uplink, past the datapath
 *   outer packet ─▶ the uplink, ingress ───▶ inner packet ─▶ ipipou0, past the datapath
 *
 * The second is there twice: for uplinks with an Ethernet header, and for those without a header.
 *
 * A program takes what is ordinary and what it is sure of. All else it leaves as it is, and the
 * datapath carries it, refuses it, fragments it, or answers it with an ICMP error: so these
 * programs let in nothing that the datapath would not. On the wire both look the same.
 *
 * There is no loader's library: tests/setup/bpf.py takes the instructions out of the compiled file, and
 * program.rs puts file descriptors of maps and values of constants where a name is undefined here.
 * Numbers in `__be` types are in network byte order.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/pkt_cls.h>
#include <linux/udp.h>

/* A constant is the address of a name, which the loader chooses. The compiler takes such an address for
 * neither zero nor another name's: never compare one with these. */
#define CONSTANT(name) ((__u32)(unsigned long)&name)
extern const char outer_address;   /* ours, __be32 */
extern const char port;            /* ours, __be16 */
extern const char mark;            /* firewall mark of outer packets */
extern const char time_to_live;    /* of outer packets */
extern const char left_to_socket;  /* bits of a UDP checksum: a datagram that has one of them is */

/* Who has the inner addresses of a network. */
struct peer {
    __be32 address; /* where to send to … */
    __be16 port;
    __u16 mtu;      /* … what has so many bytes at most, */
    __u32 uplink;   /* and by which interface */
    __u32 id;
};

/* Who is at a remote. */
struct sender {
    __u32 link; /* where its inner packets arrive */
    __u32 id;
};

/* What one peer sent and got, in `counts` by id, of each processor. */
struct count {
    __u64 rx_packets, rx_bytes, tx_packets, tx_bytes;
};

extern char peers, remotes, counts, lease;

static __u64 (*now)(void) = (void *)BPF_FUNC_ktime_get_coarse_ns;
static void *(*find)(void *map, const void *key) = (void *)BPF_FUNC_map_lookup_elem;
static long (*adjust_room)(struct __sk_buff *, int, __u32, __u64) = (void *)BPF_FUNC_skb_adjust_room;
static long (*change_head)(struct __sk_buff *, __u32, __u64) = (void *)BPF_FUNC_skb_change_head;
static long (*change_type)(struct __sk_buff *, __u32) = (void *)BPF_FUNC_skb_change_type;
static long (*pull)(struct __sk_buff *, __u32) = (void *)BPF_FUNC_skb_pull_data;
static long (*checksum_level)(struct __sk_buff *, __u64) = (void *)BPF_FUNC_csum_level;
static long (*redirect)(__u32, __u64) = (void *)BPF_FUNC_redirect;
static long (*redirect_neigh)(__u32, void *, int, __u64) = (void *)BPF_FUNC_redirect_neigh;

#define inline inline __attribute__((always_inline))
#define swapped(number) __builtin_bswap16(number)
#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "one object serves all little-endian machines, and no other"
#endif

/* For the next filter, of another tunnel or another program: TC_ACT_OK would be the last word. */
#define GO_ON TC_ACT_UNSPEC

/* First byte of an IPv4 header without options: the version, and five words. */
#define PLAIN 0x45
/* `frag_off` (RFC 791): this and the other bits say that a packet is a part of one. */
#define DONT_FRAGMENT 0x4000
#define IS_FRAGMENT 0x3fff
/* The ECN field (RFC 3168), and its value of a congested router. */
#define ECN 3
/* Where the inner packet begins in the outer one. */
#define ROOM ((int)(sizeof(struct iphdr) + sizeof(struct udphdr)))
/* First byte of an ICMP redirect (linux/icmp.h, which wants a C library). */
#define ICMP_REDIRECT 5
/* The least header of TCP, whose fourth word begins with its length in words. */
#define TCP_HEADER 20
#define TCP_WORDS_AT 12

struct outer {
    struct iphdr ip;
    struct udphdr udp;
};

/* A key is put on the stack in one piece: without CAP_PERFMON the verifier of Linux 6.1 takes the first half of
 * a word for a pointer that is kept there, and refuses the other half (`check_stack_write_fixed_off`). A test in
 * program.rs finds halves. */

/* A key of `peers`, a trie: how many bits count, which is all, and the address. The network with the longest
 * prefix is found (BPF_MAP_TYPE_LPM_TRIE). */
static inline __u64 network_of(__be32 address)
{
    return 32 | (__u64)address << 32;
}

/* A key of `remotes`: address, port, and two bytes of zero. */
static inline __u64 remote_of(__be32 address, __be16 port)
{
    return address | (__u64)port << 32;
}

/* The sum of a header of ten 16-bit words (RFC 1071): 0xffff if its checksum is right. */
static inline __u16 sum(const struct iphdr *ip)
{
    const __u16 *words = (const __u16 *)ip;
    __u32 sum = 0;
#pragma unroll
    for (int i = 0; i < 10; i++)
        sum += words[i];
    sum = (sum & 0xffff) + (sum >> 16);
    return (sum & 0xffff) + (sum >> 16);
}

/* Both programs stay when their process is killed, or stopped. It puts off their end every few seconds: in
 * `lease` is the last nanosecond of CLOCK_MONOTONIC in which they take packets. */
static inline int is_over(void)
{
    __u32 only = 0;
    const __u64 *last = find(&lease, &only);
    return !last || now() > *last;
}

/* Redirects between peers are refused by the datapath: who sends them says where others' packets go. */
static inline int is_redirect(const struct iphdr *ip, const void *end)
{
    const __u8 *type = (const __u8 *)(ip + 1);
    return ip->protocol == IPPROTO_ICMP && ((void *)(type + 1) > end || *type == ICMP_REDIRECT);
}

/* A superpacket counts as what becomes of it, or was made into it. What changes its room forgets that. */
static inline __u32 packets(const struct __sk_buff *skb)
{
    __u32 segments = skb->gso_segs;
    return segments ? segments : 1;
}

/* Puts an inner packet in UDP. `before` are the bytes before the IP header: numbers that the compiler knows, as
 * without CAP_PERFMON the verifier takes no other in the arithmetic of pointers. */
static inline int send(struct __sk_buff *skb, const int before)
{
    if (skb->protocol != swapped(ETH_P_IP))
        return GO_ON;
    void *data = (void *)(long)skb->data + before, *end = (void *)(long)skb->data_end;
    const struct iphdr *inner = data;
    if ((void *)(inner + 1) > end)
        return GO_ON;
    __u32 length = skb->len - before;
    if (*(__u8 *)data != PLAIN || swapped(inner->tot_len) != length || length > 0xffff - ROOM)
        return GO_ON;
    /* A route may lead our own outer packets into the tunnel, which the datapath tells of. */
    if (inner->protocol == IPPROTO_UDP && inner->saddr == CONSTANT(outer_address))
        return GO_ON;
    if (is_redirect(inner, end))
        return GO_ON;

    __u64 to = network_of(inner->daddr);
    const struct peer *peer = find(&peers, &to);
    if (!peer || is_over())
        return GO_ON;
    /* redirect_neigh() neither fragments nor tells anybody: the largest packet has to fit. Of a
     * superpacket, that is one with `gso_size` bytes behind its headers. */
    __u32 largest = length;
    if (skb->gso_size) {
        largest = sizeof(*inner) + skb->gso_size;
        if (inner->protocol == IPPROTO_UDP) {
            largest += sizeof(struct udphdr);
        } else if (inner->protocol == IPPROTO_TCP) {
            const __u8 *tcp = (const __u8 *)(inner + 1);
            if ((void *)(tcp + TCP_HEADER) > end)
                return GO_ON;
            largest += (tcp[TCP_WORDS_AT] >> 4) * 4;
        } else {
            return GO_ON;
        }
    }
    if (largest > peer->mtu)
        return GO_ON;

    __u32 count_of = packets(skb);
    __u8 ecn = inner->tos & ECN; /* RFC 6040: copied as it is ("normal mode") */
    /* Fails where something is around the packet already, as around one that came out of another
     * tunnel. FIXED_GSO: the segments stay as long as they are. */
    if (adjust_room(skb, ROOM, BPF_ADJ_ROOM_MAC,
                    BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 | BPF_F_ADJ_ROOM_ENCAP_L4_UDP |
                        BPF_F_ADJ_ROOM_FIXED_GSO))
        return GO_ON;
    struct outer *outer = (void *)(long)skb->data + before;
    if ((void *)(outer + 1) > (void *)(long)skb->data_end)
        return TC_ACT_SHOT;
    *(__u8 *)outer = PLAIN;
    outer->ip.tos = ecn;
    outer->ip.tot_len = swapped(length + ROOM);
    outer->ip.id = 0; /* it is no fragment (RFC 6864, 4.1) */
    outer->ip.frag_off = swapped(DONT_FRAGMENT);
    outer->ip.ttl = CONSTANT(time_to_live);
    outer->ip.protocol = IPPROTO_UDP;
    outer->ip.check = 0;
    outer->ip.saddr = CONSTANT(outer_address);
    outer->ip.daddr = peer->address;
    outer->ip.check = ~sum(&outer->ip);
    outer->udp.source = CONSTANT(port);
    outer->udp.dest = peer->port;
    outer->udp.len = swapped(length + sizeof(struct udphdr));
    outer->udp.check = 0;

    /* redirect_neigh() wants room for an Ethernet header, whatever the uplink has, and drops what has
     * none (`__bpf_redirect_neigh_v4`). */
    if (change_head(skb, ETH_HLEN - before, 0))
        return TC_ACT_SHOT;
    struct count *count = find(&counts, &peer->id);
    if (count) {
        count->tx_packets += count_of;
        count->tx_bytes += length;
    }
    /* The route that is looked up now depends on it; what the inner packet has is another's. */
    skb->mark = CONSTANT(mark);
    return redirect_neigh(peer->uplink, 0, 0, 0);
}

/* Takes an inner packet out of UDP. */
static inline int receive(struct __sk_buff *skb, const int before)
{
    /* The uplink sees what is for its VLANs, and what is for other hosts. */
    if (skb->protocol != swapped(ETH_P_IP) || skb->vlan_present || skb->pkt_type != PACKET_HOST)
        return GO_ON;
    struct {
        struct outer outer;
        struct iphdr inner;
    } *packet = (void *)(long)skb->data + before;
    if ((void *)(packet + 1) > (void *)(long)skb->data_end) {
        if (pull(skb, before + sizeof(*packet)))
            return GO_ON;
        packet = (void *)(long)skb->data + before;
        if ((void *)(packet + 1) > (void *)(long)skb->data_end)
            return GO_ON;
    }
    const struct iphdr *ip = &packet->outer.ip;
    const struct udphdr *udp = &packet->outer.udp;
    struct iphdr *inner = &packet->inner;
    if (ip->daddr != CONSTANT(outer_address) || ip->protocol != IPPROTO_UDP ||
        udp->dest != (__be16)CONSTANT(port) || *(__u8 *)ip != PLAIN ||
        ip->frag_off & swapped(IS_FRAGMENT))
        return GO_ON;
    /* Where segments come one by one, what has a checksum is merged for the socket (UDP_GRO), which is
     * faster; without one it is not (`udp_gro_receive_segment`). */
    if (udp->check & (__be16)CONSTANT(left_to_socket))
        return GO_ON;
    /* The lengths of all four agree, or it is something else: an authentication packet, one with
     * padding, or several that were merged for a socket (UDP_GRO). */
    __u32 length = skb->len - before - ROOM;
    if (swapped(ip->tot_len) != length + ROOM ||
        swapped(udp->len) != length + sizeof(struct udphdr) || swapped(inner->tot_len) != length)
        return GO_ON;
    if (*(__u8 *)inner != PLAIN || sum(ip) != 0xffff)
        return GO_ON;
    /* `skb->encapsulation` stays set, so the kernel would look for a tunnel in a large UDP packet that
     * it has to segment for a socket (`udp4_ufo_fragment`). TCP is put together in any case. */
    if (skb->gso_size && inner->protocol != IPPROTO_TCP)
        return GO_ON;
    /* Whoever checked it has left a note, or nobody has. */
    if (udp->check && checksum_level(skb, BPF_CSUM_LEVEL_QUERY) < 0)
        return GO_ON;

    __u64 from = remote_of(ip->saddr, udp->source);
    const struct sender *sender = find(&remotes, &from);
    if (!sender)
        return GO_ON;
    __u64 network = network_of(inner->saddr);
    const struct peer *peer = find(&peers, &network);
    if (!peer || peer->id != sender->id || is_over())
        return GO_ON;
    /* Whether a source may come by another interface than the one that leads to it, the kernel tells
     * (rp_filter). */
    if (skb->ifindex != peer->uplink)
        return GO_ON;
    if (is_redirect(inner, (void *)(long)skb->data_end))
        return GO_ON;

    /* RFC 6040: a congested router has marked the outer header, and the inner one gets the mark. Who
     * does not know marks loses the packet, which the datapath sees to. */
    if ((ip->tos & ECN) == ECN && (inner->tos & ECN) != ECN) {
        if (!(inner->tos & ECN))
            return GO_ON;
        __u16 *word = (__u16 *)inner, unmarked = *word;
        *word |= swapped(ECN);
        __u32 sum = (__u16)~inner->check + (__u16)~unmarked + *word; /* RFC 1624, equation 3 */
        sum = (sum & 0xffff) + (sum >> 16);
        inner->check = ~((sum & 0xffff) + (sum >> 16));
    }
    __u32 count_of = packets(skb);
    /* What was known about checksums was known about the outer ones, and is forgotten. */
    if (adjust_room(skb, -ROOM, BPF_ADJ_ROOM_MAC, BPF_F_ADJ_ROOM_FIXED_GSO))
        return GO_ON;
    struct count *count = find(&counts, &sender->id);
    if (count) {
        count->rx_packets += count_of;
        count->rx_bytes += length;
    }
    return redirect(sender->link, BPF_F_INGRESS);
}

/* At the egress of the tunnel's interface, which has no link header. */
__attribute__((section("tc/egress"))) int egress(struct __sk_buff *skb)
{
    return send(skb, 0);
}

/* At the ingress of an uplink with Ethernet headers. */
__attribute__((section("tc/ingress"))) int ingress(struct __sk_buff *skb)
{
    return receive(skb, ETH_HLEN);
}

/* At the ingress of an uplink without headers of its own, as ppp and WireGuard are: the packet begins where
 * `skb->mac_header` is, and that is at its IP header (`cls_bpf_classify` in net/sched/cls_bpf.c). */
__attribute__((section("tc/ingress_bare"))) int ingress_bare(struct __sk_buff *skb)
{
    return receive(skb, 0);
}

/* For tests: BPF_PROG_TEST_RUN gives Ethernet frames only. */
__attribute__((section("tc/egress_test"))) int egress_test(struct __sk_buff *skb)
{
    return send(skb, ETH_HLEN);
}

/* For tests: what a frame without a header looks like when its bytes 12 and 13, in the source address of the
 * packet, say IPv4. The kernel takes its first byte for that of a group of Ethernet hosts. */
__attribute__((section("tc/ingress_bare_test"))) int ingress_bare_test(struct __sk_buff *skb)
{
    if (change_type(skb, PACKET_HOST))
        return TC_ACT_SHOT;
    return receive(skb, 0);
}
