//! Random rulesets of a gateway that translates: nat PREROUTING and POSTROUTING, what filter FORWARD then asks of
//! connections, and marks that nat rules read. Rules are made to be met by the flows of `generate`.

use std::fmt::Write as _;

use crate::generate::Random;
use crate::place::address;
use crate::sequence::Zones;

/// Protocols of rules: with ports, and what is written before the ports.
const PORTED: [&str; 3] = ["tcp", "udp", "sctp"];

struct Writer<'a> {
    random: &'a mut Random,
    v6: bool,
    wide: bool,
    /// nat rules, and those of user chains behind.
    nat: String,
}

/// What all rules of a sequence have in common.
#[derive(Clone, Copy)]
pub(crate) struct Flavour {
    pub(crate) v6: bool,
    /// Many connections are to share few ports.
    pub(crate) tight: bool,
    /// Some of IPv6's ranges differ in more than one word of the address. Then NETMAP is left out, which would make unknown
    /// neighbours of them.
    pub(crate) wide: bool,
    pub(crate) zones: Zones,
}

/// The ruleset of one IP version.
pub(crate) fn ruleset(random: &mut Random, flavour: Flavour) -> String {
    let Flavour { v6, tight, wide, zones } = flavour;
    let mut writer = Writer { random, v6, wide, nat: String::new() };
    match tight {
        true => writer.tight(),
        false => writer.nat(),
    }
    let Writer { nat, .. } = writer;
    let mut text =
        String::from("*mangle\n:PREROUTING ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:POSTROUTING ACCEPT [0:0]\n");
    if nat.contains("--mark") {
        text += random.pick(&[
            "-A PREROUTING -p tcp -m tcp --dport 80 -j MARK --set-xmark 0x1/0xffffffff\n",
            "-A PREROUTING -i lan -j MARK --set-xmark 0x1/0xffffffff\n",
            "-A FORWARD -p udp -j MARK --set-xmark 0x1/0xffffffff\n",
        ]);
    }
    if random.one_in(6) {
        text += "-A FORWARD -m conntrack --ctstate SNAT\n-A FORWARD -m conntrack --ctstate DNAT\n";
    }
    text += "COMMIT\n";
    // Every table is there each time, so that nothing is left of the rules before.
    text += "*raw\n:PREROUTING ACCEPT [0:0]\n";
    match zones {
        Zones::None => {}
        Zones::One => text += &format!("-A PREROUTING -j CT --zone {}\n", Zones::ONE),
        Zones::Clients => {
            for (client, zone) in Zones::of_client(v6) {
                let _ = writeln!(text, "-A PREROUTING -s {client} -j CT --zone-orig {zone}");
            }
        }
    }
    if zones == Zones::None && random.one_in(6) {
        let rules = ["-p udp -m udp --dport 53", "-i wan -p tcp -m tcp --sport 81", "-p tcp -m tcp --dport 7001"];
        let _ = writeln!(text, "-A PREROUTING {} -j CT --notrack", random.pick(&rules));
    }
    text += "COMMIT\n";
    text += "*nat\n:PREROUTING ACCEPT [0:0]\n:POSTROUTING ACCEPT [0:0]\n:first - [0:0]\n:last - [0:0]\n";
    text += &nat;
    text += "COMMIT\n*filter\n:FORWARD ACCEPT [0:0]\n";
    // Linux shows nat POSTROUTING the resets, see `compare`; `nth` would count them.
    let resets = !nat.contains("nth");
    text += &filter(random, v6, resets);
    text + "COMMIT\n"
}

