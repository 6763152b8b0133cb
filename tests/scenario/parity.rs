//! Random packet sequences through the kernel and through the datapath, the outcomes compared: every frame that comes out,
//! then the rules' counters and the connection table.
//!
//! A seed gives one sequence, so a difference can be run again. What is known and written down as different (fragments,
//! options, redirects, the host's own answers) is not generated, nor so many errors that a rate limit would decide.

use std::net::IpAddr;

use xrouter::sim::Seeded;

use super::engine::{Engine, open};
use super::packet::{self, Csum, ICMP, ICMPV6, L4, Spec, TCP, Tcp, UDP, same};
use super::script::{Kind, Script};
use super::topology::{Port, Topology};

/// Packets of one sequence.
const LENGTH: usize = 80;
/// Packets of one sequence that the router may have to answer with an ICMP error: below every rate limit.
const ERRORS: usize = 2;

/// Every state is counted by a rule of its own; some things are refused in each of the ways there are.
const RULES: &str = "
rules v4 <<END
*filter
:INPUT DROP [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
:COUNT - [0:0]
-A FORWARD -j COUNT
-A FORWARD -m conntrack --ctstate INVALID -j DROP
-A FORWARD -p tcp -m tcp --dport 25 -j REJECT --reject-with tcp-reset
-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -p tcp -m multiport --dports 80,443,1000:1010 -j ACCEPT
-A FORWARD -p udp -m udp ! --dport 99 -j ACCEPT
-A FORWARD -p icmp -m icmp --icmp-type 8 -j ACCEPT
-A COUNT -m conntrack --ctstate INVALID
-A COUNT -m conntrack --ctstate NEW
-A COUNT -m conntrack --ctstate ESTABLISHED
-A COUNT -m conntrack --ctstate RELATED
-A COUNT -m conntrack --ctstate UNTRACKED
-A COUNT -s 10.1.0.0/24 -m conntrack --ctstate ESTABLISHED
COMMIT
END
rules v6 <<END
*filter
:INPUT DROP [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
-A FORWARD -m conntrack --ctstate INVALID -j DROP
-A FORWARD -m conntrack --ctstate RELATED -j ACCEPT
-A FORWARD -m conntrack --ctstate ESTABLISHED -j ACCEPT
-A FORWARD -p tcp -m tcp --dport 25 -j REJECT --reject-with tcp-reset
-A FORWARD -p ipv6-icmp -m icmp6 --icmpv6-type 128 -j ACCEPT
-A FORWARD ! -p ipv6-icmp -m conntrack --ctstate NEW -j ACCEPT
COMMIT
END
nothing
";

/// Before them, for every second sequence: the tables that change packets, their marks and how they are tracked. POSTROUTING
/// asks for UDP alone, because what the router says itself passes there on Linux.
const CHANGES: &str = "
*raw
:PREROUTING ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
-A PREROUTING -p udp -m udp --dport 99 -j NOTRACK
-A PREROUTING -p udp -m udp --dport 53 -j CT --zone 5
-A PREROUTING -p udp -m udp --sport 53 -j CT --zone mark
-A PREROUTING -j MARK --set-mark 0x5/0xf
COMMIT
*mangle
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
-A PREROUTING -j CONNMARK --restore-mark --nfmask 0xf0 --ctmask 0xff
-A PREROUTING -p tcp -j TOS --set-tos 0x10/0x3f
-A PREROUTING -p udp -j HOPS-inc 1
-A PREROUTING -p tcp -m tcp --dport 443 --tcp-flags SYN SYN -j TCPMSS --set-mss 900
-A FORWARD -p tcp -m tcp --dport 80 --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu
-A FORWARD -p tcp -m tcp --sport 80 --tcp-flags SYN,RST SYN -j TCPMSS --set-mss 1000
-A FORWARD -p udp -j DSCP --set-dscp 0x2e
-A FORWARD -j MARK --xor-mark 0x31
-A FORWARD -p tcp -j CONNMARK --xor-mark 0x3
-A POSTROUTING -p udp -j CONNMARK --save-mark
-A POSTROUTING -p udp -j HOPS-dec 3
COMMIT";

/// The rules of a sequence.
fn rules(seed: u64) -> String {
    if seed.is_multiple_of(2) {
        return RULES.to_owned();
    }
    let changes = [("v4", "TTL --ttl"), ("v6", "HL --hl")];
    changes.into_iter().fold(RULES.to_owned(), |rules, (version, hops)| {
        let begin = format!("rules {version} <<END");
        rules.replace(&begin, &format!("{begin}{}", CHANGES.replace("HOPS", hops)))
    })
}

/// Two hosts talking.
struct Flow {
    v6: bool,
    proto: u8,
    client: u8,
    sport: u16,
    dport: u16,
    /// Next sequence numbers of client and server.
    next: [u32; 2],
}

struct Generator {
    random: Seeded,
    flows: Vec<Flow>,
    sent: Vec<(Port, Spec)>,
    errors: usize,
}

fn address(v6: bool, port: Port, host: u8) -> IpAddr {
    let net = 1 + port as u8;
    match v6 {
        false => IpAddr::from([10, net, 0, host]),
        true => format!("fd0{net}::{host:x}").parse().expect("an address"),
    }
}

impl Generator {
    fn new(seed: u64) -> Generator {
        let mut generator = Generator { random: Seeded::new(seed), flows: Vec::new(), sent: Vec::new(), errors: 0 };
        for number in 0..6 {
            let protos = [TCP, TCP, TCP, UDP, ICMP];
            let proto = generator.pick(&protos);
            let flow = Flow {
                v6: generator.below(3) == 0,
                proto,
                client: 2 + generator.below(3) as u8,
                sport: 1000 + number,
                dport: generator.pick(&[80, 443, 25, 53, 99, 1005]),
                next: [generator.random.next_u64() as u32, generator.random.next_u64() as u32],
            };
            generator.flows.push(flow);
        }
        generator
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.random.next_u64() % limit
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }

    /// The next packet and where it arrives.
    fn next(&mut self) -> (Port, Spec) {
        if !self.sent.is_empty() && self.below(8) == 0 {
            return self.icmp_error();
        }
        let number = self.below(self.flows.len() as u64) as usize;
        let from_server = self.below(5) < 2;
        let (v6, proto, client) = (self.flows[number].v6, self.flows[number].proto, self.flows[number].client);
        let (inside, outside) = (address(v6, Port::Lan, client), address(v6, Port::Wan, 2));
        let (port, src, dst) = if from_server { (Port::Wan, outside, inside) } else { (Port::Lan, inside, outside) };
        let (proto, l4) = match proto {
            TCP => (TCP, L4::Tcp(self.segment(number, from_server))),
            UDP => (UDP, self.datagram(number, from_server)),
            _ => (if v6 { ICMPV6 } else { ICMP }, self.echo(number, from_server)),
        };
        let mut spec = Spec::new(src, dst, proto, l4);
        spec.id = Some(self.random.next_u64() as u16);
        spec.tos = self.pick(&[0, 0, 0x10, 0xb8, 3]);
        spec.ttl = self.pick(&[64, 64, 128, 2]);
        spec.dont_fragment = self.below(2) == 0;
        spec.pad = self.pick(&[0, 0, 0, 4]);
        self.spoil(&mut spec);
        (port, spec)
    }

    /// Now and then something is wrong with a packet.
    fn spoil(&mut self, spec: &mut Spec) {
        match self.below(40) {
            0 => spec.csum = Csum::Bad,
            1 => spec.ip_csum = Csum::Bad,
            2 => spec.length = Some(self.pick(&[10, 21, 2000])),
            3 => spec.snip = Some(40 + self.below(30) as usize),
            4 => spec.cut = Some(self.below(60) as usize),
            5 if self.errors < ERRORS => {
                self.errors += 1;
                spec.ttl = self.pick(&[0, 1]);
            }
            6 if self.errors < ERRORS => {
                self.errors += 1;
                let nowhere = if spec.dst.is_ipv4() { "10.99.0.1" } else { "2001:db8::1" };
                spec.dst = nowhere.parse().expect("an address");
            }
            _ => {}
        }
    }

    fn segment(&mut self, number: usize, from_server: bool) -> Tcp {
        const F: u8 = 1;
        const S: u8 = 2;
        const R: u8 = 4;
        const P: u8 = 8;
        const A: u8 = 16;
        let flags = match (self.below(24), from_server) {
            (0..=5, false) => S,
            (0..=5, true) => S | A,
            (6..=16, _) => self.pick(&[A, P | A]),
            (17..=18, _) => F | A,
            (19, _) => R,
            (20, _) => R | A,
            (21, _) => S,
            (22, _) => S | A,
            _ => self.random.next_u64() as u8,
        };
        let me = usize::from(from_server);
        let off = self.pick(&[0i64, 0, 0, 0, 0, 0, -1, 1, -1000, 5000, 200_000, -100_000]);
        let ack_off = self.pick(&[0i64, 0, 0, 0, 0, 0, 0, -1, 1, -2000, 100_000]);
        let length = if flags & (S | R) == 0 { self.pick(&[0, 0, 10, 500]) } else { 0 };
        let window = self.pick(&[8192, 8192, 65535, 500, 0]);
        let options = match flags & S != 0 {
            true => self.options(),
            false => Vec::new(),
        };
        let flow = &mut self.flows[number];
        let seq = (i64::from(flow.next[me]) + off) as u32;
        let ack = if flags & A != 0 { (i64::from(flow.next[1 - me]) + ack_off) as u32 } else { 0 };
        if off == 0 {
            let taken = length as u32 + u32::from(flags & S != 0) + u32::from(flags & F != 0);
            flow.next[me] = flow.next[me].wrapping_add(taken);
        }
        let (sport, dport) = if from_server { (flow.dport, flow.sport) } else { (flow.sport, flow.dport) };
        Tcp { sport, dport, seq, ack, flags, window, options, payload: vec![7; length], ..Tcp::default() }
    }

    /// Options of a SYN, as they are and as nobody sends them.
    fn options(&mut self) -> Vec<u8> {
        let mut options = self.pick(&[&[][..], &[2, 4, 5, 180], &[2, 4, 5, 180, 4, 2, 1, 3, 3, 7]]).to_vec();
        if self.below(3) == 0 {
            let pieces =
                [&[1][..], &[0], &[2, 4, 5, 180], &[2, 4, 1, 0], &[4, 2], &[3, 3, 7], &[9, 0], &[8, 200], &[2, 3, 4]];
            options.clear();
            for _ in 0..self.below(9) {
                options.extend(self.pick(&pieces));
            }
            options.truncate(40);
        }
        options
    }

    fn datagram(&mut self, number: usize, from_server: bool) -> L4 {
        let payload = vec![1; self.below(100) as usize];
        let flow = &self.flows[number];
        let (sport, dport) = if from_server { (flow.dport, flow.sport) } else { (flow.sport, flow.dport) };
        let length = self.random.next_u64().is_multiple_of(30).then_some(8);
        L4::Udp { sport, dport, length, payload }
    }

    fn echo(&mut self, number: usize, from_server: bool) -> L4 {
        let flow = &self.flows[number];
        let (request, reply) = if flow.v6 { (128, 129) } else { (8, 0) };
        let rest = u32::from(flow.sport) << 16 | 1;
        let code = if self.random.next_u64().is_multiple_of(10) { 3 } else { 0 };
        L4::Icmp { kind: if from_server { reply } else { request }, code, rest, payload: vec![5; 40] }
    }

    /// An error about a packet sent before, from where that packet went (or about went).
    fn icmp_error(&mut self) -> (Port, Spec) {
        let number = self.below(self.sent.len() as u64) as usize;
        let (arrived, about) = self.sent[number].clone();
        let back = if arrived == Port::Lan { Port::Wan } else { Port::Lan };
        let v6 = about.src.is_ipv6();
        let (proto, kind) = match v6 {
            false => (ICMP, self.pick(&[3, 3, 11, 12, 4])),
            true => (ICMPV6, self.pick(&[1, 1, 2, 3, 4])),
        };
        let mut payload = about.ip_bytes();
        payload.truncate(self.pick(&[1000, 28, 48, 47, 24, 20, 60]));
        let destination = if self.below(10) == 0 { address(v6, arrived, 9) } else { about.src };
        let l4 = L4::Icmp { kind, code: self.pick(&[0, 1, 3, 4]), rest: 0, payload };
        (back, Spec::new(address(v6, back, 7), destination, proto, l4))
    }
}

/// One sequence; the first difference, if there is one.
pub(crate) fn run(seed: u64) -> Result<(), String> {
    match sequence(seed, false) {
        Ok(()) => Ok(()),
        // Once more, looking at the counters after every packet, to name the one where the ways part.
        Err(wrong) => std::thread::spawn(move || sequence(seed, true)).join().unwrap_or(Err(wrong)),
    }
}

fn sequence(seed: u64, look_always: bool) -> Result<(), String> {
    let script = Script::parse("parity", &rules(seed))?;
    let mut kernel = open(Kind::Kernel, &script)?;
    let mut core = open(Kind::Core, &script)?;
    let mut generator = Generator::new(seed);
    let topology = Topology::default();
    let mut story = format!("seed {seed}\n");
    for number in 1..=LENGTH {
        let (port, mut spec) = generator.next();
        generator.sent.push((port, spec.clone()));
        spec.eth_src = Some(topology.sender_mac(port, spec.src));
        spec.eth_dst = Some(port.mac());
        let (frame, _) = spec.build();
        story.push_str(&format!("  {} > {}\n", port.word(), packet::describe(&frame)));
        let before = if look_always { core.conntrack()? } else { Vec::new() };
        kernel.inject(port, &frame)?;
        core.inject(port, &frame)?;
        let same = compare(&kernel.output()?, &core.output()?);
        let same = match look_always || number == LENGTH {
            true => same.and_then(|()| same_state(kernel.as_mut(), core.as_mut())),
            false => same,
        };
        same.map_err(|wrong| format!("{story}{wrong}\ncore's table before:\n{}", before.join("\n")))?;
    }
    Ok(())
}

fn same_state(kernel: &mut dyn Engine, core: &mut dyn Engine) -> Result<(), String> {
    for v4 in [true, false] {
        let (judge, ours) = (counters(&kernel.counters(v4)?), counters(&core.counters(v4)?));
        if judge != ours {
            return Err(format!("counters, kernel:\n{}\ncore:\n{}", judge.join("\n"), ours.join("\n")));
        }
    }
    let (judge, ours) = (kernel.conntrack()?, core.conntrack()?);
    let tables = || format!("the kernel's table:\n{}\ncore's:\n{}", judge.join("\n"), ours.join("\n"));
    same_table(&judge, &ours).map_err(|wrong| format!("{wrong}\n{}", tables()))
}

/// The same frames out of each port; what the router made itself may have another identification or flow label.
fn compare(judge: &[(Port, Vec<u8>)], ours: &[(Port, Vec<u8>)]) -> Result<(), String> {
    for port in Port::ALL {
        let of = |all: &[(Port, Vec<u8>)]| -> Vec<Vec<u8>> {
            all.iter().filter(|(out, _)| *out == port).map(|(_, frame)| frame.clone()).collect()
        };
        let (judge, ours) = (of(judge), of(ours));
        let describe =
            |frames: &[Vec<u8>]| frames.iter().map(|frame| packet::describe(frame)).collect::<Vec<_>>().join("; ");
        if judge.len() != ours.len() {
            let (theirs, mine) = (describe(&judge), describe(&ours));
            return Err(format!("out of {}: kernel [{theirs}], core [{mine}]", port.word()));
        }
        for (judge, ours) in judge.iter().zip(&ours) {
            let own = Port::ALL.iter().any(|port| is_from(judge, *port));
            let mask = packet::Mask { id: own && judge[12] == 0x08, flow: own && judge[12] == 0x86 };
            if !same(judge, ours, mask) {
                return Err(format!(
                    "out of {}: kernel (expected) and core (got) differ\n{}",
                    port.word(),
                    packet::dump(judge, ours)
                ));
            }
        }
    }
    Ok(())
}

/// Whether a frame's source is the router's address on this port.
fn is_from(frame: &[u8], port: Port) -> bool {
    match (port.address(true), port.address(false)) {
        (IpAddr::V4(v4), IpAddr::V6(v6)) => {
            frame.get(26..30) == Some(&v4.octets()[..]) || frame.get(22..38) == Some(&v6.octets()[..])
        }
        _ => false,
    }
}

/// The lines of FORWARD and of user chains (the host's own chains count on the kernel's side only).
fn counters(save: &str) -> Vec<String> {
    let of_host = |line: &&str| !line.contains("INPUT") && !line.contains("OUTPUT");
    let lines = save.lines().filter(|line| line.starts_with(['[', ':'])).filter(of_host);
    lines.map(str::to_owned).collect()
}

/// The same connections with the same states; timeouts may be two seconds apart.
fn same_table(judge: &[String], ours: &[String]) -> Result<(), String> {
    let sorted = |lines: &[String]| {
        let mut entries: Vec<(String, i64)> = lines.iter().map(|line| without_timeout(line)).collect();
        entries.sort();
        entries
    };
    let (judge, ours) = (sorted(judge), sorted(ours));
    if judge.len() != ours.len() {
        return Err(format!("{} connections in the kernel, {} in core", judge.len(), ours.len()));
    }
    for ((theirs, their_timeout), (mine, my_timeout)) in judge.iter().zip(&ours) {
        if theirs != mine || (their_timeout - my_timeout).abs() > 2 {
            return Err(format!("kernel: {theirs} ({their_timeout} s)\ncore:   {mine} ({my_timeout} s)"));
        }
    }
    Ok(())
}

fn without_timeout(line: &str) -> (String, i64) {
    let words: Vec<&str> = line.split_whitespace().collect();
    let timeout = words.get(2).and_then(|word| word.parse().ok()).unwrap_or(-1);
    let rest = words.iter().enumerate().filter(|(index, _)| *index != 2).map(|(_, word)| *word);
    (rest.collect::<Vec<_>>().join(" "), timeout)
}
