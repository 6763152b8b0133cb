//! What the daemon reads, at start and at every reload alike: [`Sources`], the command line and the files that it names.
//!
//! The command line does not change in a run; the files may. What is read is checked as a whole, and every wrong place of
//! every rules file is told at once.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::config::{Config, ConfigErrors, HostChains, Layer, Source};
use super::startup::{self, Failure};
use crate::rules::{self, Diagnostics, Ruleset, SetTable};
use crate::time::Instant;
use crate::wire::Family;

/// See the module's head.
#[derive(Clone, Debug)]
pub struct Sources {
    command_line: Layer,
    config_file: Option<PathBuf>,
}

impl Sources {
    /// The settings of the command line, and the configuration file to lay them over.
    pub fn new(command_line: Layer, config_file: Option<PathBuf>) -> Sources {
        Sources { command_line, config_file }
    }

    /// The configuration that they make together now.
    ///
    /// # Errors
    /// [`Failure::Usage`] when the file cannot be read, [`Failure::Report`] with all that is wrong in it.
    pub fn config(&self) -> Result<Config, Failure> {
        let file = match &self.config_file {
            None => None,
            Some(path) => {
                let source = Source { name: path.display().to_string(), text: startup::read_text("--config", path)? };
                let layer = source.layer().map_err(|errors| Failure::Report(errors.to_string()))?;
                Some((layer, source))
            }
        };
        let with_hint =
            |errors: ConfigErrors| Failure::Report(format!("{errors}\n\nFor more information, try '--help'."));
        Config::from_layers(self.command_line.clone(), file).map_err(with_hint)
    }
}

/// The sets that `config` names, to follow those of `before`, at `now` in the workers' time; none where it names none.
///
/// # Errors
/// [`Failure::Usage`] when the file cannot be read, [`Failure::Report`] with every bad line.
pub fn sets(config: &Config, before: &SetTable, now: Instant, styled: bool) -> Result<SetTable, Failure> {
    let (name, text) = sets_text(config)?;
    before.successor(&name, &text, now).map_err(|wrong| Failure::Report(shown(&wrong, styled)))
}

/// Name and text of the file of sets.
///
/// # Errors
/// [`Failure::Usage`] when it cannot be read.
pub fn sets_text(config: &Config) -> Result<(String, String), Failure> {
    match &config.sets {
        Some(path) => Ok((path.display().to_string(), startup::read_text("--sets", path)?)),
        None => Ok(("no sets".to_owned(), String::new())),
    }
}

/// The rules that `config` names, IPv4 and IPv6, which may name these sets; the built-in policy where it names none; each with
/// the rule that masquerades, where `config` says so. `styled` is for a terminal.
///
/// # Errors
/// [`Failure::Usage`] when a file cannot be read, else [`Failure::Report`] with every bad line of both.
pub fn rulesets(config: &Config, sets: &Arc<SetTable>, styled: bool) -> Result<[Ruleset; 2], Failure> {
    let read = |option: &str, path: Option<&Path>, family: Family| {
        let (lan, wan) = (config.lan.as_str(), config.wan.as_str());
        let (name, text) = match path {
            Some(path) => (path.display().to_string(), startup::read_text(option, path)?),
            None => ("built-in policy".to_owned(), rules::default_policy(family, lan, wan)),
        };
        let loaded = rules::load_with_sets(&name, &text, family, &[lan, wan], sets);
        let masqueraded = loaded.and_then(|ruleset| match config.masquerade.is_for(family) {
            true => rules::masquerade(ruleset, wan),
            false => Ok(ruleset),
        });
        let mut ruleset = masqueraded.map_err(|wrong| Failure::Report(shown(&wrong, styled)))?;
        if config.host_chains == HostChains::Apply && path.is_some() {
            ruleset.give_to_the_host();
        }
        Ok(ruleset)
    };
    let v4 = read("--rules", config.rules.as_deref(), Family::V4);
    let v6 = read("--rules6", config.rules6.as_deref(), Family::V6);
    match (v4, v6) {
        (Ok(v4), Ok(v6)) => Ok([v4, v6]),
        (Err(Failure::Report(v4)), Err(Failure::Report(v6))) => Err(Failure::Report(format!("{v4}\n{v6}"))),
        (Err(failure), _) | (_, Err(failure)) => Err(failure),
    }
}

