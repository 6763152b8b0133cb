//! What doctor says of the machine, whatever its interfaces.

use super::facts::{Facts, HugePages, Leftover, Policy};
use super::{Level, Line};

const MACHINE: &str = "machine";
/// What xrouter wants of the kernel, and what its fast ways want.
const LEAST: (u32, u32) = (5, 18);
const GOOD: (u32, u32) = (6, 6);
/// Bytes of packet memory for one queue of one port: the entries of its rings, half as many more, in frames of 2 KiB.
const BYTES_PER_QUEUE: u64 = (2048 + 2048) * 3 / 2 * 2048;
const HUGE_PAGE: u64 = 2 << 20;

pub(super) fn examine(facts: &Facts) -> Vec<Line> {
    let mut lines = vec![kernel(facts)];
    lines.extend(facts.lacking.iter().map(|what| Line::problem(MACHINE, "privileges", what)));
    if facts.lacking.is_empty() {
        lines.push(Line::ok(MACHINE, "privileges", "AF_XDP is there, and all capabilities"));
    }
    lines.extend(jit(facts));
    lines.push(memlock(facts));
    lines.push(cores(facts));
    lines.push(isolated(facts));
    lines.push(governor(facts));
    lines.push(mitigations(facts));
    lines.push(huge_pages(facts));
    lines.extend(forwarding(facts));
    lines.extend(routers(facts));
    if facts.irqbalance {
        let what = "irqbalance runs: it will move interrupts away from where xrouter leads them";
        lines.push(Line::warning(MACHINE, "irqbalance", what).for_the_operator("systemctl disable --now irqbalance"));
    }
    lines
}

/// Major and minor number of a release.
pub(super) fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

fn kernel(facts: &Facts) -> Line {
    let release = &facts.release;
    let newer = "install a newer kernel (Debian: apt install -t bookworm-backports linux-image-amd64)";
    if !facts.btf {
        let what =
            format!("Linux {release} has no BTF of itself (CONFIG_DEBUG_INFO_BTF): the XDP program cannot be loaded");
        return Line::problem(MACHINE, "kernel", what).for_the_operator(newer);
    }
    match version(release) {
        Some(it) if it < LEAST => {
            let what = format!("Linux {release}: xrouter wants {}.{} or later", LEAST.0, LEAST.1);
            Line::problem(MACHINE, "kernel", what).for_the_operator(newer)
        }
        Some(it) if it < GOOD => {
            let what = format!(
                "Linux {release}: works; {}.{} and later have zero-copy and frags in more drivers",
                GOOD.0, GOOD.1
            );
            Line::warning(MACHINE, "kernel", what).for_the_operator(newer)
        }
        _ => Line::ok(MACHINE, "kernel", format!("Linux {release}")),
    }
}

fn jit(facts: &Facts) -> Option<Line> {
    let off = facts.jit == Some(0);
    off.then(|| {
        Line::warning(
            MACHINE,
            "jit",
            "the kernel interprets BPF programs: each packet costs several times as much in XDP",
        )
        .mended_by("sysctl -w net.core.bpf_jit_enable=1")
    })
}

fn memlock(facts: &Facts) -> Line {
    let needed = packet_memory(facts);
    match facts.memlock {
        None => Line::ok(MACHINE, "memlock", "no limit on locked memory"),
        Some(limit) if limit >= needed => {
            Line::ok(MACHINE, "memlock", format!("{} MiB may be locked, {} are needed", limit >> 20, needed >> 20))
        }
        Some(limit) => {
            let what = format!("{} KiB of memory may be locked, packets need {} MiB", limit >> 10, needed >> 20);
            Line::problem(MACHINE, "memlock", what)
                .for_the_operator("ulimit -l unlimited (systemd: LimitMEMLOCK=infinity), or CAP_IPC_LOCK")
        }
    }
}

/// Bytes that packets will take.
fn packet_memory(facts: &Facts) -> u64 {
    2 * u64::from(facts.workers) * BYTES_PER_QUEUE
}

fn cores(facts: &Facts) -> Line {
    let (cpus, workers) = (facts.cpus.len(), facts.workers);
    match cpus.checked_sub(workers as usize) {
        None => {
            let what = format!("{workers} workers want a core each, and this process may use {cpus}");
            Line::problem(MACHINE, "cores", what).for_the_operator(format!("xrouter --workers {cpus}"))
        }
        Some(0) => {
            let what = format!("{cpus} cores for {workers} workers: none is left for everything else");
            let line = Line::warning(MACHINE, "cores", what);
            if workers > 1 { line.for_the_operator(format!("xrouter --workers {}", workers - 1)) } else { line }
        }
        Some(_) => Line::ok(MACHINE, "cores", format!("{cpus} cores, {workers} of them for workers")),
    }
}

