//! What doctor says of one interface.

use super::Line;
use super::facts::{Card, Facts};
use super::machine::version;
use crate::control::nic::HARMFUL;
use crate::xdp::{FIELDS_ALL, FlowType, HEADROOM, LAYER2, MAX_QUEUES, PROGRAM_NAME, frames_needed, quirks};

/// Bytes of the largest frame, and of the longest packet in it with its layer-2 header.
const FRAME: u32 = 4096;
const ROOM: u32 = FRAME - HEADROOM as u32;

pub(super) fn examine(card: &Card, facts: &Facts) -> Vec<Line> {
    let name = card.interface.name.as_str();
    if card.interface.loopback || !card.ethernet {
        return vec![Line::problem(name, "link", "not an Ethernet interface: it cannot be a port")];
    }
    let mut lines = vec![link(card), driver(card)];
    lines.extend(native(card, facts));
    lines.push(zero_copy(card, facts));
    lines.push(program(card, facts));
    lines.push(queues(card, facts));
    lines.push(rss(card, facts));
    lines.push(mtu(card, facts));
    lines.extend(offloads(card));
    lines.push(numa(card, facts));
    if card.interface.promiscuous {
        let what = "promiscuous: it takes frames for everybody, which a router does not need";
        lines
            .push(Line::warning(name, "promiscuous", what).for_the_operator(format!("ip link set {name} promisc off")));
    }
    lines
}

fn link(card: &Card) -> Line {
    let name = &card.interface.name;
    match (card.interface.up, card.interface.carrier) {
        (false, _) => Line::problem(name, "link", "down").mended_by(format!("ip link set {name} up")),
        (true, false) => Line::warning(name, "link", "up, but without a link")
            .for_the_operator("look at the cable, and at the other end"),
        (true, true) => Line::ok(name, "link", "up"),
    }
}

fn driver(card: &Card) -> Line {
    let (name, driver) = (&card.interface.name, &card.interface.driver);
    let rings = card.rings.map_or(String::new(), |rings| format!(", rings of {} and {} entries", rings.rx, rings.tx));
    let notes = quirks::of(driver).notes;
    let known = match notes.len() {
        0 => String::new(),
        1 => format!("; {}", notes[0]),
        more => format!("; docs/NIC.md has {more} notes on it"),
    };
    match driver.is_empty() {
        true => Line::ok(name, "driver", format!("not told{rings}")),
        false => Line::ok(name, "driver", format!("{driver}{rings}{known}")),
    }
}

/// Whether the driver runs XDP programs; nothing to say where the kernel does not tell.
fn native(card: &Card, facts: &Facts) -> Option<Line> {
    let (name, driver) = (&card.interface.name, &card.interface.driver);
    let features = card.xdp?;
    Some(match (features.native(), features.redirect()) {
        (true, true) => {
            let frags = if features.frags() { ", frames of several buffers" } else { "" };
            Line::ok(name, "xdp", format!("native, with redirection{frags}"))
        }
        (true, false) => {
            Line::warning(name, "xdp", format!("{driver} runs XDP programs, but does not redirect: generic mode only"))
        }
        // virtio_net says so too while its offloads are in the way.
        (false, _) if driver == "virtio_net" => Line::warning(
            name,
            "xdp",
            "virtio_net offers no native XDP as it is: GRO_HW or checksum offload may be in the way",
        )
        .for_the_operator(
            "in the hypervisor: mq=on, guest_tso4=off,guest_tso6=off,guest_ecn=off,guest_ufo=off,guest_csum=off",
        ),
        (false, _) => Line::warning(
            name,
            "xdp",
            format!("{driver} has no native XDP on Linux {}: generic mode, slow, is what there is", facts.release),
        )
        .for_the_operator("another network card, or a newer kernel"),
    })
}