/// Questions about connections, of which most only count.
fn filter(random: &mut Random, v6: bool, resets: bool) -> String {
    let a = |net, host| address(v6, net, host);
    let mut text = String::new();
    if random.one_in(3) {
        text += "-A FORWARD -m conntrack --ctstate INVALID -j DROP\n";
    }
    let reject = if v6 { "icmp6-port-unreachable" } else { "icmp-port-unreachable" };
    for _ in 0..random.below(6) {
        let rule = match random.below(14) {
            0 => "-m conntrack --ctstate DNAT".to_owned(),
            1 => "-m conntrack --ctstate SNAT".to_owned(),
            2 => "-m conntrack ! --ctstate SNAT,DNAT".to_owned(),
            3 => "-m conntrack --ctstate NEW,DNAT -j ACCEPT".to_owned(),
            4 => format!("-m conntrack --ctorigdst {}", a(2, random.pick(&[100, 101, 1, 11]))),
            5 => format!("-m conntrack --ctreplsrc {}", a(1, 2)),
            6 => format!("-m conntrack --ctrepldst {}", a(2, random.pick(&[100, 1]))),
            7 => "-p tcp -m conntrack --ctorigdstport 80 --ctdir ORIGINAL".to_owned(),
            8 => "-m conntrack --ctstatus ASSURED".to_owned(),
            9 => format!("-i wan -d {} -j ACCEPT", a(1, 2)),
            10 if random.one_in(2) => format!("-p udp -m udp --dport 81 -j REJECT --reject-with {reject}"),
            11 if resets && random.one_in(2) => "-p tcp -m tcp --dport 81 -j REJECT --reject-with tcp-reset".to_owned(),
            12 if random.one_in(3) => "-i wan -m conntrack --ctstate NEW ! --ctstatus EXPECTED -j DROP".to_owned(),
            13 if random.one_in(3) => {
                "-i wan -m conntrack --ctstate NEW -m conntrack ! --ctstate DNAT -j DROP".to_owned()
            }
            _ => "-m conntrack --ctstate RELATED".to_owned(),
        };
        let _ = writeln!(text, "-A FORWARD {rule}");
    }
    text + "-A FORWARD -m conntrack --ctstate NEW\n-A FORWARD -m conntrack --ctstate INVALID\n"
}

