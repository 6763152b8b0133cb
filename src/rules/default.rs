//! The policy without a rules file: what a home gateway wants. LAN to WAN may start, answers may return, the rest dies. And the
//! rule by which such a gateway shares its one address, for this policy or a file's: [`masquerade`].

use super::change::change;
use super::diagnostic::Diagnostics;
use super::rule::{NAT_POSTROUTING, Ruleset, Spoken};
use super::save::line_text;
use crate::wire::Family;

/// The built-in IPv4 policy, for interfaces called `lan` and `wan`.
pub const DEFAULT_V4: &str = "\
# The built-in policy: lan to wan may start, answers may return, wan to lan may not start.
*filter
:INPUT ACCEPT [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
-A FORWARD -m conntrack --ctstate INVALID -j DROP
-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -i lan -o wan -m conntrack --ctstate NEW -j ACCEPT
-A FORWARD -i wan -o lan -m conntrack --ctstate NEW -j DROP
COMMIT
";

/// The built-in IPv6 policy, for interfaces called `lan` and `wan`.
pub const DEFAULT_V6: &str = DEFAULT_V4;

/// The built-in policy as `iptables-save` or `ip6tables-save` text, for interfaces of these names.
pub fn default_policy(family: Family, lan: &str, wan: &str) -> String {
    let text = match family {
        Family::V4 => DEFAULT_V4,
        Family::V6 => DEFAULT_V6,
    };
    let name = |word: &str| match word {
        "lan" => lan.to_owned(),
        "wan" => wan.to_owned(),
        _ => word.to_owned(),
    };
    let line = |line: &str| match line.starts_with("-A") {
        true => line.split(' ').map(name).collect::<Vec<_>>().join(" "),
        false => line.to_owned(),
    };
    text.lines().map(|text| line(text) + "\n").collect()
}

/// The table that has connections which leave by the interface `wan` get its address, as `iptables-save` text.
pub fn masquerade_text(wan: &str) -> String {
    format!("*nat\n{}\nCOMMIT\n", line_text(["-A", "POSTROUTING", "-o", wan, "-j", "MASQUERADE"]))
}

/// These rules, with the rule of [`masquerade_text`] at the end of nat POSTROUTING. Where that chain has it already, nothing is
/// added.
///
/// # Errors
/// What is wrong with the rule where it stands, which nothing is in rules that were loaded.
pub fn masquerade(ruleset: Ruleset, wan: &str) -> Result<Ruleset, Diagnostics> {
    let with_it = change(&ruleset, "--masquerade", &masquerade_text(wan), false)?.ruleset;
    let rules = &with_it.chains[NAT_POSTROUTING].rules;
    let (last, others) = rules.split_last().expect("it has been added");
    if others.contains(last) {
        return Ok(ruleset);
    }
    // It is said at the start, not changed while it runs.
    let spoken = ruleset.spoken.and(&with_it.spoken_by_changes);
    Ok(Ruleset { spoken, spoken_by_changes: Spoken::default(), warnings: ruleset.warnings, ..with_it })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::{FORWARD, Policy, load, save};

    #[test]
    fn the_default_policy_loads_for_any_interface_names() {
        for family in [Family::V4, Family::V6] {
            let text = default_policy(family, "eth0", "enp3s0");
            let rules = load("default", &text, family, &["eth0", "enp3s0"]).expect("a good policy");
            assert_eq!((rules.chains[FORWARD].policy, rules.rule_count()), (Some(Policy::Drop), 4));
            assert!(rules.warnings().is_empty(), "{}", rules.warnings());
            assert!(text.contains("-i eth0 -o enp3s0") && !text.contains("-i lan "));
        }
    }

    #[test]
    fn masquerading_is_one_rule_at_the_end() {
        let text = "*filter\n:FORWARD DROP [0:0]\n-A FORWARD -j ACCEPT\nCOMMIT\n*nat\n:mine - [0:0]\n\
                    -A POSTROUTING -s 10.0.0.0/8 -j mine\n-A mine -j ACCEPT\nCOMMIT\n";
        let plain = load("f", text, Family::V4, &["lan", "wan"]).expect("good rules");
        let rules = masquerade(plain.clone(), "wan").expect("a good rule");
        let saved = save(&rules, None);
        assert!(
            saved.contains("-A POSTROUTING -s 10.0.0.0/8 -j mine\n-A POSTROUTING -o wan -j MASQUERADE\n"),
            "{saved}"
        );
        assert_eq!(rules.rule_count(), plain.rule_count() + 1);
        // Said twice, or in the file and beside it, it is there once.
        assert_eq!(masquerade(rules.clone(), "wan").expect("good rules").rule_count(), rules.rule_count());
        let again = load("f", &saved, Family::V4, &["lan", "wan"]).expect("good rules");
        assert_eq!(masquerade(again, "wan").expect("good rules"), rules);
        // What the host is given of it names the chain.
        assert!(rules.host_text().contains("-F POSTROUTING\n"), "{}", rules.host_text());
        // To the built-in policy it brings a table.
        let text = default_policy(Family::V6, "lan", "wan");
        let built_in = load("built-in policy", &text, Family::V6, &["lan", "wan"]).expect("a good policy");
        let rules = masquerade(built_in, "wan").expect("a good rule");
        let whole = load("f", &(text + &masquerade_text("wan")), Family::V6, &["lan", "wan"]).expect("a good policy");
        assert_eq!(rules, whole);
    }

    #[test]
    fn names_that_look_like_each_other_are_not_mixed_up() {
        let text = default_policy(Family::V4, "wan", "lan");
        assert!(text.contains("-i wan -o lan -m conntrack --ctstate NEW -j ACCEPT"));
    }
}