fn zero_copy(card: &Card, facts: &Facts) -> Line {
    let (name, driver) = (&card.interface.name, &card.interface.driver);
    let known = quirks::of(driver);
    let by_kernel = match (known.zero_copy, version(&facts.release)) {
        (Some(since), Some(kernel)) => kernel >= since,
        _ => false,
    };
    let since = known.zero_copy.map(|(major, minor)| format!("{major}.{minor}"));
    match (card.xdp.map_or(by_kernel, |features| features.zero_copy()), since) {
        (true, _) => {
            let segments = card.xdp.map_or(0, |features| features.zero_copy_segments);
            let segments = if segments > 1 { format!(", frames of up to {segments} buffers") } else { String::new() };
            let needs = known.zero_copy_needs.map_or(String::new(), |needs| format!("; it needs {needs}"));
            Line::ok(name, "zero-copy", format!("{driver} has it{segments}{needs}"))
        }
        (false, _) if known.is_virtual => {
            Line::ok(name, "zero-copy", format!("{driver} is software: packets are copied"))
        }
        (false, Some(since)) if !by_kernel => Line::warning(
            name,
            "zero-copy",
            format!("{driver} has it since Linux {since}, this is {}: packets are copied", facts.release),
        )
        .for_the_operator(format!("install Linux {since} or later")),
        (false, Some(since)) => Line::warning(
            name,
            "zero-copy",
            format!("{driver} has it since Linux {since}, but the kernel says no for this card: packets are copied"),
        ),
        (false, None) => {
            Line::warning(name, "zero-copy", format!("none known of {driver}: packets are copied once each way"))
                .for_the_operator("a card of another driver (docs/NIC.md lists them)")
        }
    }
}

fn program(card: &Card, facts: &Facts) -> Line {
    let name = &card.interface.name;
    let Some(program) = &card.program else { return Line::ok(name, "program", "no XDP program is attached") };
    let runs = facts.routers.iter().any(|router| router.runs && router.interfaces.contains(name));
    match program.name.as_deref() {
        Some(PROGRAM_NAME) if runs => Line::ok(name, "program", "xrouter's own is attached, and xrouter runs"),
        Some(PROGRAM_NAME) => {
            let what = format!(
                "XDP program {PROGRAM_NAME} (id {}) is attached, and no xrouter is known that it belongs to",
                program.id
            );
            Line::warning(name, "program", what).mended_by(format!("xrouter cleanup {name}"))
        }
        other => {
            let other = other.unwrap_or("without a name");
            let what = format!("another XDP program, {other} (id {}), is attached: xrouter will not start", program.id);
            Line::problem(name, "program", what).for_the_operator(format!(
                "stop its owner, or: ip link set dev {name} xdp off; ip link set dev {name} xdpgeneric off"
            ))
        }
    }
}

fn queues(card: &Card, facts: &Facts) -> Line {
    let (name, now, workers) = (&card.interface.name, card.interface.rx_queues, facts.workers);
    let most = card.channels.map_or(now, |channels| channels.most().max(now));
    let known = quirks::of(&card.interface.driver);
    if most < workers {
        let what = format!("{now} receive queues and never more than {most}, for {workers} workers");
        let line = Line::problem(name, "queues", what);
        return match known.is_virtual {
            true => line.for_the_operator(format!(
                "make it with more (ip link add ... numrxqueues {workers} numtxqueues {workers}), or xrouter --workers {most}"
            )),
            false => line.for_the_operator(format!("xrouter --workers {most}")),
        };
    }
    if now > MAX_QUEUES {
        let command = format!("ethtool -L {name} combined {MAX_QUEUES}");
        return Line::problem(name, "queues", format!("{now}, more than {MAX_QUEUES} that can be read"))
            .mended_by(command);
    }
    let spare = facts.cpus.len().saturating_sub(1) as u32;
    if most < spare && !facts.workers_asked {
        let what = format!("{most} at most, on a machine with {} cores: {most} of them can forward", facts.cpus.len());
        let line = Line::warning(name, "queues", what);
        return match known.is_virtual {
            true => line.for_the_operator("make it with more: ip link add ... numrxqueues N numtxqueues N"),
            false => line,
        };
    }
    match now == workers || known.keep_queues && now > workers {
        true => Line::ok(name, "queues", format!("{now} of {most}, for {workers} workers")),
        false => Line::ok(name, "queues", format!("{now} of {most}; xrouter sets {workers} while it runs")),
    }
}

fn rss(card: &Card, facts: &Facts) -> Line {
    let name = &card.interface.name;
    if facts.workers < 2 {
        return Line::ok(name, "rss", "not needed with one worker");
    }
    let rss = match &card.rss.rss {
        Ok(rss) => rss,
        Err(why) => {
            let what = format!("{name} {why}: packets arrive at any worker, and are handed over");
            return Line::warning(name, "rss", what)
                .for_the_operator("xrouter --workers 1, if handing over costs more than it brings");
        }
    };
    let ports =
        FlowType::ALL.into_iter().filter(|flow| card.rss.fields_of(*flow) == Some(FIELDS_ALL)).map(FlowType::name);
    let ports = ports.collect::<Vec<_>>().join(", ");
    let ports = if ports.is_empty() { "no protocol's".to_owned() } else { ports };
    let entries = rss.table.len();
    match card.rss.is_symmetric() {
        true => Line::ok(name, "rss", format!("symmetric, table of {entries}, ports of {ports} count")),
        false => Line::ok(
            name,
            "rss",
            format!(
                "not symmetric, table of {entries}, ports of {ports} count; xrouter sets what it needs while it runs"
            ),
        ),
    }
}