impl Writer<'_> {
    fn a(&self, net: u8, host: u8) -> String {
        address(self.v6, net, host).to_string()
    }

    fn network(&self, net: u8) -> String {
        format!("{}/{}", self.a(net, 0), if self.v6 { 64 } else { 24 })
    }

    fn nat(&mut self) {
        for (hook, chain, share) in [(Hook::In, "first", 3), (Hook::Out, "last", 3)] {
            if self.random.one_in(share) {
                let matched = self.protocol();
                let matched = if self.random.one_in(2) { String::new() } else { matched };
                let _ = writeln!(self.nat, "-A {} {matched} -j {chain}", hook.chain());
                for _ in 0..1 + self.random.below(2) {
                    self.rule(hook, chain);
                }
            }
            let most = if hook == Hook::In { 4 } else { 3 };
            for _ in 0..self.random.below(most) + u64::from(hook == Hook::Out) {
                self.rule(hook, hook.chain());
            }
        }
    }

    fn tight(&mut self) {
        let ports = self.random.pick(&["2000-2001", "2000-2002", "5000-5007", "300-301", "2000"]);
        let (to, v6) = (self.a(2, 100), self.v6);
        let target = match self.random.below(4) {
            0 => format!("MASQUERADE --to-ports {ports}"),
            _ if v6 => format!("SNAT --to-source [{to}]:{ports}"),
            _ => format!("SNAT --to-source {to}:{ports}"),
        };
        let flags = self.flags(&["--random", "--random-fully"]);
        for proto in PORTED {
            let _ = writeln!(self.nat, "-A POSTROUTING -o wan -p {proto} -j {target}{flags}");
        }
        if self.random.one_in(2) {
            // Two addresses of one server: what a client has with both is one connection, but for its port.
            let server = self.a(2, 2);
            let _ = writeln!(self.nat, "-A PREROUTING -i lan -j DNAT --to-destination {server}");
        }
    }

    fn rule(&mut self, hook: Hook, chain: &str) {
        let matched = self.matched(hook);
        let ported = PORTED.iter().any(|proto| matched.contains(&format!("-p {proto} ")));
        // Of ICMP's identifiers there may be a range as well.
        let identified = ported || matched.contains("-p icmp ");
        if self.random.one_in(25) {
            let target = self.random.pick(&["CONNMARK --set-xmark 0x5/0xffffffff", "MARK --set-xmark 0x1/0xffffffff"]);
            let _ = writeln!(self.nat, "-A {chain} {matched}-j {target}");
            return;
        }
        let target = match (self.random.below(14), hook) {
            (0, _) => self.random.pick(&["ACCEPT", "RETURN"]).to_owned(),
            (1, Hook::In) => {
                let ports =
                    if ported { self.random.pick(&["", " --to-ports 8080", " --to-ports 7000-7003"]) } else { "" };
                format!("REDIRECT{ports}")
            }
            (2, Hook::In) if !self.wide => {
                format!("NETMAP --to {}", self.random.pick(&[self.network(1), self.network(2)]))
            }
            (_, Hook::In) => self.dnat(ported),
            (1 | 2, Hook::Out) if !self.wide => {
                format!("NETMAP --to {}", self.random.pick(&[self.network(7), self.network(2)]))
            }
            (3..=6, Hook::Out) => self.masquerade(identified),
            (_, Hook::Out) => self.snat(identified),
        };
        let _ = writeln!(self.nat, "-A {chain} {matched}-j {target}");
    }

    fn protocol(&mut self) -> String {
        let icmp = if self.v6 { "-p ipv6-icmp" } else { "-p icmp" };
        let words = [
            "-p tcp",
            "-p tcp -m tcp --dport 80",
            "-p tcp -m tcp --dport 80:81",
            "-p udp",
            "-p udp -m udp --dport 53",
            "-p tcp -m multiport --dports 80,7000:7005",
            "-p sctp",
            "-p udplite",
            icmp,
            "-p gre",
            "-p tcp",
            "-p udp",
        ];
        self.random.pick(&words).to_owned()
    }

    /// Matches, each with a space after it.
    fn matched(&mut self, hook: Hook) -> String {
        let mut text = String::new();
        if self.random.one_in(3) {
            text += match hook {
                Hook::In => self.random.pick(&["-i wan ", "-i wan ", "-i lan "]),
                Hook::Out => self.random.pick(&["-o wan ", "-o wan ", "-o wan ", "-o lan "]),
            };
        }
        if self.random.one_in(4) {
            let source = match self.random.below(4) {
                0 => self.network(1),
                1 => self.a(1, 2),
                2 => self.a(2, 2),
                _ => self.network(2),
            };
            let _ = write!(text, "-s {source} ");
        }
        if self.random.one_in(3) {
            let destination = match (self.random.below(6), hook) {
                (0 | 1, Hook::In) => {
                    let host = self.random.pick(&[100, 101, 102, 103, 1, 11]);
                    self.a(2, host)
                }
                (2, Hook::In) => self.network(7),
                (3, Hook::In) => self.a(1, 100),
                (0, Hook::Out) => self.network(1),
                (1, Hook::Out) => self.a(9, 2),
                _ => self.a(2, 2),
            };
            let _ = write!(text, "-d {destination} ");
        }
        if !self.random.one_in(3) {
            text += &self.protocol();
            text.push(' ');
        }
        if self.random.one_in(12) {
            text += "-m mark --mark 0x1 ";
        }
        if hook == Hook::In && self.random.one_in(20) {
            text += self.random.pick(&["-m addrtype --dst-type LOCAL ", "-m addrtype ! --dst-type LOCAL "]);
        }
        if self.random.one_in(25) {
            text += "-m statistic --mode nth --every 2 --packet 0 ";
        }
        if self.random.one_in(20) {
            text += self.random.pick(&[
                "-m connmark --mark 0x5 ",
                "-m conntrack --ctstate DNAT ",
                "-m conntrack --ctstate NEW ",
                "-m conntrack ! --ctstate DNAT ",
            ]);
        }
        text
    }

    /// `ADDRESS`, `FIRST-LAST`, or neither where ports will do.
    fn range(&mut self, hosts: &[(u8, u8, u8)], ports: &str) -> String {
        let (net, first, last) = self.random.pick(hosts);
        let range = match first == last {
            true => self.a(net, first),
            false => format!("{}-{}", self.a(net, first), self.a(net, last)),
        };
        match (ports.is_empty(), self.v6) {
            (true, _) => range,
            (false, _) if self.random.one_in(6) => ports.to_owned(),
            (false, false) => format!("{range}{ports}"),
            (false, true) => format!("[{range}]{ports}"),
        }
    }

    fn flags(&mut self, words: &[&str]) -> String {
        match self.random.one_in(3) {
            true => format!(" {}", self.random.pick(words)),
            false => String::new(),
        }
    }

    fn dnat(&mut self, ported: bool) -> String {
        let ports = match ported && self.random.one_in(2) {
            false => "",
            true => self.random.pick(&[
                ":80",
                ":8080",
                ":8080",
                ":7000-7003",
                ":7000-7001",
                ":8000-8005/7000",
                ":9000-9001/80",
                ":20000-40000",
                ":81",
            ]),
        };
        let to = self.range(
            &[
                (1, 2, 2),
                (1, 2, 2),
                (1, 3, 3),
                (1, 2, 4),
                (2, 2, 2),
                (2, 2, 3),
                (2, 3, 3),
                (9, 2, 2),
                (5, 2, 2),
                (1, 1, 1),
                (98, 1, 1),
                (99, 1, 1),
                (1, 2, 3),
            ],
            ports,
        );
        let flags = self.flags(&["--random", "--persistent", "--random", "--random --persistent"]);
        format!("DNAT --to-destination {to}{flags}")
    }

    fn source_ports(&mut self, ported: bool) -> &'static str {
        match ported && self.random.one_in(2) {
            false => "",
            true => self.random.pick(&[
                "2000-2003",
                "2000-2003",
                "5000-5001",
                "5000",
                "1024-65535",
                "300-303",
                "20000-40000",
                "2000-2001",
            ]),
        }
    }

    fn snat(&mut self, ported: bool) -> String {
        let ports = self.source_ports(ported);
        let ports = if ports.is_empty() { String::new() } else { format!(":{ports}") };
        let to = self.range(
            &[
                (2, 100, 100),
                (2, 100, 100),
                (2, 1, 1),
                (2, 11, 11),
                (2, 100, 103),
                (2, 100, 101),
                (1, 1, 1),
                (1, 100, 100),
                (2, 100, 102),
            ],
            &ports,
        );
        // Ranges that differ in more than one word of the address.
        let wide = [
            "fd07::10-fd07:0:1::20",
            "fd07::ff00:10-fd07::1:0:20",
            "fd07::64-fd07::ffff:ffff:ffff:ffff",
            "fd07::-fd09::",
        ];
        let to = if self.wide && self.random.one_in(3) { self.random.pick(&wide).to_owned() } else { to };
        let flags = self.flags(&["--random", "--random-fully", "--persistent", "--random --persistent"]);
        format!("SNAT --to-source {to}{flags}")
    }

    fn masquerade(&mut self, ported: bool) -> String {
        let ports = self.source_ports(ported);
        let ports = if ports.is_empty() { String::new() } else { format!(" --to-ports {ports}") };
        let flags = self.flags(&["--random", "--random-fully"]);
        format!("MASQUERADE{ports}{flags}")
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Hook {
    In,
    Out,
}

impl Hook {
    fn chain(self) -> &'static str {
        match self {
            Hook::In => "PREROUTING",
            Hook::Out => "POSTROUTING",
        }
    }
}