fn isolated(facts: &Facts) -> Line {
    let wanted: Vec<usize> = facts.cpus.iter().rev().take(facts.workers as usize).copied().collect();
    let (first, last) = (wanted.last().copied().unwrap_or(0), wanted.first().copied().unwrap_or(0));
    let list = if first == last { first.to_string() } else { format!("{first}-{last}") };
    match (facts.isolated.is_empty(), facts.nohz_full.is_empty()) {
        (false, false) => {
            let what = format!("isolated cores {}, without a tick {}", facts.isolated, facts.nohz_full);
            Line::ok(MACHINE, "isolation", what)
        }
        (no_isolation, _) if facts.cpus.len() > facts.workers as usize => {
            let lacks = if no_isolation { "no core is isolated" } else { "isolated cores have a timer tick" };
            let what =
                format!("{lacks}: other programs and the timer interrupt workers now and then, which shows in latency");
            Line::warning(MACHINE, "isolation", what).for_the_operator(format!(
                "boot with isolcpus={list} nohz_full={list} rcu_nocbs={list}, and start xrouter --cores {list}"
            ))
        }
        _ => Line::ok(MACHINE, "isolation", "no core can be spared for workers alone"),
    }
}

fn governor(facts: &Facts) -> Line {
    let slow: Vec<&str> = facts.governors.keys().map(String::as_str).filter(|it| *it != "performance").collect();
    match (facts.governors.is_empty(), slow.is_empty()) {
        (true, _) => Line::ok(MACHINE, "governor", "the kernel does not govern the frequency here"),
        (false, true) => Line::ok(MACHINE, "governor", "performance"),
        (false, false) => {
            let what = format!("frequency governor {}: cores slow down when little happens", slow.join(", "));
            Line::warning(MACHINE, "governor", what).mended_by(
                "for f in /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor; do echo performance > $f; done",
            )
        }
    }
}

fn mitigations(facts: &Facts) -> Line {
    match facts.mitigations.is_empty() {
        true => Line::ok(MACHINE, "mitigations", "none in force"),
        false => {
            let what = format!(
                "in force against {}; they cost the kernel's share of each packet. Only where all that runs here is trusted: boot \
                 with mitigations=off",
                facts.mitigations.join(", ")
            );
            Line::ok(MACHINE, "mitigations", what)
        }
    }
}

fn huge_pages(facts: &Facts) -> Line {
    let needed = packet_memory(facts).div_ceil(HUGE_PAGE);
    match &facts.huge_pages {
        None => Line::warning(
            MACHINE,
            "hugepages",
            "the kernel has no huge pages of 2 MiB: packet memory lies on small ones",
        ),
        Some(HugePages { free, .. }) if *free >= needed => {
            Line::ok(MACHINE, "hugepages", format!("{free} free, {needed} are needed"))
        }
        Some(HugePages { total, free }) => {
            let what = format!(
                "{free} free, packet memory would take {needed}: it lies on small pages, and misses more often"
            );
            Line::warning(MACHINE, "hugepages", what)
                .mended_by(format!("sysctl -w vm.nr_hugepages={}", total - free.min(total) + needed))
        }
    }
}

/// What is passed to the host could leave again around the rules.
fn forwarding(facts: &Facts) -> Vec<Line> {
    let families = [
        (facts.forwarding.v4, "IPv4", "net.ipv4.ip_forward", "iptables", facts.policies[0]),
        (facts.forwarding.v6, "IPv6", "net.ipv6.conf.all.forwarding", "ip6tables", facts.policies[1]),
    ];
    let on = families.iter().filter(|(on, ..)| *on);
    let lines: Vec<Line> = on
        .map(|(_, family, name, tool, policy)| {
            let what = format!("the kernel forwards {family} as well ({name}=1)");
            let (level, what) = match policy {
                Policy::Drop => (Level::Warning, format!("{what}; its FORWARD chain drops what no rule there lets pass")),
                Policy::Accept => (Level::Problem, format!(
                    "{what}, and its FORWARD chain lets all pass: VLAN frames and packets by other interfaces go around xrouter's \
                     rules"
                )),
                Policy::Unknown => (Level::Problem, format!(
                    "{what}, and what its FORWARD chain does could not be read: VLAN frames and packets by other interfaces may go \
                     around xrouter's rules"
                )),
            };
            let command = format!("sysctl -w {name}=0 (if the kernel has to forward between others: {tool} -P FORWARD DROP)");
            Line::new(level, MACHINE, "forwarding", what).for_the_operator(command)
        })
        .collect();
    match lines.is_empty() {
        true => vec![Line::ok(MACHINE, "forwarding", "the kernel forwards nothing around the rules")],
        false => lines,
    }
}

fn routers(facts: &Facts) -> Vec<Line> {
    let option = facts.state.as_ref().map_or(String::new(), |folder| format!(" --state {folder}"));
    let line = |Leftover { interfaces, pid, runs }: &Leftover| {
        let names = interfaces.join(" and ");
        match runs {
            true => Line::ok(MACHINE, "routers", format!("an xrouter runs on {names} (process {pid})")),
            false => Line::warning(
                MACHINE,
                "routers",
                format!("a killed xrouter (process {pid}) has left settings on {names}"),
            )
            .mended_by(format!("xrouter cleanup{option} {}", interfaces.join(" "))),
        }
    };
    let unreadable = facts
        .unreadable
        .iter()
        .map(|what| Line::warning(MACHINE, "routers", format!("a note of changed interfaces cannot be read: {what}")));
    facts.routers.iter().map(line).chain(unreadable).collect()
}