/// Whether packets of the MTU fit one frame, or which mode takes them in several.
fn mtu(card: &Card, facts: &Facts) -> Line {
    let (name, driver, mtu) = (&card.interface.name, &card.interface.driver, card.interface.mtu);
    let (known, kernel) = (quirks::of(driver), version(&facts.release));
    let most = known.mtu.unwrap_or(ROOM - LAYER2);
    let reduce = |line: Line, to: u32| line.for_the_operator(format!("ip link set {name} mtu {to}"));
    if mtu <= most {
        return Line::ok(
            name,
            "mtu",
            known.mtu.map_or(mtu.to_string(), |_| format!("{mtu}, up to {most} in one frame")),
        );
    }
    if !quirks::knows_long_packets(&facts.release) {
        let what =
            format!("{mtu}: before Linux 6.7 or 6.6.11 no packets over {most} bytes, but in generic mode up to {ROOM}");
        return reduce(Line::problem(name, "mtu", what), most);
    }
    let by_table = known.frags.zip(kernel).is_some_and(|(since, kernel)| kernel >= since);
    if known.empty_first_buffer || !card.xdp.map_or(by_table, |features| features.frags()) {
        let what = format!(
            "{mtu}: {driver} has no packets of several buffers for xrouter, so over {most} bytes only generic mode, slow"
        );
        return reduce(Line::warning(name, "mtu", what), most);
    }
    let needed = frames_needed(mtu, FRAME, true).max(2);
    match card.xdp.filter(|features| features.zero_copy()).map(|features| features.zero_copy_segments.max(1)) {
        Some(segments) if segments < needed => {
            let what =
                format!("{mtu} takes {needed} frames a packet, {driver} {segments} in zero-copy mode: copy mode");
            reduce(Line::warning(name, "mtu", what), most)
        }
        Some(_) if !quirks::leaves_long_packets_whole(&facts.release) => {
            let what =
                format!("{mtu}: copy mode, as this Linux writes over bytes of packets in several frames in zero-copy");
            Line::warning(name, "mtu", what).for_the_operator("install Linux 7.0 or newer (or 6.18.24, 6.12.83)")
        }
        _ => Line::ok(name, "mtu", format!("{mtu}, in up to {} frames a packet", frames_needed(mtu, FRAME, false))),
    }
}

/// Offloads that break raw forwarding: xrouter turns off what can be turned off.
fn offloads(card: &Card) -> Vec<Line> {
    let name = &card.interface.name;
    let on = || card.features.iter().filter(|feature| feature.on && HARMFUL.contains(&feature.name.as_str()));
    let names = |changeable: bool| -> Vec<&str> {
        on().filter(|feature| feature.changeable == changeable).map(|feature| feature.name.as_str()).collect()
    };
    let (changeable, fixed) = (names(true), names(false));
    if !fixed.is_empty() {
        let what = format!("{} on and fixed: packets do not come as they were on the wire", fixed.join(", "));
        let line = Line::problem(name, "offloads", what);
        return vec![match card.interface.driver.as_str() {
            "virtio_net" => {
                line.for_the_operator("in the hypervisor: guest_tso4=off,guest_tso6=off,guest_ecn=off,guest_ufo=off")
            }
            _ => line.for_the_operator("the driver's documentation: it takes a module parameter, or another card"),
        }];
    }
    vec![match changeable.is_empty() {
        true => Line::ok(name, "offloads", "none that is in the way"),
        false => {
            Line::ok(name, "offloads", format!("{} on; xrouter turns them off while it runs", changeable.join(", ")))
        }
    }]
}

fn numa(card: &Card, facts: &Facts) -> Line {
    let name = &card.interface.name;
    match card.node {
        Some(node) if facts.nodes > 1 => {
            let cpus = &card.local_cpus;
            Line::ok(
                name,
                "numa",
                format!("node {node} of {}: its cores are {cpus} (xrouter --cores takes some of them)", facts.nodes),
            )
        }
        _ if facts.nodes > 1 => Line::ok(name, "numa", format!("of no node, on a machine with {}", facts.nodes)),
        _ => Line::ok(name, "numa", "one node"),
    }
}
