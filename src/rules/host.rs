//! The rules of a file that belong to the host itself: [`Ruleset::host_text`], for `iptables-restore --noflush`.
//!
//! Forwarded packets never meet INPUT and OUTPUT, so they are not compiled; the kernel may be given them as they are. nat is given
//! whole. What REDIRECT, or DNAT to an address of the router, leads to a socket of the host goes to the kernel as it came, since
//! the host's answers do not pass the router: so it must be the kernel that translates both. It forwards nothing of what the
//! ports receive, so the rules that translate forwarded packets do nothing there; they are given without the options that Linux
//! does not have.

use super::rule::{
    BUILTIN, BUILTIN_CHAINS, ChainIndex, Hook, NAT_PREROUTING, Policy, Rule, Ruleset, Spoken, TableName,
};
use super::save::{push, rule_text};
use super::targets::Target;

/// The label of a warning about a chain that is the host's.
pub(super) const LABEL: &str = "a forwarded packet does not come here";
/// The label of a warning about a rule that leads packets to the host's sockets.
pub(super) const REDIRECT_LABEL: &str =
    "packets redirected to the router reach the host only with `--host-chains apply`";

/// Whether the kernel is given this chain.
fn is_given(table: TableName, hook: Hook) -> bool {
    table == TableName::Nat || matches!(hook, Hook::Input | Hook::Output)
}

/// A rule that leads packets to the host's own sockets, whatever its addresses are.
#[derive(Clone, Copy, Debug)]
pub struct Redirected<'a> {
    /// Its number ([`Ruleset::counter_index`]).
    pub number: usize,
    /// The name of its chain.
    pub chain: &'a str,
    /// The rule.
    pub rule: &'a Rule,
}

impl Ruleset {
    /// The kernel gets what is its own. So it is said no more that chains of the host are not applied.
    pub fn give_to_the_host(&mut self) {
        self.given = true;
        self.warnings.retain(|warning| ![LABEL, REDIRECT_LABEL].contains(&warning.label.as_str()));
    }

    /// The rules with `-j REDIRECT` that received packets may come to.
    pub fn redirected(&self) -> impl Iterator<Item = Redirected<'_>> {
        let (reached, first) = (self.reached_from([NAT_PREROUTING]), self.first_counters());
        let chains = self.chains.iter().zip(first).zip(reached).filter(|(_, reached)| *reached);
        let rules = chains.flat_map(|((chain, first), _)| {
            let rules = (first..).zip(&chain.rules);
            rules.map(|(number, rule)| Redirected { number, chain: chain.name.as_str(), rule })
        });
        rules.filter(|it| matches!(it.rule.target, Target::Redirect(_)))
    }

    /// The tables of the file that have chains of the host.
    pub fn host_tables(&self) -> Vec<TableName> {
        let has = |table: TableName| BUILTIN.iter().any(|&(of, hook)| of == table && is_given(table, hook));
        self.tables.iter().copied().filter(|&table| has(table)).collect()
    }

    /// INPUT and OUTPUT of each table that the file has, all of nat, and the user chains that they lead to: text that puts them in
    /// place of the kernel's and leaves its other chains alone, and policies that nobody named. Empty when the file has no
    /// such table.
    pub fn host_text(&self) -> String {
        let mut out = String::new();
        for table in self.host_tables() {
            self.host_table(table, &mut out);
        }
        out
    }

    fn host_table(&self, table: TableName, out: &mut String) {
        // What nobody speaks of stays as the kernel has it.
        let Spoken { rules, policies } = self.spoken.and(&self.spoken_by_changes).and(&self.taken_back);
        let is_own = |index: ChainIndex| BUILTIN[index].0 == table && is_given(table, BUILTIN[index].1);
        let builtin: Vec<ChainIndex> = rules.into_iter().filter(|&index| is_own(index)).collect();
        let mut chains: Vec<ChainIndex> = builtin.iter().flat_map(|&chain| self.reachable_from(chain)).collect();
        // A built-in chain has a line of its own only for its policy.
        chains.retain(|&index| index >= BUILTIN_CHAINS);
        chains.extend(policies.into_iter().filter(|&index| is_own(index)));
        chains.sort_unstable();
        chains.dedup();
        push(out, format_args!("*{}\n", table.name()));
        for chain in chains.iter().map(|&index| &self.chains[index]) {
            let policy = match chain.policy {
                // One that is there already is emptied by this.
                None => "-",
                Some(Policy::Accept) => "ACCEPT",
                Some(Policy::Drop) => "DROP",
            };
            push(out, format_args!(":{} {policy} [0:0]\n", chain.name));
        }
        for &index in &builtin {
            push(out, format_args!("-F {}\n", self.chains[index].name));
        }
        let user = chains.iter().filter(|&&index| index >= BUILTIN_CHAINS);
        for chain in builtin.iter().chain(user).map(|&index| &self.chains[index]) {
            for rule in &chain.rules {
                let rule = &Rule { target: rule.target.of_linux(), ..Rule::clone(rule) };
                push(out, format_args!("{}\n", rule_text(self.family, &chain.name, rule, &self.chains)));
            }
        }
        out.push_str("COMMIT\n");
    }
}

#[cfg(test)]
mod tests {
    use crate::rules::{self, RuleVector};
    use crate::wire::Family;

    const FILE: &str = "*nat\n:PREROUTING ACCEPT [0:0]\n:INPUT ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\nCOMMIT\n\
        *filter\n:INPUT DROP [5:300]\n:FORWARD DROP [0:0]\n:OUTPUT ACCEPT [0:0]\n:deep - [0:0]\n:mine - [0:0]\n\
        :through - [0:0]\n-A INPUT -i lo -j ACCEPT\n-A INPUT -j mine\n-A FORWARD -j through\n-A mine -j deep\n\
        -A deep -p tcp -m tcp --dport 22 -j ACCEPT\n-A through -j ACCEPT\nCOMMIT\n";

