//! Reading and printing.

use super::super::Sets;
use crate::rules::diagnostic::Diagnostics;

/// Printed by `ipset -sorted save` of ipset 7.17 on Linux 6.18, elements put in our order.
const SAVED: &str = r#"create a hash:ip family inet hashsize 1024 maxelem 65536 bucketsize 12 initval 0x1a6582fe
add a 1.2.3.4
add a 1.2.3.5
create b hash:ip family inet6 hashsize 1024 maxelem 65536 netmask 64 timeout 100 counters comment skbinfo bucketsize 12 initval 0x02a382be
add b 2001:db8:: timeout 49 packets 3 bytes 9 comment "hello world" skbmark 0x10/0xff skbprio 1:2 skbqueue 7
add b 2001:db8:1:: timeout 99 packets 0 bytes 0
add b 2001:db8:2:: timeout 99 packets 0 bytes 0 skbmark 0x5
add b 2001:db8:4:: timeout 0 packets 0 bytes 0 comment "a\b" skbprio 1:a
create c hash:net family inet hashsize 1024 maxelem 65536 bucketsize 12 initval 0xcd6a7444
add c 10.0.0.0/8
add c 10.1.0.0/16 nomatch
add c 10.1.0.1
create d hash:ip,port family inet hashsize 1024 maxelem 65536 bucketsize 12 initval 0x3492042b
add d 1.1.1.1,gre:0
add d 1.1.1.1,99:0
add d 1.1.1.1,200:0
add d 1.1.1.1,sctp:5
add d 1.1.1.1,udplite:5
add d 1.1.1.1,udp:53
add d 1.1.1.1,tcp:80
add d 1.1.1.1,icmp:echo-request
add d 1.1.1.1,icmp:8/1
create d6 hash:ip,port family inet6 hashsize 1024 maxelem 65536 bucketsize 12 initval 0x8381f731
add d6 2001::1,tcp:0
add d6 2001::1,ah:0
add d6 2001::1,ipv6-opts:0
add d6 2001::1,ospf:0
add d6 2001::1,ipv6-icmp:no-route
add d6 2001::1,ipv6-icmp:9/0
add d6 2001::1,ipv6-icmp:echo-request
create e hash:net,port family inet hashsize 1024 maxelem 65536 bucketsize 12 initval 0xdf68f2a4
add e 10.0.0.0/8,tcp:80 nomatch
create f hash:ip,port,ip family inet hashsize 1024 maxelem 65536 bucketsize 12 initval 0x666c0015
add f 10.0.0.0,tcp:80,1.1.1.1
create g hash:ip,port,net family inet hashsize 1024 maxelem 65536 bucketsize 12 initval 0x569850bc
add g 10.0.0.0,tcp:80,1.1.1.0/24
create h hash:net,iface family inet hashsize 1024 maxelem 65536 bucketsize 12 initval 0x5770702f
add h 0.0.0.0/0,eth0 nomatch
add h 10.0.0.0/8,eth wildcard
add h 10.0.0.0/8,eth0
add h 10.0.0.0/8,physdev:eth0
create i bitmap:ip range 10.0.0.0-10.0.255.255
add i 10.0.0.1
create i2 bitmap:ip range 10.0.0.0-10.255.255.255 netmask 24 timeout 5
add i2 10.0.0.0 timeout 2
create j bitmap:ip,mac range 10.0.0.0-10.0.0.255 timeout 9
add j 10.0.0.1 timeout 9
add j 10.0.0.2,AA:BB:CC:DD:EE:FF timeout 8
add j 10.0.0.7,00:00:00:00:00:00 timeout 8
create k bitmap:port range 1-1024 counters
add k 80 packets 3 bytes 0
create n hash:net family inet6 hashsize 128 maxelem 5 bucketsize 8 initval 0x730e6254
add n 2001::/64
add n 2001::
create q1 hash:ip,port family inet hashsize 1024 maxelem 65536 bucketsize 12 initval 0xc7c2f9d9 netmask 24
add q1 1.2.3.0,tcp:80
create q6 hash:net,iface family inet hashsize 1024 maxelem 65536 counters comment skbinfo bucketsize 12 initval 0x14cea5f7
add q6 10.0.1.0/24,physdev:x nomatch packets 0 bytes 0
create qm hash:ip family inet6 hashsize 1024 maxelem 65536 bitmask ffff:ffff:: bucketsize 12 initval 0x1feea9ce
create z2 hash:ip family inet hashsize 1024 maxelem 65536 bitmask 255.255.0.255 bucketsize 12 initval 0x1fe09a0d
create l list:set size 4 timeout 3 comment
add l a timeout 2
add l c timeout 2 comment "zz"
"#;

