//! Rules changed while they are in force: [`change`], as `iptables -A`, `-I`, `-D` and `iptables-restore` do.
//!
//! A change is a text of the same form as a rules file, and is understood as one: all of it is right, or nothing changes. What
//! it leaves alone is shared with the rules before ([`Rule`](super::Rule)s are counted references), and it is known of every rule
//! whether it stays, so nothing is compared and compiling can begin from what was compiled before. Places of the text's
//! rules lie beyond those of the rules before, so that a message about them points into the text.

use super::diagnostic::{Diagnostics, Problem, Report, Span};
use super::parse::{self, Base};
use super::rule::{BUILTIN_CHAINS, ChainIndex, PATH, Rule, Ruleset, Spoken};
use super::{check, set};
use std::sync::Arc;

/// What a change made.
#[derive(Debug)]
pub struct Changed {
    /// The rules now.
    pub ruleset: Ruleset,
    /// For each of them the number that it had before ([`Ruleset::counter_index`]), as [`super::unchanged`] would say.
    pub kept: Vec<Option<usize>>,
    /// The same of those whose counters go on: `-Z` lets them begin anew.
    pub counted: Vec<Option<usize>>,
    /// Built-in chains whose policy's counters begin anew.
    pub zeroed: Vec<ChainIndex>,
    /// Chains of the ruleset that have other rules or another policy now.
    pub touched: Vec<ChainIndex>,
}

impl Changed {
    /// Names of the chains that were changed and that no forwarded packet comes to: they are the host's.
    pub fn of_the_host(&self) -> Vec<&str> {
        let reached = self.ruleset.reached_from(PATH);
        let met = self.ruleset.reached_from((0..BUILTIN_CHAINS).filter(|chain| !PATH.contains(chain)));
        let theirs = self.touched.iter().filter(|&&chain| met[chain] && !reached[chain]);
        theirs.map(|&chain| self.ruleset.chains[chain].name.as_str()).collect()
    }
}

/// The rules that `text` makes of `base`: every table in it is changed by its lines, one after the other (`iptables-restore
/// --noflush`), or with `flush` begins empty, and other tables stay as they are. `name` is what messages call the text.
///
/// ```
/// use xrouter::rules::{change, load, save};
/// use xrouter::wire::Family;
///
/// let base = "*filter\n:FORWARD DROP [0:0]\n-A FORWARD -p tcp -j ACCEPT\n-A FORWARD -p udp -j ACCEPT\nCOMMIT\n";
/// let base = load("x", base, Family::V4, &[]).expect("good rules");
/// let text = "*filter\n-D FORWARD -p tcp -j ACCEPT\n-I FORWARD 1 -s 192.0.2.1 -j DROP\nCOMMIT\n";
/// let changed = change(&base, "a change", text, false).expect("a good change");
/// assert_eq!(changed.kept, [None, Some(1)]);
/// assert!(save(&changed.ruleset, None).contains("-A FORWARD -s 192.0.2.1/32 -j DROP\n-A FORWARD -p udp -j ACCEPT\n"));
/// ```
///
/// # Errors
/// Every line that is wrong or cannot be done, and what is wrong with the rules that it would make.
pub fn change(base: &Ruleset, name: &str, text: &str, flush: bool) -> Result<Changed, Diagnostics> {
    let mut report = Report::after(base.places, name, text);
    let parsed = parse::parse(text, base.family, Some(Base { ruleset: base, flush }), &mut report);
    let flat = parsed.flat;
    let mut ruleset = Ruleset {
        family: base.family,
        file: base.file.clone(),
        ports: base.ports.clone(),
        chains: flat.chains,
        tables: parsed.tables,
        sets: base.sets.clone(),
        named_sets: Vec::new(),
        // Said when the file was read.
        warnings: Diagnostics::default(),
        not_honoured: Diagnostics::default(),
        line_starts: base.line_starts.clone(),
        spoken: base.spoken.clone(),
        spoken_by_changes: base.spoken_by_changes.and(&flat.spoken),
        taken_back: Spoken::default(),
        given: base.given,
        file_end: base.file_end,
        places: base.places + text.len() + 1,
    };
    check::check(&ruleset, &mut report);
    ruleset.named_sets = set::check(&ruleset, &mut report);
    let hosts = check::rules_of_the_host(&ruleset);
    report.leave_to_the_host(|place| hosts.iter().any(|rule| rule.start <= place.start && place.end <= rule.end));
    if !report.has_errors() {
        check_opaque(&ruleset, base.places, &mut report);
    }
    match report.has_errors() || report.has_not_honoured() {
        true => Err(report.finish()),
        false => {
            Ok(Changed { ruleset, kept: flat.kept, counted: flat.counted, zeroed: flat.zeroed, touched: flat.touched })
        }
    }
}

/// Refuses to lead forwarded packets to rules that were only kept as text, since they were the host's.
fn check_opaque(ruleset: &Ruleset, places: usize, report: &mut Report<'_>) {
    let reached = ruleset.reached_from(PATH);
    let chains = || ruleset.chains.iter().enumerate().filter(|&(index, _)| reached[index]);
    for (index, chain) in chains() {
        for rule in chain.rules.iter().filter(|rule| rule.span.start < places) {
            let Some(words) = &rule.opaque else { continue };
            let message = format!(
                "forwarded packets would come to chain {}, which has a rule that cannot be done here",
                chain.name
            );
            let leads = |rule: &&Arc<Rule>| {
                rule.span.start >= places
                    && rule.target.chain().is_some_and(|to| ruleset.reachable_from(to).contains(&index))
            };
            let way = chains().flat_map(|(_, chain)| &chain.rules).find(leads);
            let span = way.map_or(Span::default(), |rule| rule.target_span);
            report.error(Problem::new(span, message, format!("leads to `-A {} {words}`", chain.name)));
        }
    }
}
