//! The rules of a file that belong to the host itself: [`Ruleset::host_text`], for `iptables-restore --noflush`.
//!
//! Forwarded packets never meet them, so they are not compiled; the kernel may be given them as they are. nat stays out: the
//! kernel's translations are not the router's.

use super::rule::{BUILTIN, BUILTIN_CHAINS, ChainIndex, Hook, Policy, Ruleset, Spoken, TableName};
use super::save::{push, rule_text};

/// The label of a warning about a chain that is the host's and that the kernel could be given.
pub(super) const LABEL: &str = "a forwarded packet does not come here";

/// Whether the kernel may be given this chain.
pub(super) fn is_given(table: TableName, hook: Hook) -> bool {
    table != TableName::Nat && matches!(hook, Hook::Input | Hook::Output)
}

impl Ruleset {
    /// Says no more that chains of the host are not applied: they are.
    pub fn forget_host_warnings(&mut self) {
        self.warnings.retain(|warning| warning.label != LABEL);
    }

    /// The tables of the file that have chains of the host.
    pub fn host_tables(&self) -> Vec<TableName> {
        let has = |table: TableName| BUILTIN.iter().any(|&(of, hook)| of == table && is_given(table, hook));
        self.tables.iter().copied().filter(|&table| has(table)).collect()
    }

    /// INPUT and OUTPUT of each table that the file has, and the user chains that they lead to: text that puts them in place
    /// of the kernel's and leaves its other chains alone, and policies that nobody named. Empty when the file has no such
    /// table.
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
                push(out, format_args!("{}\n", rule_text(self.family, &chain.name, rule, &self.chains)));
            }
        }
        out.push_str("COMMIT\n");
    }
}

#[cfg(test)]
mod tests {
    use crate::rules;
    use crate::wire::Family;

    const FILE: &str = "*nat\n:PREROUTING ACCEPT [0:0]\n:INPUT ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\nCOMMIT\n\
        *filter\n:INPUT DROP [5:300]\n:FORWARD DROP [0:0]\n:OUTPUT ACCEPT [0:0]\n:deep - [0:0]\n:mine - [0:0]\n\
        :through - [0:0]\n-A INPUT -i lo -j ACCEPT\n-A INPUT -j mine\n-A FORWARD -j through\n-A mine -j deep\n\
        -A deep -p tcp -m tcp --dport 22 -j ACCEPT\n-A through -j ACCEPT\nCOMMIT\n";

    #[test]
    fn only_what_belongs_to_the_host_is_given() {
        let ruleset = rules::understand("f", FILE, Family::V4, &[]).expect("good rules");
        assert_eq!(
            ruleset.host_text(),
            "*filter\n:INPUT DROP [0:0]\n:OUTPUT ACCEPT [0:0]\n:deep - [0:0]\n:mine - [0:0]\n-F INPUT\n-F OUTPUT\n\
             -A INPUT -i lo -j ACCEPT\n-A INPUT -j mine\n-A deep -p tcp -m tcp --dport 22 -j ACCEPT\n-A mine -j deep\n\
             COMMIT\n"
        );
    }

    #[test]
    fn chains_that_are_applied_are_not_warned_of() {
        let mut ruleset = rules::understand("f", FILE, Family::V4, &[]).expect("good rules");
        let said = ruleset.warnings().to_string();
        assert!(said.contains("INPUT (2 rules) belongs to the host") && said.contains("--host-chains apply"), "{said}");
        ruleset.forget_host_warnings();
        assert!(!ruleset.warnings().to_string().contains("belongs to the host"), "{}", ruleset.warnings());
    }
}