fn parse(text: &str) -> Sets {
    Sets::parse("sets", text).unwrap_or_else(|bad| panic!("{text}\n{bad}"))
}

fn refused(text: &str) -> Diagnostics {
    Sets::parse("sets", text).expect_err(text)
}

#[test]
fn what_ipset_prints_comes_back() {
    let sets = parse(SAVED);
    let printed = sets.save();
    let lines = |text: &str| -> Vec<String> {
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    assert_eq!(lines(&printed), lines(SAVED));
    assert_eq!(parse(&printed).save(), printed);
    assert_eq!((sets.len(), sets.elements()), (19, 44));
    let table = super::table(SAVED, crate::time::Instant::from_secs(1));
    let kept = table.save(crate::time::Instant::from_secs(1));
    assert_eq!(lines(&kept), lines(SAVED));
}

#[test]
fn other_spellings_are_read_as_ipset_reads_them() {
    let text = "create x hash:ip\nadd x 1.2.3.4-1.2.3.6\nadd x 9.9.9.0/31\n\
        create y nethash --family ipv4 hashsize 100 bucketsize 7\nadd y 11.0.0.0-11.0.0.6\nadd y 10.1.2.3/8\n\
        create p hash:ip,port\nadd p 1.1.1.0/31,tcp:21-20\nadd p 1.1.1.1,http\nadd p 1.1.1.1,17:53\nadd p 1.1.1.1,icmp:ping\n\
        add p 1.1.1.1,http -exist\nadd -exist p 1.1.1.1,tcp:80\n\
        create i hash:net,iface\nadd i 10.0.0.0/8,eth+\n\
        create m bitmap:port range 5-1\nadd m 2-3\nadd m udp:5\n\
        create k hash:ip hashsize 1 maxelem 010\nflush m\nadd m 1\ncreate gone hash:ip\ndestroy gone\nCOMMIT\n";
    let expected = "create x hash:ip family inet hashsize 1024 maxelem 65536\n\
        add x 1.2.3.4\nadd x 1.2.3.5\nadd x 1.2.3.6\nadd x 9.9.9.0\nadd x 9.9.9.1\n\
        create y hash:net family inet hashsize 128 maxelem 65536 bucketsize 8\n\
        add y 10.0.0.0/8\nadd y 11.0.0.0/30\nadd y 11.0.0.4/31\nadd y 11.0.0.6\n\
        create p hash:ip,port family inet hashsize 1024 maxelem 65536\n\
        add p 1.1.1.0,tcp:20\nadd p 1.1.1.0,tcp:21\nadd p 1.1.1.1,tcp:20\nadd p 1.1.1.1,tcp:21\nadd p 1.1.1.1,udp:53\n\
        add p 1.1.1.1,tcp:80\nadd p 1.1.1.1,icmp:echo-request\n\
        create i hash:net,iface family inet hashsize 1024 maxelem 65536\nadd i 10.0.0.0/8,eth wildcard\n\
        create m bitmap:port range 1-5\nadd m 1\n\
        create k hash:ip family inet hashsize 64 maxelem 8\n";
    let lines = |text: &str| text.lines().map(str::to_owned).collect::<std::collections::BTreeSet<_>>();
    assert_eq!(lines(&parse(text).save()), lines(expected));
}

#[test]
fn what_the_kernel_refuses_is_refused_with_its_place() {
    let prelude = "create a hash:ip maxelem 3\ncreate c hash:net\ncreate d hash:ip,port\ncreate l list:set\n\
        create i bitmap:ip range 10.0.0.0/24\ncreate s hash:net family inet6\ncreate f hash:ip,port,ip\n\
        create h hash:net,iface\ncreate k hash:ip skbinfo counters\ncreate m hash:mac\n";
    for (line, message) in [
        ("create a hash:ip", "created twice"),
        ("create x hash:netz", "unknown type"),
        ("create x hash:net netmask 24", "no option `netmask`"),
        ("create x hash:ip range 1-2", "no option `range`"),
        ("create x hash:ip timeout 2147484", "not a number up to 2147483"),
        ("create x hash:ip family inet6 netmask 129", "not a mask"),
        ("create x hash:ip netmask 24 bitmask 255.0.0.0", "one netmask or bitmask"),
        ("create x bitmap:ip", "needs a range"),
        ("create x bitmap:ip range 10.0.0.0/7", "at most 65536"),
        ("create x bitmap:ip range 10.0.0.3-10.0.0.9 netmask 31", "whole nets"),
        ("create x bitmap:port range 1-65536", "not a range"),
        ("create a-very-long-name-more-than-31-ch hash:ip", "at most 31"),
        ("create x", "needs a type"),
        ("add nonex 1.1.1.1", "there is no set `nonex`"),
        ("add a 0.0.0.0", "null address"),
        ("add a ::1", "not an IPv4 address"),
        ("add a localhost", "not an IPv4 address"),
        ("add a 1.1.1.1,80", "no element of a hash:ip"),
        ("add a 1.1.1.1 timeout 3", "without timeout"),
        ("add a 1.1.1.1 packets 3", "without counters"),
        ("add a 1.1.1.1 comment x", "without comment"),
        ("add a 1.1.1.1 nomatch", "no option `nomatch`"),
        ("add a 1.1.1.1 frob", "no option `frob`"),
        ("add a 1.0.0.0/8", "the set is full: it takes 3"),
        ("add c 0.0.0.0/0", "length 0"),
        ("add c 10.0.0.0/33", "not a prefix length"),
        ("add c 10.0.0.0/255.0.0.0", "not a prefix length"),
        ("add s ::/0", "length 0"),
        ("add s 2001::1-2001::5", "ranges of IPv6"),
        ("add d 1.1.1.1", "no element of a hash:ip,port"),
        ("add d 1.1.1.1,gre:5", "no ports"),
        ("add d 1.1.1.1,gre", "not a port"),
        ("add d 1.1.1.1,icmp:77", "unknown ICMP type"),
        ("add d 1.1.1.1,icmpv6:1/0", "other IP version"),
        ("add d 1.1.1.1,0:0", "unknown protocol"),
        ("add f 1.1.1.1,udp:5,2.2.2.0/31", "more than one address"),
        ("add h 10.0.0.0/8,interfacetoolongname", "not an interface's name"),
        ("add i 10.0.1.0", "out of the set's range"),
        ("add k 1.1.1.1 skbmark 16", "not a mark"),
        ("add k 1.1.1.1 skbprio 0x1:2", "not a class"),
        ("add k 1.1.1.1 packets 18446744073709551615", "not a counter"),
        ("add m 00:00:00:00:00:00", "null address"),
        ("add m 0:0:0:0:1", "not a hardware address"),
        ("add l l", "cannot be in a list"),
        ("add l nonex", "there is no set"),
        ("add l a before c", "`before` is not covered"),
        ("add a", "needs an element"),
        ("swap a c", "no line of a text of sets"),
        ("destroy a b", "too much here"),
        ("add a 1.1.1.1\r", "control character"),
    ] {
        let bad = refused(&format!("{prelude}{line}\n"));
        let first = bad.iter().next().expect("an error");
        assert!(bad.len() == 1 && first.message.contains(message), "{line}: {bad}");
        assert_eq!(first.line, prelude.lines().count() + 1, "{line}");
    }
    let bad =
        refused("create a hash:ip comment\nadd a 1.1.1.1\nadd a 1.1.1.1\nadd a 1.1.1.2 comment \"x\nadd b 1.1.1.1\n");
    assert_eq!(bad.iter().map(|one| one.line).collect::<Vec<_>>(), [3, 4, 5]);
}

#[test]
fn a_bad_create_line_is_not_followed_by_complaints_about_its_elements() {
    assert_eq!(refused("create a hash:ipp\nadd a 1.1.1.1\nadd a 1.1.1.2\n").len(), 1);
}
