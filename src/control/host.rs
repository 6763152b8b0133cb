//! The rules of the host itself given to the kernel: [`apply`], by `iptables-restore --noflush` and `ip6tables-restore --noflush`.
//!
//! Only for files that the operator named, and only INPUT and OUTPUT of the tables in them and all of nat, with the user chains
//! that they lead to. The kernel's other chains stay as they are, and nothing is taken back when the router ends: the host stays
//! guarded.
//!
//! The kernel needs nat for what REDIRECT and DNAT lead to its own sockets: such packets are given to it as they came, and it
//! translates them and the answers. It meets the same rules, but without the router's raw, mangle and connections: a rule that
//! goes by a mark, or by chance, may not say the same there as it said here, and then the packet is not for the host, and ends.
//! So does a fragment, or a packet with options, that XDP passed on because it was sent to the host. A kernel that forwards would
//! send these on past the router's rules: it is not given nat rules of PREROUTING.
//! Both files are tried first (`--test`). Should the kernel refuse a table all the same, the tables of both IP versions become
//! what they were.

use std::io::Write;
use std::process::{Command, Stdio};

use super::config::{Config, HostChains};
use super::netlink::sysctl::kernel_forwarding;
use super::startup::Failure;
use crate::rules::{BUILTIN, NAT_PREROUTING, Ruleset, TableName};
use crate::snapshot::KernelForwarding;
use crate::wire::Family;

/// How long the tools wait for each other's lock, in seconds.
const LOCK: &str = "--wait=5";

/// One file's share.
struct Share {
    tool: &'static str,
    save: &'static str,
    file: String,
    text: String,
    tables: Vec<TableName>,
}

/// Gives the kernel what `config` wants it to have of these rules (IPv4, IPv6).
///
/// # Errors
/// [`Failure::Machine`] with the tool's own words; the kernel's rules are as before.
pub fn apply(config: &Config, rulesets: [&Ruleset; 2]) -> Result<(), Failure> {
    let is_given = |ruleset: &&Ruleset| has_rules(config, ruleset.family) && !ruleset.host_tables().is_empty();
    let shares: Vec<Share> = rulesets.into_iter().filter(is_given).map(share).collect();
    let forwarding = kernel_forwarding();
    for ruleset in rulesets.into_iter().filter(is_given) {
        refuse_forwarding(ruleset, forwarding)?;
    }
    for share in &shares {
        share.restore(&["--test", "--noflush"], &share.text)?;
    }
    let before = shares.iter().map(Share::saved).collect::<Result<Vec<_>, _>>()?;
    for (at, share) in shares.iter().enumerate() {
        let Err(failure) = share.restore(&["--noflush"], &share.text) else {
            let tables: Vec<_> = share.tables.iter().map(|table| table.name()).collect();
            tracing::info!("host chains of {} are in force in the kernel: {}", share.file, tables.join(", "));
            continue;
        };
        for (share, text) in shares.iter().zip(&before).take(at + 1) {
            if let Err(again) = share.restore(&["--counters"], text) {
                tracing::error!("the kernel's rules may not be what they were: {again}");
            }
        }
        return Err(failure);
    }
    Ok(())
}

/// A kernel that forwards is not given rules that lead packets on.
fn refuse_forwarding(ruleset: &Ruleset, forwarding: KernelForwarding) -> Result<(), Failure> {
    let (forwards, name) = match ruleset.family {
        Family::V4 => (forwarding.v4, "net.ipv4.ip_forward"),
        Family::V6 => (forwarding.v6, "net.ipv6.conf.all.forwarding"),
    };
    match forwards && !ruleset.chains[NAT_PREROUTING].rules.is_empty() {
        false => Ok(()),
        true => Err(Failure::Machine(format!(
            "--host-chains apply: {}: the kernel would be given the rules of nat PREROUTING, and it forwards ({name}=1): fragments \
             and packets with IP options that they translate would pass by the router's rules. sysctl -w {name}=0 (xrouter \
             forwards without it), or start with --host-chains report",
            ruleset.file
        ))),
    }
}

/// Whether the kernel has what rules of this IP version say of the host.
pub(super) fn has_rules(config: &Config, family: Family) -> bool {
    let named = if family == Family::V4 { &config.rules } else { &config.rules6 };
    config.host_chains == HostChains::Apply && named.is_some()
}

fn share(ruleset: &Ruleset) -> Share {
    let (tool, save) = match ruleset.family {
        Family::V4 => ("iptables-restore", "iptables-save"),
        Family::V6 => ("ip6tables-restore", "ip6tables-save"),
    };
    Share { tool, save, file: ruleset.file.clone(), text: ruleset.host_text(), tables: ruleset.host_tables() }
}

/// A table that the kernel does not have yet.
fn empty(table: TableName) -> String {
    let chains = BUILTIN.iter().filter(|&&(of, _)| of == table);
    let lines: String = chains.map(|(_, hook)| format!(":{} ACCEPT [0:0]\n", hook.chain_name())).collect();
    format!("*{}\n{lines}COMMIT\n", table.name())
}

impl Share {
    fn failed(&self, why: &str) -> Failure {
        Failure::Machine(format!(
            "--host-chains apply: {}: {why}. The kernel's rules are as they were; put the file right, or start with \
             --host-chains report",
            self.file
        ))
    }

    /// Has the tool read `text`.
    fn restore(&self, words: &[&str], text: &str) -> Result<(), Failure> {
        let mut command = Command::new(self.tool);
        command.arg(LOCK).args(words);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let missing = |error| self.failed(&format!("cannot run {}: {error}", self.tool));
        let mut child = command.spawn().map_err(missing)?;
        // A tool that ends before it has read all says why below.
        let _ = child.stdin.take().map(|mut input| input.write_all(text.as_bytes()));
        let output = child.wait_with_output().map_err(missing)?;
        match output.status.success() {
            true => Ok(()),
            false => {
                let said = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
                Err(self.failed(&format!("{} says: {said}", self.tool)))
            }
        }
    }

    /// The tables as they are in the kernel, counters included.
    fn saved(&self) -> Result<String, Failure> {
        let mut all = String::new();
        for table in &self.tables {
            let output = Command::new(self.save).args(["--counters", "--table", table.name()]).output();
            let output = output.map_err(|error| self.failed(&format!("cannot run {}: {error}", self.save)))?;
            if !output.status.success() {
                let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
                return Err(self.failed(&format!("{} says: {said}", self.save)));
            }
            let text = String::from_utf8_lossy(&output.stdout);
            all += &if text.lines().any(|line| line.starts_with('*')) { text.into_owned() } else { empty(*table) };
        }
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_that_forwards_is_not_given_port_forwards() {
        let load = |nat: &str| {
            let text = format!("*nat\n{nat}COMMIT\n*filter\n:INPUT DROP [0:0]\nCOMMIT\n");
            crate::rules::understand("f", &text, Family::V4, &[]).expect("good rules")
        };
        let dnat = load("-A PREROUTING -p tcp --dport 80 -j DNAT --to-destination 10.1.0.2\n");
        let masquerade = load("-A POSTROUTING -j MASQUERADE\n");
        let on = KernelForwarding { v4: true, v6: false };
        let said = refuse_forwarding(&dnat, on).expect_err("refused").to_string();
        assert!(said.contains("net.ipv4.ip_forward=1") && said.contains("f:"), "{said}");
        assert!(refuse_forwarding(&masquerade, on).is_ok());
        assert!(refuse_forwarding(&dnat, KernelForwarding { v4: false, v6: true }).is_ok());
    }
}