    const NAT: &str = "*nat\n:PREROUTING ACCEPT [0:0]\n:POSTROUTING ACCEPT [0:0]\n:proxy - [0:0]\n:stray - [0:0]\n\
        -A PREROUTING -i lan -p tcp -m tcp --dport 80 -j proxy\n-A POSTROUTING -o wan -j MASQUERADE\n\
        -A OUTPUT -p tcp -m tcp --dport 81 -j REDIRECT --to-ports 8081\n\
        -A proxy -p tcp -j REDIRECT --to-ports 3128\n-A stray -j REDIRECT\nCOMMIT\n";

    #[test]
    fn only_what_belongs_to_the_host_is_given() {
        let ruleset = rules::understand("f", FILE, Family::V4, &[]).expect("good rules");
        assert_eq!(
            ruleset.host_text(),
            "*nat\n:PREROUTING ACCEPT [0:0]\n:INPUT ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n-F PREROUTING\n-F INPUT\n\
             -F OUTPUT\nCOMMIT\n\
             *filter\n:INPUT DROP [0:0]\n:OUTPUT ACCEPT [0:0]\n:deep - [0:0]\n:mine - [0:0]\n-F INPUT\n-F OUTPUT\n\
             -A INPUT -i lo -j ACCEPT\n-A INPUT -j mine\n-A deep -p tcp -m tcp --dport 22 -j ACCEPT\n-A mine -j deep\n\
             COMMIT\n"
        );
    }

    #[test]
    fn of_nat_all_is_given_that_packets_come_to() {
        let ruleset = rules::understand("f", NAT, Family::V4, &["lan", "wan"]).expect("good rules");
        assert_eq!(
            ruleset.host_text(),
            "*nat\n:PREROUTING ACCEPT [0:0]\n:POSTROUTING ACCEPT [0:0]\n:proxy - [0:0]\n-F PREROUTING\n-F OUTPUT\n\
             -F POSTROUTING\n-A PREROUTING -i lan -p tcp -m tcp --dport 80 -j proxy\n\
             -A OUTPUT -p tcp -m tcp --dport 81 -j REDIRECT --to-ports 8081\n-A POSTROUTING -o wan -j MASQUERADE\n\
             -A proxy -p tcp -j REDIRECT --to-ports 3128\nCOMMIT\n"
        );
    }

    #[test]
    fn what_linux_does_not_have_is_left_out() {
        let text = "*nat\n-A POSTROUTING -o wan -j MASQUERADE --random --endpoint-independent-mapping\n\
                    -A POSTROUTING -p udp -j SNAT --to-source 192.0.2.1 --port-blocks 2 --persistent\nCOMMIT\n";
        let ruleset = rules::load("f", text, Family::V4, &["lan", "wan"]).expect("good rules");
        assert_eq!(
            ruleset.host_text(),
            "*nat\n-F POSTROUTING\n-A POSTROUTING -o wan -j MASQUERADE --random\n\
             -A POSTROUTING -p udp -j SNAT --to-source 192.0.2.1 --persistent\nCOMMIT\n"
        );
    }

    #[test]
    fn a_rule_that_needs_the_kernel_is_warned_of_until_the_kernel_has_it() {
        let mut ruleset = rules::understand("f", NAT, Family::V4, &["lan", "wan"]).expect("good rules");
        let redirected: Vec<_> = ruleset.redirected().map(|it| (it.number, it.chain.to_owned())).collect();
        assert_eq!(redirected, [(3, "proxy".to_owned())], "not those of OUTPUT, nor where no packet comes");
        let said = ruleset.warnings().to_string();
        assert!(said.contains("f:9:20") && said.contains("reach the host only with `--host-chains apply`"), "{said}");
        ruleset.give_to_the_host();
        assert!(!ruleset.warnings().to_string().contains("--host-chains"), "{}", ruleset.warnings());
    }

    #[test]
    fn what_is_compiled_says_whether_the_kernel_translates() {
        // No rule of it is the router's alone.
        let text = "*nat\n-A PREROUTING -p tcp -j ACCEPT\nCOMMIT\n";
        let mut ruleset = rules::load("f", text, Family::V4, &[]).expect("good rules");
        assert!(ruleset.translates() && !RuleVector::compile(&ruleset).host_translates());
        ruleset.give_to_the_host();
        assert!(RuleVector::compile(&ruleset).host_translates());
        let changed = rules::change(&ruleset, "more", "*nat\n-F\nCOMMIT\n", false).expect("a good change").ruleset;
        assert!(!changed.translates() && RuleVector::compile(&changed).host_translates());
        let mut without = rules::load("f", "*filter\nCOMMIT\n", Family::V4, &[]).expect("good rules");
        without.give_to_the_host();
        assert!(!without.translates() && !RuleVector::compile(&without).host_translates());
    }

    #[test]
    fn chains_that_are_applied_are_not_warned_of() {
        let mut ruleset = rules::understand("f", FILE, Family::V4, &[]).expect("good rules");
        let said = ruleset.warnings().to_string();
        assert!(said.contains("INPUT (2 rules) belongs to the host") && said.contains("--host-chains apply"), "{said}");
        ruleset.give_to_the_host();
        assert!(!ruleset.warnings().to_string().contains("belongs to the host"), "{}", ruleset.warnings());
    }
}