/// What rules ask for and the rest of the configuration does not give.
pub fn lacking(config: &Config, rulesets: [&Ruleset; 2]) -> Option<String> {
    let file = rulesets.into_iter().find(|ruleset| ruleset.has_copies()).map(|ruleset| &ruleset.file);
    file.filter(|_| config.nflog.is_none()).map(|file| {
        format!(
            "{file} has NFLOG rules, and their copies go nowhere: give a place by `--nflog FILE.pcapng`, or \
             `nflog = \"FILE.pcapng\"`"
        )
    })
}

/// Diagnostics as text.
pub fn shown(diagnostics: &Diagnostics, styled: bool) -> String {
    if styled { diagnostics.to_styled() } else { diagnostics.to_string() }
}

/// What of `new` only a restart brings into force: the names of settings that differ from those of `old`.
pub fn needs_restart(old: &Config, new: &Config) -> Vec<&'static str> {
    let differs = [
        ("lan", old.lan != new.lan),
        ("wan", old.wan != new.wan),
        ("mode", old.mode != new.mode),
        ("workers", old.workers != new.workers),
        ("poll", old.poll != new.poll),
        ("nic_setup", old.nic_setup != new.nic_setup),
        ("state", old.state != new.state),
        ("nflog", old.nflog != new.nflog),
        ("metrics", old.metrics != new.metrics),
        ("control", old.control != new.control),
        ("sysctl_from_kernel", old.sysctl_from_kernel != new.sysctl_from_kernel),
    ];
    differs.into_iter().filter(|(_, differs)| *differs).map(|(name, _)| name).collect()
}

/// The conntrack settings that `new` gives another value than `old` did. What `xrouter sysctl` has changed since stays, as long
/// as the file says the same of it as before.
pub fn changed_settings(old: &Config, new: &Config) -> Vec<(String, u64)> {
    // A name that stands twice has its last value.
    let value = |config: &Config, name: &str| config.conntrack.iter().rev().find(|it| it.0 == name).map(|it| it.1);
    let changed = new.conntrack.iter().filter(|(name, _)| value(old, name) != value(new, name));
    changed.cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Config {
        let source = Source { name: "x.toml".into(), text: format!("lan = \"a\"\nwan = \"b\"\n{text}") };
        let layer = source.layer().expect("good text");
        Config::from_layers(Layer::default(), Some((layer, source))).expect("a good configuration")
    }

    #[test]
    fn what_a_reload_cannot_change_is_named() {
        let old = config("mode = \"copy\"\n");
        assert_eq!(needs_restart(&old, &old), [""; 0]);
        let new = config("mode = \"generic\"\nmetrics = \"127.0.0.1:1\"\nrules = \"/x\"\n");
        assert_eq!(needs_restart(&old, &new), ["mode", "metrics"]);
    }

    #[test]
    fn only_settings_that_the_file_changes_are_set() {
        let old = config("[conntrack]\nnf_conntrack_max = 7\nnf_conntrack_udp_timeout = 30\n");
        let new = config("[conntrack]\nnf_conntrack_udp_timeout = 60\nnf_conntrack_tcp_loose = 0\n");
        let name = |name: &str, value| (format!("nf_conntrack_{name}"), value);
        assert_eq!(changed_settings(&old, &new), [name("udp_timeout", 60), name("tcp_loose", 0)]);
        assert_eq!(changed_settings(&old, &old), []);
    }

    #[test]
    fn both_files_are_read_to_the_end() {
        let folder = std::env::temp_dir().join(format!("xrsources{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder");
        let file = |name: &str, text: &str| {
            std::fs::write(folder.join(name), text).expect("a file");
            folder.join(name).display().to_string()
        };
        let (v4, v6) =
            (file("v4", "*filter\n-A FORWARD -j NOWHERE\nCOMMIT\n"), file("v6", "*filter\nnonsense\nCOMMIT\n"));
        let config = config(&format!("rules = \"{v4}\"\nrules6 = \"{v6}\"\n"));
        let wrong = rulesets(&config, &Arc::default(), false).expect_err("both wrong");
        std::fs::remove_dir_all(&folder).expect("ours");
        assert_eq!(wrong.exit_code(), 2);
        assert!(wrong.message().contains("NOWHERE") && wrong.message().contains("nonsense"), "{wrong}");
    }
}
